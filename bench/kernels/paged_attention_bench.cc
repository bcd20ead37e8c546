// Decode attention over a long context on one core: the 2-bit pages against our own bf16 blocks, in
// ns per token and kv head, from memory: pools larger than the caches, pages in random order. The
// kernels take turns and the best of many calls counts, since neighbours only ever add time.
//
// Floor of the 2-bit kernel (head_dim 128, 512-bit vectors): per token, each query head needs 8 dot
// products of vectors with two digits of q and 12 with three: 4 per digit for K, 4 for each of the
// two of the weights. Besides, per register block of up to 4 heads, 7.5 to 7.75 operations to
// unpack the codes, and per head 2.4 for sums, softmax and rounding. The core starts one dot
// product, or two simpler operations, a cycle. Dot products on registers alone, timed in the same
// rounds, give the rate that the floor takes: a virtual core may share its units with another.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <sys/mman.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "bench/kernels/timing.h"
#include "kernels/paged_attention/op.h"

namespace oscarkv::kernels {
namespace {

constexpr int kHeadDim = 128, kKvHeads = 8, kTokens = 16384, kPages = kTokens / kPageTokens;
constexpr int kPageSeqs = 8, kBlockSeqs = 2;  // 75 MB of pages, 134 MB of blocks
constexpr int kRounds = 40;

std::vector<int32_t> Shuffled(int n, std::mt19937* rng) {
  std::vector<int32_t> ids(n);
  for (int i = 0; i < n; ++i) ids[i] = i;
  std::shuffle(ids.begin(), ids.end(), *rng);
  return ids;
}

// Memory as the worker takes it for its cache: huge pages where the system gives them.
class Pool {
 public:
  explicit Pool(size_t size) : size_(size) {
    constexpr size_t kHuge = 2 << 20;
    const size_t rounded = (size + kHuge - 1) / kHuge * kHuge;
    data_ = static_cast<uint8_t*>(std::aligned_alloc(kHuge, rounded));
    if (data_ == nullptr) std::abort();
    madvise(data_, rounded, MADV_HUGEPAGE);
  }
  ~Pool() { std::free(data_); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  uint8_t& operator[](size_t i) { return data_[i]; }
  uint8_t* data() { return data_; }
  size_t size() const { return size_; }

 private:
  const size_t size_;
  uint8_t* data_;
};

struct Pools {
  std::mt19937 rng{1};
  KvShape shape{1, kKvHeads, kHeadDim};
  Pool pages{kPageSeqs * kPages * shape.PageLayerBytes()};
  Pool blocks{kBlockSeqs * kPages * shape.Bf16LayerBytes()};
  std::vector<int32_t> page_ids, block_ids;
  std::vector<float> q, out;

  Pools() {
    for (size_t i = 0; i < pages.size(); i += 4) {
      const uint32_t codes = rng();
      std::memcpy(&pages[i], &codes, 4);
    }
    for (size_t head = 0; head < pages.size(); head += PageHeadBytes(kHeadDim)) {
      for (int i = 0; i < kMetaPlanes * kPageTokens; ++i) {
        const float scale = 0.5f + 0.5f * static_cast<float>(rng() % 1000) / 1000;
        const Fp16 value = FloatToFp16(i / kPageTokens % 2 == 0 ? scale : -1.5f * scale);
        std::memcpy(&pages[head + MetaOffset(kHeadDim) + 2 * i], &value, 2);
      }
    }
    for (size_t i = 0; i < blocks.size(); i += 2) {
      const Bf16 value = static_cast<Bf16>(0x3f00 | (rng() & 0x80ff));
      std::memcpy(&blocks[i], &value, 2);
    }
    page_ids = Shuffled(kPageSeqs * kPages, &rng);
    block_ids = Shuffled(kBlockSeqs * kPages, &rng);
    q.resize(kKvHeads * kMaxGroup * kHeadDim);
    out.resize(q.size());
    std::normal_distribution<float> normal;
    for (float& v : q) v = normal(rng);
  }

  // One sequence of 16K tokens, number `call` modulo those that exist.
  PagedAttentionArgs Args(bool two_bit, int group, int call, const float* queries) {
    static constexpr int32_t kAll[2] = {0, kPages}, kNone[2] = {0, 0};
    static constexpr int32_t kFull[1] = {kPageTokens};
    PagedAttentionArgs args;
    args.head_dim = kHeadDim;
    args.num_kv_heads = kKvHeads;
    args.group = group;
    args.scale = 1 / std::sqrt(float{kHeadDim});
    args.num_seqs = 1;
    args.q = queries;
    args.out = out.data();
    args.page_pool = pages.data();
    args.page_stride = static_cast<int64_t>(shape.PageLayerBytes());
    args.page_ids = page_ids.data() + call % kPageSeqs * kPages;
    args.page_begin = two_bit ? kAll : kNone;
    args.bf16_pool = blocks.data();
    args.bf16_stride = static_cast<int64_t>(shape.Bf16LayerBytes());
    args.bf16_ids = block_ids.data() + call % kBlockSeqs * kPages;
    args.bf16_begin = two_bit ? kNone : kAll;
    args.last_tokens = kFull;
    return args;
  }
};

double SecondsOf(const PagedAttentionArgs& args) {
  const double start = bench::Seconds();
  PagedAttention(Backend::kCpu, args, nullptr);
  return bench::Seconds() - start;
}

// Seconds to read half of the blocks in order, one word of each cache line: what memory allows the
// bf16 kernel.
double SecondsToRead(Pools* pools, int call) {
  const size_t half = pools->blocks.size() / 2;
  const uint8_t* from = pools->blocks.data() + call % 2 * half;
  const double start = bench::Seconds();
  uint64_t sum = 0;
  for (size_t i = 0; i < half; i += 64) {
    uint64_t word;
    std::memcpy(&word, from + i, sizeof(word));
    sum += word;
  }
  volatile uint64_t sink = sum;
  static_cast<void>(sink);
  return bench::Seconds() - start;
}

// Dot products of 512-bit vectors per ns, on registers; 0 if the CPU has none.
#if defined(__x86_64__)
__attribute__((target("avx512f,avx512vnni"))) double DotsPerNs() {
  if (!__builtin_cpu_supports("avx512vnni")) return 0;
  constexpr int kRepeats = 20000, kChains = 16;
  __m512i sums[kChains] = {};
  const __m512i x = _mm512_set1_epi8(3);
  const double start = bench::Seconds();
  for (int i = 0; i < kRepeats; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) {
      sums[c] = _mm512_dpbusd_epi32(sums[c], x, x);
      asm volatile("" : "+v"(sums[c]));
    }
  }
  return kRepeats * kChains / (bench::Seconds() - start) / 1e9;
}
#else
double DotsPerNs() {
  return 0;
}
#endif

void Report(Pools* pools, int group) {
  double two_bit = INFINITY, sharp = INFINITY, bf16 = INFINITY, read = INFINITY, dot_rate = 0;
  std::vector<float> large = pools->q;
  for (float& v : large) v *= 12;  // scores for which all three digits of q are needed
  for (int call = 0; call < kRounds; ++call) {
    two_bit = std::min(two_bit, SecondsOf(pools->Args(true, group, call, pools->q.data())));
    bf16 = std::min(bf16, SecondsOf(pools->Args(false, group, call, pools->q.data())));
    sharp = std::min(sharp, SecondsOf(pools->Args(true, group, call + 4, large.data())));
    read = std::min(read, SecondsToRead(pools, call));
    dot_rate = std::max(dot_rate, DotsPerNs());
  }
  const double ns = 1e9 / (double{kTokens} * kKvHeads);
  const int register_blocks = group / 4 + group % 4 / 2 + group % 2;
  const double dots = 8 * group, unpack = (group < 4 ? 7.5 : 7.75) * register_blocks;
  const double operations = dots + unpack + 2.4 * group;
  const double floor = std::max(dots, operations / 2) / dot_rate;
  std::printf(
      "| %d | %.1f | %.1f | %.1f | %.2f | %.1f | %.0f dots, %.0f in all | %.1f | %.2f | %.2f |\n",
      group, read * ns, bf16 * ns, two_bit * ns, bf16 / two_bit, sharp * ns, dots, operations,
      floor, two_bit * ns / floor, dot_rate);
}

}  // namespace
}  // namespace oscarkv::kernels

int main() {
  oscarkv::kernels::Pools pools;
  std::printf(
      "| group | reading bf16, ns | bf16 ns | 2-bit ns | ratio | 2-bit, 3 digits, ns | vector "
      "operations | ");
  std::printf(
      "floor ns | 2-bit / floor | dots per ns |\n|---|---|---|---|---|---|---|---|---|---|\n");
  for (const int group : {1, 4, 8}) oscarkv::kernels::Report(&pools, group);
}
