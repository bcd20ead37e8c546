#include "model/golden_check.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"
#include "model/cuda/cuda_runner.h"
#include "model/safetensors.h"
#include "model/transformer.h"

namespace oscarkv {
namespace {

// One prompt of a golden file.
struct Golden {
  std::string name;
  std::vector<int32_t> ids;
  std::vector<float> logits;    // [vocab], last position
  std::vector<int32_t> argmax;  // of every position, or of none
  struct Kv {
    int layer = 0;
    bool value = false;
    std::string tensor;
    std::vector<float> data;  // [kv_heads, tokens, head_dim]
  };
  std::vector<Kv> kv;
};

// "layer7.k" -> layer 7, K.
std::optional<Golden::Kv> ParseKvName(absl::string_view name) {
  Golden::Kv kv;
  kv.tensor = std::string(name);
  if (!absl::ConsumePrefix(&name, "layer")) return std::nullopt;
  kv.value = absl::EndsWith(name, ".v");
  if (!absl::ConsumeSuffix(&name, ".k") && !absl::ConsumeSuffix(&name, ".v")) return std::nullopt;
  if (!absl::SimpleAtoi(name, &kv.layer)) return std::nullopt;
  return kv;
}

absl::StatusOr<Golden> ReadNamed(const TensorStore& store, const ModelConfig& config,
                                 const std::string& name) {
  Golden g;
  g.name = name;
  ASSIGN_OR_RETURN(g.ids, store.ReadI32(name + ".ids"));
  ASSIGN_OR_RETURN(g.logits, store.ReadF32(name + ".logits", {config.vocab_size}));
  for (const std::string& tensor : store.Names()) {
    absl::string_view rest = tensor;
    if (!absl::ConsumePrefix(&rest, name + ".")) continue;
    std::optional<Golden::Kv> kv = ParseKvName(rest);
    if (!kv.has_value()) continue;
    if (kv->layer < 0 || kv->layer >= config.num_layers) {
      return absl::InvalidArgumentError(
          absl::StrCat(tensor, ": the model has ", config.num_layers, " layers"));
    }
    const std::vector<int64_t> shape = {config.num_kv_heads, static_cast<int64_t>(g.ids.size()),
                                        config.head_dim};
    ASSIGN_OR_RETURN(kv->data, store.ReadF32(tensor, shape));
    g.kv.push_back(*std::move(kv));
  }
  return g;
}

absl::StatusOr<Golden> ReadByLength(const TensorStore& store, const ModelConfig& config,
                                    const std::string& length) {
  Golden g;
  g.name = length + " tokens";
  ASSIGN_OR_RETURN(g.ids, store.ReadI32("ids_" + length));
  ASSIGN_OR_RETURN(g.logits, store.ReadF32("logits_last_" + length, {config.vocab_size}));
  ASSIGN_OR_RETURN(g.argmax, store.ReadI32("argmax_" + length));
  if (g.argmax.size() != g.ids.size()) {
    return absl::InvalidArgumentError(absl::StrCat("argmax_", length, " has ", g.argmax.size(),
                                                   " values for ", g.ids.size(), " tokens"));
  }
  return g;
}

absl::StatusOr<std::vector<Golden>> ReadGoldens(const std::string& file,
                                                const ModelConfig& config) {
  ASSIGN_OR_RETURN(const std::unique_ptr<TensorStore> store, TensorStore::Open(file));
  std::vector<Golden> goldens;
  for (const std::string& tensor : store->Names()) {
    absl::string_view name = tensor;
    if (absl::ConsumeSuffix(&name, ".ids")) {
      ASSIGN_OR_RETURN(Golden g, ReadNamed(*store, config, std::string(name)));
      goldens.push_back(std::move(g));
    } else if (absl::ConsumePrefix(&name, "ids_")) {
      ASSIGN_OR_RETURN(Golden g, ReadByLength(*store, config, std::string(name)));
      goldens.push_back(std::move(g));
    }
  }
  if (goldens.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, " holds no prompt: expected tensors NAME.ids or ids_LENGTH"));
  }
  std::sort(goldens.begin(), goldens.end(),
            [](const Golden& a, const Golden& b) { return a.ids.size() < b.ids.size(); });
  return goldens;
}

// K or V of a layer [kv_head][>= tokens][d] against the golden.
double KvDifference(const std::vector<float>& golden, const float* ours, int64_t head_stride,
                    int kv_heads) {
  const int64_t per_head = static_cast<int64_t>(golden.size()) / kv_heads;
  double worst = 0;
  for (int h = 0; h < kv_heads; ++h) {
    for (int64_t i = 0; i < per_head; ++i) {
      const double difference =
          std::abs(double{golden[h * per_head + i]} - ours[h * head_stride + i]);
      if (!(difference <= worst)) worst = difference;  // NaN sticks
    }
  }
  return worst;
}

void Compare(const Golden& golden, const PrefillOutput& ours, GoldenPrompt* result) {
  for (size_t i = 0; i < golden.logits.size(); ++i) {
    const double difference = std::abs(double{golden.logits[i]} - ours.logits[i]);
    if (!(difference <= result->max_logit_difference)) result->max_logit_difference = difference;
  }
  const auto count = [&](int32_t expected, size_t position) {
    const bool agrees = ours.all_argmax[position] == expected;
    ++result->positions;
    result->agreeing += agrees;
    if (!(ours.all_top_gap[position] > GoldenBounds::kMinGap)) return;
    ++result->clear;
    result->clear_agreeing += agrees;
  };
  if (golden.argmax.empty()) {
    const auto best = std::max_element(golden.logits.begin(), golden.logits.end());
    count(static_cast<int32_t>(best - golden.logits.begin()), golden.ids.size() - 1);
  }
  for (size_t i = 0; i < golden.argmax.size(); ++i) count(golden.argmax[i], i);
}

// What is checked: a runner that can show K and V of a prompt.
class Subject {
 public:
  virtual ~Subject() = default;
  // `chunk`: tokens and what is wanted. Adds the differences of K and V to *result.
  virtual absl::StatusOr<PrefillOutput> Run(const Golden& golden, PrefillChunk chunk,
                                            GoldenPrompt* result) = 0;
  virtual absl::Status RoundRopeFrequencies() = 0;
};

class CpuSubject final : public Subject {
 public:
  explicit CpuSubject(std::unique_ptr<Transformer> model) : model_(std::move(model)) {}

  absl::StatusOr<PrefillOutput> Run(const Golden& golden, PrefillChunk chunk,
                                    GoldenPrompt* result) override {
    model_->set_layer_observer([&](int layer, const Transformer::LayerActivations& a) {
      for (const Golden::Kv& g : golden.kv) {
        if (g.layer != layer) continue;
        result->kv.push_back({g.tensor, KvDifference(g.data, g.value ? a.v : a.k, a.head_stride,
                                                     model_->config().num_kv_heads)});
      }
    });
    absl::StatusOr<PrefillOutput> out = model_->Prefill(chunk);
    model_->set_layer_observer(nullptr);
    return out;
  }
  absl::Status RoundRopeFrequencies() override {
    model_->RoundRopeFrequencies();
    return absl::OkStatus();
  }

 private:
  const std::unique_ptr<Transformer> model_;
};

// K and V as they lie in the pool, in bf16.
class CudaSubject final : public Subject {
 public:
  explicit CudaSubject(std::unique_ptr<CudaRunner> model) : model_(std::move(model)) {}

  absl::StatusOr<PrefillOutput> Run(const Golden& golden, PrefillChunk chunk,
                                    GoldenPrompt* result) override {
    const kernels::KvShape shape = model_->config().kv_shape();
    const int tokens = static_cast<int>(golden.ids.size()), blocks = BlockOf(tokens - 1) + 1;
    std::vector<uint8_t> memory(blocks * shape.Bf16BlockBytes() + 128);
    auto* start =
        reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory.data()) + 127) / 128 * 128);
    KvPool pool(shape, {}, absl::MakeSpan(start, blocks * shape.Bf16BlockBytes()));
    SequenceKv kv(&pool);
    for (int b = 0; b < blocks; ++b) kv.EnsureBlock(b);
    chunk.kv = &kv;
    ASSIGN_OR_RETURN(PrefillOutput out, model_->Prefill(chunk));
    for (int b = 0; b < blocks; ++b) RETURN_IF_ERROR(model_->ToHost(kv, b));
    for (const Golden::Kv& g : golden.kv) {
      std::vector<float> ours;
      for (int h = 0; h < shape.num_kv_heads; ++h) {
        for (int t = 0; t < tokens; ++t) {
          const kernels::Bf16* row = pool.block_layer(kv.at(BlockOf(t)).block, g.layer) +
                                     (g.value ? shape.Bf16SideElements() : 0) +
                                     (h * kBlockTokens + t % kBlockTokens) * shape.head_dim;
          for (int c = 0; c < shape.head_dim; ++c) ours.push_back(kernels::ToFloat(row[c]));
        }
      }
      result->kv.push_back(
          {g.tensor, KvDifference(g.data, ours.data(), int64_t{tokens} * shape.head_dim,
                                  shape.num_kv_heads)});
    }
    return out;
  }
  absl::Status RoundRopeFrequencies() override { return model_->RoundRopeFrequencies(); }

 private:
  const std::unique_ptr<CudaRunner> model_;
};

absl::StatusOr<std::unique_ptr<Subject>> LoadSubject(const GoldenCheckOptions& options,
                                                     const ModelConfig& config) {
  CodecOptions codec_options;
  codec_options.profile = Profile::kBf16;  // no rotation: K and V are the model's own
  ASSIGN_OR_RETURN(std::shared_ptr<const KvCodec> codec,
                   CreateCodec(codec_options, config.kv_shape()));
  TransformerOptions model;
  model.compute = options.compute;
  model.device = options.device;
  model.threads = options.threads;
  model.progress = options.progress;
  ASSIGN_OR_RETURN(const int cuda_device, ParseDevice(options.device));
  if (cuda_device >= 0) {
    ASSIGN_OR_RETURN(std::unique_ptr<CudaRunner> runner,
                     CudaRunner::Load(options.model_dir, std::move(codec), model));
    return std::make_unique<CudaSubject>(std::move(runner));
  }
  model.fp32_kv = true;
  ASSIGN_OR_RETURN(std::unique_ptr<Transformer> transformer,
                   Transformer::Load(options.model_dir, std::move(codec), model));
  return std::make_unique<CpuSubject>(std::move(transformer));
}

absl::StatusOr<GoldenPrompt> RunPrompt(const Golden& golden, Subject* subject) {
  GoldenPrompt result;
  result.name = golden.name;
  result.tokens = static_cast<int>(golden.ids.size());
  if (golden.ids.empty())
    return absl::InvalidArgumentError(absl::StrCat(golden.name, " has no tokens"));
  PrefillChunk chunk;
  chunk.tokens = golden.ids;
  chunk.want_logits = chunk.want_all_argmax = true;
  ASSIGN_OR_RETURN(const PrefillOutput out, subject->Run(golden, chunk, &result));
  Compare(golden, out, &result);
  return result;
}

// `agreement`: the share of argmaxes that must be equal, unless fp32.
void Judge(bool fp32, double agreement, GoldenReport* report) {
  int positions = 0, agreeing = 0;
  const auto fail = [&](const GoldenPrompt& p, const std::string& what) {
    report->failures.push_back(absl::StrCat(p.name, ": ", what));
  };
  const auto too_far = [](double difference) {
    return !(difference < GoldenBounds::kMaxDifference);
  };
  for (const GoldenPrompt& p : report->prompts) {
    positions += p.positions;
    agreeing += p.agreeing;
    if (!fp32) continue;
    if (too_far(p.max_logit_difference))
      fail(p, absl::StrFormat("worst logit difference %.2g", p.max_logit_difference));
    if (p.clear_agreeing < p.clear)
      fail(p, absl::StrCat(p.clear - p.clear_agreeing, " clear argmaxes differ"));
    for (const auto& kv : p.kv) {
      if (too_far(kv.max_difference))
        fail(p, absl::StrFormat("%s differs by %.2g", kv.tensor, kv.max_difference));
    }
  }
  if (!fp32 && agreeing < agreement * positions) {
    report->failures.push_back(absl::StrFormat("%d of %d argmaxes agree; %.0f %% are required",
                                               agreeing, positions, 100 * agreement));
  }
  report->passed = report->failures.empty();
}

absl::StatusOr<GoldenReport> RunAll(const std::vector<Golden>& goldens, bool fp32, double agreement,
                                    Subject* subject) {
  GoldenReport report;
  for (const Golden& golden : goldens) {
    ASSIGN_OR_RETURN(GoldenPrompt prompt, RunPrompt(golden, subject));
    report.prompts.push_back(std::move(prompt));
  }
  Judge(fp32, agreement, &report);
  return report;
}

}  // namespace

std::string GoldenReport::ToString() const {
  std::string s = absl::StrFormat("%-14s %7s %16s %18s\n", "prompt", "tokens", "worst logit diff",
                                  "argmaxes agreeing");
  for (const GoldenPrompt& p : prompts) {
    absl::StrAppendFormat(&s, "%-14s %7d %16.2g %11d of %d (%d of %d with a lead over %g)\n",
                          p.name, p.tokens, p.max_logit_difference, p.agreeing, p.positions,
                          p.clear_agreeing, p.clear, GoldenBounds::kMinGap);
    for (const auto& kv : p.kv)
      absl::StrAppendFormat(&s, "  %-12s %24.2g\n", kv.tensor, kv.max_difference);
  }
  for (const std::string& failure : failures) absl::StrAppend(&s, "FAILED ", failure, "\n");
  absl::StrAppend(
      &s, passed ? "passed" : "failed",
      bf16_rope ? ", with rotary frequencies rounded to bf16 as in a model cast to bf16 as a whole"
                : "",
      "\n");
  return s;
}

absl::StatusOr<GoldenReport> RunGoldenCheck(const GoldenCheckOptions& options) {
  const bool fp32 = options.compute == kernels::Compute::kFp32;
  const double agreement =
      options.device == "cpu" ? GoldenBounds::kBf16Agreement : GoldenBounds::kBf16CacheAgreement;
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(options.model_dir));
  ASSIGN_OR_RETURN(const std::vector<Golden> goldens, ReadGoldens(options.golden_file, config));
  ASSIGN_OR_RETURN(const std::unique_ptr<Subject> subject, LoadSubject(options, config));
  ASSIGN_OR_RETURN(GoldenReport report, RunAll(goldens, fp32, agreement, subject.get()));
  if (report.passed) return report;
  RETURN_IF_ERROR(subject->RoundRopeFrequencies());
  ASSIGN_OR_RETURN(GoldenReport rounded, RunAll(goldens, fp32, agreement, subject.get()));
  rounded.bf16_rope = true;
  // Where both fail, the one that is nearer is the one that tells something.
  const auto agreeing = [](const GoldenReport& r) {
    int n = 0;
    for (const GoldenPrompt& p : r.prompts) n += p.agreeing;
    return n;
  };
  return rounded.passed || agreeing(rounded) > agreeing(report) ? rounded : report;
}

}  // namespace oscarkv
