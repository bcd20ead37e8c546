// The k-th largest magnitude of rows that a warp holds, by sorting networks on pairs of 16-bit
// magnitudes.
//
// A warp holds 16 rows, row g in m[0][*] and row g + 8 in m[1][*], 4 lanes a row; each register two
// values of it. Each lane sorts its two lists (the halves of the registers) of a row and keeps the
// k largest; then lists are merged: halves, lane j ^ 1, lane j ^ 2. Two descending lists a, b of k
// have the k largest of both in max(a[i], b[k-1-i]), which falls and then rises; a bitonic merge
// sorts it, and the last level only needs its minimum. Comparators whose results are not used cost
// nothing: the compiler drops them.
#pragma once

#include "kernels/q2_encode/warp_ops.cuh"

namespace oscarkv::kernels::cuda {

struct Comparator {
  int8_t high, low;
};

template <int kMaxSize>
struct Network {
  Comparator comparators[kMaxSize] = {};
  int size = 0;
  int8_t order[16] = {};  // where the i-th largest ends up
  constexpr void Add(int high, int low) {
    comparators[size++] = {static_cast<int8_t>(high), static_cast<int8_t>(low)};
  }
};

// Batcher's odd-even merge sort of n (a power of two), largest first.
template <int n>
constexpr Network<63> SortNetwork() {
  Network<63> net;
  for (int p = 1; p < n; p *= 2) {
    for (int k = p; k >= 1; k /= 2) {
      for (int j = k % p; j + k < n; j += 2 * k) {
        for (int i = 0; i < k && i + j + k < n; ++i) {
          if ((i + j) / (2 * p) == (i + j + k) / (2 * p)) net.Add(i + j, i + j + k);
        }
      }
    }
  }
  for (int i = 0; i < n; ++i) net.order[i] = static_cast<int8_t>(i);
  return net;
}

// Sorts k values that fall and then rise. A bitonic merge of the next power of two whose other
// inputs are infinite: comparators with those only move values and are left out.
template <int k>
constexpr Network<32> ValleyNetwork() {
  Network<32> net;
  int size = 1;
  while (size < k) size *= 2;
  int at[16] = {};  // which value stands at a place; -1: infinity
  for (int i = 0; i < size; ++i) at[i] = i < k ? i : -1;
  for (int distance = size / 2; distance >= 1; distance /= 2) {
    for (int i = 0; i < size; ++i) {
      if ((i & distance) != 0) continue;
      const int a = at[i], b = at[i + distance];
      if (a >= 0 && b >= 0) {
        net.Add(a, b);
      } else if (b < 0) {
        at[i] = b;
        at[i + distance] = a;
      }
    }
  }
  for (int i = 0; i < k; ++i) net.order[i] = static_cast<int8_t>(at[size - k + i]);
  return net;
}

// The values come with signs: the first kSigned comparators, which see each value once, drop them.
template <auto kNet, int kSigned = 0>
__device__ __forceinline__ void ApplyNetwork(uint32_t* v) {
#pragma unroll
  for (int i = 0; i < kNet.size; ++i) {
    const uint32_t a = v[kNet.comparators[i].high], b = v[kNet.comparators[i].low];
    const bool magnitudes = i >= kSigned;
    v[kNet.comparators[i].high] = magnitudes ? MaxMagnitude(a, b) : MaxOfMagnitudes(a, b);
    v[kNet.comparators[i].low] = magnitudes ? MinMagnitude(a, b) : MinOfMagnitudes(a, b);
  }
}

// The k largest of two descending lists of `size` (k / 2 <= size <= k), falling and then rising.
template <int k, int size>
__device__ __forceinline__ void MergeLargest(const uint32_t* a, const uint32_t* b,
                                             uint32_t* merged) {
#pragma unroll
  for (int i = 0; i < k; ++i) {
    const int other = k - 1 - i;
    merged[i] = i >= size ? b[other] : other >= size ? a[i] : MaxMagnitude(a[i], b[other]);
  }
}

// Per half of the result: the k-th largest magnitude of rows g (low) and g + 8 (high), and in *top
// their largest. y may have signs. n registers of a row: 16 or 8. Each list keeps `kept` values: if
// that is less than k, *exact says whether no list had to give up one of the k largest.
template <int k, int kept, int n>
__device__ __forceinline__ uint32_t KthLargest(const uint32_t (&y)[2][n], uint32_t* top,
                                               bool* exact) {
  static_assert(k <= 2 * kept && kept <= k && kept <= n);
  constexpr auto kSort = SortNetwork<n>();
  constexpr auto kValley = ValleyNetwork<k>();
  uint32_t sorted[2][n];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int i = 0; i < n; ++i) sorted[r][i] = y[r][i];
    ApplyNetwork<kSort, n / 2>(sorted[r]);
  }
  uint32_t low[kept], high[kept];
#pragma unroll
  for (int i = 0; i < kept; ++i) {
    low[i] = LowHalves(sorted[0][i], sorted[1][i]);
    high[i] = HighHalves(sorted[0][i], sorted[1][i]);
  }
  uint32_t merged[k], a[k], b[k];
  MergeLargest<k, kept>(low, high, merged);
#pragma unroll
  for (int level = 1; level <= 2; ++level) {
    ApplyNetwork<kValley>(merged);
#pragma unroll
    for (int i = 0; i < k; ++i) {
      a[i] = merged[kValley.order[i]];
      b[i] = __shfl_xor_sync(kAllLanes, a[i], level);
    }
    MergeLargest<k, k>(a, b, merged);
  }
  *top = MaxMagnitude(a[0], b[0]);
  uint32_t kth = merged[0];
#pragma unroll
  for (int i = 1; i < k; ++i) kth = MinMagnitude(kth, merged[i]);
  *exact = kept == k || MaxMagnitude(kth, MaxMagnitude(low[kept - 1], high[kept - 1])) == kth;
  return kth;
}

// The same for any k (1..8 n), bit by bit from the top. k = 0: only *top.
template <int n>
__device__ __forceinline__ uint32_t KthLargestByBits(const uint32_t (&y)[2][n], int k,
                                                     uint32_t* top) {
  uint32_t m[2][n];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int i = 0; i < n; ++i) m[r][i] = y[r][i] & 0x7fff7fffu;
  }
  uint32_t largest[2] = {m[0][0], m[1][0]};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int i = 1; i < n; ++i) largest[r] = MaxMagnitude(largest[r], m[r][i]);
  }
  uint32_t both =
      MaxMagnitude(LowHalves(largest[0], largest[1]), HighHalves(largest[0], largest[1]));
  both = MaxMagnitude(both, __shfl_xor_sync(kAllLanes, both, 1));
  *top = MaxMagnitude(both, __shfl_xor_sync(kAllLanes, both, 2));
  uint32_t kth = 0;
  if (k == 0) return kth;
#pragma unroll 1
  for (uint32_t bit = 0x4000; bit != 0; bit >>= 1) {
    const uint32_t candidate = kth | bit * 0x10001u;
    const uint32_t low = LowHalves(candidate, candidate), high = HighHalves(candidate, candidate);
    uint32_t count = 0;  // of row g in the low half, of row g + 8 in the high half
#pragma unroll
    for (int i = 0; i < n; ++i) {
      count += __popc(AtLeastMask(m[0][i], low)) + (__popc(AtLeastMask(m[1][i], high)) << 16);
    }
    count += __shfl_xor_sync(kAllLanes, count, 1);
    count += __shfl_xor_sync(kAllLanes, count, 2);
    if ((count & 0xffff) >= 16u * k) kth |= bit;
    if (count >> 16 >= 16u * k) kth |= bit << 16;
  }
  return kth;
}

}  // namespace oscarkv::kernels::cuda
