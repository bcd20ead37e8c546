#include "model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <string>

#include "absl/strings/str_cat.h"

namespace oscarkv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

std::string Image(const std::string& header, const std::string& data) {
  std::string out(8, '\0');
  for (int i = 0; i < 8; ++i) out[i] = static_cast<char>(header.size() >> (8 * i));
  return out + header + data;
}

template <typename T>
std::string Bytes(std::initializer_list<T> values) {
  std::string out(values.size() * sizeof(T), '\0');
  std::memcpy(out.data(), values.begin(), out.size());
  return out;
}

absl::StatusOr<std::map<std::string, TensorView>> Parse(const std::string& image) {
  // An exact copy on the heap, so that a sanitizer sees every byte read beyond the end.
  const std::vector<uint8_t> copy(image.begin(), image.end());
  auto tensors = ParseSafetensors(copy);
  if (tensors.ok()) {
    for (auto& [name, view] : *tensors) view.data -= reinterpret_cast<uintptr_t>(copy.data());
  }
  return tensors;
}

class TempDir {
 public:
  TempDir() {
    std::string path = (std::filesystem::temp_directory_path() / "oscarkv_XXXXXX").string();
    path_ = ::mkdtemp(path.data());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  void Write(const std::string& name, const std::string& bytes) const {
    std::ofstream(path_ + "/" + name, std::ios::binary) << bytes;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST(SafetensorsTest, ReferenceModel) {
  const auto store = TensorStore::Open("models/reference");
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ((*store)->Names().size(), 90u);
  const auto embedding = (*store)->Find("model.embed_tokens.weight");
  ASSERT_TRUE(embedding.ok());
  EXPECT_EQ(embedding->dtype, DType::kBf16);
  EXPECT_THAT(embedding->shape, ElementsAre(8192, 384));
  EXPECT_EQ(embedding->num_elements(), 8192 * 384);
  const auto norm = (*store)->ReadF32("model.norm.weight", {384});
  ASSERT_TRUE(norm.ok());
  for (const float v : *norm) EXPECT_TRUE(std::isfinite(v));
  EXPECT_EQ((*store)->files().size(), 1u);

  EXPECT_EQ((*store)->ReadF32("model.norm.weight", {385}).status().code(), kInvalid);
  const auto missing = (*store)->Find("lm_head.weight").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("lm_head.weight"));
  EXPECT_THAT(std::string(missing.message()), HasSubstr("model.safetensors"));
}

TEST(SafetensorsTest, Golden) {
  const auto store = TensorStore::Open("tests/golden/golden.safetensors");
  ASSERT_TRUE(store.ok()) << store.status();
  const auto ids = (*store)->ReadI32("prompt1500.ids");
  ASSERT_TRUE(ids.ok());
  ASSERT_EQ(ids->size(), 1500u);
  for (const int32_t id : *ids) EXPECT_TRUE(id >= 0 && id < 8192);
}

TEST(SafetensorsTest, ReadsEveryFloatType) {
  TempDir dir;
  const std::string data =
      Bytes<uint16_t>({0x3c00, 0xc000, 0x0001, 0x8001, 0x7bff, 0x7c00, 0xfc00, 0x7e00}) +  // F16
      Bytes<uint16_t>({0x3f80, 0xc000}) + Bytes<float>({1.5f, -0.0f}) + Bytes<double>({0.1});
  dir.Write("x.safetensors", Image(R"({"h":{"dtype":"F16","shape":[8],"data_offsets":[0,16]},
      "b":{"dtype":"BF16","shape":[2,1],"data_offsets":[16,20]},
      "f":{"dtype":"F32","shape":[2],"data_offsets":[20,28]},
      "d":{"dtype":"F64","shape":[],"data_offsets":[28,36]},
      "empty":{"dtype":"F32","shape":[0,5],"data_offsets":[7,7]}})",
                                   data));
  const auto store = TensorStore::Open(dir.path() + "/x.safetensors");
  ASSERT_TRUE(store.ok()) << store.status();
  const auto h = (*store)->ReadF32("h", {8});
  ASSERT_TRUE(h.ok());
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_THAT(absl::MakeSpan(h->data(), 7),
              ElementsAre(1.0f, -2.0f, 0x1p-24f, -0x1p-24f, 65504.0f, inf, -inf));
  EXPECT_TRUE(std::isnan(h->back()));
  EXPECT_THAT(*(*store)->ReadF32("b", {2, 1}), ElementsAre(1.0f, -2.0f));
  EXPECT_THAT(*(*store)->ReadF32("f", {2}), ElementsAre(1.5f, -0.0f));
  EXPECT_THAT(*(*store)->ReadF32("d", {}), ElementsAre(0.1f));
  EXPECT_THAT(*(*store)->ReadF32("empty", {0, 5}), ElementsAre());
  EXPECT_EQ((*store)->ReadI32("f").status().code(), kInvalid);
}

TEST(SafetensorsTest, Integers) {
  TempDir dir;
  dir.Write("x.safetensors",
            Image(R"({"a":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},
      "b":{"dtype":"I64","shape":[1],"data_offsets":[16,24]},
      "c":{"dtype":"I32","shape":[1],"data_offsets":[24,28]}})",
                  Bytes<int64_t>({-1, 7, int64_t{1} << 40}) + Bytes<int32_t>({-9})));
  const auto store = TensorStore::Open(dir.path() + "/x.safetensors");
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_THAT(*(*store)->ReadI32("a"), ElementsAre(-1, 7));
  EXPECT_EQ((*store)->ReadI32("b").status().code(), kInvalid);
  EXPECT_THAT(*(*store)->ReadI32("c"), ElementsAre(-9));
  EXPECT_EQ((*store)->ReadF32("a", {2}).status().code(), kInvalid);
}

struct BadHeader {
  const char* name;
  const char* header;  // over 8 bytes of data
  const char* message;
};

class BadHeaderTest : public ::testing::TestWithParam<BadHeader> {};

TEST_P(BadHeaderTest, IsRefused) {
  const auto tensors = Parse(Image(GetParam().header, std::string(8, 'x')));
  ASSERT_FALSE(tensors.ok());
  EXPECT_THAT(std::string(tensors.status().message()), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    Safetensors, BadHeaderTest,
    ::testing::Values(
        BadHeader{"not_json", "{", "not valid JSON"}, BadHeader{"not_object", "[]", "object"},
        BadHeader{"no_tensors", "{}", "8 bytes of data, the tensors fill 0"},
        BadHeader{"entry", R"({"a":1})", "\"a\": not an object"},
        BadHeader{"fields", R"({"a":{"dtype":"F32","shape":[2]}})", "exactly"},
        BadHeader{"extra", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})",
                  "exactly"},
        BadHeader{"dtype", R"({"a":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}})",
                  "F8_E4M3"},
        BadHeader{"negative", R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})",
                  "shape"},
        BadHeader{"fraction", R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})",
                  "shape"},
        BadHeader{"overflow",
                  R"({"a":{"dtype":"F64","shape":[2305843009213693953],"data_offsets":[0,8]}})",
                  "does not fill"},
        BadHeader{"overflow2",
                  R"({"a":{"dtype":"U8","shape":[4294967296,4294967296,8],"data_offsets":[0,8]}})",
                  "does not fill"},
        BadHeader{"beyond", R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}})",
                  "not a range"},
        BadHeader{"backwards", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})",
                  "not a range"},
        BadHeader{"mismatch", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}})",
                  "does not fill"},
        BadHeader{"gap", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", "gap"},
        BadHeader{"tail", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                  "tensors fill 4"},
        BadHeader{"overlap", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                                 "b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                  "overlap"},
        BadHeader{"same", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                              "b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
                  "overlap"},
        BadHeader{"twice", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                               "a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
                  "twice"},
        BadHeader{"metadata", R"({"__metadata__":{"a":1},
                               "a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
                  "__metadata__"},
        BadHeader{"rank",
                  R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2],
                      "data_offsets":[0,8]}})",
                  "at most 16"}),
    [](const auto& info) { return info.param.name; });

TEST(SafetensorsTest, EveryTruncationIsRefused) {
  const std::string image =
      Image(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", std::string(8, 'x'));
  ASSERT_TRUE(Parse(image).ok());
  for (size_t n = 0; n < image.size(); ++n) {
    EXPECT_FALSE(Parse(image.substr(0, n)).ok()) << n << " bytes";
  }
  EXPECT_FALSE(Parse(image + "x").ok());
}

TEST(SafetensorsTest, HeaderLengthIsBounded) {
  std::string image = Image("{}", "");
  for (int i = 0; i < 8; ++i) image[i] = '\xff';
  EXPECT_THAT(std::string(Parse(image).status().message()), HasSubstr("limit"));
}

// Two shards, each with one tensor of 4 bytes.
void WriteShards(const TempDir& dir, const std::string& index) {
  dir.Write("one.safetensors",
            Image(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", Bytes({1.0f})));
  dir.Write("two.safetensors",
            Image(R"({"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", Bytes({2.0f})));
  dir.Write("model.safetensors.index.json", index);
}

TEST(SafetensorsTest, Shards) {
  TempDir dir;
  WriteShards(dir, R"({"metadata":{"total_size":8},
                       "weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  const auto store = TensorStore::Open(dir.path());
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_THAT((*store)->Names(), ElementsAre("a", "b"));
  EXPECT_THAT(*(*store)->ReadF32("b", {1}), ElementsAre(2.0f));
  EXPECT_EQ((*store)->files().size(), 2u);
}

TEST(SafetensorsTest, BadIndex) {
  const std::map<std::string, std::string> cases = {
      {R"({})", "weight_map"},
      {R"({"weight_map":{"a":"../one.safetensors"}})", "plain name"},
      {R"({"weight_map":{"a":"/etc/one.safetensors"}})", "plain name"},
      {R"({"weight_map":{"a":"x\\one.safetensors"}})", "plain name"},
      {R"({"weight_map":{"a":"one.safetensors\u0000"}})", "plain name"},
      {R"({"weight_map":{"a":".."}})", "plain name"},
      {R"({"weight_map":{"a":7}})", "plain name"},
      {R"({"weight_map":{"a":"config.json"}})", "plain name"},
      {R"({"weight_map":{"a":"three.safetensors"}})", "cannot open"},
      {R"({"weight_map":{"a":"one.safetensors","c":"one.safetensors"}})", "promises"},
      {R"({"weight_map":{"c":"one.safetensors"}})", "not in the index"},
      {R"({"weight_map":{"b":"one.safetensors","a":"two.safetensors"}})", "another file"},
      {R"({"weight_map":{"a":"one.safetensors","a":"two.safetensors"}})", "twice"},
  };
  for (const auto& [index, message] : cases) {
    TempDir dir;
    WriteShards(dir, index);
    const auto store = TensorStore::Open(dir.path());
    ASSERT_FALSE(store.ok()) << index;
    EXPECT_THAT(std::string(store.status().message()), HasSubstr(message)) << index;
  }
}

// The same tensor in two shards: whichever the index names, the other file contradicts it.
TEST(SafetensorsTest, DuplicateAcrossShards) {
  TempDir dir;
  WriteShards(dir, R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  dir.Write("two.safetensors", Image(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                                         "b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                                     Bytes({1.0f, 2.0f})));
  EXPECT_THAT(std::string(TensorStore::Open(dir.path()).status().message()),
              HasSubstr("another file"));
}

TEST(SafetensorsTest, NoFile) {
  TempDir dir;
  EXPECT_EQ(TensorStore::Open(dir.path()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(TensorStore::Open(dir.path() + "/x").status().code(), absl::StatusCode::kNotFound);
  dir.Write("model.safetensors", "");
  EXPECT_EQ(TensorStore::Open(dir.path()).status().code(), kInvalid);
}

}  // namespace
}  // namespace oscarkv
