// oscarkv bench prefill: times whole prompts of a model of a well-known shape and random weights on
// a GPU: what encoding costs, and what attending the stored codes (canonical history) costs.
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "cli/command.h"
#include "cli/random_model.h"
#include "common/status_macros.h"
#include "model/cuda/cuda_runner.h"

namespace oscarkv::cli {
namespace {

struct Variant {
  Profile profile;
  PrefillHistory history;
};
constexpr Variant kVariants[] = {{Profile::kBf16, PrefillHistory::kExact},
                                 {Profile::kOscar, PrefillHistory::kExact},
                                 {Profile::kOscar, PrefillHistory::kCanonical},
                                 {Profile::kShaped, PrefillHistory::kExact},
                                 {Profile::kShapedSym, PrefillHistory::kExact}};

class BenchPrefillCommand final : public Command {
 public:
  std::string name() const override { return "bench prefill"; }
  std::string summary() const override {
    return "Time prompts on a GPU without and with encoding, and over a canonical history";
  }
  void AddOptions(OptionTable* table) override {
    table->AddChoice("shape", &shape_, ShapeNames(), "Shape of the model");
    table->AddBool("random-weights", &random_weights_,
                   "Fill the weights with random numbers; there is no other way yet");
    table->AddString("device", &device_, "cuda:N", "The GPU");
    table->AddStrings("contexts", &contexts_, "N,...", "Tokens of the prompts");
    table->AddInt("chunk", &chunk_, 1, 1 << 20, "Tokens of each pass through the model");
    table->AddInt("rounds", &rounds_, 1, 1000, "Prompts of each measurement; the median counts");
  }

  absl::Status Run() override {
    if (!random_weights_)
      return absl::InvalidArgumentError("--random-weights is missing: there is no other way yet");
    ASSIGN_OR_RETURN(const std::vector<int> contexts, Numbers("contexts", contexts_, 1 << 22));
    const int longest = *std::max_element(contexts.begin(), contexts.end());
    std::printf(
        "%s, random weights, %s; milliseconds of a prompt in chunks of %d, wall time, median of "
        "%d; blocks travel to page-locked host memory meanwhile\n\n"
        "| profile | history | prompt | ms | tokens/s | without encoding | encoding %% |\n"
        "|---|---|---|---|---|---|---|\n",
        shape_.c_str(), device_.c_str(), chunk_, rounds_);
    for (const Variant& variant : kVariants)
      RETURN_IF_ERROR(RunVariant(ShapeOf(shape_, longest), variant, contexts));
    return absl::OkStatus();
  }

 private:
  absl::Status RunVariant(const ModelConfig& config, const Variant& variant,
                          const std::vector<int>& contexts) {
    ASSIGN_OR_RETURN(auto codec, DataFreeCodec(variant.profile, config.kv_shape()));
    TransformerOptions options;
    options.device = device_;
    options.history = variant.history;
    ASSIGN_OR_RETURN(const std::unique_ptr<CudaRunner> runner,
                     CudaRunner::Random(config, std::move(codec), options, /*seed=*/1));
    const bool coded = variant.profile != Profile::kBf16;
    for (const int context : contexts) {
      const size_t blocks = BlockOf(context - 1) + 1;
      ASSIGN_OR_RETURN(const std::unique_ptr<EmptyPool> memory,
                       EmptyPool::Create(runner->codec().shape(), coded ? blocks : 0, blocks));
      ASSIGN_OR_RETURN(const PreparedPool locked, runner->PreparePool(memory->pool()));
      SequenceKv kv(&memory->pool());
      for (size_t b = 0; b < blocks; ++b) {
        kv.EnsureBlock(static_cast<int>(b));
        if (coded && b >= kSinkBlocks) kv.EnsurePage(static_cast<int>(b));
      }
      ASSIGN_OR_RETURN(const double ms, MedianMs(runner.get(), context, &kv));
      std::printf("| %s | %s | %d | %.1f | %.0f |",
                  std::string(ProfileName(variant.profile)).c_str(),
                  variant.history == PrefillHistory::kExact ? "exact" : "canonical", context, ms,
                  1e3 * context / ms);
      // What the pages then hold is an earlier round's.
      if (coded) {
        runner->LeaveOutEncoding(true);
        ASSIGN_OR_RETURN(const double without, MedianMs(runner.get(), context, &kv));
        runner->LeaveOutEncoding(false);
        std::printf(" %.1f | %.2f |\n", without, 100 * (ms - without) / without);
      } else {
        std::printf(" | |\n");
      }
      std::fflush(stdout);
    }
    return absl::OkStatus();
  }

  // One round more than counts: the first chooses algorithms.
  absl::StatusOr<double> MedianMs(CudaRunner* runner, int context, SequenceKv* kv) {
    std::vector<int32_t> tokens(context);
    for (int i = 0; i < context; ++i) tokens[i] = i * 7 % 1000;
    std::vector<float> ms;
    for (int round = 0; round <= rounds_; ++round) {
      const auto from = std::chrono::steady_clock::now();
      for (int at = 0; at < context; at += chunk_) {
        PrefillChunk chunk;
        chunk.tokens = absl::MakeConstSpan(tokens).subspan(at, chunk_);
        chunk.start = at;
        chunk.kv = kv;
        chunk.want_logits = at + chunk_ >= context;
        RETURN_IF_ERROR(runner->Prefill(chunk).status());
      }
      const std::chrono::duration<float, std::milli> took = std::chrono::steady_clock::now() - from;
      if (round > 0) ms.push_back(took.count());
    }
    return Median(std::move(ms));
  }

  std::string shape_ = "qwen3-8b", device_ = "cuda:0";
  bool random_weights_ = false;
  std::vector<std::string> contexts_ = {"8192", "32768"};
  int chunk_ = 4096, rounds_ = 3;
};

}  // namespace

std::unique_ptr<Command> NewBenchPrefillCommand() {
  return std::make_unique<BenchPrefillCommand>();
}

}  // namespace oscarkv::cli
