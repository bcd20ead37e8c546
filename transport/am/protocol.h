// The messages of the active-message lane (TCP). One side, the client, reads and writes regions of
// the other, the server; a node is both, over separate connections.
//
//   client                                server
//   Hello{secret, worker address}    ->   a session with a random id
//                                    <-   Welcome{session}
//   Read{item...}                    ->   checks region, token, bounds of each item
//                                    <-   Data{id, offset} + at most kMaxPiece bytes, until the
//                                    item is complete
//                                    <-   Failed{item with a code...}
//   Write{id, region...} + bytes     ->   checks, copies into the region
//                                    <-   Written{item with a code...}, one item for each Write
//                                    message
//   Cancel{item...}                  ->   forgets what it has not sent of these reads
//
// Every message has a fixed header, then a payload. Every field of every message is untrusted:
// ParseAm checks the form, the receiving state machine checks ids, tokens and bounds. What fails is
// dropped and counted.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace oscarkv {

// UCX sends up to this much as one zero-copy eager message; longer ones are much slower over TCP.
constexpr uint64_t kMaxPiece = 64'000;
constexpr size_t kMaxItems = 64;            // items of one message
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
constexpr uint8_t kAmVersion = 1;

struct AmHeader {
  uint32_t magic = kAmMagic;
  uint8_t version = kAmVersion;
  AmKind kind{};
  uint16_t count = 0;  // items in the payload; 0 for Hello, Welcome, Data, Write
  uint64_t to = 0;     // the receiver's id of the connection; 0 for Hello
  AmItem item;         // Data, Write; Hello, Welcome: item.id is the sender's id of the connection
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
};

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
  // The payload is not copied: `owner` keeps it alive until it was sent.
  virtual void Send(const AmHeader& header, absl::Span<const uint8_t> payload,
                    std::shared_ptr<const void> owner) = 0;
  // At most kMaxItems items, copied; sets header.count.
  virtual void SendItems(AmHeader header, absl::Span<const AmItem> items) = 0;
};

}  // namespace oscarkv
