// Moves bytes between registered memory of processes: the data path of blocks.
//
// A node that owns memory (a kvstore) allocates a region and exports a descriptor; others connect
// to the node's address, import the descriptor and post batches of reads and writes. The
// implementation picks the protocol per peer (one-sided over RDMA or shared memory, pipelined
// active messages over TCP); lane() says which.
//
// Classes here are thread-safe unless stated. No call blocks but those with a deadline.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/clock.h"

namespace oscarkv {

// Registered local memory. Destruction deregisters; it must outlive the transfers that use it (the
// implementation keeps it registered until they ended, the caller keeps the bytes).
class MemoryRegion {
 public:
  virtual ~MemoryRegion() = default;
  virtual absl::Span<uint8_t> span() const = 0;
  // What a peer needs to address this region: an opaque string, at most 4 KiB.
  virtual std::string Export() const = 0;
};

// A region of a peer, from MemoryRegion::Export.
class RemoteRegion {
 public:
  virtual ~RemoteRegion() = default;
  virtual uint64_t size() const = 0;
};

enum class TransferKind { kRead, kWrite };  // kRead: remote -> local

struct TransferOp {
  TransferKind kind;
  uint8_t* local;  // inside a MemoryRegion of this transport
  uint64_t length;
  const RemoteRegion* remote;
  uint64_t remote_offset;
};

// A posted batch. Destroying an unfinished handle cancels it; the local buffers stay reserved by
// the implementation's contract: they may be written until Wait or Poll said that the transfer
// ended, so call Drain() before you reuse them.
class TransferHandle {
 public:
  virtual ~TransferHandle() = default;
  // True when the batch ended; then status() is final.
  virtual bool Poll() = 0;
  // Blocks until the batch ended or `deadline` passed: kDeadlineExceeded, and the batch is
  // cancelled.
  virtual absl::Status Wait(Time deadline) = 0;
  virtual void Cancel() = 0;
  // True when no byte of the local buffers will change any more (it ended, or the endpoint was
  // closed by force).
  virtual bool Drained() const = 0;
};

// A connection. When it fails (peer gone, endpoint error) every pending and later transfer ends
// with kUnavailable; connect anew.
class Peer {
 public:
  virtual ~Peer() = default;
  virtual absl::StatusOr<std::unique_ptr<RemoteRegion>> Import(absl::string_view exported) = 0;
  // Copies `ops`. A write is complete only when its bytes are visible in the peer's memory (the
  // implementation flushes). Ops out of the regions' bounds: kInvalidArgument, nothing is posted.
  virtual absl::StatusOr<std::unique_ptr<TransferHandle>> Post(absl::Span<const TransferOp> ops,
                                                               Time deadline) = 0;
  // The transports in use, for people and metrics: "posix" (shared memory), "tcp", "rc_mlx5",
  // "loopback".
  virtual std::string lane() const = 0;
  // False after a failure.
  virtual bool healthy() const = 0;
  // Closes by force: pending transfers end with kCancelled and no byte moves afterwards. Blocks
  // until that is so.
  virtual void Close() = 0;
};

class Transport {
 public:
  virtual ~Transport() = default;
  // Opaque address for Connect by others, at most 4 KiB.
  virtual std::string Address() const = 0;
  // Zeroed, page-aligned memory that peers can reach one-sidedly where the lane allows.
  // `huge_pages`: ask for them.
  virtual absl::StatusOr<std::unique_ptr<MemoryRegion>> Allocate(uint64_t bytes,
                                                                 bool huge_pages) = 0;
  // Registers memory of the caller's for local use in transfers (not exported one-sidedly on shared
  // memory).
  virtual absl::StatusOr<std::unique_ptr<MemoryRegion>> Register(absl::Span<uint8_t> memory) = 0;
  virtual absl::StatusOr<std::unique_ptr<Peer>> Connect(absl::string_view address,
                                                        Time deadline) = 0;
  virtual std::string name() const = 0;  // "ucx", "loopback"
};

struct UcxOptions {
  // Lanes as in UCX_TLS, comma-separated; "auto": shared memory with one-sided reads for peers on
  // this host, RDMA where there is any, else TCP with active messages.
  std::string lanes = "auto";
  std::string devices;  // as UCX_NET_DEVICES; empty: all
  Duration spin = std::chrono::microseconds(
      80);  // polling after the last event before sleeping on the event fd
  Duration peer_timeout = std::chrono::seconds(2);  // a dead peer is seen within this
};

class MetricRegistry;
// `metrics` may be null.
absl::StatusOr<std::unique_ptr<Transport>> CreateUcxTransport(const UcxOptions& options,
                                                              MetricRegistry* metrics);

// In-process: addresses name objects of the same LoopbackNetwork.
class LoopbackNetwork;
// `clock` judges the deadlines; it must outlive the network.
std::shared_ptr<LoopbackNetwork> CreateLoopbackNetwork(const Clock* clock = SteadyClock::Get());
std::unique_ptr<Transport> CreateLoopbackTransport(std::shared_ptr<LoopbackNetwork> network);

}  // namespace oscarkv
