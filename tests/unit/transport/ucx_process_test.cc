// UCX between two processes of this host: which lane is used, and what happens when one of them
// dies or stops.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "common/metrics.h"
#include "tests/unit/transport/process.h"
#include "transport/descriptors.h"
#include "transport/transport.h"

namespace oscarkv {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kLong(60);
constexpr uint64_t kArena = 8 << 20;

Time In(Duration d) {
  return SteadyClock::Get()->Now() + d;
}
uint8_t Pattern(uint64_t i) {
  return static_cast<uint8_t>(i * 131 >> 3);
}

// A serving process and this process's connection to it.
class UcxProcess : public testing::TestWithParam<std::string> {
 protected:
  void StartServer(const std::string& lanes) {
    server_ = ChildProcess::Start("transport_test_peer", {"serve", lanes, std::to_string(kArena)});
    ASSERT_NE(server_, nullptr);
    const std::vector<std::string> words = absl::StrSplit(server_->ReadLine(), ' ');
    ASSERT_EQ(words.size(), 2u) << "the server did not come up";
    address_hex_ = words[0];
    region_hex_ = words[1];
    address_ = absl::HexStringToBytes(address_hex_);
    region_ = absl::HexStringToBytes(region_hex_);
  }
  void StartClient(const std::string& lanes) {
    UcxOptions options;
    options.lanes = lanes;
    options.devices = "lo";
    auto transport = CreateUcxTransport(options, &registry_);
    ASSERT_TRUE(transport.ok()) << transport.status();
    transport_ = *std::move(transport);
    auto buffer = transport_->Allocate(kArena, false);
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    buffer_ = *std::move(buffer);
  }
  void Connect() {
    auto peer = transport_->Connect(address_, In(kLong));
    ASSERT_TRUE(peer.ok()) << peer.status();
    peer_ = *std::move(peer);
    auto remote = peer_->Import(region_);
    ASSERT_TRUE(remote.ok()) << remote.status();
    remote_ = *std::move(remote);
  }
  void StartAll(const std::string& lanes) {
    ASSERT_NO_FATAL_FAILURE(StartServer(lanes));
    ASSERT_NO_FATAL_FAILURE(StartClient(lanes));
    ASSERT_NO_FATAL_FAILURE(Connect());
  }
  void TearDown() override {
    remote_.reset();
    peer_.reset();
    buffer_.reset();
    transport_.reset();
  }

  TransferOp Op(TransferKind kind, uint64_t at, uint64_t length) const {
    return {kind, buffer_->span().data() + at, length, remote_.get(), at};
  }
  absl::Status Run(std::vector<TransferOp> ops, Duration timeout = kLong) {
    auto handle = peer_->Post(ops, In(timeout));
    return handle.ok() ? (*handle)->Wait(In(kLong)) : handle.status();
  }
  double Value(const std::string& family, const std::string& label) {
    double value = -1;
    registry_.ForEach([&](const MetricFamily& f) {
      if (f.info().name != family) return;
      f.ForEach([&](const MetricFamily::Series& s) {
        if (label.empty() || (!s.label_values.empty() && s.label_values[0] == label))
          value = s.metric.value();
      });
    });
    return value;
  }
  bool shared_memory() const {
    return absl::StrContains(GetParam(), "shm") || GetParam() == "auto";
  }

  std::unique_ptr<ChildProcess> server_;
  std::string address_hex_, region_hex_, address_, region_;
  MetricRegistry registry_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<MemoryRegion> buffer_;
  std::unique_ptr<Peer> peer_;
  std::unique_ptr<RemoteRegion> remote_;
};

INSTANTIATE_TEST_SUITE_P(Lanes, UcxProcess, testing::Values("auto", "tcp"),
                         [](const auto& info) { return info.param; });

TEST_P(UcxProcess, MovesBytesOverTheLaneThatItShould) {
  ASSERT_NO_FATAL_FAILURE(StartAll(GetParam()));
  const std::string lane = peer_->lane();
  if (shared_memory()) {
    // A silent fallback to TCP would be tenfold slower and go unnoticed.
    EXPECT_TRUE(absl::StrContains(lane, "sysv") || absl::StrContains(lane, "posix")) << lane;
    EXPECT_FALSE(absl::StrContains(lane, "tcp")) << lane;
    EXPECT_EQ(Value("oscarkv_transport_peers", "shm"), 1);
  } else {
    EXPECT_EQ(lane, "tcp");
    EXPECT_EQ(Value("oscarkv_transport_peers", "tcp"), 1);
  }
  EXPECT_EQ(Value("oscarkv_transport_degraded_connections_total", ""), 0);
  for (uint64_t size : {1, 9216, 64001, 1327104, 4194304}) {
    ASSERT_EQ(Run({Op(TransferKind::kRead, 33, size)}), absl::OkStatus());
    for (uint64_t i = 33; i < 33 + size; ++i) ASSERT_EQ(buffer_->span()[i], Pattern(i)) << i;
  }
  std::memset(buffer_->span().data(), 0x77, kArena);
  ASSERT_EQ(Run({Op(TransferKind::kWrite, 1001, 1 << 20)}), absl::OkStatus());
  ASSERT_EQ(Run({Op(TransferKind::kRead, 1000, (1 << 20) + 2)}), absl::OkStatus());
  EXPECT_EQ(buffer_->span()[1000], Pattern(1000));
  for (uint64_t i = 1001; i < 1001 + (1 << 20); ++i) ASSERT_EQ(buffer_->span()[i], 0x77) << i;
  EXPECT_EQ(buffer_->span()[1001 + (1 << 20)], Pattern(1001 + (1 << 20)));
  EXPECT_EQ(server_->Finish(), 0) << "the server did not end cleanly";
}

TEST_P(UcxProcess, KilledPeerIsSeen) {
  ASSERT_NO_FATAL_FAILURE(StartAll(GetParam()));
  ASSERT_EQ(Run({Op(TransferKind::kRead, 0, kArena)}), absl::OkStatus());
  auto pending = peer_->Post({Op(TransferKind::kRead, 0, kArena)}, In(kLong));
  ASSERT_TRUE(pending.ok());
  const Time killed = SteadyClock::Get()->Now();
  server_->Signal(SIGKILL);
  server_->Reap();
  while (peer_->healthy() && SteadyClock::Get()->Now() < killed + kLong) std::this_thread::yield();
  const double seconds_until_seen =
      std::chrono::duration<double>(SteadyClock::Get()->Now() - killed).count();
  RecordProperty("seconds_until_seen", std::to_string(seconds_until_seen));
  EXPECT_FALSE(peer_->healthy());
  // The promise is 2 s; the margin is for a machine that is busy with other things.
  EXPECT_LT(seconds_until_seen, 10) << "promised: 2 s";
  const absl::Status status = (*pending)->Wait(In(kLong));
  EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kUnavailable) << status;
  EXPECT_EQ(Run({Op(TransferKind::kRead, 0, 100)}).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(transport_->Connect(address_, In(seconds(5))).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(Value("oscarkv_transport_peers", shared_memory() ? "shm" : "tcp"), 0);
}

TEST_P(UcxProcess, IdleConnectionSeesAKilledPeer) {
  ASSERT_NO_FATAL_FAILURE(StartAll(GetParam()));
  server_->Signal(SIGKILL);
  server_->Reap();
  // Nothing is posted: the sleeping progress thread must be woken by the news.
  const Time until = In(kLong);
  while (peer_->healthy() && SteadyClock::Get()->Now() < until) std::this_thread::yield();
  EXPECT_FALSE(peer_->healthy());
}

TEST_P(UcxProcess, StoppedPeerEndsByDeadlineAndIsUsableAgain) {
  ASSERT_NO_FATAL_FAILURE(StartAll(GetParam()));
  server_->Stop();
  const absl::Status read = Run({Op(TransferKind::kRead, 0, kArena)}, milliseconds(300));
  if (shared_memory()) {
    EXPECT_EQ(read, absl::OkStatus()) << "one-sided: the peer's help is not needed";
  } else {
    EXPECT_EQ(read.code(), absl::StatusCode::kDeadlineExceeded) << read;
    EXPECT_EQ(Run({Op(TransferKind::kWrite, 0, kArena)}, milliseconds(300)).code(),
              absl::StatusCode::kDeadlineExceeded);
    const absl::Status connect = transport_->Connect(address_, In(milliseconds(300))).status();
    EXPECT_EQ(connect.code(), absl::StatusCode::kDeadlineExceeded) << connect;
  }
  server_->Signal(SIGCONT);
  EXPECT_TRUE(peer_->healthy());
  EXPECT_EQ(Run({Op(TransferKind::kRead, 0, 4096)}), absl::OkStatus());
}

TEST_P(UcxProcess, LateAnswersAreNotWritten) {
  ASSERT_NO_FATAL_FAILURE(StartAll(GetParam()));
  std::memset(buffer_->span().data(), 0x5a, kArena);
  server_->Stop();
  auto handle = peer_->Post({Op(TransferKind::kRead, 0, kArena / 2)}, In(kLong));
  ASSERT_TRUE(handle.ok());
  if (!shared_memory()) {  // there it may be over before it is cancelled
    (*handle)->Cancel();
    EXPECT_EQ((*handle)->Wait(In(kLong)).code(), absl::StatusCode::kCancelled);
    const Time until = In(kLong);
    while (!(*handle)->Drained() && SteadyClock::Get()->Now() < until) std::this_thread::yield();
    ASSERT_TRUE((*handle)->Drained());
  }
  server_->Signal(SIGCONT);
  // Answers come in order: behind this one, those of the cancelled read have come.
  ASSERT_EQ(Run({Op(TransferKind::kRead, kArena - 64, 64)}), absl::OkStatus());
  if (!shared_memory()) {
    EXPECT_TRUE(std::all_of(buffer_->span().begin(), buffer_->span().begin() + kArena / 2,
                            [](uint8_t b) { return b == 0x5a; }));
  }
}

TEST_P(UcxProcess, CloseDoesNotWaitForAStoppedPeer) {
  ASSERT_NO_FATAL_FAILURE(StartAll(GetParam()));
  server_->Stop();
  auto write = peer_->Post({Op(TransferKind::kWrite, 0, kArena)}, In(kLong));
  auto read = peer_->Post({Op(TransferKind::kRead, 0, kArena)}, In(kLong));
  ASSERT_TRUE(write.ok() && read.ok());
  peer_->Close();
  for (TransferHandle* handle : {write->get(), read->get()}) {
    EXPECT_TRUE(handle->Drained());
    const absl::Status status = handle->Wait(In(kLong));
    EXPECT_TRUE(status.code() == absl::StatusCode::kCancelled || (status.ok() && shared_memory()))
        << status;
  }
  auto again = transport_->Connect(address_, In(shared_memory() ? seconds(30) : seconds(0)));
  EXPECT_EQ(again.ok(), shared_memory());
  transport_.reset();  // neither does this
}

TEST_P(UcxProcess, TimedOutWritesDrainWhenThePeerGoesOn) {
  ASSERT_NO_FATAL_FAILURE(StartAll(GetParam()));
  server_->Stop();
  auto write = peer_->Post({Op(TransferKind::kWrite, 0, kArena)}, In(milliseconds(200)));
  ASSERT_TRUE(write.ok());
  const absl::Status status = (*write)->Wait(In(kLong));
  EXPECT_EQ(status.code(),
            shared_memory() ? absl::StatusCode::kOk : absl::StatusCode::kDeadlineExceeded)
      << status;
  server_->Signal(SIGCONT);
  const Time until = In(kLong);
  while (!(*write)->Drained() && SteadyClock::Get()->Now() < until) std::this_thread::yield();
  EXPECT_TRUE((*write)->Drained());
  EXPECT_EQ(Run({Op(TransferKind::kRead, 0, 100)}), absl::OkStatus());
}

TEST_P(UcxProcess, KilledReadersLeaveTheServerAlive) {
  ASSERT_NO_FATAL_FAILURE(StartAll(GetParam()));
  for (int i = 0; i < 20; ++i) {
    auto reader = ChildProcess::Start(
        "transport_test_peer",
        {"read", GetParam(), address_hex_, region_hex_, std::to_string(1 + i % 7)});
    ASSERT_NE(reader, nullptr);
    ASSERT_EQ(reader->ReadLine(), "reading") << "round " << i;
    reader->Signal(SIGKILL);
    reader->Reap();
    ASSERT_TRUE(server_->alive()) << "round " << i;
    ASSERT_EQ(Run({Op(TransferKind::kRead, 0, 1 << 20)}), absl::OkStatus()) << "round " << i;
  }
  EXPECT_TRUE(peer_->healthy());
  EXPECT_EQ(server_->Finish(), 0);
}

TEST_P(UcxProcess, ManyConnectionsToAStoppedServer) {
  if (!shared_memory()) GTEST_SKIP() << "a connection over TCP needs the server's answer";
  ASSERT_NO_FATAL_FAILURE(StartAll(GetParam()));
  server_->Stop();
  // UCX's own queue in the server has 64 places.
  for (int i = 0; i < 200; ++i) {
    auto peer = transport_->Connect(address_, In(seconds(5)));
    ASSERT_TRUE(peer.ok()) << i << ": " << peer.status();
  }
  server_->Signal(SIGCONT);
  EXPECT_EQ(Run({Op(TransferKind::kRead, 0, 100)}), absl::OkStatus());
}

TEST_P(UcxProcess, RegionOfAnEarlierServerIsRefused) {
  ASSERT_NO_FATAL_FAILURE(StartAll(GetParam()));
  const std::string old_region = region_;
  EXPECT_EQ(server_->Finish(), 0);
  ASSERT_NO_FATAL_FAILURE(StartServer(GetParam()));
  remote_.reset();
  ASSERT_NO_FATAL_FAILURE(Connect());
  EXPECT_EQ(peer_->Import(old_region).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(UcxProcess, FallsBackLoudlyWhenSharedMemoryCannotBeProved) {
  ASSERT_NO_FATAL_FAILURE(StartServer("auto"));
  ASSERT_NO_FATAL_FAILURE(StartClient("auto"));
  // As from another container of this host: the liveness socket is out of reach.
  auto address = DecodeNodeAddress(address_);
  ASSERT_TRUE(address.ok());
  const NodeAddress real = *address;
  address->instance ^= 1;
  auto peer = transport_->Connect(Encode(*address).value(), In(kLong));
  ASSERT_TRUE(peer.ok()) << peer.status();
  EXPECT_EQ((*peer)->lane(), "tcp");
  EXPECT_EQ(Value("oscarkv_transport_degraded_connections_total", ""), 1);

  // As if the segment's number had been reused: the word that is read is another one.
  address = real;
  for (LaneAddress& lane : address->lanes) {
    if (lane.lane != LaneClass::kShm) continue;
    auto probe = DecodeRegionDescriptor(lane.probe);
    ASSERT_TRUE(probe.ok());
    probe->token ^= 1;
    lane.probe = Encode(*probe).value();
  }
  peer = transport_->Connect(Encode(*address).value(), In(kLong));
  ASSERT_TRUE(peer.ok()) << peer.status();
  EXPECT_EQ((*peer)->lane(), "tcp");
  EXPECT_EQ(Value("oscarkv_transport_degraded_connections_total", ""), 2);

  // Another host: no attempt, no complaint.
  address = real;
  address->host[0] ^= 1;
  peer = transport_->Connect(Encode(*address).value(), In(kLong));
  ASSERT_TRUE(peer.ok()) << peer.status();
  EXPECT_EQ((*peer)->lane(), "tcp");
  EXPECT_EQ(Value("oscarkv_transport_degraded_connections_total", ""), 2);
}

TEST_F(UcxProcess, LyingDescriptorsAreRefusedNotFollowed) {
  ASSERT_NO_FATAL_FAILURE(StartAll("auto"));
  auto region = DecodeRegionDescriptor(region_);
  ASSERT_TRUE(region.ok());
  RegionDescriptor lie = *region;
  lie.size = uint64_t{1} << 40;  // beyond the segment: would be a crash of this process
  EXPECT_EQ(peer_->Import(Encode(lie).value()).status().code(), absl::StatusCode::kInvalidArgument);
  lie = *region;
  lie.size -= 8192;  // inside it, but not the region
  EXPECT_EQ(peer_->Import(Encode(lie).value()).status().code(), absl::StatusCode::kNotFound);
  lie = *region;
  lie.token ^= 1;
  EXPECT_EQ(peer_->Import(Encode(lie).value()).status().code(), absl::StatusCode::kNotFound);
  lie = *region;
  lie.keys.clear();
  EXPECT_EQ(peer_->Import(Encode(lie).value()).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Run({Op(TransferKind::kRead, 0, 100)}), absl::OkStatus());
}

TEST_F(UcxProcess, ForgedTokensAreRefusedOverTcp) {
  ASSERT_NO_FATAL_FAILURE(StartAll("tcp"));
  auto region = DecodeRegionDescriptor(region_);
  ASSERT_TRUE(region.ok());
  RegionDescriptor lie = *region;
  lie.token ^= 1;
  auto forged = peer_->Import(Encode(lie).value());
  ASSERT_TRUE(forged.ok());
  TransferOp op = Op(TransferKind::kRead, 0, 100);
  op.remote = forged->get();
  EXPECT_EQ(Run({op}).code(), absl::StatusCode::kPermissionDenied);
  op.kind = TransferKind::kWrite;
  EXPECT_EQ(Run({op}).code(), absl::StatusCode::kPermissionDenied);
  lie = *region;
  lie.size += 4096;
  forged = peer_->Import(Encode(lie).value());
  ASSERT_TRUE(forged.ok());
  op = Op(TransferKind::kRead, kArena - 10, 10);
  op.remote = forged->get();
  op.remote_offset = kArena - 5;
  EXPECT_EQ(Run({op}).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace oscarkv
