// The lanes with their threads, over network libraries of the test's own: what ThreadSanitizer can
// check, and what RDMA would do. No UCX in this binary.
#include <gtest/gtest.h>

#include <sys/socket.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "tests/unit/transport/fake_engines.h"

namespace oscarkv {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kLong(30);
constexpr Duration kSpin = std::chrono::microseconds(20);

Time Now() {
  return SteadyClock::Get()->Now();
}

struct HeapRegion final : RegionCore {
  HeapRegion(uint64_t i, uint64_t size) : bytes(TrailerOffset(size) + kTrailerBytes) {
    id = i;
    token = 1000 + i;
    span = {bytes.data(), size};
    for (size_t k = 0; k < size; ++k) bytes[k] = static_cast<uint8_t>(k * 11 + k / 251);
    RegionTrailer trailer;
    trailer.id = id;
    trailer.token = token;
    trailer.size = size;
    std::memcpy(bytes.data() + TrailerOffset(size), &trailer, sizeof(trailer));
  }
  RegionDescriptor Descriptor(LaneClass lane) const {
    RegionDescriptor d;
    d.instance = 1;
    d.id = id;
    d.token = token;
    d.size = span.size();
    d.keys.push_back({lane, reinterpret_cast<uint64_t>(bytes.data()), "key"});
    return d;
  }
  std::vector<uint8_t> bytes;
};

std::shared_ptr<TransferState> Submit(LaneConnection& connection, std::vector<ResolvedOp> ops,
                                      Time deadline = Now() + kLong) {
  auto transfer = std::make_shared<Transfer>(std::move(ops), deadline, Now());
  auto state = transfer->state;
  connection.Submit(std::move(transfer));
  return state;
}

absl::Status Await(TransferState& state) {
  EXPECT_TRUE(state.WaitEnded(Now() + kLong, *SteadyClock::Get()));
  return state.status();
}

class AmLaneTest : public testing::Test {
 protected:
  void SetUp() override {
    regions_.Add(theirs_);
    secret_[3] = 7;
    server_ = MakeLane("server", secret_, &regions_);
    client_ = MakeLane("client", NodeSecret{}, &none_);
  }
  void TearDown() override {
    client_.reset();
    server_.reset();
  }
  std::unique_ptr<AmLane> MakeLane(const std::string& address, const NodeSecret& secret,
                                   const RegionTable* regions) {
    return std::make_unique<AmLane>(std::make_unique<FakeAmEngine>(&network_, address), secret,
                                    regions, &metrics_.lane(LaneClass::kTcp), kSpin);
  }
  std::shared_ptr<LaneConnection> Connect() {
    auto connection = client_->Connect("server", secret_, Now() + kLong);
    EXPECT_TRUE(connection.ok()) << connection.status();
    if (!connection.ok()) return nullptr;
    remote_ = (*connection)->Import(theirs_->Descriptor(LaneClass::kTcp)).value();
    return *connection;
  }
  ResolvedOp Op(TransferKind kind, uint64_t at, uint64_t length) {
    return {kind, mine_->bytes.data() + at, length, at, mine_, remote_};
  }

  FakeAmNetwork network_;
  TransportMetrics metrics_{nullptr};
  RegionTable regions_, none_;
  std::shared_ptr<HeapRegion> theirs_ = std::make_shared<HeapRegion>(5, 4 << 20);
  std::shared_ptr<HeapRegion> mine_ = std::make_shared<HeapRegion>(1, 4 << 20);
  std::shared_ptr<RemoteCore> remote_;
  NodeSecret secret_{};
  std::unique_ptr<AmLane> server_, client_;
};

TEST_F(AmLaneTest, ThreadsReadWriteAndCancelAtOnce) {
  auto connection = Connect();
  ASSERT_NE(connection, nullptr);
  const std::vector<uint8_t> want = theirs_->bytes;
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const uint64_t base = t * (1 << 20);
      for (int round = 0; round < 40; ++round) {
        const uint64_t length = 1 + (round * 7919 + t * 31) % 200'000;
        // Every thread writes back what it read: the bytes stay as they are.
        auto read = Submit(*connection, {Op(TransferKind::kRead, base, length)});
        if (round % 5 == 4) {
          if (read->End(absl::CancelledError("test"))) connection->Sweep();
          if (!read->WaitDrained(Now() + kLong, *SteadyClock::Get())) ++wrong;
          continue;
        }
        if (!Await(*read).ok() ||
            std::memcmp(mine_->bytes.data() + base, want.data() + base, length) != 0)
          ++wrong;
        if (!Await(*Submit(*connection, {Op(TransferKind::kWrite, base, length)})).ok()) ++wrong;
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(theirs_->bytes, want);
  connection->Close();
  EXPECT_FALSE(connection->healthy());
  EXPECT_GT(metrics_.lane(LaneClass::kTcp).served_read_bytes->value(), 0);
  EXPECT_EQ(metrics_.lane(LaneClass::kTcp).malformed->value(), 0);
  EXPECT_EQ(metrics_.lane(LaneClass::kTcp).peers->value(), 0);
}

TEST_F(AmLaneTest, WrongSecretIsNotAnswered) {
  NodeSecret wrong = secret_;
  wrong[15] ^= 1;
  EXPECT_EQ(client_->Connect("server", wrong, Now() + milliseconds(50)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(metrics_.lane(LaneClass::kTcp).refused_hello->value(), 1);
}

// Allows one range, to one subject.
class TestGate final : public AccessGate {
 public:
  bool Welcome(uint64_t subject) override { return subject == 7 && welcome; }
  bool Allowed(uint64_t subject, bool write, uint64_t offset, uint64_t length) override {
    return subject == 7 && write == writable && offset >= 4096 && offset + length <= 8192;
  }
  std::atomic<bool> welcome{true}, writable{false};
};

TEST_F(AmLaneTest, TheGateIsAskedAtEachAccess) {
  TestGate gate;
  server_->SetGate(&gate);
  EXPECT_EQ(client_->Connect("server", secret_, Now() + milliseconds(50)).status().code(),
            absl::StatusCode::kDeadlineExceeded)
      << "the secret of before";
  const NodeSecret other = server_->Admit(8).value();
  EXPECT_EQ(client_->Connect("server", other, Now() + milliseconds(50)).status().code(),
            absl::StatusCode::kDeadlineExceeded)
      << "not welcome";
  EXPECT_EQ(metrics_.lane(LaneClass::kTcp).refused_hello->value(), 2);
  secret_ = server_->Admit(7).value();
  const auto connection = Connect();
  ASSERT_NE(connection, nullptr);
  const auto status = [&](TransferKind kind, uint64_t at, uint64_t length) {
    return Await(*Submit(*connection, {Op(kind, at, length)})).code();
  };
  constexpr auto kDenied = absl::StatusCode::kPermissionDenied;
  const std::vector<uint8_t> before = theirs_->bytes;
  EXPECT_EQ(status(TransferKind::kRead, 4096, 4096), absl::StatusCode::kOk);
  EXPECT_EQ(status(TransferKind::kRead, 4095, 2), kDenied);
  EXPECT_EQ(status(TransferKind::kRead, 8000, 193), kDenied);
  EXPECT_EQ(status(TransferKind::kRead, 0, 4 << 20), kDenied) << "in pieces, the first is refused";
  EXPECT_EQ(status(TransferKind::kWrite, 4096, 4096), kDenied) << "it may be read only";
  EXPECT_EQ(theirs_->bytes, before);
  gate.writable = true;
  EXPECT_EQ(status(TransferKind::kWrite, 4096, 4096), absl::StatusCode::kOk);
  EXPECT_EQ(status(TransferKind::kRead, 4096, 4096), kDenied);
  EXPECT_GT(metrics_.lane(LaneClass::kTcp).refused_access->value(), 4);
}

TEST_F(AmLaneTest, WhoIsNoLongerWelcomeIsForgotten) {
  TestGate gate;
  server_->SetGate(&gate);
  secret_ = server_->Admit(7).value();
  const auto connection = Connect();
  ASSERT_NE(connection, nullptr);
  gate.welcome = false;
  // With the lane's next look, though the gate would allow the access itself.
  const Time deadline = Now() + kLong;
  absl::StatusCode code;
  do {
    code = Await(*Submit(*connection, {Op(TransferKind::kRead, 4096, 10)})).code();
  } while (code == absl::StatusCode::kOk && Now() < deadline);
  EXPECT_EQ(code, absl::StatusCode::kPermissionDenied);
  // The lane forgets the secret with its next sweep; then it is nobody's, whatever the gate says.
  EXPECT_EQ(client_->Connect("server", secret_, Now() + milliseconds(50)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  server_->SetGate(nullptr);
  gate.welcome = true;
  EXPECT_EQ(client_->Connect("server", secret_, Now() + milliseconds(50)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  server_->SetGate(&gate);
  secret_ = server_->Admit(7).value();
  EXPECT_NE(Connect(), nullptr);
}

TEST_F(AmLaneTest, UnknownAddressIsUnavailable) {
  EXPECT_EQ(client_->Connect("nowhere", secret_, Now() + kLong).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(AmLaneTest, GarbageIsDroppedAndCounted) {
  auto connection = Connect();
  ASSERT_NE(connection, nullptr);
  auto inbox = network_.Find("server");
  uint64_t random = 99;
  for (int i = 0; i < 500; ++i) {
    std::string header(i % 3 == 0 ? sizeof(AmHeader) : i % 70, 0), payload(i % 90, 0);
    for (std::string* s : {&header, &payload}) {
      for (char& c : *s) c = static_cast<char>((random = random * 6364136223846793005u + 1) >> 56);
    }
    if (i % 6 == 0) {  // the form of a Read of some session
      AmHeader h;
      h.kind = AmKind::kRead;
      h.count = 1;
      h.to = random;
      std::memcpy(header.data(), &h, sizeof(h));
      payload.resize(sizeof(AmItem));
    }
    FakeAmNetwork::Deliver(*inbox, header, payload);
  }
  EXPECT_EQ(Await(*Submit(*connection, {Op(TransferKind::kRead, 0, 1000)})), absl::OkStatus());
  EXPECT_EQ(metrics_.lane(LaneClass::kTcp).malformed->value(), 500);
  connection->Close();
}

TEST_F(AmLaneTest, BrokenConnectionFailsEverything) {
  auto connection = Connect();
  ASSERT_NE(connection, nullptr);
  auto inbox = network_.Find("server");
  inbox->mute = true;
  auto pending = Submit(*connection, {Op(TransferKind::kRead, 0, 1000)});
  inbox->dead = true;
  FakeAmNetwork::Wake(*network_.Find("client"));
  EXPECT_EQ(Await(*pending).code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(pending->WaitDrained(Now() + kLong, *SteadyClock::Get()));
  EXPECT_FALSE(connection->healthy());
  EXPECT_EQ(Await(*Submit(*connection, {Op(TransferKind::kRead, 0, 10)})).code(),
            absl::StatusCode::kUnavailable);
  connection->Close();
}

TEST_F(AmLaneTest, SilentPeerEndsByDeadline) {
  auto connection = Connect();
  ASSERT_NE(connection, nullptr);
  network_.Find("server")->mute = true;
  // The thread sleeps long before this; its own clock wakes it.
  auto pending = Submit(*connection, {Op(TransferKind::kRead, 0, 1000)}, Now() + milliseconds(30));
  EXPECT_EQ(Await(*pending).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(connection->healthy());
  connection->Close();
}

TEST_F(AmLaneTest, StoppedLaneRefusesInsteadOfHanging) {
  auto connection = Connect();
  ASSERT_NE(connection, nullptr);
  client_->Stop();
  EXPECT_FALSE(connection->healthy());
  EXPECT_EQ(Await(*Submit(*connection, {Op(TransferKind::kRead, 0, 10)})).code(),
            absl::StatusCode::kUnavailable);
  connection->Sweep();
  connection->Close();
  EXPECT_EQ(client_->Connect("server", secret_, Now() + kLong).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(AmLaneTest, ALaneCanConnectToItself) {
  auto connection = server_->Connect("server", secret_, Now() + kLong);
  ASSERT_TRUE(connection.ok()) << connection.status();
  remote_ = (*connection)->Import(theirs_->Descriptor(LaneClass::kTcp)).value();
  EXPECT_EQ(Await(*Submit(**connection, {Op(TransferKind::kRead, 5, 100'000)})), absl::OkStatus());
  EXPECT_EQ(std::memcmp(mine_->bytes.data() + 5, theirs_->bytes.data() + 5, 100'000), 0);
  (*connection)->Close();
}

class OneSidedLaneTest : public testing::Test {
 protected:
  void SetUp() override {
    lane_ = std::make_unique<OneSidedLane>(
        LaneClass::kRdma, std::make_unique<FakeRmaEngine>(state_), nullptr,
        &metrics_.lane(LaneClass::kRdma), kSpin, milliseconds(200));
  }
  std::shared_ptr<LaneConnection> Connect(UniqueFd liveness = UniqueFd()) {
    auto connection =
        lane_->Connect("fake-rma", theirs_->Descriptor(LaneClass::kRdma), std::move(liveness));
    EXPECT_TRUE(connection.ok()) << connection.status();
    if (!connection.ok()) return nullptr;
    remote_ = (*connection)->Import(theirs_->Descriptor(LaneClass::kRdma)).value();
    return *connection;
  }
  ResolvedOp Op(TransferKind kind, uint64_t at, uint64_t length) {
    return {kind, mine_->bytes.data() + at, length, at, mine_, remote_};
  }
  // Until the lane has handed `n` more operations to the network.
  void AwaitStarted(int n) {
    const Time until = Now() + kLong;
    while (state_->started < n && Now() < until) std::this_thread::yield();
    ASSERT_GE(state_->started, n);
  }

  TransportMetrics metrics_{nullptr};
  std::shared_ptr<FakeRmaState> state_ = std::make_shared<FakeRmaState>();
  std::shared_ptr<HeapRegion> theirs_ = std::make_shared<HeapRegion>(5, 20 << 20);
  std::shared_ptr<HeapRegion> mine_ = std::make_shared<HeapRegion>(1, 20 << 20);
  std::shared_ptr<RemoteCore> remote_;
  std::unique_ptr<OneSidedLane> lane_;
};

TEST_F(OneSidedLaneTest, ReadsAndWritesFlushed) {
  auto connection = Connect();
  ASSERT_NE(connection, nullptr);
  EXPECT_EQ(connection->transports(), "fake_rc");
  std::fill(mine_->bytes.begin(), mine_->bytes.end(), 0);
  ASSERT_EQ(Await(*Submit(*connection, {Op(TransferKind::kRead, 3, 5'000'000)})), absl::OkStatus());
  EXPECT_EQ(std::memcmp(mine_->bytes.data() + 3, theirs_->bytes.data() + 3, 5'000'000), 0);
  EXPECT_EQ(state_->flushes, 0);
  mine_->bytes[10'000'000] = 77;
  ASSERT_EQ(Await(*Submit(*connection, {Op(TransferKind::kWrite, 10'000'000, 1),
                                        Op(TransferKind::kRead, 0, 1)})),
            absl::OkStatus());
  EXPECT_EQ(theirs_->bytes[10'000'000], 77);
  EXPECT_EQ(state_->flushes, 1);
  ASSERT_EQ(Await(*Submit(*connection, {})), absl::OkStatus());
  connection->Close();
}

TEST_F(OneSidedLaneTest, CancelledOperationsInFlightAreNotDrained) {
  auto connection = Connect();
  ASSERT_NE(connection, nullptr);
  std::fill(mine_->bytes.begin(), mine_->bytes.end(), 0);
  state_->hold = true;
  const int before = state_->started;
  auto read = Submit(*connection, {Op(TransferKind::kRead, 0, 100)});
  ASSERT_NO_FATAL_FAILURE(AwaitStarted(before + 1));
  ASSERT_TRUE(read->End(absl::CancelledError("test")));
  connection->Sweep();
  // A second one behind it proves that the sweep is over.
  auto late = Submit(*connection, {Op(TransferKind::kRead, 200, 1)}, Now() - seconds(1));
  EXPECT_EQ(Await(*late).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_FALSE(read->drained()) << "the network may still write there";
  EXPECT_EQ(mine_->bytes[1], 0);
  state_->hold = false;
  state_->Wake();
  EXPECT_TRUE(read->WaitDrained(Now() + kLong, *SteadyClock::Get()));
  EXPECT_EQ(mine_->bytes[1], theirs_->bytes[1])
      << "it was written late: that is what Drained is for";
  connection->Close();
}

TEST_F(OneSidedLaneTest, CloseTakesBackWhatIsInFlight) {
  auto connection = Connect();
  ASSERT_NE(connection, nullptr);
  std::fill(mine_->bytes.begin(), mine_->bytes.end(), 0);
  state_->hold = true;
  const int before = state_->started;
  auto read = Submit(*connection, {Op(TransferKind::kRead, 0, 20 << 20)});
  ASSERT_NO_FATAL_FAILURE(AwaitStarted(before + 16));
  EXPECT_EQ(state_->started, before + 16) << "the window";
  connection->Close();
  EXPECT_EQ(read->status().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(read->drained());
  state_->hold = false;
  state_->Wake();
  EXPECT_EQ(mine_->bytes[1], 0);
}

TEST_F(OneSidedLaneTest, DeadlinesAndBrokenEndpoints) {
  auto connection = Connect();
  ASSERT_NE(connection, nullptr);
  state_->hold = true;
  auto slow = Submit(*connection, {Op(TransferKind::kRead, 0, 100)}, Now() + milliseconds(30));
  EXPECT_EQ(Await(*slow).code(), absl::StatusCode::kDeadlineExceeded);
  auto pending = Submit(*connection, {Op(TransferKind::kRead, 0, 100)});
  state_->broken = true;
  state_->Wake();
  EXPECT_EQ(Await(*pending).code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(connection->healthy());
  connection->Close();
  EXPECT_TRUE(pending->drained());
  EXPECT_TRUE(slow->drained());
}

TEST_F(OneSidedLaneTest, DeadPeerIsSeenByTheLivenessSocket) {
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
  UniqueFd theirs(pair[1]);
  auto connection = Connect(UniqueFd(pair[0]));
  ASSERT_NE(connection, nullptr);
  ASSERT_EQ(Await(*Submit(*connection, {Op(TransferKind::kRead, 0, 100)})), absl::OkStatus());
  state_->hold = true;
  auto pending = Submit(*connection, {Op(TransferKind::kRead, 0, 100)});
  theirs.reset();
  EXPECT_EQ(Await(*pending).code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(connection->healthy());
  connection->Close();
}

TEST_F(OneSidedLaneTest, ProbeThatDoesNotAnswerOrIsWrongFailsConnect) {
  RegionDescriptor wrong = theirs_->Descriptor(LaneClass::kRdma);
  wrong.id = 6;
  EXPECT_EQ(lane_->Connect("fake-rma", wrong, UniqueFd()).status().code(),
            absl::StatusCode::kNotFound);
  RegionDescriptor keyless = theirs_->Descriptor(LaneClass::kShm);
  EXPECT_EQ(lane_->Connect("fake-rma", keyless, UniqueFd()).status().code(),
            absl::StatusCode::kFailedPrecondition);
  state_->refuse_key = true;
  EXPECT_EQ(
      lane_->Connect("fake-rma", theirs_->Descriptor(LaneClass::kRdma), UniqueFd()).status().code(),
      absl::StatusCode::kInvalidArgument);
  state_->refuse_key = false;
  state_->hold = true;
  EXPECT_EQ(
      lane_->Connect("fake-rma", theirs_->Descriptor(LaneClass::kRdma), UniqueFd()).status().code(),
      absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(metrics_.lane(LaneClass::kRdma).peers->value(), 0);
}

TEST_F(OneSidedLaneTest, ThreadsTransferAndCancelAtOnce) {
  auto connection = Connect();
  ASSERT_NE(connection, nullptr);
  const std::vector<uint8_t> want = theirs_->bytes;
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const uint64_t base = t * (4 << 20);
      for (int round = 0; round < 50; ++round) {
        const uint64_t length = 1 + (round * 104729 + t * 31) % 3'000'000;
        auto read = Submit(*connection, {Op(TransferKind::kRead, base, length)});
        if (round % 5 == 4) {
          if (read->End(absl::CancelledError("test"))) connection->Sweep();
          if (!read->WaitDrained(Now() + kLong, *SteadyClock::Get())) ++wrong;
        } else if (!Await(*read).ok() ||
                   std::memcmp(mine_->bytes.data() + base, want.data() + base, length) != 0) {
          ++wrong;
        }
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
  connection->Close();
}

}  // namespace
}  // namespace oscarkv
