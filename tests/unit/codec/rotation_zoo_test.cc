#include "codec/rotation_zoo.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/sha256.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/codec/pt_writer.h"

namespace oscarkv {
namespace {

using testing::Bytes;
using ::testing::HasSubstr;
using testing::LayerSpec;
using testing::Orthogonal;
using testing::PickleWriter;
using testing::RotationFileSpec;
using testing::StorageBytes;
using testing::WriteRotationFile;
using testing::WriteSafetensors;
using testing::WriteZip;

constexpr kernels::KvShape kShape = {3, 2, 4};
constexpr const char* kKeyFile = "models/reference/k_rotation_qqt_r_h_pbr.pt";
constexpr const char* kValueFile = "models/reference/v_rotation_sst_r_h_pbr.pt";

// Three layers of one matrix each.
RotationFileSpec Spec() {
  RotationFileSpec spec;
  for (int l = 0; l < 3; ++l) {
    LayerSpec layer;
    layer.key = l;
    layer.values = Orthogonal(4, l);
    layer.shape = {4, 4};
    spec.layers.push_back(layer);
  }
  return spec;
}

std::vector<float> Matrix(const RotationSet& set, int layer, int head) {
  const int d = set.shape().head_dim;
  return {set.At(layer, head), set.At(layer, head) + d * d};
}

std::string ErrorOf(const std::string& file, const kernels::KvShape& shape = kShape) {
  const absl::Status s = ParseRotations(Bytes(file), shape).status();
  if (!s.ok()) {
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument) << s;
  }
  return std::string(s.message());
}

void ExpectLayers(const RotationFileSpec& spec, double tolerance = 0) {
  const std::string file = WriteRotationFile(spec);
  const auto set = ParseRotations(Bytes(file), kShape);
  ASSERT_TRUE(set.ok()) << set.status();
  for (int l = 0; l < 3; ++l) {
    const std::vector<float> want = Orthogonal(4, l);
    for (int h = 0; h < 2; ++h) {
      const std::vector<float> got = Matrix(*set, l, h);
      for (int i = 0; i < 16; ++i)
        EXPECT_NEAR(got[i], want[i], tolerance) << "layer " << l << ", element " << i;
    }
    EXPECT_EQ(set->At(l, 0), set->At(l, 1)) << "heads share one matrix";
  }
}

TEST(RotationZooTest, ReferenceFiles) {
  const kernels::KvShape shape = {8, 2, 128};
  for (const char* path : {kKeyFile, kValueFile}) {
    const auto set = ReadRotations(path, shape);
    ASSERT_TRUE(set.ok()) << set.status();
    EXPECT_NE(Matrix(*set, 0, 0), Matrix(*set, 7, 0));
  }
  // The first matrix, byte for byte as it lies in the file: data/0 starts behind its local header,
  // 64-byte aligned.
  std::ifstream in(kKeyFile, std::ios::binary);
  std::string file((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const auto set = ReadRotations(kKeyFile, shape);
  const std::string bytes(reinterpret_cast<const char*>(set->At(0, 1)), 4 * 128 * 128);
  EXPECT_EQ(file.find(bytes) % 64, 0u);
}

TEST(RotationZooTest, ReferenceFilesOfAnotherShape) {
  const auto error = [](const kernels::KvShape& shape) {
    const absl::Status s = ReadRotations(kKeyFile, shape).status();
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument);
    return std::string(s.message());
  };
  EXPECT_EQ(
      error({8, 2, 64}),
      absl::StrCat(
          kKeyFile,
          ": layer 0: rotation has shape [128, 128], the model needs [64, 64] or [2, 64, 64]"));
  EXPECT_EQ(error({9, 2, 128}),
            absl::StrCat(kKeyFile, ": layer 8 is missing, the model has layers 0 to 8"));
  EXPECT_EQ(error({7, 2, 128}),
            absl::StrCat(kKeyFile, ": has layer 7, the model has layers 0 to 6"));
}

TEST(RotationZooTest, FilesThatAreNone) {
  EXPECT_EQ(ReadRotations("models/reference/absent.pt", kShape).status(),
            absl::NotFoundError("models/reference/absent.pt: no such file"));
  EXPECT_EQ(ReadRotations("models/reference", kShape).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(ErrorOf(""), HasSubstr("neither a .pt nor a safetensors file"));
  EXPECT_THAT(ErrorOf("{\"some\": \"text that is long enough\"}"),
              HasSubstr("neither a .pt nor a safetensors file"));
  EXPECT_THAT(ErrorOf("\x80\x02\x8a\x0al\xfc\x9c\x46\xf9"), HasSubstr("before its zip format"));
  EXPECT_THAT(ErrorOf(WriteZip({{"word/document.xml", "<w/>"}})),
              HasSubstr("without <name>/data.pkl"));
  EXPECT_THAT(ErrorOf(WriteZip({{"a/data.pkl", "N."}, {"b/data.pkl", "N."}})),
              HasSubstr("two pickles, a/data.pkl and b/data.pkl"));
}

TEST(RotationZooTest, KeysEigenvaluesAndCompression) {
  ExpectLayers(Spec());
  RotationFileSpec spec = Spec();
  for (LayerSpec& l : spec.layers) l.string_key = l.eigenvalues = true;
  spec.deflate = true;
  spec.byte_order = "";
  std::swap(spec.layers[0], spec.layers[2]);  // the order of layers does not matter
  ExpectLayers(spec);
}

TEST(RotationZooTest, StorageTypes) {
  const std::pair<StorageType, double> cases[] = {{StorageType::kF32, 0},
                                                  {StorageType::kF64, 0},
                                                  {StorageType::kBf16, 2e-3},
                                                  {StorageType::kF16, 3e-4}};
  for (const auto& [type, tolerance] : cases) {
    RotationFileSpec spec = Spec();
    for (LayerSpec& l : spec.layers) l.type = type;
    ExpectLayers(spec, tolerance);
  }
}

// Rotations of real size in bf16 are off by more than 1e-3 through their rounding alone.
TEST(RotationZooTest, Bf16RoundedRotationsPass) {
  const kernels::KvShape shape = {8, 2, 128};
  const auto exact = ReadRotations(kKeyFile, shape);
  ASSERT_TRUE(exact.ok());
  RotationFileSpec spec;
  for (int l = 0; l < 8; ++l) {
    LayerSpec layer;
    layer.key = l;
    layer.type = StorageType::kBf16;
    layer.values = Matrix(*exact, l, 0);
    layer.shape = {128, 128};
    spec.layers.push_back(layer);
  }
  EXPECT_EQ(ErrorOf(WriteRotationFile(spec), shape), "");
  spec.layers[3].values[0] += 0.05f;
  EXPECT_THAT(ErrorOf(WriteRotationFile(spec), shape), HasSubstr("at most 0.005 is taken"));
}

TEST(RotationZooTest, StridesAndOffsets) {
  RotationFileSpec spec = Spec();
  // A transposed view, and one with an offset and a row stride that leave gaps.
  std::vector<float> transposed(16), gaps(3 + 4 * 6, 99.0f);
  for (int r = 0; r < 4; ++r) {
    for (int c = 0; c < 4; ++c) {
      transposed[c * 4 + r] = spec.layers[0].values[r * 4 + c];
      gaps[3 + r * 6 + c] = spec.layers[1].values[r * 4 + c];
    }
  }
  spec.layers[0].values = transposed;
  spec.layers[0].strides = {1, 4};
  spec.layers[1].values = gaps;
  spec.layers[1].offset = 3;
  spec.layers[1].strides = {6, 1};
  ExpectLayers(spec);
}

TEST(RotationZooTest, PerHeadTensorsOfVersion2) {
  RotationFileSpec spec = Spec();
  spec.format_version = 2;
  std::vector<float>& values = spec.layers[1].values;
  values = Orthogonal(4, 10);
  const std::vector<float> second = Orthogonal(4, 11);
  values.insert(values.end(), second.begin(), second.end());
  spec.layers[1].shape = {2, 4, 4};
  const std::string file = WriteRotationFile(spec);
  const auto set = ParseRotations(Bytes(file), kShape);
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ(Matrix(*set, 1, 0), Orthogonal(4, 10));
  EXPECT_EQ(Matrix(*set, 1, 1), Orthogonal(4, 11));
  EXPECT_EQ(Matrix(*set, 2, 1), Orthogonal(4, 2))
      << "a layer may still have one matrix for all heads";

  spec.format_version = 1;
  EXPECT_EQ(ErrorOf(WriteRotationFile(spec)),
            "layer 1: rotation has 3 dimensions, format_version 1 has 2");
  EXPECT_THAT(
      ErrorOf(file, {3, 4, 4}),
      HasSubstr("layer 1: rotation has shape [2, 4, 4], the model needs [4, 4] or [4, 4, 4]"));
  spec.format_version = 2;
  spec.layers[1].values[16] += 0.1f;
  EXPECT_THAT(ErrorOf(WriteRotationFile(spec)),
              HasSubstr("layer 1, kv head 1: rotation is not orthogonal"));
}

TEST(RotationZooTest, WrongContentsAreNamed) {
  struct Case {
    std::function<void(RotationFileSpec*)> change;
    const char* error;
  };
  const std::vector<Case> cases = {
      {[](RotationFileSpec* s) { s->format_version = 3; },
       "format_version 3, 1 and 2 are supported"},
      {[](RotationFileSpec* s) { s->byte_order = "big"; }, "written with byte order \"big\""},
      {[](RotationFileSpec* s) { s->layers.erase(s->layers.begin() + 1); },
       "layer 1 is missing, the model has layers 0 to 2"},
      {[](RotationFileSpec* s) { s->layers[2].key = 7; },
       "has layer 7, the model has layers 0 to 2"},
      {[](RotationFileSpec* s) { s->layers[2].key = -1; }, "no layer number"},
      {[](RotationFileSpec* s) { s->layers[2].key = 1, s->layers[2].string_key = true; },
       "layer 1 appears twice"},
      {[](RotationFileSpec* s) {
         s->layers[1].shape = {2, 8};
       },
       "layer 1: rotation has shape [2, 8], the model needs [4, 4]"},
      {[](RotationFileSpec* s) { s->layers[1].shape = {16}; },
       "layer 1: rotation has 1 dimensions"},
      {[](RotationFileSpec* s) { s->layers[1].values[5] = NAN; }, "layer 1: rotation[1][1] is nan"},
      {[](RotationFileSpec* s) { s->layers[2].values[15] = -INFINITY; },
       "layer 2: rotation[3][3] is -inf"},
      {[](RotationFileSpec* s) { s->layers[0].values[0] += 0.01f; },
       "layer 0: rotation is not orthogonal: max |M^T M - I| is 0.0"},
      {[](RotationFileSpec* s) { s->layers[2].values.assign(16, 0.f); },
       "layer 2: rotation is not orthogonal: max |M^T M - I| is 1,"},
  };
  for (const Case& c : cases) {
    RotationFileSpec spec = Spec();
    c.change(&spec);
    EXPECT_THAT(ErrorOf(WriteRotationFile(spec)), HasSubstr(c.error));
  }
}

// Pickles that are well-formed but not RotationZoo's.
TEST(RotationZooTest, WrongStructuresAreNamed) {
  const auto error = [](const std::string& pickle) {
    return ErrorOf(WriteZip({{"r/data.pkl", pickle}}));
  };
  const auto w = [] { return PickleWriter().Proto().Dict(); };
  EXPECT_EQ(error(PickleWriter().Proto().Int(1).Stop()), "holds a int, not RotationZoo's dict");
  EXPECT_EQ(error(w().Stop()), "has no \"layers\"");
  EXPECT_EQ(error(w().Str("layers").Int(3).SetItem().Stop()), "\"layers\" is a int, not a dict");
  EXPECT_EQ(error(w().Str("layers").Dict().SetItem().Stop()),
            "layer 0 is missing, the model has layers 0 to 2");
  EXPECT_EQ(error(w().Str("format_version").Str("1").SetItem().Stop()),
            "\"format_version\" is a string, not a int");
  const auto layer = [&](const std::function<void(PickleWriter*)>& key,
                         const std::function<void(PickleWriter*)>& value) {
    PickleWriter p = w().Str("layers").Dict();
    key(&p);
    value(&p);
    return error(p.SetItem().SetItem().Stop());
  };
  const auto zero = [](PickleWriter* p) { p->Int(0); };
  const auto empty = [](PickleWriter* p) { p->Dict(); };
  EXPECT_EQ(layer(zero, zero), "layer 0 is a int, not a dict");
  EXPECT_EQ(layer(zero, empty), "layer 0: has no \"rotation\"");
  EXPECT_EQ(layer(zero,
                  [](PickleWriter* p) {
                    p->Dict().Str("rotation").Ints({1, 2}).SetItem();
                  }),
            "layer 0: \"rotation\" is a tuple, not a tensor");
  for (const char* key : {"", "x", "01", "+1", " 1", "1.0", "99999999999999999999"}) {
    EXPECT_THAT(layer([&](PickleWriter* p) { p->Str(key); }, empty), HasSubstr("no layer number"))
        << key;
  }
  EXPECT_THAT(layer([](PickleWriter* p) { p->Op(0x88); }, empty), HasSubstr("no layer number"));
  const auto tensor = [](PickleWriter* p) {
    p->Dict().Str("rotation").Tensor("FloatStorage", "0", 16, 0, {4, 4}, {4, 1}).SetItem();
  };
  EXPECT_EQ(layer(zero, tensor), "layer 0: zip archive: has no entry r/data/0");
  const auto huge = [](PickleWriter* p) {
    p->Dict().Str("rotation").Tensor("FloatStorage", "0", INT64_MAX, 0, {4, 4}, {4, 1}).SetItem();
  };
  EXPECT_THAT(layer(zero, huge),
              HasSubstr("layer 0: storage of 9223372036854775807 elements is larger"));
}

TEST(RotationZooTest, StorageSizeMustAgree) {
  const RotationFileSpec spec = Spec();
  std::vector<testing::ZipItem> items = {{"r/data.pkl", testing::WriteRotationPickle(spec)}};
  for (int l = 0; l < 3; ++l)
    items.push_back(
        {absl::StrCat("r/data/", l), StorageBytes(spec.layers[l].values, StorageType::kF32)});
  EXPECT_EQ(ErrorOf(WriteZip(items)), "");
  items[2].data.pop_back();
  EXPECT_EQ(ErrorOf(WriteZip(items)), "layer 1: storage \"1\" has 63 bytes, its tensors say 64");
  items[2].data += "12";
  EXPECT_EQ(ErrorOf(WriteZip(items)), "layer 1: storage \"1\" has 65 bytes, its tensors say 64");
}

TEST(RotationZooTest, EveryTruncationIsAnError) {
  for (const bool deflate : {false, true}) {
    RotationFileSpec spec = Spec();
    spec.deflate = deflate;
    const std::string file = WriteRotationFile(spec);
    ASSERT_EQ(ErrorOf(file), "");
    for (size_t n = 0; n < file.size(); ++n) EXPECT_NE(ErrorOf(file.substr(0, n)), "") << n;
  }
}

// No flipped bit may pass for other rotations; the few that change nothing are in fields that
// nobody needs (times, versions).
TEST(RotationZooTest, FlippedBitsNeverChangeTheMatrices) {
  const std::string file = WriteRotationFile(Spec());
  const auto good = ParseRotations(Bytes(file), kShape);
  ASSERT_TRUE(good.ok());
  int harmless = 0;
  for (size_t bit = 0; bit < 8 * file.size(); ++bit) {
    std::string bad = file;
    bad[bit / 8] ^= static_cast<char>(1 << (bit % 8));
    const auto set = ParseRotations(Bytes(bad), kShape);
    if (!set.ok()) continue;
    ++harmless;
    for (int l = 0; l < 3; ++l) ASSERT_EQ(Matrix(*set, l, 1), Matrix(*good, l, 1)) << "bit " << bit;
  }
  EXPECT_LT(harmless, static_cast<int>(4 * file.size()));
}

std::string Header(const std::string& tensors) {
  return "{\"__metadata__\":{\"format\":\"pt\"}," + tensors + "}";
}
std::string Tensor(int layer, const char* dtype, const char* shape, int begin, int end) {
  return absl::StrCat("\"layers.", layer, ".rotation\":{\"dtype\":\"", dtype, "\",\"shape\":[",
                      shape, "],\"data_offsets\":[", begin, ",", end, "]}");
}

TEST(RotationSafetensorsTest, ReadsBothShapes) {
  std::string data;
  for (int i = 0; i < 2; ++i) data += StorageBytes(Orthogonal(4, i), StorageType::kF32);
  data += StorageBytes(Orthogonal(4, 2), StorageType::kF64);
  data += StorageBytes(Orthogonal(4, 3), StorageType::kF16);
  const std::string file = WriteSafetensors(
      Header(Tensor(2, "F32", "2,4,4", 0, 128) + "," + Tensor(0, "F64", "4,4", 128, 256) + "," +
             Tensor(1, "F16", "4,4", 256, 288) + ",\"layers.0.eigenvalues\":{\"dtype\":\"I8\"}"),
      data);
  const auto set = ParseRotations(Bytes(file), kShape);
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ(Matrix(*set, 2, 0), Orthogonal(4, 0));
  EXPECT_EQ(Matrix(*set, 2, 1), Orthogonal(4, 1));
  EXPECT_EQ(Matrix(*set, 0, 1), Orthogonal(4, 2));
  EXPECT_NEAR(Matrix(*set, 1, 0)[7], Orthogonal(4, 3)[7], 1e-3);
  for (size_t n = 0; n < file.size(); ++n) EXPECT_NE(ErrorOf(file.substr(0, n)), "") << n;
}

TEST(RotationSafetensorsTest, ErrorsAreNamed) {
  const std::string data = StorageBytes(Orthogonal(4, 0), StorageType::kF32) + std::string(4, '\0');
  const auto error = [&](const std::string& header) {
    return ErrorOf(WriteSafetensors(header, data), {1, 2, 4});
  };
  ASSERT_EQ(error(Header(Tensor(0, "F32", "4,4", 0, 64))), "");
  struct Case {
    std::string header;
    const char* error;
  };
  const std::vector<Case> cases = {
      {"{}", "layer 0 is missing"},
      {"[]", "not a flat JSON object"},
      {"{\"a\":", "not a flat JSON object"},
      {"{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}",
       "not a flat JSON object"},
      {"{\"layers.0.rotation\":3}", "layer 0: tensor without a dtype"},
      {"{\"layers.0.rotation\":{}}", "layer 0: tensor without a dtype"},
      {"{\"layers.0.rotation\":{\"dtype\":4}}", "layer 0: tensor without a dtype"},
      {"{\"layers.0.rotation\":{\"dtype\":\"F32\"}}", "layer 0: tensor without a shape"},
      {Header(Tensor(0, "I32", "4,4", 0, 64)),
       "layer 0: dtype I32, F32, F64, BF16 and F16 are supported"},
      {Header(Tensor(0, "F32", "4,-4", 0, 64)), "layer 0: tensor without a shape"},
      {Header(Tensor(0, "F32", "4,4.0", 0, 64)), "layer 0: tensor without a shape"},
      {Header(Tensor(0, "F32", "1,1,4,4", 0, 64)), "layer 0: tensor without a shape"},
      {Header(Tensor(0, "F32", "1000000000,1000000000,1000000000", 0, 64)),
       "layer 0: tensor is larger"},
      {Header(Tensor(0, "F32", "4,4", 0, 69)),
       "layer 0: tensor at bytes 0 to 69 of 68 bytes of data"},
      {Header(Tensor(0, "F32", "4,4", 64, 0)), "layer 0: tensor at bytes 64 to 0"},
      {Header(Tensor(0, "F32", "4,4", 0, 60)), "layer 0: tensor of 16 elements has 60 bytes"},
      {Header(Tensor(0, "F32", "2,8", 0, 64)), "layer 0: rotation has shape [2, 8]"},
      {Header(Tensor(0, "F32", "16", 0, 64)), "layer 0: rotation has shape [16]"},
      {Header(Tensor(0, "F32", "4,4", 4, 68)), "layer 0: rotation is not orthogonal"},
      {Header(Tensor(1, "F32", "4,4", 0, 64)), "has layer 1, the model has layers 0 to 0"},
      {Header("\"layers.00.rotation\":{}"), "layer 0 is missing"},
  };
  for (const Case& c : cases)
    EXPECT_THAT(error(c.header), HasSubstr(c.error)) << c.header.substr(0, 200);
  EXPECT_THAT(ErrorOf(testing::LittleEndian(1ull << 60, 8) + "{}"),
              HasSubstr("its header would have"));
}

TEST(HadamardTest, NaturalOrderAndOrthonormal) {
  const RotationSet set = HadamardRotations({2, 2, 8});
  const float* h = set.At(1, 1);
  for (int i = 0; i < 8; ++i) {
    for (int j = 0; j < 8; ++j) {
      // H_2n = [[H, H], [H, -H]], unrolled bit by bit.
      float sign = 1;
      for (int bit = 0; bit < 3; ++bit) {
        if ((i >> bit & 1) && (j >> bit & 1)) sign = -sign;
      }
      EXPECT_FLOAT_EQ(h[i * 8 + j], sign / std::sqrt(8.0f));
    }
  }
  EXPECT_TRUE(HadamardRotations({1, 1, 128}).CheckComplete().ok());
}

}  // namespace
}  // namespace oscarkv
