#include "model/streamed_transformer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "codec/codec.h"
#include "tests/unit/model/tiny_model.h"

namespace oscarkv {
namespace {

using ::testing::HasSubstr;

std::shared_ptr<const KvCodec> Identity(const ModelConfig& config) {
  CodecOptions options;
  options.profile = Profile::kBf16;
  auto codec = CreateCodec(options, config.kv_shape());
  EXPECT_TRUE(codec.ok()) << codec.status();
  return *std::move(codec);
}

// A layer's Q, K and V, one behind the other.
struct Seen {
  const ModelConfig& config;
  std::vector<std::vector<float>> layers;
  Transformer::LayerObserver Observer() {
    return [this](int layer, const Transformer::LayerActivations& a) {
      ASSERT_EQ(layer, static_cast<int>(layers.size()));
      const int d = config.head_dim;
      std::vector<float> all(a.q, a.q + size_t{1} * a.tokens * config.num_heads * d);
      for (const float* side : {a.k, a.v}) {
        for (int h = 0; h < config.num_kv_heads; ++h)
          all.insert(all.end(), side + h * a.head_stride, side + h * a.head_stride + a.tokens * d);
      }
      layers.push_back(std::move(all));
    };
  }
};

TEST(StreamedTransformerTest, SameActivationsToTheBit) {
  for (const char* family : {"qwen3", "qwen2", "llama", "mistral"}) {
    SCOPED_TRACE(family);
    const TempFolder dir;
    const TinyModel m = MakeTinyModel(family, 3);
    m.Write(dir.path(), DType::kBf16);
    TransformerOptions options;
    options.compute = kernels::Compute::kBf16;
    options.threads = 2;
    options.fp32_kv = true;
    const auto whole = Transformer::Load(dir.path(), Identity(m.config), options);
    ASSERT_TRUE(whole.ok()) << whole.status();
    const auto streamed = StreamedTransformer::Open(dir.path(), Identity(m.config), options);
    ASSERT_TRUE(streamed.ok()) << streamed.status();

    // Two prompts of different lengths, through each layer in turn.
    const std::vector<int32_t> prompts[] = {RandomTokens(200, m.config.vocab_size, 1),
                                            RandomTokens(70, m.config.vocab_size, 2)};
    std::vector<Seen> expected(2, Seen{m.config, {}}), seen = expected;
    std::vector<float> x[2];
    for (int p : {0, 1}) {
      PrefillChunk chunk;
      chunk.tokens = prompts[p];
      (*whole)->set_layer_observer(expected[p].Observer());
      ASSERT_TRUE((*whole)->Prefill(chunk).ok());
      ASSERT_TRUE((*streamed)->Embed(prompts[p], &x[p]).ok());
    }
    for (int layer = 0; layer < m.config.num_layers; ++layer) {
      ASSERT_TRUE((*streamed)->LoadLayer(layer).ok());
      for (int p : {0, 1}) {
        const std::vector<float> before = x[p];
        ASSERT_TRUE((*streamed)->Run(prompts[p], nullptr, /*advance=*/false, &x[p]).ok());
        EXPECT_EQ(x[p], before);
        ASSERT_TRUE((*streamed)->Run(prompts[p], seen[p].Observer(), true, &x[p]).ok());
        EXPECT_EQ(x[p] == before, layer == m.config.num_layers - 1);
      }
    }
    for (int p : {0, 1}) EXPECT_EQ(seen[p].layers, expected[p].layers);
  }
}

TEST(StreamedTransformerTest, RefusedBeforeAnyLayer) {
  const TempFolder dir;
  TinyModel m = MakeTinyModel("qwen3", 3);
  const auto open = [&](const TinyModel& model) {
    model.Write(dir.path());
    return StreamedTransformer::Open(dir.path(), Identity(m.config), {}).status();
  };
  TinyModel missing = m;
  missing.tensors.erase("model.layers.1.mlp.down_proj.weight");
  EXPECT_EQ(open(missing).code(), absl::StatusCode::kNotFound);
  TinyModel shape = m;
  shape.tensors["model.layers.1.mlp.up_proj.weight"].shape = {48, 80};
  EXPECT_EQ(open(shape).code(), absl::StatusCode::kInvalidArgument);
  TinyModel unknown = m;
  unknown.tensors["model.layers.1.self_attn.q_proj.bias"] = {{2}, {0, 0}};
  EXPECT_EQ(open(unknown).code(), absl::StatusCode::kUnimplemented);

  m.Write(dir.path());
  const auto streamed = StreamedTransformer::Open(dir.path(), Identity(m.config), {});
  ASSERT_TRUE(streamed.ok()) << streamed.status();
  const std::vector<int32_t> tokens = RandomTokens(5, m.config.vocab_size, 1);
  std::vector<float> x;
  ASSERT_TRUE((*streamed)->Embed(tokens, &x).ok());
  EXPECT_EQ((*streamed)->Run(tokens, nullptr, true, &x).code(),
            absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE((*streamed)->LoadLayer(1).ok());
  x.pop_back();
  EXPECT_THAT(std::string((*streamed)->Run(tokens, nullptr, true, &x).message()),
              HasSubstr("hidden states of 239 numbers for 5 tokens of 48"));
  EXPECT_FALSE((*streamed)->Embed({97}, &x).ok());  // no token of the model
}

// What the formulas say of Qwen3-8B: a layer is 193 million weights, the model 8.2 billion.
TEST(StreamedTransformerTest, Memory) {
  ModelConfig c;
  c.num_layers = 36;
  c.hidden_size = 4096;
  c.intermediate_size = 12288;
  c.num_heads = 32;
  c.num_kv_heads = 8;
  c.head_dim = 128;
  c.vocab_size = 151936;
  const auto layer = StreamedTransformer::MemoryOfLayer(c, kernels::Compute::kFp32);
  EXPECT_EQ(layer.weights, uint64_t{4} * 192'937'984);
  EXPECT_EQ(layer.reading, uint64_t{4} * 100'663'296 + 8 * 50'331'648);
  const uint64_t model = StreamedTransformer::MemoryOfModel(c, kernels::Compute::kFp32);
  EXPECT_GT(model, uint64_t{4} * 8'100'000'000);
  EXPECT_LT(model, uint64_t{4} * 8'900'000'000 + (uint64_t{6} << 30));
  EXPECT_EQ(StreamedTransformer::MemoryOfPrompt(c, 1000), 4000 * (4096 + 2 * 4096 + 2 * 1024));
}

}  // namespace
}  // namespace oscarkv
