// The contract over UCX, both nodes in this process; and what only UCX has.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "tests/unit/transport/contract.h"
#include "transport/ucx/handles.h"
#include "transport/ucx/lanes.h"

namespace oscarkv {
namespace {

std::unique_ptr<Transport> MakeUcx(const std::string& lanes) {
  UcxOptions options;
  options.lanes = lanes;
  options.devices = "lo";
  auto transport = CreateUcxTransport(options, nullptr);
  EXPECT_TRUE(transport.ok()) << transport.status();
  return transport.ok() ? *std::move(transport) : nullptr;
}

ContractParam Param(const std::string& name, const std::string& client, const std::string& server,
                    const std::string& lanes) {
  return {name, [=] { return TransportPair{MakeUcx(client), MakeUcx(server), lanes}; }};
}

INSTANTIATE_TEST_SUITE_P(Ucx, TransportContract,
                         testing::Values(Param("auto", "auto", "auto", "sysv"),
                                         Param("shm", "shm", "shm", "sysv"),
                                         Param("posix", "posix", "posix", "posix"),
                                         Param("tcp", "tcp", "tcp", "tcp"),
                                         Param("mixed", "auto", "tcp", "tcp")),
                         [](const auto& info) { return info.param.name; });

TEST(UcxOptions, LanesAreParsed) {
  struct Case {
    const char* lanes;
    bool rdma;
    std::string want;  // class:tls/tls...
  };
  const std::vector<Case> cases = {
      {"auto", false, "shm:sysv/posix tcp:tcp "},
      {"auto", true, "shm:sysv/posix rdma:rc,dc,ud tcp:tcp "},
      {"shm", false, "shm:sysv/posix "},
      {"posix", true, "shm:posix "},
      {"tcp,posix,sysv", false, "shm:posix/sysv tcp:tcp "},
      {"rc_mlx5,ud_mlx5", false, "rdma:rc_mlx5,ud_mlx5 "},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.lanes);
    const auto choices = ParseLanes(c.lanes, c.rdma);
    ASSERT_TRUE(choices.ok()) << choices.status();
    std::string got;
    for (const LaneChoice& choice : *choices) {
      got += std::string(LaneClassName(choice.lane)) + ":" + absl::StrJoin(choice.tls, "/") + " ";
    }
    EXPECT_EQ(got, c.want);
  }
  for (const char* bad : {"", "ib", "tcp,", "shm tcp", "cma", "AUTO", "auto,tcp"}) {
    EXPECT_EQ(ParseLanes(bad, false).status().code(), absl::StatusCode::kInvalidArgument) << bad;
    UcxOptions options;
    options.lanes = bad;
    EXPECT_EQ(CreateUcxTransport(options, nullptr).status().code(),
              absl::StatusCode::kInvalidArgument)
        << bad;
  }
}

TEST(UcxOptions, WhatWasAskedForByNameMustBeThere) {
  UcxOptions options;
  options.lanes = "tcp";
  options.devices = "nosuchdevice0";
  EXPECT_FALSE(CreateUcxTransport(options, nullptr).ok());
  options.lanes = "rc_mlx5";
  options.devices = "";
  const auto rdma = CreateUcxTransport(options, nullptr);
  if (rdma.ok()) GTEST_SKIP() << "this machine has RDMA";
  EXPECT_NE(rdma.status().message().find("rdma"), std::string::npos) << rdma.status();
}

TEST(UcxErrors, HaveOneTranslation) {
  EXPECT_EQ(UcxStatus(UCS_OK, "x"), absl::OkStatus());
  EXPECT_EQ(UcxStatus(UCS_ERR_ENDPOINT_TIMEOUT, "x").code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(UcxStatus(UCS_ERR_UNREACHABLE, "x").code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(UcxStatus(UCS_ERR_CANCELED, "x").code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(UcxStatus(UCS_ERR_TIMED_OUT, "x").code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(UcxStatus(UCS_ERR_NO_MEMORY, "x").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(UcxStatus(UCS_ERR_INVALID_PARAM, "x").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(UcxStatus(UCS_ERR_UNSUPPORTED, "x").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(UcxStatus(UCS_ERR_LAST, "x").code(), absl::StatusCode::kInternal);
  EXPECT_NE(UcxStatus(UCS_ERR_NO_MEMORY, "cannot map").message().find("cannot map"),
            std::string::npos);
}

TEST(UcxSelf, ANodeCanConnectToItself) {
  for (const char* lanes : {"auto", "tcp"}) {
    SCOPED_TRACE(lanes);
    std::unique_ptr<Transport> node = MakeUcx(lanes);
    ASSERT_NE(node, nullptr);
    auto arena = node->Allocate(1 << 20, true), buffer = node->Allocate(1 << 20, false);
    ASSERT_TRUE(arena.ok() && buffer.ok());
    (*arena)->span()[77] = 42;
    const Time deadline = SteadyClock::Get()->Now() + std::chrono::seconds(30);
    auto peer = node->Connect(node->Address(), deadline);
    ASSERT_TRUE(peer.ok()) << peer.status();
    auto remote = (*peer)->Import((*arena)->Export());
    ASSERT_TRUE(remote.ok()) << remote.status();
    auto read = (*peer)->Post(
        {{TransferKind::kRead, (*buffer)->span().data(), 100, remote->get(), 0}}, deadline);
    ASSERT_TRUE(read.ok());
    EXPECT_EQ((*read)->Wait(deadline), absl::OkStatus());
    EXPECT_EQ((*buffer)->span()[77], 42);
  }
}

TEST(UcxLifetime, TransportMayGoBeforeWhatItMade) {
  for (const char* lanes : {"auto", "tcp"}) {
    SCOPED_TRACE(lanes);
    std::unique_ptr<Transport> node = MakeUcx(lanes), other = MakeUcx(lanes);
    ASSERT_TRUE(node != nullptr && other != nullptr);
    auto arena = other->Allocate(4096, false), buffer = node->Allocate(4096, false);
    ASSERT_TRUE(arena.ok() && buffer.ok());
    const Time deadline = SteadyClock::Get()->Now() + std::chrono::seconds(30);
    auto peer = node->Connect(other->Address(), deadline);
    ASSERT_TRUE(peer.ok()) << peer.status();
    auto remote = (*peer)->Import((*arena)->Export());
    ASSERT_TRUE(remote.ok()) << remote.status();
    const TransferOp op = {TransferKind::kRead, (*buffer)->span().data(), 100, remote->get(), 0};
    auto read = (*peer)->Post({op}, deadline);
    ASSERT_TRUE(read.ok());
    node.reset();
    EXPECT_TRUE((*read)->Poll());
    EXPECT_TRUE((*read)->Drained());
    EXPECT_FALSE((*peer)->healthy());
    EXPECT_EQ((*peer)->Post({op}, deadline).status().code(), absl::StatusCode::kUnavailable);
    EXPECT_FALSE((*peer)->Import((*arena)->Export()).ok() && std::string(lanes) == "auto");
    (*buffer)->span()[0] = 1;  // still mapped
  }
}

}  // namespace
}  // namespace oscarkv
