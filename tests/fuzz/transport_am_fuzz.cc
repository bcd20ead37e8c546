// The active-message lane against a hostile peer, both roles, and the descriptors. The input is a
// script of steps; messages come raw, or with a good frame around hostile fields, so that they get
// past the parser. Whatever happens: no byte outside the exported region and the read's buffer
// changes, nothing outside the region is sent, a cancelled read is not written any more. Under a
// gate (every other script) nothing is sent that may not be read, nothing changes that may not be
// written.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "common/crc32c.h"
#include "transport/am/client.h"
#include "transport/am/protocol.h"
#include "transport/am/server.h"
#include "transport/descriptors.h"

namespace oscarkv {
namespace {

constexpr uint64_t kSession = 2, kConnection = 3, kRegionId = 1, kToken = 1;
constexpr size_t kMargin = 4096, kRegionBytes = 200'000;

void Require(bool ok) {
  if (!ok) std::abort();
}

// A region in the middle of memory that must not change.
struct GuardedRegion final : RegionCore {
  GuardedRegion() : memory(kMargin + kRegionBytes + kMargin, 0xee) {
    id = kRegionId;
    token = kToken;
    span = {memory.data() + kMargin, kRegionBytes};
  }
  bool Intact() const {
    const auto good = [](uint8_t b) { return b == 0xee; };
    return std::all_of(memory.begin(), memory.begin() + kMargin, good) &&
           std::all_of(memory.end() - kMargin, memory.end(), good);
  }
  std::vector<uint8_t> memory;
};

class CheckingChannel final : public AmChannel {
 public:
  explicit CheckingChannel(const GuardedRegion* region) : region_(region) {}
  // Of the region, what may be sent.
  uint64_t first = 0, last = kRegionBytes;
  size_t Room() const override { return room; }
  void Send(const AmHeader& header, absl::Span<const uint8_t> payload,
            std::shared_ptr<const void>) override {
    Require(room > 0 && payload.size() <= kMaxPiece);
    --room;
    Require(header.kind != AmKind::kData && header.kind != AmKind::kWrite);
  }
  void SendParts(AmHeader, std::vector<AmPart> parts) override {
    Require(room > 0 && !parts.empty() && parts.size() <= kMaxParts);
    --room;
    uint64_t bytes = (parts.size() - 1) * sizeof(AmItem);
    for (const AmPart& part : parts) {
      bytes += part.item.length;
      Require(part.item.length > 0 && part.bytes >= region_->span.data() + first &&
              part.item.length <= region_->span.size() &&
              part.bytes + part.item.length <= region_->span.data() + last);
    }
    Require(bytes <= kMaxPiece);
  }
  void SendItems(AmHeader, absl::Span<const AmItem> items) override {
    Require(room > 0 && !items.empty() && items.size() <= kMaxItems);
    --room;
  }
  size_t room = 4;

 private:
  const GuardedRegion* const region_;
};

class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  bool empty() const { return size_ == 0; }
  uint8_t Byte() {
    uint8_t b = 0;
    Take(&b, 1);
    return b;
  }
  template <typename T>
  T Get() {
    T value{};
    Take(&value, sizeof(value));
    return value;
  }
  std::string Bytes(size_t n) {
    std::string s(std::min(n, size_), 0);
    Take(s.data(), s.size());
    return s;
  }

 private:
  void Take(void* to, size_t n) {
    n = std::min(n, size_);
    if (n > 0) std::memcpy(to, data_, n);
    data_ += n;
    size_ -= n;
  }
  const uint8_t* data_;
  size_t size_;
};

absl::Span<const uint8_t> AsBytes(const std::string& s) {
  return {reinterpret_cast<const uint8_t*>(s.data()), s.size()};
}

// One range for reading, one for writing.
constexpr uint64_t kReadFirst = 1000, kReadLast = 90'000, kWriteFirst = 100'000,
                   kWriteLast = 150'000, kSubject = 5;
class RangeGate final : public AccessGate {
 public:
  bool Welcome(uint64_t) override { return true; }
  bool Allowed(uint64_t subject, bool write, uint64_t offset, uint64_t length) override {
    Require(subject == kSubject && offset <= kRegionBytes && length <= kRegionBytes - offset);
    return offset >= (write ? kWriteFirst : kReadFirst) &&
           offset + length <= (write ? kWriteLast : kReadLast);
  }
};

class Scene {
 public:
  explicit Scene(bool gated) : gated_(gated) {
    regions_.Add(theirs_);
    server_.Open(kSession, 9, &to_client_, kSubject);
    if (!gated) return;
    server_.SetGate(&gate_);
    to_client_.first = kReadFirst;
    to_client_.last = kReadLast;
  }

  void Step(Input& in) {
    switch (in.Byte() % 8) {
      case 0:
        Deliver(in.Bytes(in.Byte()), in.Bytes(in.Byte()));
        break;
      case 1:
        Items(in, kSession);
        break;
      case 2:
        Items(in, kConnection);
        break;
      case 3:
        Piece(in, AmKind::kWrite, kSession);
        break;
      case 4:
        Piece(in, AmKind::kData, kConnection);
        break;
      case 5:
        to_client_.room = in.Byte() % 4;
        server_.Pump();
        break;
      case 6:
        to_server_.room = in.Byte() % 4;
        client_.Pump();
        break;
      case 7:
        Post(in);
        break;
    }
    Require(theirs_->Intact() && mine_->Intact());
    const auto same = [](uint8_t b) { return b == 0xee; };
    const uint8_t* const bytes = theirs_->span.data();
    Require(!gated_ || (std::all_of(bytes, bytes + kWriteFirst, same) &&
                        std::all_of(bytes + kWriteLast, bytes + kRegionBytes, same)));
  }

 private:
  void Deliver(const std::string& header, const std::string& payload) {
    AmMessage message;
    if (!ParseAm(AsBytes(header), AsBytes(payload), &message)) return;
    const bool dropped = read_ != nullptr && read_->drained();
    const std::vector<uint8_t> before = dropped ? mine_->memory : std::vector<uint8_t>();
    if (message.header.to == kConnection) {
      client_.OnMessage(message);
    } else {
      server_.OnMessage(message);
    }
    Require(!dropped || mine_->memory == before);
  }
  void Items(Input& in, uint64_t to) {
    static constexpr AmKind kKinds[] = {AmKind::kRead, AmKind::kCancel, AmKind::kFailed,
                                        AmKind::kWritten};
    AmHeader header;
    header.kind = kKinds[in.Byte() % 4];
    header.to = to;
    header.count = static_cast<uint16_t>(1 + in.Byte() % kMaxItems);
    std::string payload = in.Bytes(header.count * sizeof(AmItem));
    payload.resize(header.count * sizeof(AmItem));
    Deliver(std::string(reinterpret_cast<const char*>(&header), sizeof(header)), payload);
  }
  void Piece(Input& in, AmKind kind, uint64_t to) {
    AmHeader header;
    header.kind = kind;
    header.to = to;
    header.item = in.Get<AmItem>();
    header.item.length = 1 + in.Get<uint16_t>() % (kMaxPiece / kMaxParts);
    header.count = in.Byte() % kMaxParts;
    std::string payload(header.count * sizeof(AmItem) + header.item.length, 'p');
    for (size_t i = 0; i < header.count; ++i) {
      AmItem item = in.Get<AmItem>();
      item.length = 1 + item.length % (kMaxPiece / kMaxParts - sizeof(AmItem));
      std::memcpy(payload.data() + i * sizeof(AmItem), &item, sizeof(item));
      payload.resize(payload.size() + item.length, 'p');
    }
    Deliver(std::string(reinterpret_cast<const char*>(&header), sizeof(header)), payload);
  }
  void Post(Input& in) {
    const uint8_t how = in.Byte();
    if (read_ != nullptr && !read_->ended()) {
      read_->End(absl::CancelledError("script"));
      if (how % 2 == 0) client_.Sweep(Time{});
      return;
    }
    const uint64_t offset = in.Get<uint32_t>() % kRegionBytes,
                   length = in.Get<uint32_t>() % (kRegionBytes - offset);
    auto remote = std::make_shared<RemoteCore>();
    remote->size = kRegionBytes;
    std::vector<ResolvedOp> ops = {{how % 4 == 3 ? TransferKind::kWrite : TransferKind::kRead,
                                    mine_->span.data() + offset, length, offset, mine_, remote}};
    auto transfer = std::make_shared<Transfer>(std::move(ops), Time::max(), Time{});
    read_ = transfer->state;
    client_.Submit(std::move(transfer));
  }

  const std::shared_ptr<GuardedRegion> theirs_ = std::make_shared<GuardedRegion>(),
                                       mine_ = std::make_shared<GuardedRegion>();
  const bool gated_;
  RangeGate gate_;
  RegionTable regions_;
  CheckingChannel to_client_{theirs_.get()}, to_server_{mine_.get()};
  AmServer server_{&regions_};
  std::shared_ptr<TransferState> read_;
  AmClient client_{kSession, &to_server_, [](const Transfer&) {}};
};

void Descriptors(std::string text) {
  const auto decode = [&text] {
    if (const auto address = DecodeNodeAddress(text); address.ok())
      Require(Encode(*address).value() == text);
    if (const auto region = DecodeRegionDescriptor(text); region.ok()) {
      Require(Encode(*region).value() == text && region->size > 0 && region->token != 0);
    }
  };
  decode();
  if (text.size() < 4) return;
  const uint32_t crc = Crc32c(text.data(), text.size() - 4);  // past the checksum
  std::memcpy(text.data() + text.size() - 4, &crc, 4);
  decode();
}

}  // namespace
}  // namespace oscarkv

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 1 << 16) return 0;
  oscarkv::Descriptors(std::string(reinterpret_cast<const char*>(data), size));
  oscarkv::Input in(data, size);
  oscarkv::Scene scene(/*gated=*/size % 2 == 1);
  for (int steps = 0; !in.empty() && steps < 200; ++steps) scene.Step(in);
  return 0;
}
