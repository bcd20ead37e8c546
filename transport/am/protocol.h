// The messages of the active-message lane (TCP). One side, the client, reads and writes regions of
// the other, the server; a node is both, over separate connections.
//
//   client                                server
//   Hello{secret, worker address}    ->   a session with a random id
//                                    <-   Welcome{session}
//   Read{item...}                    ->   checks region, token, bounds of each item
//                                    <-   Data{part...}, a part being (id, offset) + bytes, until
//                                    all items are complete
//                                    <-   Failed{item with a code...}
//   Write{part...}, a part being     ->   checks, copies into the region
//     (id, region...) + bytes        <-   Written{item with a code...}, one item for each part
//   Cancel{item...}                  ->   forgets what it has not sent of these reads
//
// Every message has a fixed header, then a payload. Data and Write carry up to kMaxParts parts, so
// that small blocks travel together: the first part's item is in the header; the payload is the
// items of the other parts, then the bytes of all parts, back to back. Every field of every message
// is untrusted: ParseAm checks the form, the receiving state machine checks ids, tokens and bounds.
// What fails is dropped and counted.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace oscarkv {

// UCX sends up to this much as one zero-copy eager message; longer ones are much slower over TCP.
constexpr uint64_t kMaxPiece = 64'000;
constexpr size_t kMaxItems = 64;  // items of one message
// Parts of a Data or Write message. UCX sends at most 16 pieces of memory as one message: the
// header, the items and 14 parts. With 15 parts, UCX 1.13 starts to cut the message, finds nothing
// left for the second message, and aborts the process ("state.offset < req->send.length").
constexpr size_t kMaxParts = 14;
// What is left of an item is put into a message that has parts already if it fits, or if there is
// room for this much of it.
constexpr uint64_t kMinPart = 4096;
constexpr uint64_t kMaxReadItem = 1 << 20;  // bytes of one read item
constexpr size_t kMaxHelloBytes = 4096 + 16;

enum class AmKind : uint8_t {
  kHello = 1,
  kWelcome,
  kRead,
  kData,
  kFailed,
  kWrite,
  kWritten,
  kCancel
};

struct AmItem {
  uint64_t id = 0;      // chosen by the client
  uint64_t region = 0;  // Read, Write
  uint64_t token = 0;   // Read, Write
  uint64_t offset = 0;  // Read, Write: in the region; Data: in the item
  uint32_t length = 0;  // bytes; Data, Write: of the payload
  uint32_t code = 0;    // Failed, Written: an absl::StatusCode
};
static_assert(sizeof(AmItem) == 40 && std::is_trivially_copyable_v<AmItem>);

constexpr uint32_t kAmMagic = 0x4d414b4f;  // "OKAM"
constexpr uint8_t kAmVersion = 2;

struct AmHeader {
  uint32_t magic = kAmMagic;
  uint8_t version = kAmVersion;
  AmKind kind{};
  uint16_t count = 0;  // items in the payload; 0 for Hello, Welcome
  uint64_t to = 0;     // the receiver's id of the connection; 0 for Hello
  AmItem item;         // Data, Write: of the first part; Hello, Welcome: id is the sender's of the
                       // connection
};
static_assert(sizeof(AmHeader) == 56 && std::is_trivially_copyable_v<AmHeader>);

// A message that has the right form. Points into the bytes that were parsed.
struct AmMessage {
  AmHeader header;
  absl::Span<const uint8_t> payload;
  // Item i of header.count; the payload need not be aligned.
  AmItem Item(size_t i) const {
    AmItem item;
    std::memcpy(&item, payload.data() + i * sizeof(AmItem), sizeof(item));
    return item;
  }
  // Data, Write: calls f(item, bytes) for each part.
  template <typename F>
  void ForEachPart(F f) const {
    size_t at = header.count * sizeof(AmItem);
    for (size_t i = 0; i <= header.count; ++i) {
      const AmItem item = i == 0 ? header.item : Item(i - 1);
      f(item, payload.subspan(at, item.length));
      at += item.length;
    }
  }
};

// A part of a Data or Write message to be sent. `owner` keeps the bytes alive until then.
struct AmPart {
  AmItem item;
  const uint8_t* bytes;  // item.length of them
  std::shared_ptr<const void> owner;
};
// How much of `wanted` bytes goes into a message of `parts` parts that has `used` bytes of payload;
// 0: send the message first.
constexpr uint64_t RoomForPart(size_t parts, uint64_t used, uint64_t wanted) {
  if (parts == 0) return std::min(wanted, kMaxPiece);
  if (parts == kMaxParts || used + sizeof(AmItem) >= kMaxPiece) return 0;
  const uint64_t room = kMaxPiece - used - sizeof(AmItem);
  return wanted <= room ? wanted : room >= kMinPart ? room : 0;
}
// Of the payload, for one part more.
constexpr uint64_t PartBytes(size_t parts, uint64_t length) {
  return length + (parts > 0 ? sizeof(AmItem) : 0);
}

// False: malformed.
bool ParseAm(absl::Span<const uint8_t> header, absl::Span<const uint8_t> payload,
             AmMessage* message);

// A code from the network as a status; unknown codes are kInternal.
absl::Status AmStatus(uint32_t code);

// Where a state machine sends its messages to: one endpoint.
class AmChannel {
 public:
  virtual ~AmChannel() = default;
  // Messages that can be sent now. Senders ask before they send.
  virtual size_t Room() const = 0;
  // A Data or Write message of 1 to kMaxParts parts; their bytes are not copied.
  virtual void SendParts(AmHeader header, std::vector<AmPart> parts) = 0;
  // The payload is not copied: `owner` keeps it alive until it was sent.
  virtual void Send(const AmHeader& header, absl::Span<const uint8_t> payload,
                    std::shared_ptr<const void> owner) = 0;
  // At most kMaxItems items, copied; sets header.count.
  virtual void SendItems(AmHeader header, absl::Span<const AmItem> items) = 0;
};

}  // namespace oscarkv
