// What every Transport must do (transport/transport.h), as tests over a pair of transports in one
// process. Each binary that links contract.cc instantiates TransportContract with its
// implementations.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "transport/transport.h"

namespace oscarkv {

struct TransportPair {
  std::unique_ptr<Transport> client, server;
  // Of a connection from client to server: lane() contains one of these, comma-separated
  // ("posix,sysv").
  std::string lanes;
};

struct ContractParam {
  std::string name;
  std::function<TransportPair()> make;
};

class TransportContract : public testing::TestWithParam<ContractParam> {
 protected:
  void SetUp() override;
  void TearDown() override;

  static constexpr uint64_t kArena = 9 << 20;

  // Writes `pattern`-dependent bytes into `span`, which differ at every offset modulo large primes.
  static void Fill(absl::Span<uint8_t> span, uint32_t pattern);
  static Time In(Duration d) { return SteadyClock::Get()->Now() + d; }
  absl::Status Run(Peer& peer, std::vector<TransferOp> ops);
  TransferOp Read(uint64_t local_offset, uint64_t length, uint64_t remote_offset) const;
  TransferOp Write(uint64_t local_offset, uint64_t length, uint64_t remote_offset) const;

  TransportPair pair_;
  std::unique_ptr<MemoryRegion> arena_, buffer_;  // of the server, of the client
  std::unique_ptr<Peer> peer_;
  std::unique_ptr<RemoteRegion> remote_;
};

}  // namespace oscarkv
