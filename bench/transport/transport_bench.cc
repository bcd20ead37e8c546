// Bandwidth of the UCX transport between processes of one machine. bench/transport/run.sh drives it
// and adds the yardsticks.
//
//   transport_bench serve LANES                     exports an arena; prints "ADDRESS REGION" in
//   hex; ends at the end of its input transport_bench read|write LANES ADDRESS REGION BLOCK DEPTH
//   BATCH SECONDS
//                                                   prints "ready", waits for a line, then moves
//                                                   batches of BATCH blocks, DEPTH of them at a
//                                                   time; prints "GB/s p50_us p99_us"
//   transport_bench raw MESSAGE SECONDS [poll]      one TCP stream over loopback, written and read
//   MESSAGE bytes at a time;
//                                                   prints "GB/s"; poll: nobody sleeps in the
//                                                   kernel
//
// Blocks lie where a reader's rank puts them, so that several readers do not share cache lines;
// within a batch they follow each other, and every batch goes to the same place: as ucx_perftest
// does it.

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <deque>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "common/log.h"
#include "transport/transport.h"

namespace oscarkv {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kArena = 64 << 20;
constexpr auto kTimeout = std::chrono::seconds(30);

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "transport_bench: %s\n", status.ToString().c_str());
  return 1;
}

void WaitForLine() {
  char byte = 0;
  while (byte != '\n' && read(STDIN_FILENO, &byte, 1) > 0) {
  }
}

int Serve(Transport& transport) {
  auto arena = transport.Allocate(kArena, false);
  if (!arena.ok()) return Fail(arena.status());
  std::fill((*arena)->span().begin(), (*arena)->span().end(), 0x5a);
  std::printf("%s %s\n", absl::BytesToHexString(transport.Address()).c_str(),
              absl::BytesToHexString((*arena)->Export()).c_str());
  std::fflush(stdout);
  char byte;
  while (read(STDIN_FILENO, &byte, 1) > 0) {
  }
  return 0;
}

struct Load {
  TransferKind kind;
  uint64_t block;
  size_t depth, batch;
  double seconds;
};

int Move(Transport& transport, const std::string& address, const std::string& region,
         const Load& load) {
  auto peer = transport.Connect(address, Clock::now() + kTimeout);
  if (!peer.ok()) return Fail(peer.status());
  auto remote = (*peer)->Import(region);
  if (!remote.ok()) return Fail(remote.status());
  const uint64_t bytes = load.block * load.batch;
  if (bytes > (*remote)->size())
    return Fail(absl::InvalidArgumentError("batch larger than the arena"));
  auto buffer = transport.Allocate(bytes, false);
  if (!buffer.ok()) return Fail(buffer.status());
  std::fill((*buffer)->span().begin(), (*buffer)->span().end(), 1);
  std::vector<TransferOp> ops;
  for (size_t i = 0; i < load.batch; ++i) {
    ops.push_back({load.kind, (*buffer)->span().data() + i * load.block, load.block, remote->get(),
                   i * load.block});
  }
  std::printf("ready %s\n", (*peer)->lane().c_str());
  std::fflush(stdout);
  WaitForLine();

  struct InFlight {
    std::unique_ptr<TransferHandle> handle;
    Clock::time_point posted;
  };
  std::deque<InFlight> in_flight;
  std::vector<double> micros;
  uint64_t moved = 0;
  const auto start = Clock::now();
  double elapsed = 0;
  while ((elapsed = SecondsSince(start)) < load.seconds || !in_flight.empty()) {
    while (in_flight.size() < load.depth && elapsed < load.seconds) {
      auto handle = (*peer)->Post(ops, Clock::now() + kTimeout);
      if (!handle.ok()) return Fail(handle.status());
      in_flight.push_back({*std::move(handle), Clock::now()});
    }
    if (in_flight.empty()) break;
    if (absl::Status status = in_flight.front().handle->Wait(Clock::now() + kTimeout); !status.ok())
      return Fail(status);
    micros.push_back(SecondsSince(in_flight.front().posted) * 1e6);
    in_flight.pop_front();
    moved += bytes;
  }
  std::sort(micros.begin(), micros.end());
  std::printf("%.3f %.1f %.1f\n", static_cast<double>(moved) / SecondsSince(start) / 1e9,
              micros[micros.size() / 2], micros[micros.size() * 99 / 100]);
  return 0;
}

// The writer is a child process, as a server would be.
int Raw(uint64_t message, double seconds, bool poll) {
  const int flags = poll ? MSG_DONTWAIT : 0;
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      listen(listener, 1) != 0 ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    return Fail(absl::InternalError("cannot listen"));
  }
  const pid_t child = fork();
  if (child == 0) {
    const int fd = accept(listener, nullptr, nullptr);
    const std::vector<char> out(message, 0x5a);
    for (size_t at = 0;;) {
      const ssize_t n = send(fd, out.data() + at, out.size() - at, flags | MSG_NOSIGNAL);
      if (n <= 0 && !(poll && errno == EAGAIN)) break;
      if (n > 0) at = (at + static_cast<size_t>(n)) % out.size();
    }
    _exit(0);
  }
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), size) != 0)
    return Fail(absl::InternalError("cannot connect"));
  std::vector<char> in(message);
  uint64_t moved = 0;
  const auto start = Clock::now();
  while (SecondsSince(start) < seconds) {
    const ssize_t n = recv(fd, in.data(), in.size(), flags);
    if (n < 0 && poll && errno == EAGAIN) continue;
    if (n <= 0) break;
    moved += static_cast<uint64_t>(n);
  }
  std::printf("%.3f\n", static_cast<double>(moved) / SecondsSince(start) / 1e9);
  close(fd);
  signal(SIGPIPE, SIG_IGN);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  return 0;
}

uint64_t Number(const std::string& text) {
  uint64_t n = 0;
  return absl::SimpleAtoi(text, &n) ? n : 0;
}

int Main(const std::vector<std::string>& args) {
  if (args.size() >= 3 && args[0] == "raw")
    return Raw(Number(args[1]), static_cast<double>(Number(args[2])), args.size() == 4);
  if (args.size() < 2) return 2;
  if (absl::Status status = InitLog("warn", "bench"); !status.ok()) return Fail(status);
  UcxOptions options;
  options.lanes = args[1];
  options.devices = "lo";
  auto transport = CreateUcxTransport(options, nullptr);
  if (!transport.ok()) return Fail(transport.status());
  if (args[0] == "serve") return Serve(**transport);
  if ((args[0] != "read" && args[0] != "write") || args.size() != 8) return 2;
  const Load load = {args[0] == "read" ? TransferKind::kRead : TransferKind::kWrite,
                     Number(args[4]), Number(args[5]), Number(args[6]),
                     static_cast<double>(Number(args[7]))};
  if (load.block == 0 || load.depth == 0 || load.batch == 0 || load.seconds == 0) return 2;
  return Move(**transport, absl::HexStringToBytes(args[2]), absl::HexStringToBytes(args[3]), load);
}

}  // namespace
}  // namespace oscarkv

int main(int argc, char** argv) {
  return oscarkv::Main({argv + 1, argv + argc});
}
