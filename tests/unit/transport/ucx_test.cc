// The contract over UCX, both nodes in this process; and what only UCX has.
#include <gtest/gtest.h>

#include "tests/unit/transport/contract.h"

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
                         testing::Values(Param("auto", "auto", "auto", "sysv,posix"),
                                         Param("shm", "shm", "shm", "sysv,posix"),
                                         Param("tcp", "tcp", "tcp", "tcp"),
                                         Param("mixed", "auto", "tcp", "tcp")),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace oscarkv
