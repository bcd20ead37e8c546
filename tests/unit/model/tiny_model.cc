#include "tests/unit/model/tiny_model.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/types.h"

namespace oscarkv {
namespace {

using Row = std::vector<double>;

// y = W x (+ bias) for W [n, k].
Row Apply(const TinyModel& m, const std::string& name, const Row& x) {
  const TinyTensor& w = m.tensors.at(name + ".weight");
  Row y(w.shape[0]);
  for (size_t i = 0; i < y.size(); ++i) {
    for (size_t j = 0; j < x.size(); ++j) y[i] += double{w.values[i * x.size() + j]} * x[j];
  }
  if (const auto bias = m.tensors.find(name + ".bias"); bias != m.tensors.end()) {
    for (size_t i = 0; i < y.size(); ++i) y[i] += bias->second.values[i];
  }
  return y;
}

Row Norm(const TinyModel& m, const std::string& name, Row x) {
  double sum = 0;
  for (double v : x) sum += v * v;
  const double scale = 1 / std::sqrt(sum / x.size() + double{m.config.rms_norm_eps});
  for (size_t i = 0; i < x.size(); ++i) x[i] *= scale * m.tensors.at(name).values[i];
  return x;
}

// One head: q/k-norm where the family has it, then the rotary embedding (default type, all
// channels).
Row Turn(const TinyModel& m, const std::string& norm, Row x, int position) {
  if (m.config.qk_norm) x = Norm(m, norm, x);
  const int half = static_cast<int>(x.size()) / 2;
  for (int i = 0; i < half; ++i) {
    const double angle = position * std::pow(m.config.rope.theta, -2.0 * i / x.size());
    const double a = x[i], b = x[i + half];
    x[i] = a * std::cos(angle) - b * std::sin(angle);
    x[i + half] = b * std::cos(angle) + a * std::sin(angle);
  }
  return x;
}

Row Head(const Row& x, int head, int dim) {
  return Row(x.begin() + head * dim, x.begin() + (head + 1) * dim);
}

double Dot(const Row& a, const Row& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// Softmax-weighted mean of values under the scores of keys.
Row Attend(const Row& q, const std::vector<Row>& keys, const std::vector<Row>& values) {
  Row out(q.size());
  double sum = 0, best = -1e300;
  for (const Row& k : keys) best = std::max(best, Dot(q, k));
  for (size_t t = 0; t < keys.size(); ++t) {
    const double w = std::exp((Dot(q, keys[t]) - best) / std::sqrt(q.size()));
    sum += w;
    for (size_t i = 0; i < q.size(); ++i) out[i] += w * values[t][i];
  }
  for (double& v : out) v /= sum;
  return out;
}

void NaiveLayer(const TinyModel& m, const std::string& p, std::vector<Row>* x) {
  const ModelConfig& c = m.config;
  std::vector<std::vector<Row>> keys(c.num_kv_heads), values(c.num_kv_heads);
  for (size_t t = 0; t < x->size(); ++t) {
    const Row h = Norm(m, p + "input_layernorm.weight", (*x)[t]);
    const Row q = Apply(m, p + "self_attn.q_proj", h);
    const Row k = Apply(m, p + "self_attn.k_proj", h), v = Apply(m, p + "self_attn.v_proj", h);
    for (int i = 0; i < c.num_kv_heads; ++i) {
      keys[i].push_back(
          Turn(m, p + "self_attn.k_norm.weight", Head(k, i, c.head_dim), static_cast<int>(t)));
      values[i].push_back(Head(v, i, c.head_dim));
    }
    Row joined;
    for (int i = 0; i < c.num_heads; ++i) {
      const Row turned =
          Turn(m, p + "self_attn.q_norm.weight", Head(q, i, c.head_dim), static_cast<int>(t));
      const int kv = i / (c.num_heads / c.num_kv_heads);
      const Row out = Attend(turned, keys[kv], values[kv]);
      joined.insert(joined.end(), out.begin(), out.end());
    }
    const Row attention = Apply(m, p + "self_attn.o_proj", joined);
    for (int i = 0; i < c.hidden_size; ++i) (*x)[t][i] += attention[i];
    const Row h2 = Norm(m, p + "post_attention_layernorm.weight", (*x)[t]);
    Row gate = Apply(m, p + "mlp.gate_proj", h2);
    const Row up = Apply(m, p + "mlp.up_proj", h2);
    for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    const Row mlp = Apply(m, p + "mlp.down_proj", gate);
    for (int i = 0; i < c.hidden_size; ++i) (*x)[t][i] += mlp[i];
  }
}

std::string Encode(const std::vector<float>& values, DType dtype) {
  std::string out;
  for (float v : values) {
    if (dtype == DType::kF32) {
      out.append(reinterpret_cast<const char*>(&v), sizeof(v));
    } else {
      const uint16_t bits = dtype == DType::kBf16 ? kernels::ToBf16(v) : kernels::FloatToFp16(v);
      out.append(reinterpret_cast<const char*>(&bits), sizeof(bits));
    }
  }
  return out;
}

}  // namespace

TempFolder::TempFolder() {
  std::string path = (std::filesystem::temp_directory_path() / "oscarkv_XXXXXX").string();
  path_ = ::mkdtemp(path.data());
}

TempFolder::~TempFolder() {
  std::filesystem::remove_all(path_);
}

void TinyModel::Write(const std::string& dir, DType dtype) const {
  std::ofstream(dir + "/config.json") << config_json;
  std::vector<std::string> entries;
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    const size_t begin = data.size();
    data += Encode(tensor.values, dtype);
    entries.push_back(absl::StrCat("\"", name, "\":{\"dtype\":\"", DTypeName(dtype),
                                   "\",\"shape\":[", absl::StrJoin(tensor.shape, ","),
                                   "],\"data_offsets\":[", begin, ",", data.size(), "]}"));
  }
  const std::string header = absl::StrCat("{", absl::StrJoin(entries, ","), "}");
  const uint64_t size = header.size();
  std::ofstream file(dir + "/model.safetensors", std::ios::binary);
  file.write(reinterpret_cast<const char*>(&size), sizeof(size)) << header << data;
}

TinyModel MakeTinyModel(const std::string& family, uint64_t seed) {
  const bool llama = family == "llama";
  const char* architecture = family == "qwen3"   ? "Qwen3ForCausalLM"
                             : family == "qwen2" ? "Qwen2ForCausalLM"
                             : llama             ? "LlamaForCausalLM"
                                                 : "MistralForCausalLM";
  TinyModel m;
  m.config_json = absl::StrCat(
      R"({"model_type":")", family, R"(","architectures":[")", architecture,
      R"("],"num_hidden_layers":2,"hidden_size":48,)",
      R"("intermediate_size":80,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":64,"vocab_size":97,)",
      R"("max_position_embeddings":1024,"rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":)",
      family == "qwen2" ? "true" : "false", R"(,"sliding_window":null)",
      llama ? R"(,"attention_bias":true,"mlp_bias":true)" : "", "}");
  const auto config = ParseModelConfig(m.config_json, "");
  EXPECT_TRUE(config.ok()) << config.status();
  m.config = *config;
  const ModelConfig& c = m.config;
  std::mt19937_64 random(seed);
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, double scale,
                       double mean = 0) {
    TinyTensor t{std::move(shape), {}};
    size_t n = 1;
    for (int64_t d : t.shape) n *= d;
    for (size_t i = 0; i < n; ++i) {
      const double uniform = static_cast<double>(random() >> 11) * 0x1p-52 - 1;  // [-1, 1)
      t.values.push_back(
          kernels::ToFloat(kernels::ToBf16(static_cast<float>(mean + scale * uniform))));
    }
    m.tensors[name] = std::move(t);
  };
  const auto linear = [&](const std::string& name, int n, int k, bool bias) {
    add(name + ".weight", {n, k}, 2 / std::sqrt(k));
    if (bias) add(name + ".bias", {n}, 0.5);
  };
  const int q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
  add("model.embed_tokens.weight", {c.vocab_size, c.hidden_size}, 1);
  if (!c.tie_word_embeddings) add("lm_head.weight", {c.vocab_size, c.hidden_size}, 0.3);
  add("model.norm.weight", {c.hidden_size}, 0.5, 1);
  for (int l = 0; l < c.num_layers; ++l) {
    const std::string p = absl::StrCat("model.layers.", l, ".");
    add(p + "input_layernorm.weight", {c.hidden_size}, 0.5, 1);
    add(p + "post_attention_layernorm.weight", {c.hidden_size}, 0.5, 1);
    linear(p + "self_attn.q_proj", q, c.hidden_size, c.attention_bias);
    linear(p + "self_attn.k_proj", kv, c.hidden_size, c.attention_bias);
    linear(p + "self_attn.v_proj", kv, c.hidden_size, c.attention_bias);
    linear(p + "self_attn.o_proj", c.hidden_size, q, c.output_bias);
    if (c.qk_norm) {
      add(p + "self_attn.q_norm.weight", {c.head_dim}, 0.5, 1);
      add(p + "self_attn.k_norm.weight", {c.head_dim}, 0.5, 1);
    }
    linear(p + "mlp.gate_proj", c.intermediate_size, c.hidden_size, c.mlp_bias);
    linear(p + "mlp.up_proj", c.intermediate_size, c.hidden_size, c.mlp_bias);
    linear(p + "mlp.down_proj", c.hidden_size, c.intermediate_size, c.mlp_bias);
  }
  return m;
}

std::vector<std::vector<double>> NaiveLogits(const TinyModel& m,
                                             const std::vector<int32_t>& tokens) {
  const ModelConfig& c = m.config;
  const TinyTensor& embedding = m.tensors.at("model.embed_tokens.weight");
  std::vector<Row> x;
  for (int32_t t : tokens) {
    x.emplace_back(embedding.values.begin() + t * c.hidden_size,
                   embedding.values.begin() + (t + 1) * c.hidden_size);
  }
  for (int l = 0; l < c.num_layers; ++l) NaiveLayer(m, absl::StrCat("model.layers.", l, "."), &x);
  std::vector<Row> logits;
  for (const Row& row : x) {
    const std::string head = c.tie_word_embeddings ? "model.embed_tokens" : "lm_head";
    logits.push_back(Apply(m, head, Norm(m, "model.norm.weight", row)));
  }
  return logits;
}

TestPool::TestPool(const kernels::KvShape& shape, int pages, int blocks)
    : memory_(pages * shape.PageBytes() + blocks * shape.Bf16BlockBytes() + 128), pool_([&] {
        uint8_t* base = memory_.data() + (128 - reinterpret_cast<uintptr_t>(memory_.data()) % 128);
        const size_t page_bytes = pages * shape.PageBytes();
        return KvPool(shape, absl::MakeSpan(base, page_bytes),
                      absl::MakeSpan(base + page_bytes, blocks * shape.Bf16BlockBytes()));
      }()) {}

SequenceKv TestPool::Sequence(int tokens, bool coded) {
  SequenceKv kv(&pool_);
  for (int b = 0; b <= BlockOf(tokens - 1); ++b) {
    EXPECT_TRUE(kv.EnsureBlock(b));
    if (coded && b >= kSinkBlocks) {
      EXPECT_TRUE(kv.EnsurePage(b));
    }
  }
  return kv;
}

std::vector<int32_t> RandomTokens(int n, int vocab, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> tokens(n);
  for (int32_t& t : tokens) t = static_cast<int32_t>(random() % vocab);
  return tokens;
}

}  // namespace oscarkv
