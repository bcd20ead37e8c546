// Loading: every family against a float64 forward pass in plain loops, the folding of rotations,
// and what is refused.
#include "model/transformer_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "model/transformer.h"
#include "tests/unit/model/tiny_model.h"

namespace oscarkv {
namespace {

using ::testing::HasSubstr;

// A random orthogonal matrix [n, n], by Gram-Schmidt in float64.
std::vector<float> RandomRotation(int n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::vector<double>> rows(n, std::vector<double>(n));
  for (int i = 0; i < n; ++i) {
    for (double& v : rows[i]) v = static_cast<double>(random() >> 11) * 0x1p-52 - 1;
    for (int pass = 0; pass < 2; ++pass) {
      for (int j = 0; j < i; ++j) {
        double dot = 0;
        for (int c = 0; c < n; ++c) dot += rows[i][c] * rows[j][c];
        for (int c = 0; c < n; ++c) rows[i][c] -= dot * rows[j][c];
      }
    }
    double norm = 0;
    for (double v : rows[i]) norm += v * v;
    for (double& v : rows[i]) v /= std::sqrt(norm);
  }
  std::vector<float> m;
  for (const auto& row : rows) m.insert(m.end(), row.begin(), row.end());
  return m;
}

// Transforms without quantisation: the output of a model must not change. `per_head`: a matrix of
// its own for each kv head. `means`: not orthogonal, and rows without a mean.
class RotatingCodec final : public KvCodec {
 public:
  RotatingCodec(const kernels::KvShape& shape, bool per_head, bool means = false)
      : shape_(shape), per_head_(per_head), means_(means) {
    for (int i = 0; i < 2 * shape.num_layers * shape.num_kv_heads; ++i) {
      rotations_.push_back(RandomRotation(shape.head_dim, i + 1));
      inverses_.push_back(rotations_.back());
    }
    // A rotation with stretched columns: its inverse transposed has them shrunk.
    const int d = shape.head_dim;
    for (size_t i = 0; means && i < rotations_.size(); ++i) {
      for (int e = 0; e < d * d; ++e) {
        const float stretch = std::exp2(static_cast<float>(e % d % 5) - 2);
        rotations_[i][e] *= stretch;
        inverses_[i][e] /= stretch;
      }
    }
    for (int i = 0; i < d; ++i) mean_.push_back(static_cast<float>(i % 7) / 8 - 0.3f);
  }
  Profile profile() const override { return Profile::kBf16; }
  const kernels::KvShape& shape() const override { return shape_; }
  const Sha256Digest& fingerprint() const override { return fingerprint_; }
  std::string Describe() const override { return "rotations only"; }
  bool data_free() const override { return false; }
  const float* KeyRotation(int layer, int head) const override { return At(0, layer, head); }
  const float* ValueRotation(int layer, int head) const override { return At(1, layer, head); }
  const float* QueryTransform(int layer, int head) const override {
    return inverses_[Index(0, layer, head)].data();
  }
  const float* OutputTransform(int layer, int head) const override {
    return inverses_[Index(1, layer, head)].data();
  }
  const float* KeyMean(int, int) const override { return means_ ? mean_.data() : nullptr; }
  const float* ValueMean(int, int) const override { return means_ ? mean_.data() : nullptr; }
  absl::Status EncodeLayer(int, const kernels::Bf16*, uint8_t*) const override {
    return absl::FailedPreconditionError("");
  }
  absl::Status DecodeLayer(int, const uint8_t*, kernels::Bf16*) const override {
    return absl::FailedPreconditionError("");
  }
  uint64_t clamped_rows() const override { return 0; }

 private:
  const float* At(int side, int layer, int head) const {
    return rotations_[Index(side, layer, head)].data();
  }
  size_t Index(int side, int layer, int head) const {
    return (side * shape_.num_layers + layer) * shape_.num_kv_heads + (per_head_ ? head : 0);
  }
  const kernels::KvShape shape_;
  const bool per_head_, means_;
  const Sha256Digest fingerprint_{};
  std::vector<std::vector<float>> rotations_, inverses_;
  std::vector<float> mean_;
};

std::shared_ptr<const KvCodec> Identity(const kernels::KvShape& shape) {
  CodecOptions options;
  options.profile = Profile::kBf16;
  auto codec = CreateCodec(options, shape);
  EXPECT_TRUE(codec.ok()) << codec.status();
  return *codec;
}

// The largest difference of the last position's logits from the naive pass, over prompts of several
// lengths, K and V in fp32.
double WorstDifference(const TinyModel& m, const std::string& dir,
                       std::shared_ptr<const KvCodec> codec, int threads) {
  TransformerOptions options;
  options.compute = kernels::Compute::kFp32;
  options.fp32_kv = true;
  options.threads = threads;
  const auto model = LoadTransformer(dir, std::move(codec), options);
  EXPECT_TRUE(model.ok()) << model.status();
  if (!model.ok()) return INFINITY;
  const std::vector<int32_t> tokens = RandomTokens(130, m.config.vocab_size, 3);
  const std::vector<std::vector<double>> expected = NaiveLogits(m, tokens);
  double worst = 0;
  for (int n : {1, 2, 64, 65, 130}) {
    PrefillChunk chunk;
    chunk.tokens = absl::MakeConstSpan(tokens).first(n);
    chunk.want_logits = true;
    const auto out = (*model)->Prefill(chunk);
    EXPECT_TRUE(out.ok()) << out.status();
    for (int v = 0; v < m.config.vocab_size; ++v) {
      worst = std::max(worst, std::abs(expected[n - 1][v] - out->logits[v]));
    }
  }
  return worst;
}

class FamilyTest : public testing::TestWithParam<const char*> {};

TEST_P(FamilyTest, EqualsNaivePass) {
  const TinyModel m = MakeTinyModel(GetParam(), 5);
  TempFolder dir;
  m.Write(dir.path());
  EXPECT_LT(WorstDifference(m, dir.path(), Identity(m.config.kv_shape()), 1), 1e-3);
  EXPECT_LT(WorstDifference(m, dir.path(), Identity(m.config.kv_shape()), 3), 1e-3);
}

TEST_P(FamilyTest, RotationsCancel) {
  const TinyModel m = MakeTinyModel(GetParam(), 6);
  TempFolder dir;
  m.Write(dir.path());
  for (bool per_head : {false, true}) {
    EXPECT_LT(WorstDifference(m, dir.path(),
                              std::make_shared<RotatingCodec>(m.config.kv_shape(), per_head), 2),
              1e-3);
    EXPECT_LT(
        WorstDifference(m, dir.path(),
                        std::make_shared<RotatingCodec>(m.config.kv_shape(), per_head, true), 2),
        1e-3);
  }
}

TEST_P(FamilyTest, OtherTypesOfWeights) {
  TinyModel m = MakeTinyModel(GetParam(), 7);  // exact in bf16
  TempFolder bf16, fp16;
  m.Write(bf16.path(), DType::kBf16);
  EXPECT_LT(WorstDifference(m, bf16.path(), Identity(m.config.kv_shape()), 1), 1e-3);
  for (auto& [name, tensor] : m.tensors) {
    for (float& v : tensor.values) v = kernels::Fp16ToFloat(kernels::FloatToFp16(v));
  }
  m.Write(fp16.path(), DType::kF16);
  EXPECT_LT(WorstDifference(m, fp16.path(), Identity(m.config.kv_shape()), 1), 1e-3);
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyTest,
                         testing::Values("qwen3", "qwen2", "llama", "mistral"),
                         [](const auto& i) { return std::string(i.param); });

absl::Status LoadStatus(const TinyModel& m, const KvCodec* codec = nullptr) {
  TempFolder dir;
  m.Write(dir.path());
  const auto own = Identity(m.config.kv_shape());
  TransformerOptions options;
  const auto model = LoadTransformer(
      dir.path(), codec == nullptr ? own : std::shared_ptr<const KvCodec>(own, codec), options);
  return model.status();
}

TEST(LoadErrorTest, MissingTensorIsNamed) {
  for (const char* name :
       {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight",
        "model.layers.1.self_attn.q_norm.weight", "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.self_attn.v_proj.weight"}) {
    TinyModel m = MakeTinyModel("qwen3", 1);
    ASSERT_EQ(m.tensors.erase(name), 1);
    const absl::Status status = LoadStatus(m);
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << name;
    EXPECT_THAT(std::string(status.message()), HasSubstr(name));
  }
}

TEST(LoadErrorTest, MissingBiasIsNamed) {
  TinyModel m = MakeTinyModel("qwen2", 1);
  m.tensors.erase("model.layers.1.self_attn.k_proj.bias");
  EXPECT_THAT(std::string(LoadStatus(m).message()),
              HasSubstr("model.layers.1.self_attn.k_proj.bias"));
}

TEST(LoadErrorTest, UnknownTensorIsNamed) {
  for (const char* name : {"model.layers.0.self_attn.q_proj.bias",
                           "model.layers.2.input_layernorm.weight", "vision.weight"}) {
    TinyModel m = MakeTinyModel("qwen3", 1);
    m.tensors[name] = {{2}, {0, 0}};
    const absl::Status status = LoadStatus(m);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << name;
    EXPECT_THAT(std::string(status.message()), HasSubstr(name));
  }
}

TEST(LoadErrorTest, HarmlessExtrasAreIgnored) {
  TinyModel m = MakeTinyModel("qwen2", 1);  // tied
  m.tensors["lm_head.weight"] = m.tensors["model.embed_tokens.weight"];
  m.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = {{2}, {1, 0.5}};
  EXPECT_TRUE(LoadStatus(m).ok()) << LoadStatus(m);
}

TEST(LoadErrorTest, WrongShapeIsNamed) {
  TinyModel m = MakeTinyModel("qwen3", 1);
  m.tensors["model.layers.0.mlp.up_proj.weight"].shape = {48, 80};  // transposed
  const absl::Status status = LoadStatus(m);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.layers.0.mlp.up_proj.weight"));
}

TEST(LoadErrorTest, CodecOfAnotherShape) {
  const TinyModel m = MakeTinyModel("qwen3", 1);
  const auto codec = Identity({3, 2, 64});
  const absl::Status status = LoadStatus(m, codec.get());
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("3, 2, 64"));
}

TEST(LoadTest, ProgressEndsAtOne) {
  const TinyModel m = MakeTinyModel("qwen3", 1);
  TempFolder dir;
  m.Write(dir.path());
  std::vector<double> shares;
  TransformerOptions options;
  options.progress = [&](double share) { shares.push_back(share); };
  ASSERT_TRUE(LoadTransformer(dir.path(), Identity(m.config.kv_shape()), options).ok());
  ASSERT_FALSE(shares.empty());
  EXPECT_TRUE(std::is_sorted(shares.begin(), shares.end()));
  EXPECT_EQ(shares.back(), 1.0);
}

// The folded matrices against float64, and their single rounding to bf16.
TEST(FoldTest, RowsAndColumns) {
  constexpr int kHeads = 2, kDim = 64, kOther = 37;
  const std::vector<float> r0 = RandomRotation(kDim, 1), r1 = RandomRotation(kDim, 2);
  const std::vector<const float*> rotations = {r0.data(), r1.data()};
  std::mt19937_64 random(9);
  std::vector<float> w(kHeads * kDim * kOther);
  for (float& v : w)
    v = kernels::ToFloat(
        kernels::ToBf16(static_cast<float>(static_cast<double>(random() >> 11) * 0x1p-52 - 1)));
  for (const auto compute : {kernels::Compute::kFp32, kernels::Compute::kBf16}) {
    const auto rounded = [&](float v) {
      return compute == kernels::Compute::kBf16 ? kernels::ToFloat(kernels::ToBf16(v)) : v;
    };
    // Half the spacing of the type's values around v.
    const auto half_step = [&](double v) {
      return std::ldexp(1.0001, std::ilogb(v) - (compute == kernels::Compute::kBf16 ? 8 : 24));
    };
    std::vector<float> rows = w, columns = w;
    FoldIntoRows(rotations, kDim, kOther, compute, nullptr, rows.data());
    FoldIntoColumns(rotations, kDim, kOther, compute, nullptr, columns.data());
    for (int h = 0; h < kHeads; ++h) {
      for (int x = 0; x < kOther; ++x) {
        for (int j = 0; j < kDim; ++j) {
          double by_row = 0, by_column = 0;
          for (int c = 0; c < kDim; ++c) {
            const double r = rotations[h][c * kDim + j];
            by_row += w[(h * kDim + c) * kOther + x] * r;
            by_column += w[x * kHeads * kDim + h * kDim + c] * r;
          }
          EXPECT_NEAR(rounded(rows[(h * kDim + j) * kOther + x]), by_row, half_step(by_row));
          EXPECT_NEAR(rounded(columns[x * kHeads * kDim + h * kDim + j]), by_column,
                      half_step(by_column));
        }
      }
    }
  }
}

TEST(FoldTest, NullLeavesAlone) {
  std::vector<float> w = {1, 2, 3, 4};
  FoldIntoRows({nullptr, nullptr}, 2, 1, kernels::Compute::kBf16, nullptr, w.data());
  FoldIntoColumns({nullptr, nullptr}, 2, 1, kernels::Compute::kBf16, nullptr, w.data());
  EXPECT_EQ(w, (std::vector<float>{1, 2, 3, 4}));
}

}  // namespace
}  // namespace oscarkv
