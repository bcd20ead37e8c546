// Profile shaped: its file, what it refuses, its fingerprint, its pages.
#include "codec/shaped_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <set>

#include "codec/tensor_file.h"
#include "kernels/q2_encode/op.h"
#include "tests/unit/codec/pt_writer.h"

namespace oscarkv {
namespace {

using ::testing::HasSubstr;

constexpr kernels::KvShape kShape = {2, 2, 64};
constexpr int kD = 64, kSquare = kD * kD;

// Orthogonal matrices with columns stretched by 1 to 2, and metrics that fit them.
ShapedParameters Parameters() {
  ShapedParameters p;
  p.shape = kShape;
  for (int i = 0; i < 2 * kShape.num_layers; ++i) {
    ShapedSide side;
    for (int h = 0; h < kShape.num_kv_heads; ++h) {
      const std::vector<float> rotation = testing::Orthogonal(kD, 2 * i + h);
      for (int e = 0; e < kSquare; ++e) {
        const int r = e / kD, c = e % kD;
        side.transform.push_back(rotation[e] * (1 + static_cast<float>(c) / kD));
        // I + v v^T: positive definite.
        side.metric.push_back((r == c ? 1.0f : 0.0f) +
                              0.01f * static_cast<float>((r % 7) * (c % 7)));
      }
      for (int c = 0; c < kD; ++c) side.mean.push_back(0.1f * static_cast<float>(c % 5 + h));
    }
    side.gain = i % 2 == 0 ? 1 : 0.3f;
    p.sides.push_back(side);
  }
  return p;
}

std::shared_ptr<const ShapedCodec> Create(const ShapedParameters& p, ShapedOptions options = {}) {
  const auto codec = ShapedCodec::Create(p, options, "test");
  EXPECT_TRUE(codec.ok()) << codec.status();
  return codec.ok() ? *codec : nullptr;
}

absl::StatusOr<ShapedParameters> Parse(const std::string& bytes,
                                       const kernels::KvShape& shape = kShape) {
  return ParseShapedFile(testing::Bytes(bytes), shape);
}

TEST(ShapedFileTest, RoundTrip) {
  ShapedParameters p = Parameters();
  p.metadata["calibration.tokens"] = "123";
  const std::string bytes = WriteShapedFile(p);
  const auto read = Parse(bytes);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->metadata.at("calibration.tokens"), "123");
  EXPECT_EQ(WriteShapedFile(*read), bytes);
  EXPECT_EQ(Create(*read)->fingerprint(), Create(p)->fingerprint());
}

TEST(ShapedFileTest, Refused) {
  const std::string good = WriteShapedFile(Parameters());
  const auto error = [](const auto& result) { return std::string(result.status().message()); };
  EXPECT_THAT(error(Parse(good, {3, 2, 64})), HasSubstr("layers \"2\", expected \"3\""));
  EXPECT_THAT(error(Parse(good.substr(0, good.size() - 4))), HasSubstr("bytes of data"));
  EXPECT_THAT(error(Parse(good.substr(0, 40))), HasSubstr("neither"));
  EXPECT_THAT(error(Parse("")), HasSubstr("0 bytes"));
  ShapedParameters p = Parameters();
  p.sides[3].mean[5] = NAN;
  EXPECT_THAT(error(Parse(WriteShapedFile(p))), HasSubstr("layers.1.value.mean holds nan"));
  p = Parameters();
  p.sides[0].widen = 0;
  EXPECT_THAT(error(Parse(WriteShapedFile(p))), HasSubstr("allowed are 0.5..4"));
  TensorFileWriter other;
  other.SetMetadata("format", "oscarkv.rotation");
  EXPECT_THAT(error(Parse(other.Finish())), HasSubstr("format \"oscarkv.rotation\""));
  // Every cut and some flipped header bytes: an error or the same content, never a crash.
  for (size_t n = 0; n < 4096 && n < good.size(); n += 7) {
    std::string bytes = good;
    bytes[n] ^= 0x15;
    const auto read = Parse(bytes);
    if (read.ok()) ShapedCodec::Create(*read, {}, "").status().IgnoreError();
    EXPECT_FALSE(Parse(good.substr(0, n)).ok());
  }
}

TEST(ShapedCodecTest, RefusesWhatCannotBeUndone) {
  const auto error = [](const ShapedParameters& p) {
    return std::string(ShapedCodec::Create(p, {}, "").status().message());
  };
  ShapedParameters p = Parameters();
  std::fill_n(p.sides[2].transform.begin() + kSquare, kD, 0.0f);
  EXPECT_THAT(error(p),
              ::testing::AllOf(HasSubstr("layer 1, key, kv head 1"), HasSubstr("singular")));
  p = Parameters();
  p.sides[1].metric[0] = -5;
  EXPECT_THAT(error(p),
              ::testing::AllOf(HasSubstr("layer 0, value"), HasSubstr("positive definite")));
  p = Parameters();
  EXPECT_THAT(std::string(ShapedCodec::Create(p, {.sweeps = 9}, "").status().message()),
              HasSubstr("sweeps is 9, allowed are 0 to 4"));
}

TEST(ShapedCodecTest, FingerprintCoversEverything) {
  std::set<Sha256Digest> seen;
  const auto add = [&](const std::function<void(ShapedParameters*)>& change,
                       ShapedOptions options = {}) {
    ShapedParameters p = Parameters();
    change(&p);
    EXPECT_TRUE(seen.insert(Create(p, options)->fingerprint()).second);
  };
  add([](ShapedParameters*) {});
  add([](ShapedParameters* p) { p->sides[3].mean[7] += 1; });
  add([](ShapedParameters* p) { p->sides[0].transform[7] += 0.01f; });
  add([](ShapedParameters* p) { p->sides[2].metric[0] += 1; });
  add([](ShapedParameters* p) { p->sides[1].widen = 1.25f; });
  add([](ShapedParameters* p) { p->sides[1].gain = 0.5f; });
  add([](ShapedParameters*) {}, {.sweeps = 1});
  add([](ShapedParameters*) {}, {.symmetric = true});
  ShapedParameters p = Parameters();
  p.metadata["calibration.tokens"] = "1";  // for people
  EXPECT_TRUE(seen.contains(Create(p)->fingerprint()));
}

TEST(ShapedCodecTest, TransformsUndoEachOther) {
  const auto codec = Create(Parameters());
  for (int h : {0, 1}) {
    const float *m = codec->KeyRotation(1, h), *q = codec->QueryTransform(1, h);
    for (int i = 0; i < kD; ++i) {
      for (int j = 0; j < kD; ++j) {
        double dot = 0;  // M (M^-T)^T = I
        for (int c = 0; c < kD; ++c) dot += double{m[i * kD + c]} * q[j * kD + c];
        EXPECT_NEAR(dot, i == j ? 1 : 0, 1e-5);
      }
    }
  }
  EXPECT_EQ(codec->KeyMean(0, 1)[2], 0.3f);
}

// Energy of the difference, as a share of that of the rows.
double ErrorShare(const std::vector<kernels::Bf16>& rows,
                  const std::vector<kernels::Bf16>& decoded) {
  double error = 0, energy = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const double x = kernels::ToFloat(rows[i]), e = kernels::ToFloat(decoded[i]) - x;
    error += e * e;
    energy += x * x;
  }
  return error / energy;
}

TEST(ShapedCodecTest, PagesAreTheKernels) {
  const ShapedParameters p = Parameters();
  const auto codec = Create(p);
  EXPECT_EQ(codec->Describe(), "shaped, test, 2 sweeps");
  std::vector<kernels::Bf16> block(kShape.Bf16LayerBytes() / 2), decoded(block.size());
  for (size_t i = 0; i < block.size(); ++i)
    block[i] = kernels::ToBf16(static_cast<float>((i * 37) % 101) / 50 - 1);
  std::vector<uint8_t> page(kShape.PageLayerBytes());
  ASSERT_TRUE(codec->EncodeLayer(1, block.data(), page.data()).ok());
  ASSERT_TRUE(codec->DecodeLayer(1, page.data(), decoded.data()).ok());
  // Head 1, V, by hand.
  const auto tables = ShapedTables::Create(p.sides[3].metric.data() + kSquare, kD);
  std::vector<uint8_t> expected(page.begin() + kernels::PageHeadBytes(kD), page.end());
  const std::vector<uint8_t> whole = expected;
  kernels::ShapedArgs args;
  args.head_dim = kD;
  args.side = kernels::Side::kValue;
  args.rows = block.data() + kShape.Bf16SideElements() + 64 * kD;
  args.row_stride = kD;
  args.metric = tables->view();
  args.gain = 0.3f;
  args.page_head = expected.data();
  ASSERT_EQ(kernels::EncodePageHeadShaped(kernels::Backend::kRef, args, nullptr),
            kernels::KernelStatus::kOk);
  EXPECT_EQ(expected, whole);
  EXPECT_LT(ErrorShare(block, decoded), 0.2);
  block[3] = kernels::ToBf16(INFINITY);
  EXPECT_EQ(codec->EncodeLayer(0, block.data(), page.data()).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(codec->clamped_rows(), 0u);
}

TEST(ShapedCodecTest, SymmetricPagesAreSmaller) {
  const auto codec = Create(Parameters(), {.symmetric = true}), other = Create(Parameters());
  EXPECT_EQ(codec->profile(), Profile::kShapedSym);
  EXPECT_EQ(codec->Describe(), "shaped-sym, test, 2 sweeps");
  EXPECT_EQ(codec->shape().PageLayerBytes(), 2u * 2304);
  EXPECT_EQ(other->shape(), kShape);
  std::vector<kernels::Bf16> block(kShape.Bf16LayerBytes() / 2), decoded(block.size());
  for (size_t i = 0; i < block.size(); ++i)
    block[i] = kernels::ToBf16(static_cast<float>((i * 37) % 101) / 50 - 1);
  std::vector<uint8_t> page(codec->shape().PageLayerBytes() + 1, 0xab);
  ASSERT_TRUE(codec->EncodeLayer(1, block.data(), page.data()).ok());
  EXPECT_EQ(page.back(), 0xab);
  ASSERT_TRUE(codec->DecodeLayer(1, page.data(), decoded.data()).ok());
  EXPECT_LT(ErrorShare(block, decoded), 0.2);
}

TEST(ShapedCodecTest, FoundInAFolder) {
  const std::string dir = ::testing::TempDir() + "/shaped_codec_test";
  std::filesystem::remove_all(dir);
  std::filesystem::create_directories(dir);
  CodecOptions options;
  options.profile = Profile::kShaped;
  EXPECT_THAT(std::string(FindCodecFiles(dir, &options).message()), HasSubstr("has 0 files"));
  ASSERT_TRUE(
      WriteWholeFile(dir + "/codec_shaped.safetensors", WriteShapedFile(Parameters())).ok());
  ASSERT_TRUE(FindCodecFiles(dir, &options).ok());
  const auto codec = CreateCodec(options, kShape);
  ASSERT_TRUE(codec.ok()) << codec.status();
  EXPECT_EQ((*codec)->profile(), Profile::kShaped);
  EXPECT_EQ((*codec)->fingerprint(), Create(Parameters())->fingerprint());
  options.shaped_file.clear();
  EXPECT_THAT(std::string(CreateCodec(options, kShape).status().message()),
              HasSubstr("needs the file"));
  // A fit for shaped serves shaped-sym; one for shaped-sym goes first, and serves nobody else.
  options.profile = Profile::kShapedSym;
  ASSERT_TRUE(FindCodecFiles(dir, &options).ok());
  EXPECT_THAT(options.shaped_file, ::testing::EndsWith("/codec_shaped.safetensors"));
  const auto other = CreateCodec(options, kShape);
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ((*other)->profile(), Profile::kShapedSym);
  EXPECT_NE((*other)->fingerprint(), (*codec)->fingerprint());
  ShapedParameters symmetric = Parameters();
  symmetric.symmetric = true;
  ASSERT_TRUE(
      WriteWholeFile(dir + "/codec_shaped-sym.safetensors", WriteShapedFile(symmetric)).ok());
  options.shaped_file.clear();
  ASSERT_TRUE(FindCodecFiles(dir, &options).ok());
  EXPECT_THAT(options.shaped_file, ::testing::EndsWith("/codec_shaped-sym.safetensors"));
  EXPECT_TRUE(CreateCodec(options, kShape).ok());
  options.profile = Profile::kShaped;
  EXPECT_THAT(std::string(CreateCodec(options, kShape).status().message()),
              HasSubstr("fitted for profile shaped-sym"));
  options.shaped_file.clear();
  ASSERT_TRUE(FindCodecFiles(dir, &options).ok());
  EXPECT_THAT(options.shaped_file, ::testing::EndsWith("/codec_shaped.safetensors"));
  std::filesystem::remove_all(dir);
}

}  // namespace
}  // namespace oscarkv
