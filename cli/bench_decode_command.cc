// oscarkv bench decode: times decode steps of a model of a well-known shape and random weights on a
// GPU, over bf16 blocks and over 2-bit pages.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <random>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cli/command.h"
#include "cli/terminal.h"
#include "codec/codec.h"
#include "common/status_macros.h"
#include "model/cuda/cuda_runner.h"

namespace oscarkv::cli {
namespace {

ModelConfig ShapeOf(const std::string& name, int context) {
  ModelConfig c;
  c.num_heads = 32;
  c.num_kv_heads = 8;
  c.head_dim = 128;
  c.hidden_size = 4096;
  if (name == "qwen3-8b") {
    c.model_type = "qwen3";
    c.num_layers = 36;
    c.intermediate_size = 12288;
    c.vocab_size = 151936;
    c.qk_norm = true;
    c.rope.theta = 1e6;
  } else {  // llama-3.1-8b
    c.model_type = "llama";
    c.num_layers = 32;
    c.intermediate_size = 14336;
    c.vocab_size = 128256;
    c.rope.theta = 5e5;
  }
  c.max_position_embeddings = context + kBlockTokens;
  return c;
}

// Address space for a pool whose bytes only the GPU has.
class EmptyPool {
 public:
  static absl::StatusOr<std::unique_ptr<EmptyPool>> Create(const kernels::KvShape& shape,
                                                           size_t pages, size_t blocks) {
    const size_t page_bytes = pages * shape.PageBytes(),
                 block_bytes = blocks * shape.Bf16BlockBytes();
    void* memory = mmap(nullptr, page_bytes + block_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return absl::ResourceExhaustedError("no address space for the pool");
    auto* start = static_cast<uint8_t*>(memory);
    return std::unique_ptr<EmptyPool>(new EmptyPool(
        shape, absl::MakeSpan(start, page_bytes), absl::MakeSpan(start + page_bytes, block_bytes)));
  }
  ~EmptyPool() { munmap(pages_.data(), pages_.size() + blocks_.size()); }
  KvPool& pool() { return pool_; }

 private:
  EmptyPool(const kernels::KvShape& shape, absl::Span<uint8_t> pages, absl::Span<uint8_t> blocks)
      : pages_(pages), blocks_(blocks), pool_(shape, pages, blocks) {}
  absl::Span<uint8_t> pages_, blocks_;
  KvPool pool_;
};

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

double Median(std::vector<float> ms) {
  std::nth_element(ms.begin(), ms.begin() + ms.size() / 2, ms.end());
  return ms[ms.size() / 2];
}

class BenchDecodeCommand final : public Command {
 public:
  std::string name() const override { return "bench decode"; }
  std::string summary() const override {
    return "Time decode steps on a GPU over bf16 blocks and over 2-bit pages";
  }
  void AddOptions(OptionTable* table) override {
    table->AddChoice("shape", &shape_, {"qwen3-8b", "llama-3.1-8b"}, "Shape of the model");
    table->AddBool("random-weights", &random_weights_,
                   "Fill weights and cache with random numbers; there is no other way yet");
    table->AddString("device", &device_, "cuda:N", "The GPU");
    table->AddStrings("contexts", &contexts_, "N,...", "Tokens of each sequence");
    table->AddStrings("batches", &batches_, "N,...",
                      "Sequences per step; what does not fit into the GPU's memory is left out");
    table->AddBytes("kv-budget", &budget_, 0, uint64_t{1} << 50,
                    "Also time the largest batches whose KV cache fits into this; 0: none");
    table->AddInt("rounds", &rounds_, 3, 10000, "Steps of each measurement; the median counts");
  }

  absl::Status Run() override {
    if (!random_weights_)
      return absl::InvalidArgumentError("--random-weights is missing: there is no other way yet");
    ASSIGN_OR_RETURN(const std::vector<int> contexts, Numbers("contexts", contexts_, 1 << 22));
    ASSIGN_OR_RETURN(const std::vector<int> batches, Numbers("batches", batches_, 4096));
    const int longest = *std::max_element(contexts.begin(), contexts.end());
    std::printf(
        "%s, random weights, %s; milliseconds of a step by graph replay, median of %d, "
        "without the logits' copy to the host\n\n"
        "| profile | context | batch | step | attention | products | rest | tokens/s | KV GB |\n"
        "|---|---|---|---|---|---|---|---|---|\n",
        shape_.c_str(), device_.c_str(), rounds_);
    for (const Profile profile : {Profile::kBf16, Profile::kOscar})
      RETURN_IF_ERROR(RunProfile(ShapeOf(shape_, longest), profile, contexts, batches));
    return absl::OkStatus();
  }

 private:
  static absl::StatusOr<std::vector<int>> Numbers(absl::string_view option,
                                                  const std::vector<std::string>& texts, int most) {
    std::vector<int> numbers;
    for (const std::string& text : texts) {
      int n = 0;
      if (!absl::SimpleAtoi(text, &n) || n < 1 || n > most) {
        return absl::InvalidArgumentError(
            absl::StrCat("--", option, ": \"", text, "\" is not a number of 1 to ", most));
      }
      numbers.push_back(n);
    }
    if (numbers.empty()) return absl::InvalidArgumentError(absl::StrCat("--", option, " is empty"));
    return numbers;
  }

  absl::Status RunProfile(const ModelConfig& config, Profile profile,
                          const std::vector<int>& contexts, const std::vector<int>& batches) {
    CodecOptions codec_options;
    codec_options.profile = profile;
    codec_options.data_free = profile != Profile::kBf16;
    ASSIGN_OR_RETURN(auto codec, CreateCodec(codec_options, config.kv_shape()));
    TransformerOptions options;
    options.device = device_;
    ASSIGN_OR_RETURN(const std::unique_ptr<CudaRunner> runner,
                     CudaRunner::Random(config, std::move(codec), options, /*seed=*/1));
    for (const int context : contexts) {
      std::vector<int> sizes = batches;
      const Need need(context, profile != Profile::kBf16);
      if (budget_ > 0) sizes.push_back(static_cast<int>(budget_ / need.Bytes(config.kv_shape())));
      for (const int batch : sizes) {
        if (batch < 1) continue;
        RETURN_IF_ERROR(Measure(runner.get(), profile, context, need, batch));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Measure(CudaRunner* runner, Profile profile, int context, const Need& need,
                       int batch) {
    const kernels::KvShape shape = runner->config().kv_shape();
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
  bool random_weights_ = false;
  std::vector<std::string> contexts_ = {"8192", "32768", "131072"}, batches_ = {"1", "8", "32"};
  uint64_t budget_ = 0;
  int rounds_ = 20;
};

}  // namespace

std::unique_ptr<Command> NewBenchDecodeCommand() {
  return std::make_unique<BenchDecodeCommand>();
}

}  // namespace oscarkv::cli
