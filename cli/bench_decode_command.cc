// oscarkv bench decode: times decode steps of a model of a well-known shape and random weights on a
// GPU, over bf16 blocks and over 2-bit pages.
#include <algorithm>
#include <cstdio>
#include <random>

#include "absl/strings/str_cat.h"
#include "cli/command.h"
#include "cli/random_model.h"
#include "cli/terminal.h"
#include "codec/codec.h"
#include "common/status_macros.h"
#include "model/cuda/cuda_runner.h"

namespace oscarkv::cli {
namespace {

// The slots of one sequence of `context` tokens, the one to come included.
struct Need {
  int pages = 0, blocks = 0;
  int first_window = 0;  // block
  Need(int context, bool coded) {
    const int last = BlockOf(context - 1);
    first_window = coded ? std::min(FirstWindowBlock(context - 1), last) : kSinkBlocks;
    pages = std::max(0, first_window - kSinkBlocks);
    blocks = last + 1 - pages;
  }
  uint64_t Bytes(const kernels::KvShape& shape) const {
    return pages * shape.PageBytes() + blocks * shape.Bf16BlockBytes();
  }
};

struct Row {
  int batch = 0;
  double step_ms = 0, attention_ms = 0, products_ms = 0, rest_ms = 0;
};

class BenchDecodeCommand final : public Command {
 public:
  std::string name() const override { return "bench decode"; }
  std::string summary() const override {
    return "Time decode steps on a GPU over bf16 blocks and over 2-bit pages";
  }
  void AddOptions(OptionTable* table) override {
    table->AddChoice("shape", &shape_, ShapeNames(), "Shape of the model");
    table->AddBool("random-weights", &random_weights_,
                   "Fill weights and cache with random numbers; there is no other way yet");
    table->AddString("device", &device_, "cuda:N", "The GPU");
    table->AddStrings("contexts", &contexts_, "N,...", "Tokens of each sequence");
    table->AddStrings("batches", &batches_, "N,...",
                      "Sequences per step; what does not fit into the GPU's memory is left out");
    table->AddStrings("profiles", &profiles_, "NAME,...", "Profiles of the KV cache");
    table->AddBytes("kv-budget", &budget_, 0, uint64_t{1} << 50,
                    "Also time the largest batches whose KV cache fits into this; 0: none");
    table->AddBool("early-launches", &early_launches_,
                   "Kernels may start while the one before still runs, as in serving");
    table->AddInt("rounds", &rounds_, 3, 10000, "Steps of each measurement; the median counts");
  }

  absl::Status Run() override {
    if (!random_weights_)
      return absl::InvalidArgumentError("--random-weights is missing: there is no other way yet");
    ASSIGN_OR_RETURN(const std::vector<int> contexts, Numbers("contexts", contexts_, 1 << 22));
    ASSIGN_OR_RETURN(const std::vector<int> batches, Numbers("batches", batches_, 4096));
    const int longest = *std::max_element(contexts.begin(), contexts.end());
    std::vector<Profile> profiles;
    for (const std::string& name : profiles_) {
      ASSIGN_OR_RETURN(const Profile profile, ParseProfile(name));
      profiles.push_back(profile);
    }
    std::printf(
        "%s, random weights, %s; milliseconds of a step by graph replay, median of %d, "
        "without the logits' copy to the host\n\n"
        "| profile | context | batch | step | attention | products | rest | tokens/s | KV GB |\n"
        "|---|---|---|---|---|---|---|---|---|\n",
        shape_.c_str(), device_.c_str(), rounds_);
    for (const Profile profile : profiles)
      RETURN_IF_ERROR(RunProfile(ShapeOf(shape_, longest), profile, contexts, batches));
    return absl::OkStatus();
  }

 private:
  absl::Status RunProfile(const ModelConfig& config, Profile profile,
                          const std::vector<int>& contexts, const std::vector<int>& batches) {
    ASSIGN_OR_RETURN(auto codec, DataFreeCodec(profile, config.kv_shape()));
    TransformerOptions options;
    options.device = device_;
    ASSIGN_OR_RETURN(const std::unique_ptr<CudaRunner> runner,
                     CudaRunner::Random(config, std::move(codec), options, /*seed=*/1));
    runner->device().api().SetEarlyLaunches(early_launches_);
    for (const int context : contexts) {
      std::vector<int> sizes = batches;
      const Need need(context, profile != Profile::kBf16);
      if (budget_ > 0)
        sizes.push_back(static_cast<int>(budget_ / need.Bytes(runner->codec().shape())));
      for (const int batch : sizes) {
        if (batch < 1) continue;
        RETURN_IF_ERROR(Measure(runner.get(), profile, context, need, batch));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Measure(CudaRunner* runner, Profile profile, int context, const Need& need,
                       int batch) {
    const kernels::KvShape& shape = runner->codec().shape();
    ASSIGN_OR_RETURN(
        const std::unique_ptr<EmptyPool> memory,
        EmptyPool::Create(shape, size_t{1} * batch * need.pages, size_t{1} * batch * need.blocks));
    const absl::Status filled = runner->FillPool(memory->pool(), /*seed=*/2);
    if (absl::IsResourceExhausted(filled)) return absl::OkStatus();  // as --batches says
    RETURN_IF_ERROR(filled);
    std::vector<SequenceKv> sequences;
    for (int s = 0; s < batch; ++s) sequences.emplace_back(&memory->pool());
    TakeSlots(context, need, &sequences);
    std::vector<DecodeInput> inputs;
    // Not the last token of a block: encoding is not part of every step.
    const int position = context - (context % kBlockTokens == 0 ? 2 : 1);
    for (int s = 0; s < batch; ++s) inputs.push_back({s % 1000, position, &sequences[s]});
    const auto time = [&](CudaRunner::StepParts parts) -> absl::StatusOr<double> {
      ASSIGN_OR_RETURN(const std::vector<float> ms, runner->TimeSteps(inputs, parts, rounds_));
      return Median(ms);
    };
    Row row;
    ASSIGN_OR_RETURN(row.step_ms, time({}));
    ASSIGN_OR_RETURN(row.attention_ms, time({.products = false, .rest = false}));
    ASSIGN_OR_RETURN(row.products_ms, time({.attention = false, .rest = false}));
    row.rest_ms = row.step_ms - row.attention_ms - row.products_ms;
    std::printf("| %s | %d | %d | %.3f | %.3f | %.3f | %.3f | %.0f | %.2f |\n",
                std::string(ProfileName(profile)).c_str(), context, batch, row.step_ms,
                row.attention_ms, row.products_ms, row.rest_ms, 1e3 * batch / row.step_ms,
                1e-9 * static_cast<double>(batch * need.Bytes(shape)));
    std::fflush(stdout);
    return absl::OkStatus();
  }

  // In random order, as after a while of serving.
  static void TakeSlots(int context, const Need& need, std::vector<SequenceKv>* sequences) {
    std::vector<std::pair<int, int>> order;
    for (size_t s = 0; s < sequences->size(); ++s) {
      for (int b = 0; b <= BlockOf(context - 1); ++b) order.emplace_back(s, b);
    }
    std::shuffle(order.begin(), order.end(), std::mt19937_64(3));
    for (const auto& [s, b] : order) {
      if (b >= kSinkBlocks && b < need.first_window) {
        (*sequences)[s].EnsurePage(b);
      } else {
        (*sequences)[s].EnsureBlock(b);
      }
    }
  }

  std::string shape_ = "qwen3-8b", device_ = "cuda:0";
  bool random_weights_ = false, early_launches_ = true;
  std::vector<std::string> contexts_ = {"8192", "32768", "131072"}, batches_ = {"1", "8", "32"};
  std::vector<std::string> profiles_ = {"bf16", "oscar"};
  uint64_t budget_ = 0;
  int rounds_ = 20;
};

}  // namespace

std::unique_ptr<Command> NewBenchDecodeCommand() {
  return std::make_unique<BenchDecodeCommand>();
}

}  // namespace oscarkv::cli
