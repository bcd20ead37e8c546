// The message parser and the two state machines of the active-message lane, fed by hand.
#include "transport/am/protocol.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "transport/am/client.h"
#include "transport/am/server.h"

namespace oscarkv {
namespace {

using std::chrono::seconds;

absl::Span<const uint8_t> Bytes(const std::string& s) {
  return {reinterpret_cast<const uint8_t*>(s.data()), s.size()};
}
uint32_t Code(absl::StatusCode code) {
  return static_cast<uint32_t>(code);
}

struct Sent {
  AmHeader header;
  std::string payload;
  AmMessage Message() const {
    AmMessage m;
    EXPECT_TRUE(
        ParseAm({reinterpret_cast<const uint8_t*>(&header), sizeof(header)}, Bytes(payload), &m));
    return m;
  }
};

class RecordingChannel final : public AmChannel {
 public:
  size_t Room() const override { return room; }
  void Send(const AmHeader& header, absl::Span<const uint8_t> payload,
            std::shared_ptr<const void> owner) override {
    ASSERT_GT(room, 0u);
    --room;
    sent.push_back(
        {header, std::string(reinterpret_cast<const char*>(payload.data()), payload.size())});
    owners.push_back(std::move(owner));
  }
  void SendItems(AmHeader header, absl::Span<const AmItem> items) override {
    ASSERT_LE(items.size(), kMaxItems);
    header.count = static_cast<uint16_t>(items.size());
    Send(header, {reinterpret_cast<const uint8_t*>(items.data()), items.size() * sizeof(AmItem)},
         nullptr);
  }
  void SendParts(AmHeader header, std::vector<AmPart> parts) override {
    ASSERT_GE(parts.size(), 1u);
    ASSERT_LE(parts.size(), kMaxParts);
    header.count = static_cast<uint16_t>(parts.size() - 1);
    header.item = parts[0].item;
    std::string payload;
    for (size_t i = 1; i < parts.size(); ++i)
      payload.append(reinterpret_cast<const char*>(&parts[i].item), sizeof(AmItem));
    for (const AmPart& part : parts)
      payload.append(reinterpret_cast<const char*>(part.bytes), part.item.length);
    ASSERT_LE(payload.size(), kMaxPiece);
    Send(header, {reinterpret_cast<const uint8_t*>(payload.data()), payload.size()}, nullptr);
    for (AmPart& part : parts) owners.push_back(std::move(part.owner));
  }
  std::vector<Sent> Take(size_t new_room = 16) {
    room = new_room;
    owners.clear();
    return std::exchange(sent, {});
  }
  size_t room = 16;
  std::vector<Sent> sent;
  std::vector<std::shared_ptr<const void>> owners;
};

Sent ItemsMessage(AmKind kind, uint64_t to, const std::vector<AmItem>& items) {
  Sent s;
  s.header.kind = kind;
  s.header.to = to;
  s.header.count = static_cast<uint16_t>(items.size());
  s.payload.assign(reinterpret_cast<const char*>(items.data()), items.size() * sizeof(AmItem));
  return s;
}

Sent BytesMessage(AmKind kind, uint64_t to, AmItem item, const std::string& bytes) {
  Sent s;
  s.header.kind = kind;
  s.header.to = to;
  s.header.item = item;
  s.header.item.length = static_cast<uint32_t>(bytes.size());
  s.payload = bytes;
  return s;
}

TEST(ParseAm, RefusesWhatHasNotTheForm) {
  struct Case {
    const char* name;
    std::function<void(AmHeader&, std::string&)> change;
    bool good;
  };
  const std::string piece(100, 'x');
  const auto items = [](AmKind kind, size_t count, size_t bytes) {
    return [=](AmHeader& h, std::string& p) {
      h.kind = kind;
      h.count = static_cast<uint16_t>(count);
      p.assign(bytes, 0);
    };
  };
  const std::vector<Case> cases = {
      {"data", [](AmHeader&, std::string&) {}, true},
      {"magic", [](AmHeader& h, std::string&) { h.magic ^= 1; }, false},
      {"version", [](AmHeader& h, std::string&) { h.version = kAmVersion + 1; }, false},
      {"kind 0", [](AmHeader& h, std::string&) { h.kind = static_cast<AmKind>(0); }, false},
      {"kind 9", [](AmHeader& h, std::string&) { h.kind = static_cast<AmKind>(9); }, false},
      {"data with count", [](AmHeader& h, std::string&) { h.count = 1; }, false},
      {"data, length lies", [](AmHeader& h, std::string&) { h.item.length = 101; }, false},
      {"data, empty", [](AmHeader& h, std::string& p) { h.item.length = 0, p.clear(); }, false},
      {"data, too long",
       [](AmHeader& h, std::string& p) { p.assign(h.item.length = kMaxPiece + 1, 0); }, false},
      {"data, longest", [](AmHeader& h, std::string& p) { p.assign(h.item.length = kMaxPiece, 0); },
       true},
      {"read 1", items(AmKind::kRead, 1, 40), true},
      {"read 64", items(AmKind::kRead, 64, 64 * 40), true},
      {"read 65", items(AmKind::kRead, 65, 65 * 40), false},
      {"read 0", items(AmKind::kRead, 0, 0), false},
      {"read cut", items(AmKind::kRead, 2, 79), false},
      {"failed, left over", items(AmKind::kFailed, 1, 41), false},
      {"written", items(AmKind::kWritten, 3, 120), true},
      {"cancel", items(AmKind::kCancel, 1, 40), true},
      {"hello", items(AmKind::kHello, 0, 300), true},
      {"hello to someone", [](AmHeader& h, std::string&) { h.kind = AmKind::kHello, h.to = 7; },
       false},
      {"hello, huge", items(AmKind::kHello, 0, kMaxHelloBytes + 1), false},
      {"welcome", items(AmKind::kWelcome, 0, 0), true},
      {"welcome with payload", items(AmKind::kWelcome, 0, 1), false},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    AmHeader header;
    header.kind = AmKind::kData;
    header.item.length = 100;
    std::string payload = piece;
    c.change(header, payload);
    AmMessage message;
    const absl::Span<const uint8_t> h(reinterpret_cast<const uint8_t*>(&header), sizeof(header));
    EXPECT_EQ(ParseAm(h, Bytes(payload), &message), c.good);
    EXPECT_FALSE(ParseAm(h.first(sizeof(header) - 1), Bytes(payload), &message));
  }
  AmMessage message;
  EXPECT_FALSE(ParseAm({}, {}, &message));
}

TEST(ParseAm, PartsFillThePayloadExactly) {
  const auto parse = [](uint32_t first, const std::vector<uint32_t>& others, size_t bytes) {
    AmHeader header;
    header.kind = AmKind::kWrite;
    header.count = static_cast<uint16_t>(others.size());
    header.item.length = first;
    std::vector<AmItem> items(others.size());
    for (size_t i = 0; i < others.size(); ++i) items[i].length = others[i];
    std::string payload(reinterpret_cast<const char*>(items.data()), items.size() * sizeof(AmItem));
    payload.append(bytes, 'x');
    AmMessage message;
    return ParseAm({reinterpret_cast<const uint8_t*>(&header), sizeof(header)}, Bytes(payload),
                   &message);
  };
  EXPECT_TRUE(parse(3, {4, 5}, 12));
  EXPECT_FALSE(parse(3, {4, 5}, 11));
  EXPECT_FALSE(parse(3, {4, 5}, 13));
  EXPECT_FALSE(parse(3, {0, 5}, 8)) << "an empty part";
  EXPECT_FALSE(parse(0, {4, 5}, 9)) << "an empty part";
  EXPECT_FALSE(parse(3, {~0u, 5}, 7)) << "lengths that would wrap around";
  EXPECT_TRUE(parse(1, std::vector<uint32_t>(kMaxParts - 1, 1), kMaxParts));
  EXPECT_FALSE(parse(1, std::vector<uint32_t>(kMaxParts, 1), kMaxParts + 1));
  EXPECT_TRUE(parse(1, {static_cast<uint32_t>(kMaxPiece) - 41}, kMaxPiece - 40));
  EXPECT_FALSE(parse(1, {static_cast<uint32_t>(kMaxPiece) - 40}, kMaxPiece - 39));
}

struct TestRegion final : RegionCore {
  TestRegion(uint64_t i, uint64_t t, size_t size) : bytes(size) {
    id = i;
    token = t;
    span = absl::MakeSpan(bytes);
    for (size_t k = 0; k < size; ++k) bytes[k] = static_cast<uint8_t>(k * 7 + k / 256);
  }
  std::vector<uint8_t> bytes;
};

class AmServerTest : public testing::Test {
 protected:
  void SetUp() override {
    regions_.Add(region_);
    server_.Open(kSession, kClient, &channel_);
  }
  AmItem Item(uint64_t id, uint64_t offset, uint32_t length) const {
    return {id, region_->id, region_->token, offset, length, 0};
  }
  bool Read(const std::vector<AmItem>& items, uint64_t session = kSession) {
    const Sent s = ItemsMessage(AmKind::kRead, session, items);
    return server_.OnMessage(s.Message());
  }
  // The code of the one item of the one answer.
  uint32_t OnlyCode(AmKind kind) {
    server_.Pump();
    const std::vector<Sent> sent = channel_.Take();
    if (sent.size() != 1 || sent[0].header.kind != kind || sent[0].header.count != 1) return ~0u;
    return sent[0].Message().Item(0).code;
  }

  static constexpr uint64_t kSession = 11, kClient = 22;
  RegionTable regions_;
  std::shared_ptr<TestRegion> region_ = std::make_shared<TestRegion>(5, 99, 300'000);
  RecordingChannel channel_;
  AmServer server_{&regions_};
};

TEST_F(AmServerTest, SendsReadsInPieces) {
  ASSERT_TRUE(Read({Item(1, 100, 150'000), Item(2, 0, 10)}));
  EXPECT_TRUE(server_.Pump());
  const std::vector<Sent> sent = channel_.Take();
  ASSERT_EQ(sent.size(), 3u);
  std::string got;
  size_t parts = 0;
  for (const Sent& s : sent) {
    EXPECT_EQ(s.header.kind, AmKind::kData);
    EXPECT_EQ(s.header.to, kClient);
    EXPECT_LE(s.payload.size(), kMaxPiece);
    s.Message().ForEachPart([&](const AmItem& item, absl::Span<const uint8_t> bytes) {
      if (++parts == 4) {  // the second item shares the first one's last message
        EXPECT_EQ(item.id, 2u);
        EXPECT_EQ(std::memcmp(bytes.data(), region_->bytes.data(), 10), 0);
        EXPECT_EQ(bytes.size(), 10u);
        return;
      }
      EXPECT_EQ(item.id, 1u);
      EXPECT_EQ(item.offset, got.size());
      got.append(bytes.begin(), bytes.end());
    });
  }
  EXPECT_EQ(parts, 4u);
  ASSERT_EQ(got.size(), 150'000u);
  EXPECT_EQ(std::memcmp(got.data(), region_->bytes.data() + 100, got.size()), 0);
  EXPECT_FALSE(server_.Pump());
  const AmServer::Bytes bytes = server_.TakeBytes();
  EXPECT_EQ(bytes.read, 150'010u);
}

TEST_F(AmServerTest, SmallReadsTravelTogether) {
  std::vector<AmItem> items;
  for (uint64_t i = 0; i < 40; ++i) items.push_back(Item(i, i * 7000, 4608));
  ASSERT_TRUE(Read(items));
  EXPECT_TRUE(server_.Pump());
  const std::vector<Sent> sent = channel_.Take();
  ASSERT_EQ(sent.size(), 4u) << "13 of them fill a message";
  uint64_t next = 0;
  for (const Sent& s : sent) {
    s.Message().ForEachPart([&](const AmItem& item, absl::Span<const uint8_t> bytes) {
      EXPECT_EQ(item.id, next);
      EXPECT_EQ(item.offset, 0u);
      ASSERT_EQ(bytes.size(), 4608u);
      EXPECT_EQ(std::memcmp(bytes.data(), region_->bytes.data() + next * 7000, 4608), 0);
      ++next;
    });
  }
  EXPECT_EQ(next, 40u);
  // Tiny ones: the number of parts is the bound.
  ASSERT_TRUE(Read(std::vector<AmItem>(kMaxParts + 1, Item(1, 0, 1))));
  EXPECT_TRUE(server_.Pump());
  EXPECT_EQ(channel_.Take().size(), 2u);
}

TEST_F(AmServerTest, EachPartOfAWriteIsCheckedAndAnsweredByItself) {
  AmItem forged = Item(2, 100, 3);
  forged.token = 98;
  const std::vector<AmItem> items = {forged, Item(3, 299'999, 2), Item(4, 200, 4)};
  Sent write;
  write.header.kind = AmKind::kWrite;
  write.header.to = kSession;
  write.header.count = 3;
  write.header.item = Item(1, 0, 2);
  write.payload.assign(reinterpret_cast<const char*>(items.data()), 3 * sizeof(AmItem));
  write.payload += "aabbbccdddd";
  std::vector<uint8_t> want = region_->bytes;
  std::memcpy(want.data(), "aa", 2);
  std::memcpy(want.data() + 200, "dddd", 4);
  ASSERT_TRUE(server_.OnMessage(write.Message()));
  EXPECT_EQ(region_->bytes, want);
  EXPECT_TRUE(server_.Pump());
  const std::vector<Sent> sent = channel_.Take();
  ASSERT_EQ(sent.size(), 1u);
  ASSERT_EQ(sent[0].header.count, 4);
  const absl::StatusCode codes[] = {absl::StatusCode::kOk, absl::StatusCode::kPermissionDenied,
                                    absl::StatusCode::kInvalidArgument, absl::StatusCode::kOk};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(sent[0].Message().Item(i).id, i + 1);
    EXPECT_EQ(sent[0].Message().Item(i).code, Code(codes[i]));
  }
}

TEST_F(AmServerTest, RefusesWhatIsOutOfBoundsOrForged) {
  struct Case {
    const char* name;
    AmItem item;
    absl::StatusCode code;
  };
  AmItem unknown = Item(1, 0, 1), forged = Item(1, 0, 1), none = Item(1, 0, 1);
  unknown.region = 6;
  forged.token = 98;
  none.token = 0;
  const std::vector<Case> cases = {
      {"end", Item(1, 299'999, 2), absl::StatusCode::kInvalidArgument},
      {"behind", Item(1, 300'001, 1), absl::StatusCode::kInvalidArgument},
      {"wraps", Item(1, ~uint64_t{0}, 2), absl::StatusCode::kInvalidArgument},
      {"region", unknown, absl::StatusCode::kNotFound},
      {"token", forged, absl::StatusCode::kPermissionDenied},
      {"no token", none, absl::StatusCode::kPermissionDenied},
  };
  const std::vector<uint8_t> before = region_->bytes;
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    ASSERT_TRUE(Read({c.item}));
    EXPECT_EQ(OnlyCode(AmKind::kFailed), Code(c.code));
    const Sent write = BytesMessage(AmKind::kWrite, kSession, c.item, "yy");
    ASSERT_TRUE(server_.OnMessage(write.Message()));
    EXPECT_EQ(OnlyCode(AmKind::kWritten), Code(c.code));
  }
  ASSERT_TRUE(Read({Item(1, 0, 0)}));
  EXPECT_EQ(OnlyCode(AmKind::kFailed), Code(absl::StatusCode::kInvalidArgument));
  ASSERT_TRUE(Read({Item(1, 0, kMaxReadItem + 1)}));
  EXPECT_EQ(OnlyCode(AmKind::kFailed), Code(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(region_->bytes, before);
}

TEST_F(AmServerTest, RegionsThatAreNotExportedDoNotExist) {
  auto local = std::make_shared<TestRegion>(8, 0, 100);
  regions_.Add(local);
  AmItem item = Item(1, 0, 1);
  item.region = 8;
  item.token = 0;
  ASSERT_TRUE(Read({item}));
  EXPECT_EQ(OnlyCode(AmKind::kFailed), Code(absl::StatusCode::kNotFound));
}

TEST_F(AmServerTest, WritesAndAcknowledgesTogether) {
  for (int i = 0; i < 3; ++i) {
    const Sent write =
        BytesMessage(AmKind::kWrite, kSession, Item(70 + i, 1000 * i, 0), std::string(10, 'a' + i));
    ASSERT_TRUE(server_.OnMessage(write.Message()));
  }
  EXPECT_TRUE(server_.Pump());
  const std::vector<Sent> sent = channel_.Take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].header.kind, AmKind::kWritten);
  EXPECT_EQ(sent[0].header.to, kClient);
  ASSERT_EQ(sent[0].header.count, 3);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(sent[0].Message().Item(i).id, 70 + i);
    EXPECT_EQ(sent[0].Message().Item(i).code, 0u);
    EXPECT_EQ(region_->bytes[1000 * i + 9], 'a' + i);
  }
  EXPECT_NE(region_->bytes[10], 'a');
}

TEST_F(AmServerTest, UnknownSessionsAndAnswersAreRefused) {
  EXPECT_FALSE(Read({Item(1, 0, 1)}, 12));
  const Sent data = BytesMessage(AmKind::kData, kSession, Item(1, 0, 0), "x");
  EXPECT_FALSE(server_.OnMessage(data.Message()));
  server_.Close(kSession);
  EXPECT_FALSE(Read({Item(1, 0, 1)}));
  EXPECT_FALSE(server_.Pump());
}

TEST_F(AmServerTest, KeepsToTheRoomOfTheChannel) {
  channel_.room = 2;
  ASSERT_TRUE(Read({Item(1, 0, 300'000)}));
  server_.Pump();
  EXPECT_EQ(channel_.Take(0).size(), 2u);
  EXPECT_FALSE(server_.Pump());
  channel_.room = 16;
  server_.Pump();
  EXPECT_EQ(channel_.Take().size(), 3u);
}

TEST_F(AmServerTest, SessionsTakeTurns) {
  RecordingChannel other;
  server_.Open(33, 44, &other);
  channel_.room = other.room = 2;
  ASSERT_TRUE(Read({Item(1, 0, 200'000)}));
  ASSERT_TRUE(Read({Item(1, 0, 200'000)}, 33));
  server_.Pump();
  EXPECT_EQ(channel_.sent.size(), 2u);
  EXPECT_EQ(other.sent.size(), 2u);
  server_.Close(33);
}

TEST_F(AmServerTest, CancelledReadsStop) {
  channel_.room = 1;
  ASSERT_TRUE(Read({Item(1, 0, 200'000), Item(2, 0, 5), Item(3, 0, 6)}));
  server_.Pump();
  channel_.Take();
  const Sent cancel =
      ItemsMessage(AmKind::kCancel, kSession, {Item(1, 0, 0), Item(3, 0, 0), Item(77, 0, 0)});
  ASSERT_TRUE(server_.OnMessage(cancel.Message()));
  server_.Pump();
  const std::vector<Sent> sent = channel_.Take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].header.item.id, 2u);
}

TEST_F(AmServerTest, FloodsAreBounded) {
  channel_.room = 0;
  std::vector<AmItem> items(kMaxItems, Item(1, 0, 1));
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(Read(items));
  size_t data = 0, refused = 0;
  for (int i = 0; i < 10'000; ++i) {
    channel_.room = 16;
    if (!server_.Pump()) break;
    for (const Sent& s : channel_.Take()) {
      if (s.header.kind == AmKind::kData) data += 1 + s.header.count;
      if (s.header.kind == AmKind::kFailed) refused += s.header.count;
    }
  }
  EXPECT_EQ(data, 4096u);
  EXPECT_LE(refused, 16384u);
  EXPECT_GT(refused, 0u);
}

TEST_F(AmServerTest, WithdrawnRegionIsServedNoMoreButStaysMapped) {
  channel_.room = 1;
  ASSERT_TRUE(Read({Item(1, 0, 128'000)}));
  server_.Pump();
  channel_.Take();
  const std::weak_ptr<TestRegion> watch = region_;
  AmItem again = Item(2, 0, 1);
  regions_.Remove(region_->id);
  region_.reset();
  EXPECT_FALSE(watch.expired()) << "a read is under way";
  server_.Pump();
  EXPECT_EQ(channel_.sent.size(), 1u);
  channel_.Take();
  EXPECT_TRUE(watch.expired());
  ASSERT_TRUE(Read({again}));
  EXPECT_EQ(OnlyCode(AmKind::kFailed), Code(absl::StatusCode::kNotFound));
}

class AmClientTest : public testing::Test {
 protected:
  std::shared_ptr<Transfer> Make(TransferKind kind, uint64_t local, uint64_t length,
                                 uint64_t offset, Time deadline = Time::max()) {
    auto remote = std::make_shared<RemoteCore>();
    remote->id = 5;
    remote->token = 99;
    remote->size = 1 << 30;
    std::vector<ResolvedOp> ops = {
        {kind, local_->bytes.data() + local, length, offset, local_, remote}};
    return std::make_shared<Transfer>(std::move(ops), deadline, Time{});
  }
  bool Data(uint64_t id, uint64_t offset, const std::string& bytes) {
    AmItem item;
    item.id = id;
    item.offset = offset;
    const Sent s = BytesMessage(AmKind::kData, kId, item, bytes);
    return client_->OnMessage(s.Message());
  }
  bool Answer(AmKind kind, uint64_t id, uint32_t code) {
    AmItem item;
    item.id = id;
    item.code = code;
    const Sent s = ItemsMessage(kind, kId, {item});
    return client_->OnMessage(s.Message());
  }
  // Submits, pumps, and gives the ids of the read items or write pieces that went out.
  std::vector<uint64_t> Start(std::shared_ptr<Transfer> transfer) {
    client_->Submit(std::move(transfer));
    client_->Pump();
    std::vector<uint64_t> ids;
    for (const Sent& s : channel_.Take()) {
      if (s.header.kind == AmKind::kWrite) ids.push_back(s.header.item.id);
      for (size_t i = 0; s.header.kind == AmKind::kRead && i < s.header.count; ++i)
        ids.push_back(s.Message().Item(i).id);
    }
    return ids;
  }

  static constexpr uint64_t kId = 22, kSession = 11;
  RecordingChannel channel_;
  int ended_ = 0;
  std::shared_ptr<TestRegion> local_ = std::make_shared<TestRegion>(1, 0, 4 << 20);
  std::unique_ptr<AmClient> client_ =
      std::make_unique<AmClient>(kSession, &channel_, [this](const Transfer&) { ++ended_; });
};

TEST_F(AmClientTest, ReadsArriveInPieces) {
  auto transfer = Make(TransferKind::kRead, 10, 100, 7);
  const auto state = transfer->state;
  client_->Submit(std::move(transfer));
  EXPECT_TRUE(client_->Pump());
  const std::vector<Sent> sent = channel_.Take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].header.kind, AmKind::kRead);
  EXPECT_EQ(sent[0].header.to, kSession);
  const AmItem item = sent[0].Message().Item(0);
  EXPECT_EQ(item.region, 5u);
  EXPECT_EQ(item.token, 99u);
  EXPECT_EQ(item.offset, 7u);
  EXPECT_EQ(item.length, 100u);
  EXPECT_TRUE(Data(item.id, 0, std::string(60, 'a')));
  EXPECT_FALSE(state->ended());
  EXPECT_TRUE(Data(item.id, 60, std::string(40, 'b')));
  EXPECT_TRUE(state->ended());
  EXPECT_TRUE(state->drained());
  EXPECT_EQ(state->status(), absl::OkStatus());
  EXPECT_EQ(std::string(local_->bytes.begin() + 10, local_->bytes.begin() + 110),
            std::string(60, 'a') + std::string(40, 'b'));
  EXPECT_TRUE(client_->idle());
  EXPECT_EQ(ended_, 1);
}

TEST_F(AmClientTest, WritesEndWithTheLastAcknowledgement) {
  auto transfer = Make(TransferKind::kWrite, 0, 130'000, 0);
  const auto state = transfer->state;
  const std::vector<uint64_t> ids = Start(std::move(transfer));
  ASSERT_EQ(ids.size(), 3u);
  EXPECT_TRUE(Answer(AmKind::kWritten, ids[2], 0));
  EXPECT_TRUE(Answer(AmKind::kWritten, ids[0], 0));
  EXPECT_TRUE(Answer(AmKind::kWritten, ids[0], 0)) << "twice the same counts once";
  EXPECT_FALSE(state->ended());
  EXPECT_TRUE(Answer(AmKind::kWritten, ids[1], 0));
  EXPECT_EQ(state->status(), absl::OkStatus());
  EXPECT_TRUE(state->drained());
}

TEST_F(AmClientTest, SmallWritesTravelTogether) {
  auto remote = std::make_shared<RemoteCore>();
  remote->id = 5;
  remote->token = 99;
  remote->size = 1 << 30;
  std::vector<ResolvedOp> ops;
  for (uint64_t i = 0; i < 20; ++i) {
    ops.push_back({TransferKind::kWrite, local_->bytes.data() + i * 10'000, 9216, i * 20'000,
                   local_, remote});
  }
  auto transfer = std::make_shared<Transfer>(std::move(ops), Time::max(), Time{});
  const auto state = transfer->state;
  client_->Submit(std::move(transfer));
  EXPECT_TRUE(client_->Pump());
  EXPECT_EQ(channel_.sent.size(), 3u);
  uint64_t bytes = 0;
  for (const Sent& s : channel_.Take()) {
    EXPECT_EQ(s.header.to, kSession);
    s.Message().ForEachPart([&](const AmItem& item, absl::Span<const uint8_t> part) {
      const uint64_t block = item.offset / 20'000, in_block = item.offset % 20'000;
      EXPECT_EQ(
          std::memcmp(part.data(), local_->bytes.data() + block * 10'000 + in_block, part.size()),
          0);
      bytes += part.size();
      EXPECT_TRUE(Answer(AmKind::kWritten, item.id, 0));
    });
  }
  EXPECT_EQ(bytes, 20u * 9216);
  EXPECT_EQ(state->status(), absl::OkStatus());
}

TEST_F(AmClientTest, AHostilePartDoesNotHarmItsNeighbours) {
  auto good = Make(TransferKind::kRead, 0, 4, 0), bad = Make(TransferKind::kRead, 100, 4, 0);
  const auto good_state = good->state, bad_state = bad->state;
  const uint64_t good_id = Start(std::move(good)).at(0), bad_id = Start(std::move(bad)).at(0);
  AmItem too_long, whole;
  too_long.id = bad_id;
  too_long.length = 5;
  whole.id = good_id;
  whole.length = 4;
  Sent data;
  data.header.kind = AmKind::kData;
  data.header.to = kId;
  data.header.count = 1;
  data.header.item = too_long;
  data.payload.assign(reinterpret_cast<const char*>(&whole), sizeof(whole));
  data.payload += "hhhhhgood";
  const std::vector<uint8_t> before = local_->bytes;
  EXPECT_FALSE(client_->OnMessage(data.Message()));
  EXPECT_EQ(bad_state->status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(good_state->status(), absl::OkStatus());
  EXPECT_EQ(std::string(local_->bytes.begin(), local_->bytes.begin() + 4), "good");
  EXPECT_TRUE(std::equal(before.begin() + 4, before.end(), local_->bytes.begin() + 4));
}

TEST_F(AmClientTest, CancelledWriteIsDrainedWhenTheChannelLetsGo) {
  auto transfer = Make(TransferKind::kWrite, 0, 1000, 0);
  const auto state = transfer->state;
  client_->Submit(std::move(transfer));
  client_->Pump();
  state->End(absl::CancelledError("by the caller"));
  client_->Sweep(Time{});
  EXPECT_TRUE(client_->idle());
  EXPECT_FALSE(state->drained()) << "the channel still reads the buffer";
  channel_.Take();
  EXPECT_TRUE(state->drained());
}

TEST_F(AmClientTest, LateDataOfCancelledReadsIsDropped) {
  auto transfer = Make(TransferKind::kRead, 0, 100, 0);
  const auto state = transfer->state;
  const std::vector<uint64_t> ids = Start(std::move(transfer));
  ASSERT_EQ(ids.size(), 1u);
  EXPECT_TRUE(Data(ids[0], 0, std::string(10, 'a')));
  const std::vector<uint8_t> then = local_->bytes;
  state->End(absl::CancelledError("by the caller"));
  EXPECT_FALSE(state->drained());
  EXPECT_TRUE(Data(ids[0], 10, std::string(10, 'b'))) << "not the server's fault";
  EXPECT_TRUE(state->drained());
  EXPECT_TRUE(Data(ids[0], 20, std::string(80, 'b')));
  EXPECT_EQ(local_->bytes, then);
  // The server is told, and the slot's next user has another id.
  client_->Pump();
  const std::vector<Sent> sent = channel_.Take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].header.kind, AmKind::kCancel);
  EXPECT_EQ(sent[0].Message().Item(0).id, ids[0]);
  const std::vector<uint64_t> next = Start(Make(TransferKind::kRead, 0, 100, 0));
  ASSERT_EQ(next.size(), 1u);
  EXPECT_NE(next[0], ids[0]);
  EXPECT_TRUE(Data(ids[0], 0, std::string(100, 'z')));
  EXPECT_EQ(local_->bytes, then);
}

TEST_F(AmClientTest, DeadlinesEndTransfers) {
  const Time deadline = Time{} + seconds(5);
  auto transfer = Make(TransferKind::kRead, 0, 100, 0, deadline);
  const auto state = transfer->state;
  client_->Submit(std::move(transfer));
  EXPECT_EQ(client_->NextDeadline(), deadline);
  client_->Pump();
  client_->Sweep(deadline - Duration(1));
  EXPECT_FALSE(state->ended());
  client_->Sweep(deadline);
  EXPECT_EQ(state->status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(state->drained());
  EXPECT_EQ(client_->NextDeadline(), Time::max());
}

TEST_F(AmClientTest, HostileAnswersDoNotEscapeTheBuffer) {
  struct Case {
    const char* name;
    std::function<bool(uint64_t)> send;
    bool honest;
  };
  const std::vector<Case> cases = {
      {"too long", [&](uint64_t id) { return Data(id, 0, std::string(101, 'h')); }, false},
      {"skips", [&](uint64_t id) { return Data(id, 1, std::string(10, 'h')); }, false},
      {"wraps", [&](uint64_t id) { return Data(id, ~uint64_t{0}, std::string(10, 'h')); }, false},
      {"repeats", [&](uint64_t id) { return Data(id, 0, "h") && Data(id, 0, "h"); }, false},
      {"failed: ok", [&](uint64_t id) { return Answer(AmKind::kFailed, id, 0); }, false},
      {"written, but it is a read", [&](uint64_t id) { return Answer(AmKind::kWritten, id, 0); },
       true},
      {"slot out of range", [&](uint64_t) { return Data(0xffff, 0, "h"); }, true},
      {"unknown code", [&](uint64_t id) { return Answer(AmKind::kFailed, id, 12345); }, true},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    std::fill(local_->bytes.begin(), local_->bytes.end(), 0);
    auto transfer = Make(TransferKind::kRead, 1000, 100, 0);
    const auto state = transfer->state;
    const std::vector<uint64_t> ids = Start(std::move(transfer));
    ASSERT_EQ(ids.size(), 1u);
    EXPECT_EQ(c.send(ids[0]), c.honest);
    for (size_t i = 0; i < local_->bytes.size(); ++i) {
      if (i >= 1000 && i < 1100) continue;
      ASSERT_EQ(local_->bytes[i], 0) << i;
    }
    if (!c.honest) {
      EXPECT_EQ(state->status().code(), absl::StatusCode::kInternal);
    }
    client_->FailAll(absl::UnavailableError("next case"));
    client_->Pump();
    channel_.Take();
  }
  for (AmKind kind : {AmKind::kRead, AmKind::kCancel}) {
    const Sent s = ItemsMessage(kind, kId, {AmItem{}});
    EXPECT_FALSE(client_->OnMessage(s.Message()));
  }
}

TEST_F(AmClientTest, FailureOfOneItemEndsTheWholeTransfer) {
  auto transfer = Make(TransferKind::kRead, 0, 3 << 20, 0);
  const auto state = transfer->state;
  const std::vector<uint64_t> ids = Start(std::move(transfer));
  ASSERT_EQ(ids.size(), 3u);
  EXPECT_TRUE(Answer(AmKind::kFailed, ids[1], Code(absl::StatusCode::kNotFound)));
  EXPECT_EQ(state->status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(state->drained());
  EXPECT_TRUE(client_->idle());
}

TEST_F(AmClientTest, WindowsBoundWhatIsInFlight) {
  auto writes = Make(TransferKind::kWrite, 0, 4 << 20, 0);
  const auto state = writes->state;
  client_->Submit(std::move(writes));
  size_t sent = 0;
  std::vector<uint64_t> ids;
  for (bool active = true; active;) {
    channel_.room = 16;
    active = client_->Pump();
    for (const Sent& s : channel_.Take()) ids.push_back(s.header.item.id);
    sent = ids.size();
  }
  EXPECT_EQ(sent, AmClient::kWriteSlots);
  // Acknowledgements let it go on to the end.
  for (size_t i = 0; i < ids.size(); ++i) {
    ASSERT_TRUE(Answer(AmKind::kWritten, ids[i], 0));
    channel_.room = 16;
    client_->Pump();
    for (const Sent& s : channel_.Take()) ids.push_back(s.header.item.id);
  }
  EXPECT_EQ(state->status(), absl::OkStatus());

  // Reads of one byte: the slots are the bound.
  std::vector<std::shared_ptr<TransferState>> states;
  for (size_t i = 0; i < AmClient::kReadSlots + 10; ++i) {
    auto read = Make(TransferKind::kRead, i, 1, 0);
    states.push_back(read->state);
    client_->Submit(std::move(read));
  }
  size_t items = 0;
  for (bool active = true; active;) {
    channel_.room = 16;
    active = client_->Pump();
    for (const Sent& s : channel_.Take()) items += s.header.count;
  }
  EXPECT_EQ(items, AmClient::kReadSlots);
  client_->FailAll(absl::UnavailableError("gone"));
  for (const auto& s : states) EXPECT_EQ(s->status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(AmClientTest, CancelledBeforeItStartsIsNeverSent) {
  auto transfer = Make(TransferKind::kRead, 0, 100, 0);
  transfer->state->End(absl::CancelledError("at once"));
  EXPECT_TRUE(transfer->state->drained());
  EXPECT_TRUE(Start(std::move(transfer)).empty());
  EXPECT_EQ(ended_, 1);
}

// Both machines joined, with a channel of varying room: every byte arrives, whatever the
// interleaving.
TEST(AmPair, RandomBatchesArriveWhole) {
  RegionTable regions;
  auto theirs = std::make_shared<TestRegion>(5, 99, 1 << 20);
  regions.Add(theirs);
  auto mine = std::make_shared<TestRegion>(1, 0, 1 << 20);
  RecordingChannel to_server, to_client;
  AmServer server(&regions);
  server.Open(11, 22, &to_client);
  AmClient client(11, &to_server, [](const Transfer&) {});
  auto remote = std::make_shared<RemoteCore>();
  remote->id = 5;
  remote->token = 99;
  remote->size = 1 << 20;
  uint64_t random = 4711;
  const auto next = [&random](uint64_t below) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    return (random >> 33) % below;
  };
  for (int round = 0; round < 200; ++round) {
    std::vector<ResolvedOp> ops;
    std::vector<uint8_t> want_mine = mine->bytes, want_theirs = theirs->bytes;
    uint64_t at = 0;  // ranges of a batch do not overlap
    while (ops.size() < 20) {
      const uint64_t length = next(50'000);
      if (at + length > (1 << 20)) break;
      const bool read = next(2) == 0;
      ops.push_back({read ? TransferKind::kRead : TransferKind::kWrite, mine->bytes.data() + at,
                     length, at, mine, remote});
      std::memcpy((read ? want_mine : want_theirs).data() + at,
                  (read ? theirs : mine)->bytes.data() + at, length);
      at += length;
    }
    auto transfer = std::make_shared<Transfer>(std::move(ops), Time::max(), Time{});
    const auto state = transfer->state;
    client.Submit(std::move(transfer));
    for (int step = 0; step < 100'000 && !state->ended(); ++step) {
      to_server.room = next(5);
      client.Pump();
      for (const Sent& s : to_server.Take(0)) ASSERT_TRUE(server.OnMessage(s.Message()));
      to_client.room = next(5);
      server.Pump();
      for (const Sent& s : to_client.Take(0)) ASSERT_TRUE(client.OnMessage(s.Message()));
    }
    ASSERT_TRUE(state->ended());
    ASSERT_EQ(state->status(), absl::OkStatus());
    ASSERT_EQ(mine->bytes, want_mine);
    ASSERT_EQ(theirs->bytes, want_theirs);
    mine->bytes[next(1 << 20)] ^= 0x5a;
  }
}

}  // namespace
}  // namespace oscarkv
