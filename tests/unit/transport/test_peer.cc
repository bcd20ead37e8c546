// The other process of the transport's tests.
//
//   transport_test_peer serve LANES BYTES      exports an arena whose byte i is i * 131 >> 3;
//   prints "ADDRESS REGION" in hex;
//                                              ends at the end of its input
//   transport_test_peer read LANES ADDRESS REGION N
//                                              reads the region again and again; prints "reading"
//                                              after N batches, goes on

#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "transport/transport.h"

namespace oscarkv {
namespace {

using std::chrono::seconds;

Time In(Duration d) {
  return SteadyClock::Get()->Now() + d;
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "transport_test_peer: %s\n", status.ToString().c_str());
  return 1;
}

int Serve(Transport& transport, uint64_t bytes) {
  auto arena = transport.Allocate(bytes, false);
  if (!arena.ok()) return Fail(arena.status());
  for (uint64_t i = 0; i < bytes; ++i) (*arena)->span()[i] = static_cast<uint8_t>(i * 131 >> 3);
  std::printf("%s %s\n", absl::BytesToHexString(transport.Address()).c_str(),
              absl::BytesToHexString((*arena)->Export()).c_str());
  std::fflush(stdout);
  char byte;
  while (read(STDIN_FILENO, &byte, 1) > 0) {
  }
  return 0;
}

int ReadForEver(Transport& transport, const std::string& address, const std::string& region,
                int announce_after) {
  auto peer = transport.Connect(address, In(seconds(30)));
  if (!peer.ok()) return Fail(peer.status());
  auto remote = (*peer)->Import(region);
  if (!remote.ok()) return Fail(remote.status());
  auto buffer = transport.Allocate((*remote)->size(), false);
  if (!buffer.ok()) return Fail(buffer.status());
  std::vector<TransferOp> ops;
  constexpr uint64_t kBlock = 165'888;
  for (uint64_t at = 0; at + kBlock <= (*remote)->size(); at += kBlock) {
    ops.push_back({TransferKind::kRead, (*buffer)->span().data() + at, kBlock, remote->get(), at});
  }
  for (int n = 1;; ++n) {
    auto handle = (*peer)->Post(ops, In(seconds(30)));
    const absl::Status status = handle.ok() ? (*handle)->Wait(In(seconds(30))) : handle.status();
    if (!status.ok()) return Fail(status);
    if (n == announce_after) {
      std::printf("reading\n");
      std::fflush(stdout);
    }
  }
}

int Main(const std::vector<std::string>& args) {
  if (args.size() < 3) return 2;
  UcxOptions options;
  options.lanes = args[1];
  options.devices = "lo";
  auto transport = CreateUcxTransport(options, nullptr);
  if (!transport.ok()) return Fail(transport.status());
  uint64_t number = 0;
  if (!absl::SimpleAtoi(args.back(), &number)) return 2;
  if (args[0] == "serve") return Serve(**transport, number);
  if (args[0] == "read" && args.size() == 5) {
    return ReadForEver(**transport, absl::HexStringToBytes(args[2]),
                       absl::HexStringToBytes(args[3]), static_cast<int>(number));
  }
  return 2;
}

}  // namespace
}  // namespace oscarkv

int main(int argc, char** argv) {
  return oscarkv::Main({argv + 1, argv + argc});
}
