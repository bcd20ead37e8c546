// Byte layouts that the CPU and the GPU share: the Q2P64 page and the bf16 block.
//
// A *page* is one block of 64 tokens in one layer: [kv_head][PageHeadBytes]. A page-head holds the
// 2-bit codes of K and V of 64 tokens of one kv head and four metadata planes of fp16; value = code
// * scale + offset.
//
// head_dim 128, 4608 bytes:
//      0  K codes, 4 token blocks (tb) of 16 tokens x 512 B      2048  V codes, likewise
//   4096  K scale, K offset, V scale, V offset: 4 planes x 64 fp16
// A 512-byte token block is 32 slots x 16 B; slot(g, j) = 8 j + (g ^ 2 j), g in 0..7, j in 0..3, so
// that a GPU warp's lane 4g+j loads its own MMA fragment with one conflict-free 16-byte load, and
// four slots are one 64-byte AVX-512 row. A slot is 4 words W[ch][r] in the order (0,0) (0,1) (1,0)
// (1,1). A code's bit offset in its word is 16 e + 8 u + 2 p; e, u in {0,1}, p in 0..3.
//   K: token = 16 tb + g + 8 r           channel = 64 ch + 16 p + 8 u + 2 j + e
//   V: token = 16 tb + 8 u + 2 j + e     channel = 64 ch + 16 p + 8 r + g
// A token's place in a metadata plane: token = 16 tb + g + 8 r stands at index 8 g + 2 tb + r.
//
// Without offset planes (profile shaped-sym: offset = -1.5 * scale) there are two planes, K scale
// and V scale: 4352 bytes, and 2304 for head_dim 64.
//
// head_dim 64, 2560 bytes: the same with ch = 0 only: a slot is 2 words W[r] (8 B), a token block
// 256 B, K codes at 0, V codes at 1024, planes at 2048.
#pragma once

#include <cstddef>
#include <cstdint>

namespace oscarkv::kernels {

inline constexpr int kPageTokens = 64;  // tokens of a page and of a block
inline constexpr int kMetaPlanes = 4;   // K scale, K offset, V scale, V offset
// Offset of a row whose page has no offset planes, in units of its scale: levels about zero.
inline constexpr float kCentredOffset = -1.5f;
inline constexpr int kMaxGroup = 16;  // query heads per kv head

enum class Side { kKey = 0, kValue = 1 };

constexpr bool IsSupportedHeadDim(int head_dim) {
  return head_dim == 64 || head_dim == 128;
}

// Bytes of the codes of one side (K or V) of a page-head.
constexpr size_t CodesBytes(int head_dim) {
  return size_t{kPageTokens} * head_dim / 4;
}
// Bytes of one page-head: 4608 for head_dim 128, 2560 for 64; 4352 and 2304 without offsets.
constexpr size_t PageHeadBytes(int head_dim, bool offsets = true) {
  return 2 * CodesBytes(head_dim) + (offsets ? kMetaPlanes : 2) * kPageTokens * 2;
}
constexpr size_t MetaOffset(int head_dim) {
  return 2 * CodesBytes(head_dim);
}
// The scales of one side in a page-head; its offsets, if any, come right behind them.
constexpr size_t ScaleOffset(int head_dim, Side side, bool offsets = true) {
  return MetaOffset(head_dim) + static_cast<size_t>(side) * (offsets ? 4 : 2) * kPageTokens;
}
static_assert(PageHeadBytes(128) == 4608 && MetaOffset(128) == 4096);
static_assert(PageHeadBytes(128, false) == 4352 && PageHeadBytes(128, false) % 128 == 0);
static_assert(PageHeadBytes(64, false) == 2304 && PageHeadBytes(64, false) % 128 == 0);
static_assert(PageHeadBytes(64) == 2560 && MetaOffset(64) == 2048);
static_assert(PageHeadBytes(128) % 128 == 0 && PageHeadBytes(64) % 128 == 0);

// Where a code lies: 32-bit word index within the side's codes, and bit offset in the word.
struct CodePosition {
  int word;
  int bit;
};
constexpr int Slot(int g, int j) {
  return 8 * j + (g ^ (2 * j));
}
constexpr CodePosition KeyPosition(int head_dim, int token, int channel) {
  const int tb = token >> 4, g = token & 7, r = token >> 3 & 1;
  const int ch = channel >> 6, p = channel >> 4 & 3, u = channel >> 3 & 1, j = channel >> 1 & 3,
            e = channel & 1;
  const int words = head_dim / 32;  // per slot
  return {tb * 32 * words + words * Slot(g, j) + 2 * ch + r, 16 * e + 8 * u + 2 * p};
}
constexpr CodePosition ValuePosition(int head_dim, int token, int channel) {
  const int tb = token >> 4, u = token >> 3 & 1, j = token >> 1 & 3, e = token & 1;
  const int ch = channel >> 6, p = channel >> 4 & 3, r = channel >> 3 & 1, g = channel & 7;
  const int words = head_dim / 32;
  return {tb * 32 * words + words * Slot(g, j) + 2 * ch + r, 16 * e + 8 * u + 2 * p};
}
constexpr int MetaIndex(int token) {
  return 8 * (token & 7) + 2 * (token >> 4) + (token >> 3 & 1);
}

// What a model's KV cache looks like; gives the sizes of pages and blocks.
struct KvShape {
  int num_layers = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  bool offsets = true;  // pages have offset planes
  bool operator==(const KvShape&) const = default;

  // One layer of a 2-bit block: [kv_head][PageHeadBytes].
  constexpr size_t PageLayerBytes() const {
    return num_kv_heads * PageHeadBytes(head_dim, offsets);
  }
  // A whole 2-bit block: [layer][kv_head][PageHeadBytes].
  constexpr size_t PageBytes() const { return num_layers * PageLayerBytes(); }
  // One layer of a bf16 block: [K,V][kv_head][64][head_dim] of bf16.
  constexpr size_t Bf16LayerBytes() const {
    return size_t{4} * num_kv_heads * kPageTokens * head_dim;
  }
  constexpr size_t Bf16BlockBytes() const { return num_layers * Bf16LayerBytes(); }
  // Elements from K to V of one layer of a bf16 block.
  constexpr size_t Bf16SideElements() const {
    return size_t{1} * num_kv_heads * kPageTokens * head_dim;
  }
};

}  // namespace oscarkv::kernels
