// The bytes of a block as they are stored and shipped: a 128-byte header and a body of fixed size
// (docs/block_format.md).
//
// The store sees bytes and a slice table; only workers write and check headers. All functions are
// pure and thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "codec/codec.h"
#include "common/sha256.h"
#include "kernels/layout.h"

namespace oscarkv {

// Goes up when the meaning of any byte of header or body changes; part of every codec fingerprint
// and namespace.
inline constexpr uint32_t kBlockFormatVersion = 1;
// Where the body starts. A multiple of 128: in an aligned extent the body is aligned as the kernels
// want it.
inline constexpr size_t kBlockHeaderBytes = 128;

// Bounds of what a header (and a codec) may say; far above any model, low enough that no size
// overflows.
inline constexpr int kMaxLayers = 1024;
inline constexpr int kMaxKvHeads = 1024;
// kInvalidArgument names the field, its value and what is allowed.
absl::Status ValidateShape(const kernels::KvShape& shape);

// What the body holds. The numbers are those of the store's BlockKind.
enum class BlockBody : uint8_t {
  kPage = 1,  // [layer][kv_head][PageHeadBytes]: 2-bit codes and metadata of 64 tokens
  kBf16 =
      2,  // [layer][K,V][kv_head][64][head_dim] bf16: the sink; every full block of profile bf16
  kHandover = 3,  // as kBf16, perhaps of fewer than 64 tokens: the rows from `tokens` on are zero
};
absl::string_view BlockBodyName(BlockBody body);

struct BlockHeader {
  Profile profile = Profile::kOscar;
  BlockBody body = BlockBody::kPage;
  bool canonical_history = false;     // the writer's prefill history: canonical, else exact
  kernels::KvShape shape;             // offsets: unless the profile is kShapedSym
  int tokens = kernels::kPageTokens;  // 1..64; below 64 in hand-over blocks only
  Sha256Digest codec_fingerprint{};
  Sha256Digest model_fingerprint{};
  bool operator==(const BlockHeader&) const = default;
};

// Writes kBlockHeaderBytes to `out`. kInvalidArgument: a header that no reader would take.
absl::Status EncodeHeader(const BlockHeader& header, uint8_t* out);

// Reads a header from the front of `bytes` (a whole block or its first slice). kDataLoss: too
// short, no header at all, a damaged one, or fields that contradict each other;
// kFailedPrecondition: an intact header of another format version.
absl::StatusOr<BlockHeader> DecodeHeader(absl::Span<const uint8_t> bytes);

// kFailedPrecondition naming the first field that differs, with the values of both sides.
absl::Status CheckHeader(const BlockHeader& block, const BlockHeader& expected);

// Bytes of the body, of one layer of it, and of the whole block with its header.
size_t BodyBytes(BlockBody body, const kernels::KvShape& shape);
size_t BodyLayerBytes(BlockBody body, const kernels::KvShape& shape);
size_t BlockBytes(BlockBody body, const kernels::KvShape& shape);

// A contiguous part of a block with its own checksum. Slice 0 is the header, slice 1 + l is layer
// l.
struct BlockSlice {
  uint64_t offset = 0;
  uint64_t length = 0;
  uint32_t crc32c = 0;
  bool operator==(const BlockSlice&) const = default;
};

// The slices of a block, in order and without gaps; checksums zero.
std::vector<BlockSlice> SliceTable(BlockBody body, const kernels::KvShape& shape);
// Fills the checksum from the slice's bytes (slice->length of them), wherever they lie: layers are
// computed and put one by one.
void ChecksumSlice(const uint8_t* slice_bytes, BlockSlice* slice);

// Zeroes the rows from `tokens` on in a bf16 body [layer][K,V][kv_head][64][head_dim], as a partial
// hand-over block demands: equal tokens give equal bytes, and nothing that lay in the buffer before
// is shipped.
void ZeroTail(const kernels::KvShape& shape, int tokens, kernels::Bf16* body);

}  // namespace oscarkv
