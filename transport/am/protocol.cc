#include "transport/am/protocol.h"

namespace oscarkv {
namespace {

bool GoodParts(const AmMessage& message) {
  const size_t count = message.header.count, size = message.payload.size();
  if (count >= kMaxParts || size > kMaxPiece || size < count * sizeof(AmItem)) return false;
  bool empty = message.header.item.length == 0;
  uint64_t bytes = count * sizeof(AmItem) + message.header.item.length;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t length = message.Item(i).length;
    empty |= length == 0;
    bytes += length;
  }
  return !empty && bytes == size;
}

}  // namespace

bool ParseAm(absl::Span<const uint8_t> header, absl::Span<const uint8_t> payload,
             AmMessage* message) {
  if (header.size() != sizeof(AmHeader)) return false;
  AmHeader& h = message->header;
  std::memcpy(&h, header.data(), sizeof(h));
  message->payload = payload;
  if (h.magic != kAmMagic || h.version != kAmVersion) return false;
  switch (h.kind) {
    case AmKind::kHello:
      return h.count == 0 && h.to == 0 && payload.size() <= kMaxHelloBytes;
    case AmKind::kWelcome:
      return h.count == 0 && payload.empty();
    case AmKind::kData:
    case AmKind::kWrite:
      return GoodParts(*message);
    case AmKind::kRead:
    case AmKind::kFailed:
    case AmKind::kWritten:
    case AmKind::kCancel:
      return h.count >= 1 && h.count <= kMaxItems && payload.size() == h.count * sizeof(AmItem);
  }
  return false;
}

absl::Status AmStatus(uint32_t code) {
  switch (static_cast<absl::StatusCode>(code)) {
    case absl::StatusCode::kOk:
      return absl::OkStatus();
    case absl::StatusCode::kNotFound:
      return absl::NotFoundError("the peer no longer exports this region");
    case absl::StatusCode::kPermissionDenied:
      return absl::PermissionDeniedError(
          "the peer refused the access: not the region's token, or not its session's block");
    case absl::StatusCode::kInvalidArgument:
      return absl::InvalidArgumentError("the peer found the range outside its region");
    case absl::StatusCode::kResourceExhausted:
      return absl::ResourceExhaustedError("the peer has too many requests of this connection");
    default:
      return absl::InternalError("the peer failed the request for an unknown reason");
  }
}

}  // namespace oscarkv
