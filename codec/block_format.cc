#include "codec/block_format.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/crc32c.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

// Header, little-endian. Magic, version, header size and the place of the CRC (the last four bytes
// of the header) never change, so that every version can tell a damaged block from one of another
// version.
constexpr char kMagic[8] = {'O', 'S', 'C', 'A', 'R', 'K', 'V', 'B'};
enum Offset : size_t {
  kOffMagic = 0,         // 8
  kOffVersion = 8,       // u32
  kOffHeaderBytes = 12,  // u32
  kOffProfile = 16,      // u8
  kOffBody = 17,         // u8
  kOffFlags = 18,        // u16, bit 0: canonical prefill history
  kOffLayers = 20,       // u32
  kOffKvHeads = 24,      // u32
  kOffHeadDim = 28,      // u32
  kOffTokens = 32,       // u32
  kOffZero1 = 36,        // u32, zero
  kOffBodyBytes = 40,    // u64
  kOffCodec = 48,        // 32
  kOffModel = 80,        // 32
  kOffZero2 = 112,       // 12, zero
  kOffCrc = 124,         // u32, CRC32C of all bytes before it
};
static_assert(kOffCrc + 4 == kBlockHeaderBytes);
constexpr uint16_t kFlagCanonical = 1;
constexpr size_t kMaxHeaderBytes = 4096;  // of any version

void Put(uint8_t* p, uint64_t v, int bytes) {
  for (int i = 0; i < bytes; ++i) p[i] = static_cast<uint8_t>(v >> (8 * i));
}
uint64_t Get(const uint8_t* p, int bytes) {
  uint64_t v = 0;
  for (int i = 0; i < bytes; ++i) v |= uint64_t{p[i]} << (8 * i);
  return v;
}

bool HasOffsets(Profile profile) {
  return profile != Profile::kShapedSym;
}

// Which bodies a profile has, and how many tokens a body may hold.
absl::Status ValidateHeader(const BlockHeader& h) {
  if (h.profile > Profile::kShapedSym) {
    return absl::InvalidArgumentError(
        absl::StrCat("profile ", static_cast<int>(h.profile), ", known are 0 to 3"));
  }
  if (h.shape.offsets != HasOffsets(h.profile)) {
    return absl::InvalidArgumentError(absl::StrCat("a shape ", h.shape.offsets ? "with" : "without",
                                                   " offset planes in profile ",
                                                   ProfileName(h.profile)));
  }
  if (h.body < BlockBody::kPage || h.body > BlockBody::kHandover) {
    return absl::InvalidArgumentError(
        absl::StrCat("body kind ", static_cast<int>(h.body), ", known are 1 to 3"));
  }
  if (h.profile == Profile::kBf16 && h.body == BlockBody::kPage) {
    return absl::InvalidArgumentError("a 2-bit page of profile bf16, which has none");
  }
  const int min_tokens = h.body == BlockBody::kHandover ? 1 : kernels::kPageTokens;
  if (h.tokens < min_tokens || h.tokens > kernels::kPageTokens) {
    return absl::InvalidArgumentError(absl::StrCat(h.tokens, " tokens, a ", BlockBodyName(h.body),
                                                   " block holds ", min_tokens, " to ",
                                                   kernels::kPageTokens));
  }
  return ValidateShape(h.shape);
}

absl::Status Damaged(absl::string_view what) {
  return absl::DataLossError(absl::StrCat("block header: ", what));
}

absl::Status Differs(absl::string_view field, absl::string_view block, absl::string_view expected) {
  return absl::FailedPreconditionError(absl::StrCat(
      "block header: ", field, " is ", block, " in the block, this reader expects ", expected));
}

std::string ShapeText(const kernels::KvShape& s) {
  return absl::StrCat(s.num_layers, " layers x ", s.num_kv_heads, " kv heads x head_dim ",
                      s.head_dim);
}

// The fields that every version has: OK when the bytes are an undamaged header of this version.
absl::Status CheckEnvelope(absl::Span<const uint8_t> bytes) {
  if (bytes.size() < kBlockHeaderBytes) {
    return Damaged(absl::StrCat(bytes.size(), " bytes, a header has at least ", kBlockHeaderBytes));
  }
  if (std::memcmp(bytes.data() + kOffMagic, kMagic, sizeof(kMagic)) != 0) {
    return Damaged(
        absl::StrCat("starts with ", ToHex(bytes.data(), sizeof(kMagic)), " instead of OSCARKVB"));
  }
  const uint64_t header_bytes = Get(bytes.data() + kOffHeaderBytes, 4);
  if (header_bytes < kBlockHeaderBytes || header_bytes > kMaxHeaderBytes ||
      header_bytes % 128 != 0 || header_bytes > bytes.size()) {
    return Damaged(absl::StrCat("says it has ", header_bytes, " bytes; a multiple of 128 up to ",
                                std::min(kMaxHeaderBytes, bytes.size()), " is possible"));
  }
  const auto stored = static_cast<uint32_t>(Get(bytes.data() + header_bytes - 4, 4));
  const uint32_t computed = Crc32c(bytes.data(), header_bytes - 4);
  if (stored != computed) {
    return Damaged(absl::StrFormat("CRC32C is %08x, its bytes give %08x", stored, computed));
  }
  const uint64_t version = Get(bytes.data() + kOffVersion, 4);
  if (version != kBlockFormatVersion) {
    return Differs("format version", absl::StrCat(version), absl::StrCat(kBlockFormatVersion));
  }
  if (header_bytes != kBlockHeaderBytes) {
    return Damaged(absl::StrCat("of ", header_bytes, " bytes, version 1 has ", kBlockHeaderBytes));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateShape(const kernels::KvShape& s) {
  if (s.num_layers < 1 || s.num_layers > kMaxLayers) {
    return absl::InvalidArgumentError(
        absl::StrCat(s.num_layers, " layers, 1 to ", kMaxLayers, " are supported"));
  }
  if (s.num_kv_heads < 1 || s.num_kv_heads > kMaxKvHeads) {
    return absl::InvalidArgumentError(
        absl::StrCat(s.num_kv_heads, " kv heads, 1 to ", kMaxKvHeads, " are supported"));
  }
  if (!kernels::IsSupportedHeadDim(s.head_dim)) {
    return absl::InvalidArgumentError(
        absl::StrCat("head_dim ", s.head_dim, ", 64 and 128 are supported"));
  }
  return absl::OkStatus();
}

absl::string_view BlockBodyName(BlockBody body) {
  switch (body) {
    case BlockBody::kPage:
      return "2-bit page";
    case BlockBody::kBf16:
      return "bf16";
    case BlockBody::kHandover:
      return "hand-over";
  }
  return "unknown";
}

absl::Status EncodeHeader(const BlockHeader& h, uint8_t* out) {
  RETURN_IF_ERROR(ValidateHeader(h));
  std::memset(out, 0, kBlockHeaderBytes);
  std::memcpy(out + kOffMagic, kMagic, sizeof(kMagic));
  Put(out + kOffVersion, kBlockFormatVersion, 4);
  Put(out + kOffHeaderBytes, kBlockHeaderBytes, 4);
  Put(out + kOffProfile, static_cast<uint8_t>(h.profile), 1);
  Put(out + kOffBody, static_cast<uint8_t>(h.body), 1);
  Put(out + kOffFlags, h.canonical_history ? kFlagCanonical : 0, 2);
  Put(out + kOffLayers, h.shape.num_layers, 4);
  Put(out + kOffKvHeads, h.shape.num_kv_heads, 4);
  Put(out + kOffHeadDim, h.shape.head_dim, 4);
  Put(out + kOffTokens, h.tokens, 4);
  Put(out + kOffBodyBytes, BodyBytes(h.body, h.shape), 8);
  std::memcpy(out + kOffCodec, h.codec_fingerprint.data(), h.codec_fingerprint.size());
  std::memcpy(out + kOffModel, h.model_fingerprint.data(), h.model_fingerprint.size());
  Put(out + kOffCrc, Crc32c(out, kOffCrc), 4);
  return absl::OkStatus();
}

absl::StatusOr<BlockHeader> DecodeHeader(absl::Span<const uint8_t> bytes) {
  RETURN_IF_ERROR(CheckEnvelope(bytes));
  const uint8_t* p = bytes.data();
  // 32-bit fields are clamped, not cast: 2^32 - 1 layers must not become -1.
  auto field = [p](size_t offset) {
    return static_cast<int>(std::min<uint64_t>(Get(p + offset, 4), INT32_MAX));
  };
  BlockHeader h;
  h.profile = static_cast<Profile>(p[kOffProfile]);
  h.body = static_cast<BlockBody>(p[kOffBody]);
  const uint64_t flags = Get(p + kOffFlags, 2);
  h.canonical_history = (flags & kFlagCanonical) != 0;
  h.shape = {field(kOffLayers), field(kOffKvHeads), field(kOffHeadDim), HasOffsets(h.profile)};
  h.tokens = field(kOffTokens);
  std::memcpy(h.codec_fingerprint.data(), p + kOffCodec, h.codec_fingerprint.size());
  std::memcpy(h.model_fingerprint.data(), p + kOffModel, h.model_fingerprint.size());

  if (const absl::Status s = ValidateHeader(h); !s.ok()) return Damaged(s.message());
  if ((flags & ~uint64_t{kFlagCanonical}) != 0)
    return Damaged(absl::StrFormat("unknown flags %#x", flags));
  const auto zero = [](uint8_t b) { return b == 0; };
  if (!std::all_of(p + kOffZero1, p + kOffBodyBytes, zero) ||
      !std::all_of(p + kOffZero2, p + kOffCrc, zero)) {
    return Damaged("reserved bytes are not zero");
  }
  const uint64_t body_bytes = Get(p + kOffBodyBytes, 8);
  if (body_bytes != BodyBytes(h.body, h.shape)) {
    return Damaged(absl::StrCat("says that the body has ", body_bytes, " bytes, ",
                                ShapeText(h.shape), " give ", BodyBytes(h.body, h.shape)));
  }
  return h;
}

absl::Status CheckHeader(const BlockHeader& block, const BlockHeader& expected) {
  if (block.profile != expected.profile) {
    return Differs("profile", ProfileName(block.profile), ProfileName(expected.profile));
  }
  if (block.shape != expected.shape)
    return Differs("shape", ShapeText(block.shape), ShapeText(expected.shape));
  if (block.model_fingerprint != expected.model_fingerprint) {
    return Differs("model fingerprint", ToHex(block.model_fingerprint),
                   ToHex(expected.model_fingerprint));
  }
  if (block.codec_fingerprint != expected.codec_fingerprint) {
    return Differs("codec fingerprint", ToHex(block.codec_fingerprint),
                   ToHex(expected.codec_fingerprint));
  }
  if (block.canonical_history != expected.canonical_history) {
    return Differs("prefill history", block.canonical_history ? "canonical" : "exact",
                   expected.canonical_history ? "canonical" : "exact");
  }
  if (block.body != expected.body)
    return Differs("body", BlockBodyName(block.body), BlockBodyName(expected.body));
  if (block.tokens != expected.tokens) {
    return Differs("number of tokens", absl::StrCat(block.tokens), absl::StrCat(expected.tokens));
  }
  return absl::OkStatus();
}

size_t BodyLayerBytes(BlockBody body, const kernels::KvShape& shape) {
  return body == BlockBody::kPage ? shape.PageLayerBytes() : shape.Bf16LayerBytes();
}
size_t BodyBytes(BlockBody body, const kernels::KvShape& shape) {
  return shape.num_layers * BodyLayerBytes(body, shape);
}
size_t BlockBytes(BlockBody body, const kernels::KvShape& shape) {
  return kBlockHeaderBytes + BodyBytes(body, shape);
}

std::vector<BlockSlice> SliceTable(BlockBody body, const kernels::KvShape& shape) {
  std::vector<BlockSlice> slices = {{0, kBlockHeaderBytes, 0}};
  const uint64_t layer_bytes = BodyLayerBytes(body, shape);
  for (int l = 0; l < shape.num_layers; ++l) {
    slices.push_back({kBlockHeaderBytes + l * layer_bytes, layer_bytes, 0});
  }
  return slices;
}

void ChecksumSlice(const uint8_t* slice_bytes, BlockSlice* slice) {
  slice->crc32c = Crc32c(slice_bytes, slice->length);
}

void ZeroTail(const kernels::KvShape& shape, int tokens, kernels::Bf16* body) {
  const size_t matrices = size_t{2} * shape.num_layers * shape.num_kv_heads;  // [64][head_dim] each
  const size_t elements = size_t{kernels::kPageTokens} * shape.head_dim;
  const size_t kept = size_t{1} * tokens * shape.head_dim;
  for (size_t i = 0; i < matrices; ++i) {
    std::fill(body + i * elements + kept, body + (i + 1) * elements, kernels::Bf16{0});
  }
}

}  // namespace oscarkv
