#include "codec/codec.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "codec/rotation_zoo.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/codec/pt_writer.h"

namespace oscarkv {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr kernels::KvShape kReference = {8, 2, 128};
constexpr const char* kModel = "models/reference";

CodecOptions ReferenceOptions() {
  CodecOptions options;
  EXPECT_TRUE(FindCodecFiles(kModel, &options).ok());
  return options;
}
CodecOptions DataFree() {
  CodecOptions options;
  options.data_free = true;
  return options;
}
std::shared_ptr<const KvCodec> Create(const CodecOptions& options,
                                      const kernels::KvShape& shape = kReference) {
  const auto codec = CreateCodec(options, shape);
  EXPECT_TRUE(codec.ok()) << codec.status();
  return codec.ok() ? *codec : nullptr;
}

TEST(ProfileTest, Names) {
  EXPECT_EQ(*ParseProfile("bf16"), Profile::kBf16);
  EXPECT_EQ(*ParseProfile("oscar"), Profile::kOscar);
  EXPECT_EQ(ProfileName(Profile::kOscar), "oscar");
  EXPECT_EQ(ParseProfile("Oscar").status(),
            absl::InvalidArgumentError(
                "profile \"Oscar\", allowed are bf16, oscar, shaped and shaped-sym"));
}

TEST(CodecTest, ReferenceModel) {
  const auto codec = Create(ReferenceOptions());
  EXPECT_EQ(codec->profile(), Profile::kOscar);
  EXPECT_EQ(codec->shape(), kReference);
  EXPECT_FALSE(codec->data_free());
  EXPECT_EQ(codec->Describe(),
            "oscar, rotations from k_rotation_qqt_r_h_pbr.pt and v_rotation_sst_r_h_pbr.pt, clip K "
            "0.96 V 0.92");
  const auto keys = ReadRotations("models/reference/k_rotation_qqt_r_h_pbr.pt", kReference);
  const auto values = ReadRotations("models/reference/v_rotation_sst_r_h_pbr.pt", kReference);
  for (int l = 0; l < 8; ++l) {
    for (int i = 0; i < 128 * 128; ++i) {
      ASSERT_EQ(codec->KeyRotation(l, 1)[i], keys->At(l, 0)[i]);
      ASSERT_EQ(codec->ValueRotation(l, 0)[i], values->At(l, 0)[i]);
    }
  }
}

TEST(CodecTest, DataFreeFallback) {
  const auto codec = Create(DataFree(), {2, 3, 64});
  EXPECT_TRUE(codec->data_free());
  EXPECT_EQ(codec->Describe(), "oscar, data-free Hadamard rotations, clip K 0.96 V 0.92");
  EXPECT_FLOAT_EQ(codec->KeyRotation(1, 2)[0], 0.125f);
  EXPECT_FLOAT_EQ(codec->ValueRotation(0, 0)[63 * 64 + 63], 0.125f);  // popcount(63) is even
}

TEST(CodecTest, Bf16HasNoTransformAndNoPages) {
  CodecOptions options;
  options.profile = Profile::kBf16;
  EXPECT_TRUE(FindCodecFiles(kModel, &options).ok());
  EXPECT_TRUE(options.key_rotation_file.empty());
  const auto codec = Create(options);
  EXPECT_EQ(codec->profile(), Profile::kBf16);
  EXPECT_EQ(codec->KeyRotation(0, 0), nullptr);
  EXPECT_EQ(codec->ValueRotation(0, 0), nullptr);
  EXPECT_EQ(codec->Describe(), "bf16, unquantised");
  EXPECT_EQ(codec->clamped_rows(), 0u);
  EXPECT_FALSE(codec->data_free());
  EXPECT_EQ(codec->EncodeLayer(0, nullptr, nullptr).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(codec->DecodeLayer(0, nullptr, nullptr).code(), absl::StatusCode::kFailedPrecondition);
}

TEST(CodecTest, WrongOptionsAreNamed) {
  struct Case {
    std::function<void(CodecOptions*, kernels::KvShape*)> change;
    const char* error;
  };
  const std::vector<Case> cases = {
      {[](CodecOptions* o, kernels::KvShape*) { o->profile = static_cast<Profile>(7); },
       "profile 7"},
      {[](CodecOptions*, kernels::KvShape* s) { s->head_dim = 80; },
       "head_dim 80, 64 and 128 are supported"},
      {[](CodecOptions*, kernels::KvShape* s) { s->num_layers = 0; }, "0 layers"},
      {[](CodecOptions* o, kernels::KvShape*) { o->key_clip = 0; },
       "key clip ratio is 0, allowed are values above 0 and up to 1"},
      {[](CodecOptions* o, kernels::KvShape*) { o->value_clip = 1.5f; }, "value clip ratio is 1.5"},
      {[](CodecOptions* o, kernels::KvShape*) { o->value_clip = NAN; }, "value clip ratio is nan"},
      {[](CodecOptions* o, kernels::KvShape*) { o->data_free = true; }, "exclude each other"},
      {[](CodecOptions* o, kernels::KvShape*) { o->value_rotation_file = ""; },
       "needs rotation files of keys and values"},
      {[](CodecOptions* o, kernels::KvShape*) { o->key_rotation_file = "absent.pt"; },
       "absent.pt: no such file"},
      {[](CodecOptions*, kernels::KvShape* s) { s->num_layers = 9; },
       "k_rotation_qqt_r_h_pbr.pt: layer 8 is missing"},
  };
  for (const Case& c : cases) {
    CodecOptions options = ReferenceOptions();
    kernels::KvShape shape = kReference;
    c.change(&options, &shape);
    EXPECT_THAT(std::string(CreateCodec(options, shape).status().message()), HasSubstr(c.error));
  }
}

TEST(CodecTest, FingerprintCoversWhatDecidesTheBytes) {
  std::vector<Sha256Digest> all;
  const auto add = [&](const CodecOptions& o, const kernels::KvShape& s) {
    all.push_back(Create(o, s)->fingerprint());
  };
  CodecOptions bf16;
  bf16.profile = Profile::kBf16;
  CodecOptions key_clip = ReferenceOptions(), value_clip = ReferenceOptions(),
               swapped = ReferenceOptions();
  key_clip.key_clip = 0.95f;
  value_clip.value_clip = 0.96f;
  std::swap(swapped.key_rotation_file, swapped.value_rotation_file);
  add(ReferenceOptions(), kReference);
  add(key_clip, kReference);
  add(value_clip, kReference);
  add(swapped, kReference);
  add(DataFree(), kReference);
  add(DataFree(), {8, 1, 128});
  add(DataFree(), {4, 4, 128});
  add(DataFree(), {8, 2, 64});
  add(bf16, kReference);
  add(bf16, {8, 2, 64});
  for (size_t i = 0; i < all.size(); ++i) {
    for (size_t j = 0; j < i; ++j) EXPECT_NE(all[i], all[j]) << i << " " << j;
  }
  EXPECT_EQ(Create(ReferenceOptions())->fingerprint(), all[0]) << "it is stable";
  // Stored blocks are found by it: it changes only together with kBlockFormatVersion.
  EXPECT_EQ(ToHex(all[0]), "47a431da5c5dcf693a5edfc7f30958bbbdedd3eafaf1372be9a1d2ddba3ba69c");
  EXPECT_EQ(ToHex(all[8]), "375573cb977c742a81f809faf6a82fc216127e1c217f903f896ff92570adf797");
}

class TempDir {
 public:
  TempDir() {
    std::string name = ::testing::TempDir() + "codec_test.XXXXXX";
    path_ = mkdtemp(name.data());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  std::string Write(const std::string& name, const std::string& bytes = "x") const {
    std::ofstream(path_ + "/" + name, std::ios::binary) << bytes;
    return path_ + "/" + name;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// How the matrices came into memory does not matter: another file form, another sharing between
// heads, the same fingerprint.
TEST(CodecTest, FingerprintDoesNotDependOnTheFileForm) {
  const kernels::KvShape shape = {1, 2, 64};
  TempDir dir;
  testing::RotationFileSpec spec;
  spec.format_version = 2;
  spec.layers = {{0, true, testing::Orthogonal(64, 1), StorageType::kF32, 0, {64, 64}, {}, false}};
  CodecOptions shared, per_head, safetensors;
  shared.key_rotation_file = shared.value_rotation_file =
      dir.Write("shared.pt", testing::WriteRotationFile(spec));
  std::vector<float>& values = spec.layers[0].values;
  const std::vector<float> once = values;
  values.insert(values.end(), once.begin(), once.end());
  spec.layers[0].shape = {2, 64, 64};
  per_head.key_rotation_file = per_head.value_rotation_file =
      dir.Write("per_head.pt", testing::WriteRotationFile(spec));
  safetensors.key_rotation_file = safetensors.value_rotation_file = dir.Write(
      "r.safetensors", testing::WriteSafetensors("{\"layers.0.rotation\":{\"dtype\":\"F32\","
                                                 "\"shape\":[64,64],\"data_offsets\":[0,16384]}}",
                                                 testing::StorageBytes(once, StorageType::kF32)));
  const Sha256Digest want = Create(shared, shape)->fingerprint();
  EXPECT_EQ(Create(per_head, shape)->fingerprint(), want);
  EXPECT_EQ(Create(safetensors, shape)->fingerprint(), want);
}

TEST(FindCodecFilesTest, Folders) {
  TempDir dir;
  const auto find = [&](CodecOptions* options) { return FindCodecFiles(dir.path(), options); };
  CodecOptions none;
  ASSERT_TRUE(find(&none).ok());
  EXPECT_TRUE(none.data_free);

  const std::string k = dir.Write("k_rotation_a.pt");
  dir.Write("k_rotation_a.txt");
  dir.Write("rotation_k.pt");
  CodecOptions half;
  const absl::Status only_keys = find(&half);
  EXPECT_EQ(only_keys.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(only_keys.message()),
              AllOf(HasSubstr("k_rotation_a.pt"), HasSubstr("no v_rotation_*")));
  EXPECT_FALSE(half.data_free);

  const std::string v = dir.Write("v_rotation_b.safetensors");
  CodecOptions both;
  ASSERT_TRUE(find(&both).ok());
  EXPECT_EQ(both.key_rotation_file, k);
  EXPECT_EQ(both.value_rotation_file, v);
  EXPECT_FALSE(both.data_free);

  dir.Write("v_rotation_c.pt");
  CodecOptions several;
  EXPECT_THAT(std::string(find(&several).message()),
              AllOf(HasSubstr("v_rotation_b.safetensors, v_rotation_c.pt"), HasSubstr("several")));
  // What is given explicitly is not searched for.
  CodecOptions given;
  given.key_rotation_file = "k";
  given.value_rotation_file = "v";
  ASSERT_TRUE(find(&given).ok());
  EXPECT_EQ(given.key_rotation_file, "k");
  CodecOptions data_free = DataFree();
  ASSERT_TRUE(find(&data_free).ok());
  EXPECT_TRUE(data_free.key_rotation_file.empty());

  CodecOptions absent;
  EXPECT_EQ(FindCodecFiles(dir.path() + "/absent", &absent).code(), absl::StatusCode::kNotFound);
}

std::vector<kernels::Bf16> Rows(const kernels::KvShape& shape, uint32_t seed) {
  std::vector<kernels::Bf16> rows(shape.Bf16LayerBytes() / 2);
  uint32_t state = seed;
  for (kernels::Bf16& r : rows) {
    float sum = 0;  // roughly normal
    for (int i = 0; i < 4; ++i) {
      state = state * 1664525 + 1013904223;
      sum += static_cast<float>(state >> 8) / (1 << 24) - 0.5f;
    }
    r = kernels::ToBf16(sum * 1.7f);
  }
  return rows;
}

TEST(CodecTest, EncodeDecode) {
  for (const kernels::KvShape& shape : {kReference, kernels::KvShape{2, 3, 64}}) {
    const auto codec = Create(DataFree(), shape);
    const std::vector<kernels::Bf16> rows = Rows(shape, 1);
    std::vector<uint8_t> page(shape.PageLayerBytes());
    std::vector<kernels::Bf16> decoded(rows.size());
    ASSERT_TRUE(codec->EncodeLayer(1, rows.data(), page.data()).ok());
    ASSERT_TRUE(codec->DecodeLayer(1, page.data(), decoded.data()).ok());
    double error[2] = {}, energy[2] = {};
    for (size_t i = 0; i < rows.size(); ++i) {
      const double x = kernels::ToFloat(rows[i]), y = kernels::ToFloat(decoded[i]);
      const bool value_side = i >= shape.Bf16SideElements();
      error[value_side] += (x - y) * (x - y);
      energy[value_side] += x * x;
    }
    // Normal rows at these clips: 0.156 of the energy for 0.96, 0.127 for 0.92 (measured); these
    // rows have shorter tails.
    EXPECT_LT(error[0] / energy[0], 0.16);
    EXPECT_LT(error[1] / energy[1], 0.13);
    EXPECT_LT(error[1] / energy[1], error[0] / energy[0]);
    EXPECT_EQ(codec->clamped_rows(), 0u);
  }
}

TEST(CodecTest, NonFiniteRowsAreRefused) {
  const auto codec = Create(DataFree(), {1, 2, 64});
  for (const kernels::Bf16 bad :
       {kernels::Bf16{0x7f80}, kernels::Bf16{0xff80}, kernels::Bf16{0x7fc0}}) {
    for (const size_t at : {size_t{0}, codec->shape().Bf16LayerBytes() / 2 - 1}) {
      std::vector<kernels::Bf16> rows = Rows(codec->shape(), 2);
      rows[at] = bad;
      std::vector<uint8_t> page(codec->shape().PageLayerBytes());
      EXPECT_EQ(
          codec->EncodeLayer(0, rows.data(), page.data()),
          absl::InvalidArgumentError("layer 0: K or V holds Inf or NaN, which has no 2-bit code"));
    }
  }
}

TEST(CodecTest, ClampedRowsAreCountedFromManyThreads) {
  const auto codec = Create(DataFree(), {1, 2, 64});
  std::vector<kernels::Bf16> rows(codec->shape().Bf16LayerBytes() / 2, kernels::ToBf16(1e6f));
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      std::vector<uint8_t> page(codec->shape().PageLayerBytes());
      for (int i = 0; i < 10; ++i)
        EXPECT_TRUE(codec->EncodeLayer(0, rows.data(), page.data()).ok());
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(codec->clamped_rows(), 4u * 10 * 2 * 2 * 64);
}

}  // namespace
}  // namespace oscarkv
