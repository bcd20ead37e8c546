// The runner on a GPU against the one on the CPU, and against what callers rely on. All but the
// refusals skip where there is no GPU.
#include "model/cuda/cuda_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>

#include "common/status_macros.h"
#include "model/cuda/cuda_library.h"
#include "model/transformer.h"
#include "tests/unit/model/tiny_model.h"

namespace oscarkv {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

std::string WhyNoGpu() {
  const auto api = OpenCudaLibrary();
  if (!api.ok()) return std::string(api.status().message());
  return (*api)->DeviceCount() == 0 ? absl::StrCat("no usable GPU: ", (*api)->LastError()) : "";
}

double RelativeError(absl::Span<const float> a, absl::Span<const float> b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    norm += double{b[i]} * b[i];
  }
  return std::isfinite(difference) && a.size() == b.size() ? std::sqrt(difference / norm) : 1e9;
}

TEST(CudaDeviceTest, DevicesAreParsed) {
  EXPECT_EQ(*ParseDevice("cpu"), -1);
  EXPECT_EQ(*ParseDevice("cuda:0"), 0);
  EXPECT_EQ(*ParseDevice("cuda:7"), 7);
  for (const char* bad : {"", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:x", "CUDA:0", "cuda:0 "}) {
    const auto device = ParseDevice(bad);
    EXPECT_EQ(device.status().code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(device.status().message()), HasSubstr("cpu or cuda:N")) << bad;
  }
}

absl::StatusOr<std::unique_ptr<ModelRunner>> LoadRunner(const std::string& dir,
                                                        const std::string& device, Profile profile,
                                                        PrefillHistory history,
                                                        kernels::Compute compute) {
  const auto config = LoadModelConfig(dir);
  if (!config.ok()) return config.status();
  CodecOptions codec;
  codec.profile = profile;
  if (IsShaped(profile)) {
    RETURN_IF_ERROR(FindCodecFiles(dir, &codec));
  } else {
    codec.data_free = true;
  }
  TransformerOptions options;
  options.device = device;
  options.compute = compute;
  options.history = history;
  ASSIGN_OR_RETURN(auto created, CreateCodec(codec, config->kv_shape()));
  return LoadTransformer(dir, std::move(created), options);
}

// Without a GPU the status says what is missing; with one, what it cannot do.
TEST(CudaDeviceTest, RefusalsNameTheirReason) {
  constexpr char kModel[] = "tests/golden/families/qwen3";
  const auto fp32 = LoadRunner(kModel, "cuda:0", Profile::kOscar, PrefillHistory::kExact,
                               kernels::Compute::kFp32);
  EXPECT_EQ(fp32.status().code(), absl::StatusCode::kUnimplemented) << fp32.status();
  const auto none = LoadRunner(kModel, WhyNoGpu().empty() ? "cuda:99" : "cuda:0", Profile::kOscar,
                               PrefillHistory::kExact, kernels::Compute::kBf16);
  EXPECT_EQ(none.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(none.status().message()),
              AnyOf(HasSubstr("liboscarkv_kernels_cuda.so"), HasSubstr("driver"),
                    HasSubstr("device"), HasSubstr("no GPU")));
}

struct Setup {
  const char* name;
  const char* model_dir;  // or, with ':', a family of tiny models
  Profile profile;
  PrefillHistory history;
};

class CudaRunnerTest : public testing::TestWithParam<Setup> {
 protected:
  void SetUp() override {
    if (const std::string why = WhyNoGpu(); !why.empty()) GTEST_SKIP() << why;
    std::string dir = GetParam().model_dir;
    if (dir[0] == ':') {
      MakeTinyModel(dir.substr(1), 7).Write(folder_.path(), DType::kBf16);
      dir = folder_.path();
    }
    dir_ = dir;
    gpu_ = Load(dir, "cuda:0");
    ASSERT_TRUE(gpu_ != nullptr);
    gpu_pool_ = std::make_unique<TestPool>(gpu_->codec().shape(), 40, 60);
  }

  static std::unique_ptr<ModelRunner> Load(const std::string& dir, const std::string& device) {
    auto model =
        LoadRunner(dir, device, GetParam().profile, GetParam().history, kernels::Compute::kBf16);
    EXPECT_TRUE(model.ok()) << model.status();
    return model.ok() ? *std::move(model) : nullptr;
  }

  bool coded() const { return GetParam().profile != Profile::kBf16; }
  int vocab() const { return gpu_->config().vocab_size; }

  static std::vector<float> Prefill(ModelRunner& runner, const std::vector<int32_t>& tokens,
                                    int size, SequenceKv* kv) {
    std::vector<float> logits;
    for (int at = 0; at < static_cast<int>(tokens.size()); at += size) {
      PrefillChunk chunk;
      chunk.tokens = absl::MakeConstSpan(tokens).subspan(at, size);
      chunk.start = at;
      chunk.kv = kv;
      chunk.want_logits = true;
      auto out = runner.Prefill(chunk);
      EXPECT_TRUE(out.ok()) << out.status();
      if (!out.ok()) return logits;
      logits = std::move(out->logits);
    }
    return logits;
  }

  // What the pool's memory has of the sequence's rows and pages, as numbers.
  static void ReadBack(ModelRunner& runner, const SequenceKv& kv, int tokens,
                       std::vector<float>* rows, std::string* pages) {
    const KvPool& pool = kv.pool();
    const kernels::KvShape shape = pool.shape();
    for (int b = 0; b <= BlockOf(tokens - 1); ++b) {
      ASSERT_TRUE(runner.ToHost(kv, b).ok());
      const int valid = std::min(kBlockTokens, tokens - b * kBlockTokens);
      const kernels::Bf16* block = pool.block_layer(kv.at(b).block, 0);
      for (int i = 0; i < shape.num_layers * 2 * shape.num_kv_heads; ++i) {
        for (int c = 0; c < valid * shape.head_dim; ++c)
          rows->push_back(kernels::ToFloat(block[i * kBlockTokens * shape.head_dim + c]));
      }
      if (kv.at(b).page >= 0 && valid == kBlockTokens)
        pages->append(reinterpret_cast<const char*>(pool.page(kv.at(b).page)), shape.PageBytes());
    }
  }

  TempFolder folder_;
  std::string dir_;
  std::unique_ptr<ModelRunner> gpu_;
  std::unique_ptr<TestPool> gpu_pool_;
};

constexpr char kQwen3[] = "tests/golden/families/qwen3", kLlama[] = "tests/golden/families/llama";
INSTANTIATE_TEST_SUITE_P(
    Setups, CudaRunnerTest,
    testing::Values(
        Setup{"qwen3_bf16", kQwen3, Profile::kBf16, PrefillHistory::kExact},
        Setup{"llama_oscar", kLlama, Profile::kOscar, PrefillHistory::kCanonical},
        Setup{"reference_oscar", "models/reference", Profile::kOscar, PrefillHistory::kCanonical},
        Setup{"reference_exact", "models/reference", Profile::kOscar, PrefillHistory::kExact},
        Setup{"reference_shaped", "models/reference", Profile::kShaped, PrefillHistory::kCanonical},
        Setup{"reference_shaped_sym", "models/reference", Profile::kShapedSym,
              PrefillHistory::kExact},
        Setup{"biases_bf16", ":llama", Profile::kBf16, PrefillHistory::kExact},
        Setup{"qwen2_oscar", ":qwen2", Profile::kOscar, PrefillHistory::kExact}),
    [](const auto& info) { return std::string(info.param.name); });

// Products of bf16 operands agree to 1e-2. Rounding puts a few codes on the other side of their
// ties (seen: 4 % of the pages' bytes), and each moves by a third of its row's range: single steps
// of random tokens then differ by up to 0.15, prefill by 0.04, rows by 0.016.
TEST_P(CudaRunnerTest, AgreesWithTheCpu) {
  constexpr int kPrompt = 600, kSteps = 80;
  const std::vector<int32_t> tokens = RandomTokens(kPrompt + kSteps, vocab(), 1);
  const std::vector<int32_t> prompt(tokens.begin(), tokens.begin() + kPrompt);
  const std::unique_ptr<ModelRunner> cpu = Load(dir_, "cpu");
  ASSERT_TRUE(cpu != nullptr);
  TestPool cpu_pool(cpu->codec().shape(), 20, 20);
  SequenceKv a = cpu_pool.Sequence(kPrompt + kSteps, coded()),
             b = gpu_pool_->Sequence(kPrompt + kSteps, coded());
  const double bound = coded() ? 0.1 : 0.02;
  const double prefill =
      RelativeError(Prefill(*gpu_, prompt, 128, &b), Prefill(*cpu, prompt, 128, &a));
  EXPECT_LT(prefill, bound);
  double worst = 0;
  std::vector<float> ours, theirs;
  for (int i = 0; i < kSteps; ++i) {
    ASSERT_TRUE(cpu->DecodeStep({{tokens[kPrompt + i], kPrompt + i, &a}}, &theirs).ok());
    ASSERT_TRUE(gpu_->DecodeStep({{tokens[kPrompt + i], kPrompt + i, &b}}, &ours).ok());
    worst = std::max(worst, RelativeError(ours, theirs));
  }
  // Where errors feed back along a row, one value that was rounded elsewhere moves many codes of it
  // (seen: 12 % of the bytes, steps of up to 0.35).
  const bool shaped = IsShaped(GetParam().profile);
  EXPECT_LT(worst, shaped ? 0.6 : coded() ? 0.3 : bound);

  std::vector<float> rows_a, rows_b;
  std::string pages_a, pages_b;
  ReadBack(*cpu, a, kPrompt + kSteps, &rows_a, &pages_a);
  ReadBack(*gpu_, b, kPrompt + kSteps, &rows_b, &pages_b);
  const double rows = RelativeError(rows_b, rows_a);
  EXPECT_LT(rows, bound);
  ASSERT_EQ(pages_a.size(), pages_b.size());
  size_t different = 0;
  for (size_t i = 0; i < pages_a.size(); ++i) different += pages_a[i] != pages_b[i];
  EXPECT_LT(different, (shaped ? 0.2 : 0.1) * pages_a.size() + 1);
  std::printf("%s: prefill %.2g, worst step %.2g, rows %.2g, %zu of %zu bytes of pages differ\n",
              GetParam().name, prefill, worst, rows, different, pages_a.size());
}

// Chunks of any size, and steps, give the same but for rounding.
TEST_P(CudaRunnerTest, ChunksAndStepsAgree) {
  constexpr int kPrompt = 450, kSteps = 20;
  const std::vector<int32_t> tokens = RandomTokens(kPrompt, vocab(), 2);
  const std::vector<int32_t> head(tokens.begin(), tokens.end() - kSteps);
  SequenceKv whole = gpu_pool_->Sequence(kPrompt, coded()),
             chunks = gpu_pool_->Sequence(kPrompt, coded()),
             steps = gpu_pool_->Sequence(kPrompt, coded());
  const std::vector<float> expected = Prefill(*gpu_, tokens, kPrompt, &whole);
  // Chunks that end within blocks; those of the canonical history attend the same codes.
  const double bound = coded() ? 0.1 : 0.01;
  EXPECT_LT(RelativeError(Prefill(*gpu_, tokens, 100, &chunks), expected), bound);
  Prefill(*gpu_, head, 64, &steps);
  std::vector<float> logits;
  for (int at = kPrompt - kSteps; at < kPrompt; ++at)
    ASSERT_TRUE(gpu_->DecodeStep({{tokens[at], at, &steps}}, &logits).ok());
  if (!coded() || GetParam().history == PrefillHistory::kCanonical) {
    EXPECT_LT(RelativeError(logits, expected), bound);
  }
}

// Sequences of different lengths in one step, in batches that are filled up and batches that are
// not, against each one alone.
TEST_P(CudaRunnerTest, BatchesAgreeWithSequencesAlone) {
  const std::vector<int> lengths = {3, 63, 64, 200, 447};
  std::vector<SequenceKv> together, alone;
  std::vector<std::vector<int32_t>> prompts;
  for (const int n : lengths) {
    prompts.push_back(RandomTokens(n, vocab(), 10 + n));
    for (auto* sequences : {&together, &alone}) {
      sequences->push_back(gpu_pool_->Sequence(n + 2, coded()));
      Prefill(*gpu_, prompts.back(), 512, &sequences->back());
    }
  }
  for (const size_t batch : {size_t{1}, size_t{2}, size_t{3}, lengths.size()}) {
    std::vector<DecodeInput> inputs;
    for (size_t i = 0; i < batch; ++i) inputs.push_back({5, lengths[i], &together[i]});
    std::vector<float> logits, expected;
    ASSERT_TRUE(gpu_->DecodeStep(inputs, &logits).ok());
    ASSERT_EQ(logits.size(), batch * vocab());
    for (size_t i = 0; i < batch; ++i) {
      ASSERT_TRUE(gpu_->DecodeStep({{5, lengths[i], &alone[i]}}, &expected).ok());
      EXPECT_LT(RelativeError(absl::MakeConstSpan(logits).subspan(i * vocab(), vocab()), expected),
                coded() ? 0.05 : 0.01)
          << "sequence " << i << " of " << batch;
    }
  }
}

// Kernels that start before the ones before them have ended still find what those wrote.
TEST_P(CudaRunnerTest, EarlyLaunchesChangeNoBit) {
  constexpr int kPrompt = 450, kSteps = 70;
  const std::vector<int32_t> prompt = RandomTokens(kPrompt, vocab(), 6);
  const auto api = OpenCudaLibrary();
  ASSERT_TRUE(api.ok());
  std::vector<float> all[2];
  for (const bool early : {false, true}) {
    (*api)->SetEarlyLaunches(early);
    TestPool pool(gpu_->codec().shape(), 40, 60);  // a new one: its graphs are captured anew
    std::vector<SequenceKv> kv;
    for (int s = 0; s < 5; ++s) {
      kv.push_back(pool.Sequence(kPrompt + kSteps, coded()));
      const std::vector<float> logits = Prefill(*gpu_, prompt, 200, &kv.back());
      all[early].insert(all[early].end(), logits.begin(), logits.end());
    }
    // Few rows, and as many as another kernel multiplies.
    for (const int batch : {1, 2, 5}) {
      std::vector<float> logits;
      for (int i = 0; i < kSteps; ++i) {
        std::vector<DecodeInput> inputs;
        for (int s = 0; s < batch; ++s) inputs.push_back({(7 * i + s) % 50, kPrompt + i, &kv[s]});
        ASSERT_TRUE(gpu_->DecodeStep(inputs, &logits).ok());
        all[early].insert(all[early].end(), logits.begin(), logits.end());
      }
    }
  }
  (*api)->SetEarlyLaunches(true);
  EXPECT_TRUE(all[0] == all[1]);
}

// What comes back to the host is all that another worker needs: it goes on with the same bits.
TEST_P(CudaRunnerTest, AnotherPoolGoesOnFromTheHostsBytes) {
  constexpr int kPrompt = 500;
  std::vector<int32_t> tokens = RandomTokens(kPrompt, vocab(), 3);
  SequenceKv kv = gpu_pool_->Sequence(640, coded());
  Prefill(*gpu_, tokens, 256, &kv);
  std::vector<float> logits, expected;
  int position = kPrompt;
  for (; position < 590; ++position)  // a block fills up on the way
    ASSERT_TRUE(gpu_->DecodeStep({{position % 50, position, &kv}}, &expected).ok());
  // Main form of full blocks, bf16 rows of the window and the last block: as the store has them.
  const int last = BlockOf(position), window = FirstWindowBlock(position);
  TestPool other(gpu_->codec().shape(), 40, 60);
  SequenceKv moved = other.Sequence(640, coded());
  const kernels::KvShape shape = gpu_->codec().shape();
  for (int b = 0; b <= last; ++b) {
    const bool as_page = coded() && b >= kSinkBlocks && b < window;
    if (as_page) {
      std::memcpy(other.pool().page(moved.at(b).page), gpu_pool_->pool().page(kv.at(b).page),
                  shape.PageBytes());
      moved.ReleaseBlock(b);
    } else {
      ASSERT_TRUE(gpu_->ToHost(kv, b).ok());
      std::memcpy(other.pool().block(moved.at(b).block), gpu_pool_->pool().block(kv.at(b).block),
                  shape.Bf16BlockBytes());
    }
  }
  ASSERT_TRUE(gpu_->DecodeStep({{9, position, &kv}}, &expected).ok());
  ASSERT_TRUE(gpu_->DecodeStep({{9, position, &moved}}, &logits).ok());
  EXPECT_EQ(logits, expected);
  // A slot that is given back and taken again has other bytes.
  SequenceKv fresh = other.Sequence(64, coded());
  const std::vector<int32_t> few(tokens.begin(), tokens.begin() + 40);
  const std::vector<float> once = Prefill(*gpu_, few, 64, &fresh);
  fresh.Clear();
  fresh = other.Sequence(64, coded());
  EXPECT_EQ(Prefill(*gpu_, few, 64, &fresh), once);
}

// At on_layer(l) the stored form of the layer's blocks stands in the pool's memory as at the end.
TEST_P(CudaRunnerTest, OnLayerComesWhenTheLayerIsOnTheHost) {
  const std::vector<int32_t> tokens = RandomTokens(200, vocab(), 4);
  SequenceKv kv = gpu_pool_->Sequence(200, coded());
  const KvPool& pool = gpu_pool_->pool();
  const kernels::KvShape shape = pool.shape();
  const auto layer_bytes = [&](int layer) {
    std::string bytes;
    for (int b = 0; b < 3; ++b) {
      const bool page = coded() && b >= kSinkBlocks;
      const auto* from =
          page ? pool.page_layer(kv.at(b).page, layer)
               : reinterpret_cast<const uint8_t*>(pool.block_layer(kv.at(b).block, layer));
      bytes.append(reinterpret_cast<const char*>(from),
                   page ? shape.PageLayerBytes() : shape.Bf16LayerBytes());
    }
    return bytes;
  };
  std::vector<std::string> at_call;
  PrefillChunk chunk;
  chunk.tokens = tokens;
  chunk.kv = &kv;
  chunk.on_layer = [&](int layer) {
    EXPECT_EQ(layer, static_cast<int>(at_call.size()));
    at_call.push_back(layer_bytes(layer));
  };
  ASSERT_TRUE(gpu_->Prefill(chunk).ok());
  ASSERT_EQ(at_call.size(), shape.num_layers);
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    EXPECT_TRUE(at_call[layer] == layer_bytes(layer)) << layer;
    EXPECT_NE(at_call[layer], std::string(at_call[layer].size(), '\0')) << layer;
  }
  std::atomic<bool> cancelled{true};
  chunk.cancelled = &cancelled;
  EXPECT_EQ(gpu_->Prefill(chunk).status().code(), absl::StatusCode::kCancelled);
}

// Each row's logits, asked for in two ways.
TEST_P(CudaRunnerTest, LogitsOfRows) {
  const std::vector<int32_t> tokens = RandomTokens(150, vocab(), 5);
  SequenceKv kv = gpu_pool_->Sequence(150, coded());
  PrefillChunk chunk;
  chunk.tokens = tokens;
  chunk.kv = &kv;
  chunk.want_logits = chunk.want_all_argmax = true;
  const auto all = gpu_->Prefill(chunk);
  ASSERT_TRUE(all.ok()) << all.status();
  ASSERT_EQ(all->all_argmax.size(), 150);
  chunk.want_all_argmax = false;
  chunk.logits_from = 100;
  int rows = 0, agreeing = 0;
  std::vector<float> last;
  chunk.on_logits = [&](int row, const float* logits) {
    agreeing += std::max_element(logits, logits + vocab()) - logits == all->all_argmax[row];
    ++rows;
    last.assign(logits, logits + vocab());
  };
  const auto some = gpu_->Prefill(chunk);
  ASSERT_TRUE(some.ok()) << some.status();
  EXPECT_GE(rows, 50);
  EXPECT_GE(agreeing, rows - 2);
  EXPECT_LT(RelativeError(last, some->logits), 1e-2);
  EXPECT_LT(RelativeError(some->logits, all->logits), 1e-2);
}

// Token 5 has an embedding of Inf. The sequence that decodes it gets no choosable logits, the other
// goes on; in prefill it is an error as soon as a block is full.
TEST(CudaBrokenSequenceTest, StaysAlone) {
  if (const std::string why = WhyNoGpu(); !why.empty()) GTEST_SKIP() << why;
  TinyModel tiny = MakeTinyModel("qwen3", 3);
  TinyTensor& embedding = tiny.tensors["model.embed_tokens.weight"];
  for (int i = 0; i < 48; ++i) embedding.values[5 * 48 + i] = INFINITY;
  TempFolder dir;
  tiny.Write(dir.path());
  auto model = LoadRunner(dir.path(), "cuda:0", Profile::kOscar, PrefillHistory::kCanonical,
                          kernels::Compute::kBf16);
  ASSERT_TRUE(model.ok()) << model.status();
  TestPool pool((*model)->config().kv_shape(), 16, 16);
  SequenceKv good = pool.Sequence(128, true), bad = pool.Sequence(128, true);
  PrefillChunk chunk;
  const std::vector<int32_t> tokens(127, 1);
  chunk.tokens = tokens;
  for (SequenceKv* kv : {&good, &bad}) {
    chunk.kv = kv;
    ASSERT_TRUE((*model)->Prefill(chunk).ok());
  }
  std::vector<float> logits;
  ASSERT_TRUE((*model)->DecodeStep({{5, 127, &bad}, {7, 127, &good}}, &logits).ok());
  for (int v = 0; v < 97; ++v) {
    EXPECT_TRUE(std::isnan(logits[v]));
    EXPECT_TRUE(std::isfinite(logits[97 + v]));
  }
  std::vector<int32_t> poisoned(128, 1);
  poisoned[100] = 5;
  SequenceKv fresh = pool.Sequence(128, true);
  chunk.tokens = poisoned;
  chunk.kv = &fresh;
  EXPECT_EQ((*model)->Prefill(chunk).status().code(), absl::StatusCode::kInternal);
}

// What the runner cannot do with a codec it says when it loads.
class UnknownCodec final : public KvCodec {
 public:
  explicit UnknownCodec(std::shared_ptr<const KvCodec> base) : base_(std::move(base)) {}
  Profile profile() const override { return Profile::kShaped; }
  const kernels::KvShape& shape() const override { return base_->shape(); }
  const Sha256Digest& fingerprint() const override { return base_->fingerprint(); }
  std::string Describe() const override { return "unknown, a test"; }
  bool data_free() const override { return true; }
  const float* KeyRotation(int layer, int h) const override { return base_->KeyRotation(layer, h); }
  const float* ValueRotation(int layer, int h) const override {
    return base_->ValueRotation(layer, h);
  }
  absl::Status EncodeLayer(int layer, const kernels::Bf16* block, uint8_t* page) const override {
    return base_->EncodeLayer(layer, block, page);
  }
  absl::Status DecodeLayer(int layer, const uint8_t* page, kernels::Bf16* block) const override {
    return base_->DecodeLayer(layer, page, block);
  }
  uint64_t clamped_rows() const override { return 0; }

 private:
  const std::shared_ptr<const KvCodec> base_;
};

TEST(CudaCodecTest, AnEncoderThatGpusDoNotHaveIsRefused) {
  if (const std::string why = WhyNoGpu(); !why.empty()) GTEST_SKIP() << why;
  const auto config = LoadModelConfig(kQwen3);
  CodecOptions options;
  options.data_free = true;
  TransformerOptions transformer;
  transformer.device = "cuda:0";
  const auto refused = LoadTransformer(
      kQwen3, std::make_shared<UnknownCodec>(*CreateCodec(options, config->kv_shape())),
      transformer);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("unknown, a test"));
}

}  // namespace
}  // namespace oscarkv
