#include <algorithm>
#include <cmath>
#include <sstream>

#include "kernels/attention_inputs/op_cuda.h"
#include "kernels/cuda_device.h"
#include "kernels/elementwise/op_backends.h"
#include "kernels/elementwise/op_cuda.h"
#include "kernels/gemm/op_cuda.h"
#include "kernels/q2_encode/op_cuda.h"
#include "tests/unit/kernels/cuda_checks.h"
#include "tests/unit/kernels/device_buffer.h"
#include "tests/unit/kernels/random_data.h"

namespace oscarkv::kernels {
namespace {

using cuda::AttentionInputArgs;
using cuda::Elements;
using cuda::ElementType;
using cuda::MutableElements;

constexpr float kEps = 1e-6f;
constexpr Bf16 kPoison = 0xcdcd;

// Values as fp32 and as the kernel gets them.
struct Input {
  std::vector<float> values;
  ElementType type;
  DeviceBuffer<float> floats;
  DeviceBuffer<Bf16> halves;

  Input(std::vector<float> v, ElementType t)
      : values(std::move(v)), type(t), floats(values.size()), halves(values.size()) {
    std::vector<Bf16> rounded;
    for (float& x : values) {
      rounded.push_back(ToBf16(x));
      if (type == ElementType::kBf16) x = ToFloat(rounded.back());
    }
    floats.Upload(values);
    halves.Upload(rounded);
  }
  Elements elements() const {
    return {type == ElementType::kBf16 ? static_cast<const void*>(halves.get()) : floats.get(),
            type};
  }
};

// Room for n results of either type, poisoned with NaN.
struct Output {
  ElementType type;
  DeviceBuffer<float> floats;
  DeviceBuffer<Bf16> halves;

  Output(size_t n, ElementType t)
      : type(t), floats(Poisoned(n)), halves(std::vector<Bf16>(n, 0x7fc0)) {}
  MutableElements elements() const {
    return {type == ElementType::kBf16 ? static_cast<void*>(halves.get()) : floats.get(), type};
  }
  std::vector<float> Get() const {
    if (type == ElementType::kFloat32) return floats.Download();
    std::vector<float> values;
    for (const Bf16 v : halves.Download()) values.push_back(ToFloat(v));
    return values;
  }
  double Tolerance() const { return type == ElementType::kBf16 ? 4e-3 : 2e-6; }
};

constexpr ElementType kTypes[] = {ElementType::kFloat32, ElementType::kBf16};

std::string Explain(const char* what, double error, const std::string& where) {
  std::ostringstream s;
  s << what << " of " << where << ": error " << error;
  return s.str();
}

// Matrices: none, one, or one per kv head; `own`: others for queries, and means for keys.
std::string AttentionInputs(int d, int kv_heads, int group, int tokens, bool norm, int half_dim,
                            int matrices, bool own, ElementType type) {
  std::ostringstream name;
  name << "d " << d << " kv heads " << kv_heads << " group " << group << " tokens " << tokens
       << " half_dim " << half_dim << " matrices " << matrices << (own ? " own" : "")
       << (type == ElementType::kBf16 ? " bf16" : "");
  RandomData random(d + kv_heads + group + tokens + half_dim + matrices);
  const int heads = kv_heads * group, all_heads = heads + 2 * kv_heads;
  const int64_t row_stride = all_heads * d + 8;
  constexpr int kPositions = 50;
  Input qkv(random.Floats(tokens * row_stride, 2), type);
  const std::vector<float> q_norm = random.Floats(d), k_norm = random.Floats(d),
                           cos = random.Floats(kPositions * std::max(half_dim, 1)),
                           sin = random.Floats(kPositions * std::max(half_dim, 1)),
                           m = random.Floats(2 * std::max(1, matrices) * d * d, 0.09f),
                           means = random.Floats(kv_heads * d);
  std::vector<int32_t> positions;
  std::vector<int64_t> kv_row;
  // Each token in a block of its own, at some row of it; every fifth is not stored.
  const int64_t side = int64_t{kv_heads} * kPageTokens * d;
  for (int t = 0; t < tokens; ++t) {
    positions.push_back(random.Int(0, kPositions - 1));
    kv_row.push_back(t % 5 == 3 ? -1 : 2 * side * (tokens - 1 - t) + random.Int(0, 63) * d);
  }
  DeviceBuffer<float> q_norm_at(q_norm), k_norm_at(k_norm), cos_at(cos), sin_at(sin), m_at(m),
      means_at(means);
  DeviceBuffer<uint8_t> prepared(2 * std::max(1, matrices) * cuda::PreparedTransformBytes(d));
  DeviceBuffer<int32_t> positions_at(positions);
  DeviceBuffer<int64_t> kv_row_at(kv_row);
  DeviceBuffer<float> q_at(Poisoned(tokens * heads * d));
  DeviceBuffer<Bf16> kv_at(std::vector<Bf16>(2 * side * tokens, kPoison));
  AttentionInputArgs args;
  args.head_dim = d;
  args.num_kv_heads = kv_heads;
  args.group = group;
  args.num_tokens = tokens;
  args.qkv = qkv.elements();
  args.row_stride = row_stride;
  if (norm) {
    args.q_norm = q_norm_at.get();
    args.k_norm = k_norm_at.get();
  }
  args.eps = kEps;
  args.positions = positions_at.get();
  args.cos_table = cos_at.get();
  args.sin_table = sin_at.get();
  args.half_dim = half_dim;
  if (matrices > 0) {
    if (cuda::PrepareTransforms(d, cuda::RowType::kBf16, m_at.get(), 2 * matrices, prepared.get(),
                                {}) != KernelStatus::kOk)
      return cuda::LastError();
    CheckCuda(cudaDeviceSynchronize(), "PrepareTransforms");
    args.transform = prepared.get();
    if (matrices > 1)
      args.transform_head_stride = static_cast<int64_t>(cuda::PreparedTransformBytes(d));
    if (own) {
      args.query_transform = prepared.get() + matrices * cuda::PreparedTransformBytes(d);
      args.key_mean = means_at.get();
    }
  }
  args.q = q_at.get();
  args.kv = kv_at.get();
  args.kv_row = kv_row_at.get();
  args.value_offset = side;
  if (cuda::PrepareAttentionInputs(args, {}) != KernelStatus::kOk) return cuda::LastError();
  const std::vector<float> q = q_at.Download();
  std::vector<Bf16> kv = kv_at.Download();

  int64_t keys = 0, keys_off = 0;
  for (int t = 0; t < tokens; ++t) {
    std::vector<float> row(qkv.values.begin() + t * row_stride,
                           qkv.values.begin() + t * row_stride + all_heads * d);
    if (norm) {
      ref::RmsNorm(row.data(), q_norm.data(), kEps, heads, d, row.data());
      ref::RmsNorm(row.data() + heads * d, k_norm.data(), kEps, kv_heads, d,
                   row.data() + heads * d);
    }
    if (half_dim > 0) {
      ref::Rope(row.data(), 1, heads + kv_heads, d, half_dim, positions.data() + t, cos.data(),
                sin.data());
    }
    for (int h = 0; h < heads + kv_heads; ++h) {
      const int kv_head = h < heads ? h / group : h - heads;
      const float* matrix =
          m.data() + ((matrices > 1 ? kv_head : 0) + (own && h < heads ? matrices : 0)) * d * d;
      for (int c = 0; own && h >= heads && c < d; ++c) row[h * d + c] -= means[kv_head * d + c];
      std::vector<float> want(row.begin() + h * d, row.begin() + (h + 1) * d);
      for (int c = 0; matrices > 0 && c < d; ++c) {
        double sum = 0;
        for (int i = 0; i < d; ++i) sum += double{row[h * d + i]} * matrix[i * d + c];
        want[c] = static_cast<float>(sum);
      }
      if (h < heads) {
        const double error = RelativeError(q.data() + (t * heads + h) * d, want.data(), d);
        if (!(error < 3e-5)) return Explain("q", error, name.str());
        continue;
      }
      if (kv_row[t] < 0) continue;
      const int64_t at = kv_row[t] + int64_t{kv_head} * kPageTokens * d;
      double norm2 = 0;
      for (const float v : want) norm2 += double{v} * v;
      for (int c = 0; c < d; ++c) {
        const float k = ToFloat(kv[at + c]), expected = ToFloat(ToBf16(want[c]));
        ++keys;
        keys_off += k != expected;
        if (!(std::abs(k - expected) <= 0.0079 * std::abs(expected) + 1e-5 * std::sqrt(norm2)))
          return Explain("k", std::abs(k - expected), name.str());
        const float v = row[(heads + kv_heads + kv_head) * d + c];
        if (kv[at + side + c] != ToBf16(v)) return Explain("v", 0, name.str());
        kv[at + c] = kv[at + side + c] = kPoison;
      }
    }
  }
  if (keys_off * 50 > keys + 200)  // one in fifty, and a few where keys are few
    return Explain("k: roundings", static_cast<double>(keys_off), name.str());
  if (!std::all_of(kv.begin(), kv.end(), [](Bf16 v) { return v == kPoison; }))
    return name.str() + ": wrote beside the rows";
  return "";
}

std::string AttentionInputShapes() {
  for (const ElementType type : kTypes) {
    for (const int d : {64, 128}) {
      for (const int group : {1, 4, 7, 16}) {
        for (const int tokens : {1, 2, 9, 33}) {
          const int kv_heads = 1 + (group + tokens) % 4;
          for (const int matrices : {0, 1, kv_heads}) {
            const bool norm = (group + tokens + matrices) % 3 != 0;
            const int half_dim = tokens == 2 ? d / 4 : tokens == 9 ? 0 : d / 2;
            for (const bool own : {false, true}) {
              if (own && matrices == 0) continue;
              const std::string error =
                  AttentionInputs(d, kv_heads, group, tokens, norm, half_dim, matrices, own, type);
              if (!error.empty()) return error;
            }
          }
        }
      }
    }
  }
  AttentionInputArgs args;
  args.head_dim = 96;
  args.group = args.num_kv_heads = 1;
  if (cuda::PrepareAttentionInputs(args, {}) != KernelStatus::kUnsupported)
    return "head_dim 96 was not refused";
  args.head_dim = 128;
  args.group = kMaxGroup + 1;
  if (cuda::PrepareAttentionInputs(args, {}) != KernelStatus::kUnsupported)
    return "a group of 17 was not refused";
  args.group = 1;
  args.key_mean = reinterpret_cast<const float*>(&args);
  if (cuda::PrepareAttentionInputs(args, {}) != KernelStatus::kUnsupported)
    return "a mean without a transform was not refused";
  return "";
}

std::string AddRmsNorm() {
  RandomData random(1);
  for (const ElementType in : kTypes) {
    for (const ElementType out : kTypes) {
      for (const int64_t dim : {1, 31, 1024, 4097, 8192, 9000}) {
        for (const bool add : {false, true}) {
          const int64_t n = 3;
          std::vector<float> x = random.Floats(n * dim);
          const std::vector<float> weight = random.Floats(dim);
          const Input delta(random.Floats(n * dim), in);
          DeviceBuffer<float> x_at(x), weight_at(weight);
          const Output y(n * dim, out);
          if (cuda::AddRmsNorm(x_at.get(), add ? delta.elements() : Elements{nullptr, in},
                               weight_at.get(), kEps, n, dim, y.elements(), nullptr,
                               {}) != KernelStatus::kOk)
            return cuda::LastError();
          if (add) ref::AddInPlace(x.data(), delta.values.data(), n * dim);
          if (x_at.Download() != x) return "x is not the sum";
          std::vector<float> want(n * dim);
          ref::RmsNorm(x.data(), weight.data(), kEps, n, dim, want.data());
          const double error = WorstRowError(y.Get(), want, dim);
          if (!(error < y.Tolerance())) return Explain("RMSNorm", error, std::to_string(dim));
        }
      }
    }
  }
  // Without y only the sum.
  DeviceBuffer<float> x(std::vector<float>{1, 2}), delta(std::vector<float>{3, 4});
  if (cuda::AddRmsNorm(x.get(), {delta.get(), ElementType::kFloat32}, nullptr, kEps, 1, 2, {},
                       nullptr, {}) != KernelStatus::kOk)
    return cuda::LastError();
  return x.Download() == std::vector<float>{4, 6} ? "" : "the sum alone";
}

std::string SiluGate() {
  RandomData random(2);
  for (const ElementType in : kTypes) {
    for (const ElementType out : kTypes) {
      for (const int64_t width : {1, 77, 3000}) {
        const int64_t n = 5;
        std::vector<float> values = random.Floats(2 * n * width, 4);
        values[0] = -200;  // exp overflows
        const Input gate_up(values, in);
        const Output y(n * width, out);
        if (cuda::SiluGate(gate_up.elements(), n, width, y.elements(), {}) != KernelStatus::kOk)
          return cuda::LastError();
        std::vector<float> want(n * width);
        for (int64_t i = 0; i < n; ++i) {
          const float* gate = gate_up.values.data() + 2 * i * width;
          ref::SiluGate(gate, gate + width, width, want.data() + i * width);
        }
        const std::vector<float> got = y.Get();
        const double error = RelativeError(got.data(), want.data(), got.size());
        if (!(error < std::max(2e-6, y.Tolerance())))
          return Explain("silu", error, std::to_string(width));
      }
    }
  }
  return "";
}

// Products of our own kernel and of cuBLASLt; gated ones are SiluGate of the others.
std::string Products() {
  cuda::MatmulContext* context = nullptr;
  if (cuda::CreateMatmul(&context) != KernelStatus::kOk) return cuda::LastError();
  RandomData random(5);
  std::string error;
  struct Shape {
    int64_t m, n, k;
  };
  std::vector<Shape> shapes;
  for (int64_t m : {1, 2, 3, 4, 7}) {
    for (const int64_t n : {2, 6, 16392}) {
      for (const int64_t k : {8, 1032, 4104}) {
        const bool large = n * k > 1'000'000;  // random numbers take their time
        if (!large || (k == 1032 && (m == 1 || m == 4))) shapes.push_back({m, n, k});
      }
    }
  }
  for (const auto& [m, n, k] : shapes) {
    std::ostringstream name;
    name << m << " x " << n << " x " << k;
    const Input x(random.Floats(m * k), ElementType::kBf16);
    const Input w(random.Floats(n * k), ElementType::kBf16);
    const Output y(m * n, ElementType::kFloat32);
    cuda::MatmulArgs args;
    args.x = x.halves.get();
    args.w = w.halves.get();
    args.y = y.elements();
    args.m = m;
    args.n = n;
    args.k = k;
    if (cuda::Matmul(context, args, {}) != KernelStatus::kOk) {
      error = name.str() + ": " + cuda::LastError();
      break;
    }
    const std::vector<float> got = y.Get();
    double difference = 0, norm = 0;
    for (int64_t r = 0; r < m; ++r) {
      for (int64_t c = 0; c<n; c += n> 1000 ? 97 : 1) {
        double sum = 0;
        for (int64_t i = 0; i < k; ++i) sum += double{x.values[r * k + i]} * w.values[c * k + i];
        difference += (got[r * n + c] - sum) * (got[r * n + c] - sum);
        norm += sum * sum;
      }
    }
    if (!(std::sqrt(difference / norm) < 2e-6)) {
      error = Explain("product", std::sqrt(difference / norm), name.str());
      break;
    }
    const Output gated(m * n / 2, ElementType::kBf16), silu(m * n / 2, ElementType::kBf16);
    args.gated = true;
    args.y = gated.elements();
    const KernelStatus status = cuda::Matmul(context, args, {});
    if (m > cuda::kMaxFewRows) {
      if (status != KernelStatus::kUnsupported) error = "a gated product of many rows";
      continue;
    }
    if (status != KernelStatus::kOk ||
        cuda::SiluGate({y.floats.get()}, m, n / 2, silu.elements(), {}) != KernelStatus::kOk ||
        !(WorstRowError(gated.Get(), silu.Get(), n / 2) < 4e-3)) {
      error = "gated, " + name.str() + ": " + cuda::LastError();
      break;
    }
  }
  cuda::DestroyMatmul(context);
  return error;
}

std::string Embed() {
  RandomData random(3);
  for (const ElementType type : kTypes) {
    const int64_t rows = 20, dim = 300;
    const Input table(random.Floats(rows * dim), type);
    const std::vector<int32_t> tokens = {0, 19, 7, -1, 20, 7};
    DeviceBuffer<int32_t> tokens_at(tokens);
    DeviceBuffer<float> x(Poisoned(tokens.size() * dim));
    if (cuda::Embed(table.elements(), rows, dim, tokens_at.get(),
                    static_cast<int64_t>(tokens.size()), x.get(), {}) != KernelStatus::kOk)
      return cuda::LastError();
    const std::vector<float> got = x.Download();
    for (size_t i = 0; i < tokens.size(); ++i) {
      for (int64_t c = 0; c < dim; ++c) {
        const bool inside = tokens[i] >= 0 && tokens[i] < rows;
        if (got[i * dim + c] != (inside ? table.values[tokens[i] * dim + c] : 0.0f))
          return "a row differs";
      }
    }
  }
  return "";
}

std::string ArgMax() {
  RandomData random(4);
  for (const int64_t vocab : {1, 255, 256, 50000}) {
    constexpr int kRows = 7;
    std::vector<float> logits = random.Floats(kRows * vocab);
    std::vector<int32_t> want;
    for (int64_t i = 0; i < vocab; ++i) logits[vocab + i] = NAN;            // row 1: no token
    for (int64_t i = 0; i < vocab; ++i) logits[2 * vocab + i] = -INFINITY;  // row 2: no token
    for (int64_t i = 0; i < vocab; ++i) logits[3 * vocab + i] = 1;          // row 3: the first
    logits[4 * vocab + vocab / 2] = INFINITY;
    logits[5 * vocab] = NAN;
    for (int r = 0; r < kRows; ++r) {
      int32_t best = -1;
      for (int64_t i = 0; i < vocab; ++i) {
        const float v = logits[r * vocab + i];
        if (v > (best < 0 ? -INFINITY : logits[r * vocab + best])) best = static_cast<int32_t>(i);
      }
      want.push_back(best);
    }
    DeviceBuffer<float> logits_at(logits);
    DeviceBuffer<int32_t> token(std::vector<int32_t>(kRows, -7));
    if (cuda::ArgMax(logits_at.get(), kRows, vocab, token.get(), {}) != KernelStatus::kOk)
      return cuda::LastError();
    if (token.Download() != want) return "a token differs, vocabulary " + std::to_string(vocab);
  }
  return "";
}

}  // namespace

const std::vector<CudaCheck>& DecodeStepCudaChecks() {
  static const auto* checks = new std::vector<CudaCheck>{
      {"AttentionInputs", AttentionInputShapes},
      {"AddRmsNorm", AddRmsNorm},
      {"SiluGate", SiluGate},
      {"Products", Products},
      {"Embed", Embed},
      {"ArgMax", ArgMax},
  };
  return *checks;
}

}  // namespace oscarkv::kernels
