#include "eval/collector.h"

#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/crc32c.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

constexpr uint64_t kMaxCheckpointBytes = uint64_t{4} << 30;

absl::Status Annotate(const absl::Status& s, const std::string& where) {
  return s.ok() ? s : absl::Status(s.code(), absl::StrCat(where, ": ", s.message()));
}

}  // namespace

Collector::Collector(const CollectOptions& options, std::string digest,
                     const std::vector<std::vector<int32_t>>& prompts,
                     const std::vector<std::vector<double>>& output_gram, ActivationStats* stats)
    : options_(options),
      digest_(std::move(digest)),
      prompts_(prompts),
      output_gram_(output_gram),
      stats_(stats) {}

absl::StatusOr<std::optional<bool>> Collector::Resume() {
  std::error_code ec;
  const std::string& path = options_.checkpoint_file;
  if (path.empty() || !std::filesystem::exists(path, ec)) return std::nullopt;
  const auto read = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const std::vector<uint8_t> bytes, ReadWholeFile(path, kMaxCheckpointBytes));
    ASSIGN_OR_RETURN(const TensorFile file, TensorFile::Open(bytes));
    if (file.Metadata("run") != digest_) {
      return absl::FailedPreconditionError(
          "is the checkpoint of another run (other model, texts or options): delete it, or name "
          "another by --checkpoint");
    }
    const std::string layers = file.Metadata("layers_done");
    by_layers_ = !layers.empty();
    const int most =
        by_layers_ ? stats_->shape().num_layers : passes() * static_cast<int>(prompts_.size());
    if (!absl::SimpleAtoi(by_layers_ ? layers : file.Metadata("prompts_done"), &done_) ||
        done_ < 0 || done_ > most ||
        (by_layers_ && !absl::SimpleAtoi(file.Metadata("hidden_crc32c"), &hidden_crc_)))
      return absl::InvalidArgumentError("says nothing about how far its run came");
    resumed_at_ = done_;
    return stats_->Restore(file);
  };
  RETURN_IF_ERROR(Annotate(read(), path));
  return by_layers_;
}

void Collector::Observe(int layer, const Transformer::LayerActivations& a, bool second_pass,
                        kernels::Executor* executor) {
  if (second_pass) return stats_->AddWeighted(layer, a, executor);
  stats_->Add(layer, a, executor);
  if (options_.importance) stats_->AddImportance(layer, a, output_gram_, executor);
}

absl::Status Collector::ByPrompts(Transformer* model) {
  const int prompts = static_cast<int>(prompts_.size()), total = passes() * prompts;
  for (; done_ < total; ++done_) {
    Progress(static_cast<double>(done_) / total);
    if (!options_.checkpoint_file.empty() && done_ > resumed_at_ &&
        done_ % options_.checkpoint_every == 0) {
      RETURN_IF_ERROR(WriteCheckpoint());
    }
    RETURN_IF_ERROR(RunPrompt(model, prompts_[done_ % prompts], done_ >= prompts));
  }
  Progress(1);
  RemoveCheckpoint();
  return absl::OkStatus();
}

absl::Status Collector::RunPrompt(Transformer* model, const std::vector<int32_t>& tokens,
                                  bool second_pass) {
  model->set_layer_observer([&](int layer, const Transformer::LayerActivations& a) {
    Observe(layer, a, second_pass, model->executor());
  });
  PrefillChunk chunk;
  chunk.tokens = tokens;
  return model->Prefill(chunk).status();
}

absl::Status Collector::ByLayers(StreamedTransformer* model) {
  by_layers_ = true;
  RETURN_IF_ERROR(EmbedOrRead(model));
  const int layers = stats_->shape().num_layers;
  while (done_ < layers) {
    RETURN_IF_ERROR(model->LoadLayer(done_));
    RETURN_IF_ERROR(RunLayer(done_, model));
    ++done_;
    if (!options_.checkpoint_file.empty() && done_ < layers) RETURN_IF_ERROR(WriteCheckpoint());
  }
  Progress(1);
  RemoveCheckpoint();
  hidden_ = {};
  return absl::OkStatus();
}

absl::Status Collector::RunLayer(int layer, StreamedTransformer* model) {
  const size_t layers = stats_->shape().num_layers, per_layer = passes() * prompts_.size();
  for (size_t i = 0; i < per_layer; ++i) {
    Progress((layer + static_cast<double>(i) / per_layer) / layers);
    // The second pass needs the sums of the first over all prompts: only it goes on.
    const bool second_pass = i >= prompts_.size(), last = i + prompts_.size() >= per_layer;
    const size_t prompt = i % prompts_.size();
    RETURN_IF_ERROR(model->Run(
        prompts_[prompt],
        [&](int l, const Transformer::LayerActivations& a) {
          Observe(l, a, second_pass, model->executor());
        },
        /*advance=*/last, &hidden_[prompt]));
  }
  return absl::OkStatus();
}

absl::Status Collector::EmbedOrRead(StreamedTransformer* model) {
  hidden_.resize(prompts_.size());
  if (done_ > 0) {
    std::error_code ignored;  // of a run that ended before it could remove this
    std::filesystem::remove(HiddenFile(done_ - 1), ignored);
    return Annotate(ReadHidden(model->config().hidden_size), HiddenFile(done_));
  }
  for (size_t i = 0; i < prompts_.size(); ++i)
    RETURN_IF_ERROR(model->Embed(prompts_[i], &hidden_[i]));
  return absl::OkStatus();
}

absl::Status Collector::WriteHidden(uint32_t* crc) const {
  const std::string path = HiddenFile(done_);
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  *crc = 0;
  for (const std::vector<float>& x : hidden_) {
    *crc = Crc32c(x.data(), x.size() * sizeof(float), *crc);
    out.write(reinterpret_cast<const char*>(x.data()),
              static_cast<std::streamsize>(x.size() * sizeof(float)));
  }
  out.close();
  if (!out) return absl::UnavailableError(absl::StrCat("writing ", path, " failed"));
  return absl::OkStatus();
}

absl::Status Collector::ReadHidden(int hidden_size) {
  std::ifstream in(HiddenFile(done_), std::ios::binary);
  if (!in) return absl::FailedPreconditionError("missing: it belongs to the checkpoint");
  uint32_t crc = 0;
  for (size_t i = 0; i < prompts_.size(); ++i) {
    hidden_[i].resize(prompts_[i].size() * hidden_size);
    const size_t bytes = hidden_[i].size() * sizeof(float);
    in.read(reinterpret_cast<char*>(hidden_[i].data()), static_cast<std::streamsize>(bytes));
    if (!in) return absl::DataLossError("shorter than the hidden states of all prompts");
    crc = Crc32c(hidden_[i].data(), bytes, crc);
  }
  if (in.peek() != std::ifstream::traits_type::eof() || crc != hidden_crc_)
    return absl::DataLossError("not what the checkpoint was written with");
  return absl::OkStatus();
}

absl::Status Collector::WriteCheckpoint() const {
  TensorFileWriter file;
  file.SetMetadata("format", "oscarkv.calibration-checkpoint");
  file.SetMetadata("run", digest_);
  if (by_layers_) {
    // Before the file that names it, and under a name of its own: a run that ends in between goes
    // on from the layer before.
    uint32_t crc = 0;
    RETURN_IF_ERROR(WriteHidden(&crc));
    file.SetMetadata("layers_done", absl::StrCat(done_));
    file.SetMetadata("hidden_crc32c", absl::StrCat(crc));
  } else {
    file.SetMetadata("prompts_done", absl::StrCat(done_));
  }
  stats_->Save(&file);
  RETURN_IF_ERROR(WriteWholeFile(options_.checkpoint_file, file.Finish()));
  std::error_code ignored;
  if (by_layers_) std::filesystem::remove(HiddenFile(done_ - 1), ignored);
  return absl::OkStatus();
}

std::string Collector::HiddenFile(int layers) const {
  return absl::StrCat(options_.checkpoint_file, ".hidden-", layers);
}

void Collector::RemoveCheckpoint() const {
  if (options_.checkpoint_file.empty()) return;
  std::error_code ignored;
  std::filesystem::remove(options_.checkpoint_file, ignored);
  if (by_layers_) std::filesystem::remove(HiddenFile(stats_->shape().num_layers - 1), ignored);
}

void Collector::Progress(double share) const {
  if (options_.progress) options_.progress(share);
}

}  // namespace oscarkv
