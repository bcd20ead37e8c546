#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <set>

#include "absl/strings/str_replace.h"
#include "model/model_runner.h"
#include "tests/unit/model/tiny_model.h"

namespace oscarkv {
namespace {

Sha256Digest Fingerprint(const TinyModel& m, DType dtype = DType::kBf16) {
  TempFolder dir;
  m.Write(dir.path(), dtype);
  const auto digest = ModelFingerprint(dir.path());
  EXPECT_TRUE(digest.ok()) << digest.status();
  return digest.value_or(Sha256Digest{});
}

TEST(ModelFingerprintTest, SameModelSameDigest) {
  EXPECT_EQ(Fingerprint(MakeTinyModel("qwen3", 1)), Fingerprint(MakeTinyModel("qwen3", 1)));
}

TEST(ModelFingerprintTest, EverythingThatDecidesKvChangesIt) {
  const struct {
    const char* what;
    std::function<void(TinyModel*)> change;
  } cases[] = {
      {"nothing", [](TinyModel*) {}},
      {"one weight",
       [](TinyModel* m) { m->tensors["model.layers.1.mlp.up_proj.weight"].values[17] += 1; }},
      {"rope theta",
       [](TinyModel* m) {
         m->config_json = absl::StrReplaceAll(m->config_json, {{"10000.0", "20000.0"}});
       }},
      {"norm epsilon",
       [](TinyModel* m) {
         m->config_json = absl::StrReplaceAll(m->config_json, {{"1e-5", "1e-6"}});
       }},
      {"heads",
       [](TinyModel* m) {
         m->config_json = absl::StrReplaceAll(
             m->config_json, {{R"("num_key_value_heads":2)", R"("num_key_value_heads":1)"}});
       }},
      {"a tensor's name",
       [](TinyModel* m) {
         auto node = m->tensors.extract("model.norm.weight");
         node.key() = "model.norm.weighs";
         m->tensors.insert(std::move(node));
       }},
      {"a tensor's shape",
       [](TinyModel* m) {
         m->tensors["model.norm.weight"].shape = {6, 8};
       }},
  };
  std::set<Sha256Digest> digests;
  for (const auto& c : cases) {
    TinyModel m = MakeTinyModel("qwen3", 1);
    c.change(&m);
    EXPECT_TRUE(digests.insert(Fingerprint(m)).second) << c.what;
  }
  EXPECT_TRUE(digests.insert(Fingerprint(MakeTinyModel("qwen3", 1), DType::kF32)).second)
      << "type of the weights";
  EXPECT_TRUE(digests.insert(Fingerprint(MakeTinyModel("qwen3", 2))).second) << "all weights";
}

TEST(ModelFingerprintTest, ContextLengthDoesNotMatter) {
  TinyModel m = MakeTinyModel("qwen3", 1);
  const Sha256Digest before = Fingerprint(m);
  m.config_json = absl::StrReplaceAll(
      m.config_json, {{R"("max_position_embeddings":1024)", R"("max_position_embeddings":2048)"}});
  EXPECT_EQ(Fingerprint(m), before);
}

TEST(ModelFingerprintTest, NoModel) {
  EXPECT_FALSE(ModelFingerprint("tests/no_such_model").ok());
}

}  // namespace
}  // namespace oscarkv
