#include "tests/unit/transport/contract.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"

namespace oscarkv {

using std::chrono::seconds;

constexpr seconds kLong(30);

void TransportContract::SetUp() {
  pair_ = GetParam().make();
  ASSERT_NE(pair_.client, nullptr);
  ASSERT_NE(pair_.server, nullptr);
  auto arena = pair_.server->Allocate(kArena, /*huge_pages=*/false);
  ASSERT_TRUE(arena.ok()) << arena.status();
  arena_ = *std::move(arena);
  auto buffer = pair_.client->Allocate(kArena, /*huge_pages=*/false);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  buffer_ = *std::move(buffer);
  auto peer = pair_.client->Connect(pair_.server->Address(), In(kLong));
  ASSERT_TRUE(peer.ok()) << peer.status();
  peer_ = *std::move(peer);
  auto remote = peer_->Import(arena_->Export());
  ASSERT_TRUE(remote.ok()) << remote.status();
  remote_ = *std::move(remote);
}

void TransportContract::TearDown() {
  remote_.reset();
  peer_.reset();
  buffer_.reset();
  arena_.reset();
}

void TransportContract::Fill(absl::Span<uint8_t> span, uint32_t pattern) {
  uint64_t x = pattern * 0x9e3779b97f4a7c15u + 1;
  for (uint8_t& b : span) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    b = static_cast<uint8_t>(x >> 56);
  }
}

absl::Status TransportContract::Run(Peer& peer, std::vector<TransferOp> ops) {
  auto handle = peer.Post(ops, In(kLong));
  if (!handle.ok()) return handle.status();
  const absl::Status status = (*handle)->Wait(In(kLong));
  EXPECT_TRUE((*handle)->Poll());
  if (status.ok()) {
    EXPECT_TRUE((*handle)->Drained());
  }
  return status;
}

TransferOp TransportContract::Read(uint64_t local_offset, uint64_t length,
                                   uint64_t remote_offset) const {
  return {TransferKind::kRead, buffer_->span().data() + local_offset, length, remote_.get(),
          remote_offset};
}

TransferOp TransportContract::Write(uint64_t local_offset, uint64_t length,
                                    uint64_t remote_offset) const {
  TransferOp op = Read(local_offset, length, remote_offset);
  op.kind = TransferKind::kWrite;
  return op;
}

TEST_P(TransportContract, SaysWhichLaneItUses) {
  const std::string lane = peer_->lane();
  bool known = false;
  for (absl::string_view l : absl::StrSplit(pair_.lanes, ',')) known |= absl::StrContains(lane, l);
  EXPECT_TRUE(known) << "lane '" << lane << "', expected one of " << pair_.lanes;
  EXPECT_TRUE(peer_->healthy());
}

TEST_P(TransportContract, AllocatedMemoryIsZeroedAndPageAligned) {
  EXPECT_EQ(reinterpret_cast<uintptr_t>(arena_->span().data()) % 4096, 0u);
  EXPECT_EQ(arena_->span().size(), kArena);
  EXPECT_TRUE(
      std::all_of(arena_->span().begin(), arena_->span().end(), [](uint8_t b) { return b == 0; }));
}

TEST_P(TransportContract, ReadsAndWritesOfManySizesAtOddOffsets) {
  for (uint64_t size : {1, 7, 64, 4095, 4608, 9216, 36864, 63999, 64000, 64001, 73728, 128000,
                        165888, 1048576, 1327104, 4194304}) {
    SCOPED_TRACE(size);
    const uint64_t at = 4097, from = 131, back = 4194304 + 777;
    Fill(arena_->span(), 1);
    Fill(buffer_->span(), static_cast<uint32_t>(size));
    const std::vector<uint8_t> sent(buffer_->span().begin() + from,
                                    buffer_->span().begin() + from + size);
    const std::vector<uint8_t> before(arena_->span().begin(), arena_->span().end());
    ASSERT_EQ(Run(*peer_, {Write(from, size, at)}), absl::OkStatus());
    EXPECT_EQ(std::memcmp(arena_->span().data() + at, sent.data(), size), 0);
    EXPECT_EQ(std::memcmp(arena_->span().data(), before.data(), at), 0) << "wrote in front";
    EXPECT_EQ(std::memcmp(arena_->span().data() + at + size, before.data() + at + size,
                          kArena - at - size),
              0)
        << "wrote behind";
    const std::vector<uint8_t> buffer(buffer_->span().begin(), buffer_->span().end());
    ASSERT_EQ(Run(*peer_, {Read(back, size, at)}), absl::OkStatus());
    EXPECT_EQ(std::memcmp(buffer_->span().data() + back, sent.data(), size), 0);
    EXPECT_EQ(std::memcmp(buffer_->span().data(), buffer.data(), back), 0);
    EXPECT_EQ(std::memcmp(buffer_->span().data() + back + size, buffer.data() + back + size,
                          kArena - back - size),
              0);
  }
}

TEST_P(TransportContract, BatchesMixReadsAndWrites) {
  Fill(arena_->span(), 5);
  Fill(buffer_->span(), 6);
  const std::vector<uint8_t> arena(arena_->span().begin(), arena_->span().end());
  const std::vector<uint8_t> buffer(buffer_->span().begin(), buffer_->span().end());
  std::vector<TransferOp> ops;
  uint64_t local = 3, remote = 11;
  for (int i = 0; i < 200; ++i) {
    const uint64_t size = 1 + (i * 7919) % 40000;
    ops.push_back(i % 3 == 0 ? Write(local, size, remote) : Read(local, size, remote));
    local += size + 5;
    remote += size + 9;
  }
  ASSERT_LT(remote, kArena);
  ASSERT_EQ(Run(*peer_, ops), absl::OkStatus());
  for (const TransferOp& op : ops) {
    const uint8_t* want = op.kind == TransferKind::kRead
                              ? arena.data() + op.remote_offset
                              : buffer.data() + (op.local - buffer_->span().data());
    ASSERT_EQ(std::memcmp(op.local, want, op.length), 0);
    ASSERT_EQ(std::memcmp(arena_->span().data() + op.remote_offset, want, op.length), 0);
  }
}

// Small operations travel together: whatever their number, no message may have a form that the lane
// cannot carry.
TEST_P(TransportContract, BatchesOfAnyNumberOfSmallOps) {
  constexpr uint64_t kSize = 4000;
  for (uint64_t count = 1; count <= 40; ++count) {
    SCOPED_TRACE(count);
    Fill(arena_->span().first(count * kSize), 7);
    std::vector<TransferOp> reads, writes;
    for (uint64_t i = 0; i < count; ++i) {
      reads.push_back(Read(i * kSize, kSize, i * kSize));
      writes.push_back(Write(i * kSize, kSize, (count + i) * kSize));
    }
    ASSERT_EQ(Run(*peer_, std::move(reads)), absl::OkStatus());
    ASSERT_EQ(Run(*peer_, std::move(writes)), absl::OkStatus());
    const uint8_t* arena = arena_->span().data();
    ASSERT_EQ(std::memcmp(arena, arena + count * kSize, count * kSize), 0);
  }
}

TEST_P(TransportContract, EmptyBatchesAndEmptyOpsSucceed) {
  EXPECT_EQ(Run(*peer_, {}), absl::OkStatus());
  EXPECT_EQ(Run(*peer_, {Read(0, 0, kArena), Write(kArena, 0, 0)}), absl::OkStatus());
}

TEST_P(TransportContract, RegisteredMemoryCanBeTheLocalSide) {
  std::vector<uint8_t> mine(100'003);
  auto region = pair_.client->Register(absl::MakeSpan(mine));
  ASSERT_TRUE(region.ok()) << region.status();
  Fill(absl::MakeSpan(mine), 9);
  const std::vector<uint8_t> sent = mine;
  ASSERT_EQ(
      Run(*peer_, {{TransferKind::kWrite, mine.data() + 1, mine.size() - 1, remote_.get(), 17}}),
      absl::OkStatus());
  EXPECT_EQ(std::memcmp(arena_->span().data() + 17, sent.data() + 1, sent.size() - 1), 0);
  std::fill(mine.begin(), mine.end(), 0);
  ASSERT_EQ(
      Run(*peer_, {{TransferKind::kRead, mine.data() + 1, mine.size() - 1, remote_.get(), 17}}),
      absl::OkStatus());
  EXPECT_EQ(std::memcmp(mine.data() + 1, sent.data() + 1, sent.size() - 1), 0);
}

TEST_P(TransportContract, RegisteredMemoryIsNotExported) {
  std::vector<uint8_t> theirs(4096);
  auto region = pair_.server->Register(absl::MakeSpan(theirs));
  ASSERT_TRUE(region.ok()) << region.status();
  EXPECT_EQ((*region)->Export(), "");
}

TEST_P(TransportContract, RefusesOpsOutOfBounds) {
  std::vector<uint8_t> stranger(64);
  struct Case {
    const char* name;
    TransferOp op;
  };
  const std::vector<Case> cases = {
      {"remote end", Read(0, 2, kArena - 1)},
      {"remote start", Read(0, 1, kArena + 1)},
      {"remote overflow", Read(0, 16, ~uint64_t{0} - 3)},
      {"length overflow", Read(0, ~uint64_t{0}, 1)},
      {"local end", Read(kArena - 1, 2, 0)},
      {"local stranger", {TransferKind::kRead, stranger.data(), 1, remote_.get(), 0}},
      {"write remote end", Write(0, 2, kArena - 1)},
      {"no region", {TransferKind::kRead, buffer_->span().data(), 1, nullptr, 0}},
  };
  Fill(arena_->span(), 2);
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    // A good op in front: nothing of the batch may be posted.
    auto handle = peer_->Post({Read(0, 64, 0), c.op}, In(kLong));
    EXPECT_EQ(handle.status().code(), absl::StatusCode::kInvalidArgument) << handle.status();
  }
  ASSERT_EQ(Run(*peer_, {Read(128, 1, 0)}), absl::OkStatus());
  EXPECT_TRUE(std::all_of(buffer_->span().begin(), buffer_->span().begin() + 64,
                          [](uint8_t b) { return b == 0; }));
}

TEST_P(TransportContract, RefusesForeignDescriptorsAndAddresses) {
  const std::string good = arena_->Export();
  EXPECT_LE(good.size(), 4096u);
  EXPECT_LE(pair_.server->Address().size(), 4096u);
  EXPECT_FALSE(peer_->Import("").ok());
  EXPECT_FALSE(peer_->Import("nonsense").ok());
  EXPECT_FALSE(peer_->Import(std::string(5000, 'x')).ok());
  for (size_t n = 0; n < good.size(); ++n) {
    auto cut = peer_->Import(good.substr(0, n));
    if (cut.ok()) {  // a text format may survive a cut digit; then the region must be refused when
                     // used
      TransferOp op = Read(0, 1, 0);
      op.remote = cut->get();
      EXPECT_FALSE(Run(*peer_, {op}).ok()) << n;
    }
  }
  EXPECT_FALSE(peer_->Import(buffer_->Export()).ok()) << "a region of another node";
  EXPECT_FALSE(pair_.client->Connect("", In(kLong)).ok());
  EXPECT_FALSE(pair_.client->Connect("nonsense", In(kLong)).ok());
  const std::string address = pair_.server->Address();
  EXPECT_FALSE(pair_.client->Connect(address.substr(0, address.size() / 2), In(kLong)).ok());
}

TEST_P(TransportContract, RefusesEmptyRegions) {
  EXPECT_EQ(pair_.client->Allocate(0, false).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(pair_.client->Register({}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(TransportContract, PassedDeadlineEndsTheTransfer) {
  Fill(arena_->span(), 3);
  auto handle = peer_->Post({Read(0, 4 << 20, 0)}, In(-seconds(1)));
  ASSERT_TRUE(handle.ok());
  EXPECT_EQ((*handle)->Wait(In(kLong)).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(peer_->healthy());
  ASSERT_EQ(Run(*peer_, {Read(0, 100, 0)}), absl::OkStatus());
}

TEST_P(TransportContract, CancelledTransfersEndAndLeaveTheBufferAloneOnceDrained) {
  for (int round = 0; round < 50; ++round) {
    Fill(arena_->span(), 40 + round);
    std::memset(buffer_->span().data(), 0, kArena);
    auto handle = peer_->Post({Read(0, 4 << 20, 0), Read(4 << 20, 4 << 20, 100)}, In(kLong));
    ASSERT_TRUE(handle.ok());
    for (int spin = 0; spin < round * 20; ++spin) (*handle)->Poll();
    (*handle)->Cancel();
    EXPECT_TRUE((*handle)->Poll());
    const absl::Status status = (*handle)->Wait(In(kLong));
    EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kCancelled) << status;
    while (!(*handle)->Drained()) std::this_thread::yield();
    const std::vector<uint8_t> now(buffer_->span().begin(), buffer_->span().end());
    // A transfer behind it has gone the same way; had the first one gone on, it would show.
    ASSERT_EQ(Run(*peer_, {Read(kArena - 8, 8, 0)}), absl::OkStatus());
    ASSERT_EQ(std::memcmp(now.data(), buffer_->span().data(), kArena - 8), 0);
  }
}

TEST_P(TransportContract, DroppedHandlesAreHarmless) {
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(peer_->Post({Read(0, 1 << 20, 0)}, In(kLong)).ok());
  }
  peer_->Close();
  SUCCEED();
}

TEST_P(TransportContract, CloseEndsPendingTransfersAndRefusesNewOnes) {
  Fill(arena_->span(), 8);
  std::vector<std::unique_ptr<TransferHandle>> handles;
  for (int i = 0; i < 50; ++i) {
    auto handle = peer_->Post({Read(0, 4 << 20, 0)}, In(kLong));
    ASSERT_TRUE(handle.ok());
    handles.push_back(*std::move(handle));
  }
  peer_->Close();
  std::memset(buffer_->span().data(), 0x55, kArena);
  for (auto& handle : handles) {
    EXPECT_TRUE(handle->Poll());
    EXPECT_TRUE(handle->Drained());
    const absl::Status status = handle->Wait(In(kLong));
    EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kCancelled) << status;
  }
  EXPECT_FALSE(peer_->healthy());
  EXPECT_EQ(peer_->Post({Read(0, 1, 0)}, In(kLong)).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_TRUE(std::all_of(buffer_->span().begin(), buffer_->span().end(),
                          [](uint8_t b) { return b == 0x55; }));
  // The same nodes can connect anew.
  auto again = pair_.client->Connect(pair_.server->Address(), In(kLong));
  ASSERT_TRUE(again.ok()) << again.status();
  auto remote = (*again)->Import(arena_->Export());
  ASSERT_TRUE(remote.ok());
  EXPECT_EQ(Run(**again, {{TransferKind::kRead, buffer_->span().data(), 100, remote->get(), 0}}),
            absl::OkStatus());
}

TEST_P(TransportContract, ManyThreadsAndTransfersAtOnce) {
  constexpr int kThreads = 4, kRounds = 60, kDepth = 4;
  constexpr uint64_t kSlot = 256 << 10;
  Fill(arena_->span(), 77);
  const std::vector<uint8_t> arena(arena_->span().begin(), arena_->span().end());
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < kRounds; ++round) {
        std::vector<std::unique_ptr<TransferHandle>> handles;
        std::vector<std::pair<uint64_t, uint64_t>> wanted;
        for (int d = 0; d < kDepth; ++d) {
          const uint64_t length = 1 + (t * 7919 + round * 104729 + d * 31) % (kSlot - 1);
          const uint64_t remote = (t * 37 + round * 4099 + d * 65537) % (kArena - kSlot);
          auto handle = peer_->Post({Read((t * kDepth + d) * kSlot, length, remote)}, In(kLong));
          if (!handle.ok()) {
            ++failures;
            continue;
          }
          handles.push_back(*std::move(handle));
          wanted.emplace_back(remote, length);
        }
        for (size_t d = 0; d < handles.size(); ++d) {
          if (!handles[d]->Wait(In(kLong)).ok()) ++failures;
          if (std::memcmp(buffer_->span().data() + (t * kDepth + d) * kSlot,
                          arena.data() + wanted[d].first, wanted[d].second) != 0) {
            ++failures;
          }
        }
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(failures, 0);
}

TEST_P(TransportContract, VanishedServerIsUnavailable) {
  ASSERT_EQ(Run(*peer_, {Read(0, 100, 0)}), absl::OkStatus());
  arena_.reset();
  pair_.server.reset();
  absl::Status status;
  const Time until = In(kLong);
  // The news may take a moment; a transfer then ends at once.
  while (SteadyClock::Get()->Now() < until) {
    auto handle = peer_->Post({Read(0, 100, 0)}, In(seconds(2)));
    status = handle.ok() ? (*handle)->Wait(In(kLong)) : handle.status();
    if (status.code() == absl::StatusCode::kUnavailable) break;
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_FALSE(peer_->healthy());
}

TEST_P(TransportContract, WithdrawnRegionIsRefusedOrStale) {
  auto extra = pair_.server->Allocate(64 << 10, false);
  ASSERT_TRUE(extra.ok());
  auto remote = peer_->Import((*extra)->Export());
  ASSERT_TRUE(remote.ok()) << remote.status();
  extra->reset();
  // One-sided lanes may still read the old bytes (the store's generations detect that); others say
  // so. Nobody crashes.
  const absl::Status status =
      Run(*peer_, {{TransferKind::kRead, buffer_->span().data(), 100, remote->get(), 0}});
  EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kNotFound) << status;
  EXPECT_EQ(Run(*peer_, {Read(0, 100, 0)}), absl::OkStatus());
}

}  // namespace oscarkv
