// The fault injector itself: what it promises is what the sweeps of other rooms rely on.
#include "tests/fakes/faulty_transport.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace oscarkv {
namespace {

using std::chrono::seconds;

Time In(Duration d) {
  return SteadyClock::Get()->Now() + d;
}

class FaultyTransportTest : public testing::Test {
 protected:
  void SetUp() override {
    auto network = CreateLoopbackNetwork();
    server_ = CreateLoopbackTransport(network);
    faulty_ = std::make_unique<FaultyTransport>(CreateLoopbackTransport(network));
    arena_ = server_->Allocate(4096, false).value();
    buffer_ = faulty_->Allocate(4096, false).value();
    peer_ = faulty_->Connect(server_->Address(), In(seconds(30))).value();
    remote_ = peer_->Import(arena_->Export()).value();
    std::fill(arena_->span().begin(), arena_->span().end(), 0xaa);
  }
  void TearDown() override {
    remote_.reset();
    peer_.reset();
    buffer_.reset();
  }

  TransferOp Op(TransferKind kind, uint64_t length) {
    return {kind, buffer_->span().data(), length, remote_.get(), 0};
  }
  absl::Status Run(TransferKind kind, uint64_t length) {
    auto handle = peer_->Post({Op(kind, length)}, In(seconds(30)));
    return handle.ok() ? (*handle)->Wait(In(seconds(30))) : handle.status();
  }

  std::unique_ptr<Transport> server_;
  std::unique_ptr<FaultyTransport> faulty_;
  std::unique_ptr<MemoryRegion> arena_, buffer_;
  std::unique_ptr<Peer> peer_;
  std::unique_ptr<RemoteRegion> remote_;
};

TEST_F(FaultyTransportTest, PassesThroughAndCounts) {
  faulty_->Inject({});
  EXPECT_EQ(Run(TransferKind::kRead, 100), absl::OkStatus());
  EXPECT_EQ(buffer_->span()[99], 0xaa);
  EXPECT_EQ(faulty_->operations(), 2u);  // the post and its completion
  EXPECT_FALSE(faulty_->fired());
}

TEST_F(FaultyTransportTest, FailsEveryOperationInTurn) {
  const auto scenario = [&]() -> absl::Status {
    auto region = faulty_->Allocate(4096, false);
    if (!region.ok()) return region.status();
    std::vector<uint8_t> memory(64);
    auto registered = faulty_->Register(absl::MakeSpan(memory));
    if (!registered.ok()) return registered.status();
    auto peer = faulty_->Connect(server_->Address(), In(seconds(30)));
    if (!peer.ok()) return peer.status();
    auto remote = (*peer)->Import(arena_->Export());
    if (!remote.ok()) return remote.status();
    auto handle = (*peer)->Post({{TransferKind::kRead, memory.data(), 64, remote->get(), 0}},
                                In(seconds(30)));
    if (!handle.ok()) return handle.status();
    return (*handle)->Wait(In(seconds(30)));
  };
  uint64_t n = 0;
  for (;; ++n) {
    faulty_->Inject({.at = n, .kind = FaultKind::kFail, .status = absl::InternalError("boom")});
    const absl::Status status = scenario();
    if (!faulty_->fired()) {
      EXPECT_EQ(status, absl::OkStatus());
      break;
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << n;
  }
  EXPECT_EQ(n, 6u);
}

TEST_F(FaultyTransportTest, TruncatesInSilence) {
  faulty_->Inject({.kind = FaultKind::kTruncate});
  EXPECT_EQ(Run(TransferKind::kRead, 100), absl::OkStatus());
  EXPECT_TRUE(faulty_->fired());
  EXPECT_EQ(buffer_->span()[49], 0xaa);
  EXPECT_EQ(buffer_->span()[50], 0);
}

TEST_F(FaultyTransportTest, CorruptsOneBitOfReadsAndWrites) {
  faulty_->Inject({.kind = FaultKind::kCorrupt});
  EXPECT_EQ(Run(TransferKind::kRead, 100), absl::OkStatus());
  EXPECT_EQ(buffer_->span()[98], 0xaa);
  EXPECT_EQ(buffer_->span()[99], 0xba);
  std::fill(buffer_->span().begin(), buffer_->span().end(), 0x11);
  faulty_->Inject({.kind = FaultKind::kCorrupt});
  EXPECT_EQ(Run(TransferKind::kWrite, 100), absl::OkStatus());
  EXPECT_EQ(arena_->span()[98], 0x11);
  EXPECT_EQ(arena_->span()[99], 0x01);
  EXPECT_EQ(buffer_->span()[99], 0x11) << "the caller's bytes stay";
}

TEST_F(FaultyTransportTest, DelayedTransfersMoveWhenReleasedEvenIfCancelled) {
  faulty_->Inject({.kind = FaultKind::kDelay});
  auto handle = peer_->Post({Op(TransferKind::kRead, 100)}, In(seconds(30)));
  ASSERT_TRUE(handle.ok());
  EXPECT_FALSE((*handle)->Poll());
  (*handle)->Cancel();
  EXPECT_EQ((*handle)->Wait(In(seconds(30))).code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE((*handle)->Drained());
  EXPECT_EQ(buffer_->span()[0], 0);
  EXPECT_EQ(faulty_->Release(), 1u);
  EXPECT_TRUE((*handle)->Drained());
  EXPECT_EQ(buffer_->span()[0], 0xaa) << "late bytes are the point";
}

TEST_F(FaultyTransportTest, DelayedTransfersSucceedWhenReleasedInTime) {
  faulty_->Inject({.kind = FaultKind::kDelay});
  auto handle = peer_->Post({Op(TransferKind::kRead, 100)}, In(seconds(30)));
  ASSERT_TRUE(handle.ok());
  EXPECT_FALSE((*handle)->Poll());
  faulty_->Release();
  EXPECT_TRUE((*handle)->Poll());
  EXPECT_EQ((*handle)->Wait(In(seconds(30))), absl::OkStatus());
}

TEST_F(FaultyTransportTest, CloseDropsDelayedTransfers) {
  faulty_->Inject({.kind = FaultKind::kDelay});
  auto handle = peer_->Post({Op(TransferKind::kRead, 100)}, In(seconds(30)));
  ASSERT_TRUE(handle.ok());
  peer_->Close();
  EXPECT_EQ((*handle)->Wait(In(seconds(30))).code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE((*handle)->Drained());
  EXPECT_EQ(faulty_->Release(), 0u);
  EXPECT_EQ(buffer_->span()[0], 0);
}

TEST_F(FaultyTransportTest, DisconnectIsForGood) {
  faulty_->Inject({.at = 1, .kind = FaultKind::kDisconnect});  // the completion
  EXPECT_EQ(Run(TransferKind::kRead, 100).code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(peer_->healthy());
  EXPECT_EQ(Run(TransferKind::kRead, 100).code(), absl::StatusCode::kUnavailable);
  auto again = faulty_->Connect(server_->Address(), In(seconds(30)));
  ASSERT_TRUE(again.ok());
  EXPECT_TRUE((*again)->healthy());
}

}  // namespace
}  // namespace oscarkv
