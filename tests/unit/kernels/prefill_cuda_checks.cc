#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <sstream>

#include "kernels/cuda_device.h"
#include "kernels/elementwise/op_cuda.h"
#include "kernels/gemm/op_cuda.h"
#include "kernels/prefill_attention/op_backends.h"
#include "kernels/prefill_attention/op_cuda.h"
#include "kernels/q2_encode/op_backends.h"
#include "tests/unit/kernels/cuda_checks.h"
#include "tests/unit/kernels/device_buffer.h"
#include "tests/unit/kernels/random_data.h"

namespace oscarkv::kernels {
namespace {

using cuda::ElementType;

constexpr Bf16 kNan = 0x7fc0;

struct Case {
  int head_dim, kv_heads, group, start, queries;
  bool history;
};

// K and V of a random sequence: in blocks at random places of a pool and of a scratch, and in one
// piece for the reference.
class Sequence {
 public:
  Sequence(const Case& c, RandomData* random)
      : c_(c), end_(c.start + c.queries), blocks_((end_ + kPageTokens - 1) / kPageTokens) {
    const size_t side = size_t{1} * c.kv_heads * kPageTokens * c.head_dim;
    // Slots that no id names stay NaN.
    pool_.assign((blocks_ + 3) * 2 * side, kNan);
    scratch_.assign((blocks_ + 1) * 2 * side, kNan);
    std::vector<int> order(blocks_ + 3);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random->rng());
    const size_t piece = size_t{1} * c.kv_heads * blocks_ * kPageTokens * c.head_dim;
    for (auto* x : {&k_exact_, &v_exact_, &k_history_, &v_history_}) x->assign(piece, kNan);
    for (int b = 0; b < blocks_; ++b) {
      // Every third block of the exact ones lies in the scratch, the history ones do all.
      const bool in_scratch = b % 3 == 1 && !c.history;
      exact_ids_.push_back(in_scratch ? ~b : order[b]);
      Fill(b, random, in_scratch ? &scratch_[b * 2 * side] : &pool_[order[b] * 2 * side], &k_exact_,
           &v_exact_);
      history_ids_.push_back(~b);
      if (c.history) Fill(b, random, &scratch_[b * 2 * side], &k_history_, &v_history_);
    }
  }

  std::string Compare(RandomData* random) const {
    const int heads = c_.kv_heads * c_.group;
    const size_t n = size_t{1} * c_.queries * heads * c_.head_dim;
    std::vector<float> q = random->Floats(n, 2), expected(n);
    for (float& v : q) v = ToFloat(ToBf16(v));
    PrefillAttentionArgs ref;
    ref.head_dim = c_.head_dim;
    ref.num_kv_heads = c_.kv_heads;
    ref.group = c_.group;
    ref.scale = 1 / std::sqrt(static_cast<float>(c_.head_dim));
    ref.start = c_.start;
    ref.num_queries = c_.queries;
    ref.q = q.data();
    ref.out = expected.data();
    ref.k_exact = k_exact_.data();
    ref.v_exact = v_exact_.data();
    ref.k_history = c_.history ? k_history_.data() : nullptr;
    ref.v_history = c_.history ? v_history_.data() : nullptr;
    ref.head_stride = int64_t{blocks_} * kPageTokens * c_.head_dim;
    if (ref::PrefillAttention(ref, nullptr) != KernelStatus::kOk) return "the reference refused";

    const DeviceBuffer<float> q_at(q), out(Poisoned(n));
    const DeviceBuffer<Bf16> rounded(std::vector<Bf16>(n, kNan)), pool(pool_), scratch(scratch_);
    const DeviceBuffer<int32_t> exact(exact_ids_), history(history_ids_);
    cuda::PagedPrefillArgs args;
    args.head_dim = c_.head_dim;
    args.num_kv_heads = c_.kv_heads;
    args.group = c_.group;
    args.scale = ref.scale;
    args.start = c_.start;
    args.num_queries = c_.queries;
    args.window_blocks = ref.window_blocks;
    args.q = q_at.get();
    args.pool = reinterpret_cast<const uint8_t*>(pool.get());
    args.scratch = reinterpret_cast<const uint8_t*>(scratch.get());
    args.pool_stride = args.scratch_stride = int64_t{4} * c_.kv_heads * kPageTokens * c_.head_dim;
    args.exact_ids = exact.get();
    args.history_ids = c_.history ? history.get() : nullptr;
    for (const ElementType type : {ElementType::kFloat32, ElementType::kBf16}) {
      args.out = {type == ElementType::kFloat32 ? static_cast<void*>(out.get()) : rounded.get(),
                  type};
      if (cuda::PagedPrefillAttention(args, {}) != KernelStatus::kOk) return cuda::LastError();
    }
    const std::vector<float> ours = out.Download();
    std::ostringstream error;
    const double worst = WorstRowError(ours, expected, c_.head_dim);
    if (!(worst < 6e-3)) error << "relative error " << worst;
    const std::vector<Bf16> bf16 = rounded.Download();
    for (size_t i = 0; i < n && error.str().empty(); ++i) {
      if (bf16[i] != ToBf16(ours[i])) error << "the bf16 output differs at " << i;
    }
    if (!error.str().empty()) {
      error << " (head_dim " << c_.head_dim << ", kv heads " << c_.kv_heads << ", group "
            << c_.group << ", start " << c_.start << ", queries " << c_.queries << ", history "
            << c_.history << ")";
    }
    return error.str();
  }

 private:
  // Rows behind the last query stay NaN.
  void Fill(int block, RandomData* random, Bf16* to, std::vector<Bf16>* k, std::vector<Bf16>* v) {
    const size_t d = c_.head_dim, side = c_.kv_heads * kPageTokens * d;
    for (std::vector<Bf16>* x : {k, v}) {
      for (int h = 0; h < c_.kv_heads; ++h) {
        for (int t = 0; t < kPageTokens && block * kPageTokens + t < end_; ++t) {
          const std::vector<Bf16> row = random->Bf16s(d);
          std::copy(row.begin(), row.end(), to + (x == v ? side : 0) + (h * kPageTokens + t) * d);
          std::copy(
              row.begin(), row.end(),
              x->begin() + (int64_t{h} * blocks_ * kPageTokens + block * kPageTokens + t) * d);
        }
      }
    }
  }

  const Case c_;
  const int end_, blocks_;
  std::vector<Bf16> pool_, scratch_, k_exact_, v_exact_, k_history_, v_history_;
  std::vector<int32_t> exact_ids_, history_ids_;
};

std::string PrefillAttention() {
  RandomData random(1);
  std::vector<Case> cases = {{128, 2, 4, 0, 1, false},    {128, 1, 2, 0, 64, false},
                             {128, 1, 1, 63, 2, false},   {64, 2, 3, 5, 200, false},
                             {128, 2, 4, 576, 130, true}, {64, 1, 16, 448, 65, true},
                             {128, 1, 7, 700, 33, true},  {64, 2, 8, 320, 64, true}};
  for (int i = 0; i < 40; ++i) {
    cases.push_back({random.Int(0, 1) ? 128 : 64, random.Int(1, 3), random.Int(1, kMaxGroup),
                     random.Int(0, 900), random.Int(1, 300), random.Int(0, 1) == 1});
  }
  for (const Case& c : cases) {
    if (std::string error = Sequence(c, &random).Compare(&random); !error.empty()) return error;
  }
  return "";
}

std::string DecodePages() {
  RandomData random(2);
  for (const int d : {64, 128}) {
    constexpr int kHeads = 3, kPages = 5;
    const size_t page = kHeads * PageHeadBytes(d), block = size_t{4} * kHeads * kPageTokens * d;
    std::vector<uint8_t> pages((kPages + 2) * page);
    for (uint8_t& byte : pages) byte = static_cast<uint8_t>(random.Int(0, 255));
    for (int head = 0; head < (kPages + 2) * kHeads; ++head) {  // finite metadata
      for (int i = 0; i < kMetaPlanes * kPageTokens; ++i) {
        const Fp16 v = FloatToFp16(random.Floats(1)[0]);
        std::memcpy(&pages[head * PageHeadBytes(d) + MetaOffset(d) + 2 * i], &v, 2);
      }
    }
    std::vector<int32_t> ids = {6, 0, 3, 5, 1};
    const DeviceBuffer<uint8_t> pages_at(pages), blocks(std::vector<uint8_t>(kPages * block, 0xcd));
    const DeviceBuffer<int32_t> ids_at(ids);
    cuda::DecodePagesArgs args;
    args.head_dim = d;
    args.num_kv_heads = kHeads;
    args.num_pages = kPages;
    args.pages = pages_at.get();
    args.page_stride = static_cast<int64_t>(page);
    args.page_ids = ids_at.get();
    args.blocks = blocks.get();
    args.block_stride = static_cast<int64_t>(block);
    if (cuda::DecodePages(args, {}) != KernelStatus::kOk) return cuda::LastError();
    const std::vector<uint8_t> ours = blocks.Download();
    std::vector<Bf16> expected(kPageTokens * d);
    for (int p = 0; p < kPages; ++p) {
      for (const Side side : {Side::kKey, Side::kValue}) {
        for (int h = 0; h < kHeads; ++h) {
          ref::DecodePageHeadBf16(d, side, &pages[ids[p] * page + h * PageHeadBytes(d)],
                                  expected.data(), d);
          const size_t at = p * block + (static_cast<int>(side) * kHeads + h) * 2 * kPageTokens * d;
          if (std::memcmp(&ours[at], expected.data(), 2 * expected.size()) != 0) {
            std::ostringstream error;
            error << "head_dim " << d << ", page " << p << ", side " << static_cast<int>(side)
                  << ", head " << h << " differs";
            return error.str();
          }
        }
      }
    }
  }
  return "";
}

std::string Matmul() {
  RandomData random(3);
  cuda::MatmulContext* context = nullptr;
  if (cuda::CreateMatmul(&context) != KernelStatus::kOk) return cuda::LastError();
  std::ostringstream error;
  for (const auto& [m, n, k] : {std::tuple(1, 97, 48), std::tuple(2, 512, 384),
                                std::tuple(65, 1001, 128), std::tuple(130, 64, 8)}) {
    const std::vector<Bf16> x = random.Bf16s(m * k), w = random.Bf16s(n * k);
    const std::vector<float> bias = random.Floats(n);
    const DeviceBuffer<Bf16> x_at(x), w_at(w);
    const DeviceBuffer<float> bias_at(bias), y(Poisoned(m * n));
    for (const bool with_bias : {false, true}) {
      std::vector<float> expected(m * n);
      for (int i = 0; i < m; ++i) {
        for (int j = 0; j < n; ++j) {
          double sum = with_bias ? bias[j] : 0;
          for (int c = 0; c < k; ++c) sum += double{ToFloat(x[i * k + c])} * ToFloat(w[j * k + c]);
          expected[i * n + j] = static_cast<float>(sum);
        }
      }
      const cuda::MatmulArgs args{x_at.get(),
                                  w_at.get(),
                                  with_bias ? bias_at.get() : nullptr,
                                  {y.get(), ElementType::kFloat32},
                                  m,
                                  n,
                                  k};
      if (cuda::Matmul(context, args, {}) != KernelStatus::kOk) {
        error << cuda::LastError();
        break;
      }
      const double worst = RelativeError(y.Download().data(), expected.data(), expected.size());
      if (!(worst < 1e-5))
        error << m << " x " << n << " x " << k << ", bias " << with_bias << ": " << worst << "; ";
    }
  }
  cuda::DestroyMatmul(context);
  return error.str();
}

std::string NormAndItsRest() {
  RandomData random(4);
  constexpr int kRows = 3, kDim = 1000;
  const std::vector<float> x = random.Floats(kRows * kDim), weight = random.Floats(kDim);
  DeviceBuffer<float> x_at(x), weight_at(weight), whole(Poisoned(kRows * kDim));
  const DeviceBuffer<Bf16> parts(std::vector<Bf16>(2 * kRows * kDim, kNan));
  if (cuda::AddRmsNorm(x_at.get(), {}, weight_at.get(), 1e-6f, kRows, kDim,
                       {whole.get(), ElementType::kFloat32}, nullptr, {}) != KernelStatus::kOk ||
      cuda::AddRmsNorm(x_at.get(), {}, weight_at.get(), 1e-6f, kRows, kDim,
                       {parts.get(), ElementType::kBf16}, parts.get() + kRows * kDim,
                       {}) != KernelStatus::kOk)
    return cuda::LastError();
  const std::vector<float> y = whole.Download();
  const std::vector<Bf16> p = parts.Download();
  for (int i = 0; i < kRows * kDim; ++i) {
    const float sum = ToFloat(p[i]) + ToFloat(p[kRows * kDim + i]);
    if (p[i] != ToBf16(y[i]) || !(std::abs(sum - y[i]) <= 0x1p-16f * std::abs(y[i])))
      return "value " + std::to_string(i) + " and its rest";
  }
  return "";
}

}  // namespace

const std::vector<CudaCheck>& PrefillCudaChecks() {
  static const std::vector<CudaCheck> checks = {
      {"PrefillAttention", PrefillAttention},
      {"DecodePages", DecodePages},
      {"Matmul", Matmul},
      {"NormAndItsRest", NormAndItsRest},
  };
  return checks;
}

}  // namespace oscarkv::kernels
