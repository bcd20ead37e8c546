// The contract over the loopback transport, and what only it has: a clock of the test's choice.
#include <gtest/gtest.h>

#include "tests/unit/transport/contract.h"

namespace oscarkv {
namespace {

TransportPair MakeLoopback() {
  auto network = CreateLoopbackNetwork();
  return {CreateLoopbackTransport(network), CreateLoopbackTransport(network), "loopback"};
}

INSTANTIATE_TEST_SUITE_P(Loopback, TransportContract,
                         testing::Values(ContractParam{"loopback", MakeLoopback}),
                         [](const auto& info) { return info.param.name; });

TEST(Loopback, DeadlinesFollowTheInjectedClock) {
  FakeClock clock;
  auto network = CreateLoopbackNetwork(&clock);
  auto client = CreateLoopbackTransport(network), server = CreateLoopbackTransport(network);
  auto arena = server->Allocate(4096, false), buffer = client->Allocate(4096, false);
  ASSERT_TRUE(arena.ok() && buffer.ok());
  auto peer = client->Connect(server->Address(), clock.Now() + std::chrono::seconds(1));
  ASSERT_TRUE(peer.ok());
  auto remote = (*peer)->Import((*arena)->Export());
  ASSERT_TRUE(remote.ok());
  const TransferOp op = {TransferKind::kRead, (*buffer)->span().data(), 4096, remote->get(), 0};
  const Time deadline = clock.Now() + std::chrono::seconds(1);
  auto in_time = (*peer)->Post({op}, deadline);
  ASSERT_TRUE(in_time.ok());
  EXPECT_EQ((*in_time)->Wait(deadline), absl::OkStatus());
  clock.Advance(std::chrono::seconds(2));
  auto late = (*peer)->Post({op}, deadline);
  ASSERT_TRUE(late.ok());
  EXPECT_EQ((*late)->Wait(clock.Now() + std::chrono::seconds(1)).code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST(Loopback, AddressesBelongToTheirNetwork) {
  auto one = CreateLoopbackNetwork(), two = CreateLoopbackNetwork();
  auto a = CreateLoopbackTransport(one), b = CreateLoopbackTransport(two);
  auto c = CreateLoopbackTransport(two);
  EXPECT_EQ(a->Connect(c->Address(), Time::max()).status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace oscarkv
