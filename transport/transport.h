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

// Registered local memory. Destruction withdraws it from peers and deregisters it as soon as the
// transfers that use it ended; memory from Allocate stays mapped until then, memory given to
// Register the caller keeps.
class MemoryRegion {
 public:
  virtual ~MemoryRegion() = default;
  virtual absl::Span<uint8_t> span() const = 0;
  // What a peer needs to address this region: an opaque string of bytes, at most 4 KiB. Empty for
  // memory from Register, which cannot be exported. Holds the region's access token: give it to
  // peers that may read and write.
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

// A posted batch. Destroying an unfinished handle cancels it.
//
// A transfer that was cancelled or ran out of time has ended, but its bytes may still be moving: do
// not reuse its local buffers before Drained() (keep the handle) or Peer::Close() returned. What
// that means, by lane:
// - shared memory: the thread that copies stops at the next piece (1 MB); drained a moment later. A
// dead or stopped peer does
//   not matter.
// - TCP: a read is never written to again once its end was seen by the progress thread, at once as
// a rule; the buffer of a write
//   is in use until the network library has sent what it took, or Close().
// - RDMA: operations in flight cannot be taken back: drained when they completed, or after Close().
// Remote memory: pieces of a cancelled write that were on their way may arrive at the peer until
// the connection is closed, and over TCP until the peer has noticed that (the owner quarantines
// such extents).
class TransferHandle {
 public:
  virtual ~TransferHandle() = default;
  // True when the batch ended; then Wait returns its status at once.
  virtual bool Poll() = 0;
  // Blocks until the batch ended or `deadline` passed: kDeadlineExceeded, and the batch is
  // cancelled. Other errors: kCancelled; kUnavailable (peer gone); kNotFound (the peer withdrew the
  // region, where the lane can tell). Where nobody else waits, the caller moves the bytes itself
  // meanwhile.
  virtual absl::Status Wait(Time deadline) = 0;
  virtual void Cancel() = 0;
  // True when no byte of the local buffers will change or be read any more. After success at once.
  virtual bool Drained() const = 0;
};

// A connection. When it fails (peer gone, endpoint error) every pending and later transfer ends
// with kUnavailable; connect anew.
class Peer {
 public:
  virtual ~Peer() = default;
  // The region must be the peer's: kInvalidArgument otherwise, or when damaged. kNotFound: it was
  // withdrawn (where the lane can tell). May take a round trip on RDMA, at most
  // UcxOptions::peer_timeout. A RemoteRegion must not outlive its Peer's use.
  virtual absl::StatusOr<std::unique_ptr<RemoteRegion>> Import(absl::string_view exported) = 0;
  // Copies `ops`. A write is complete only when its bytes are visible in the peer's memory (the
  // implementation flushes). Ops out of the regions' bounds: kInvalidArgument, nothing is posted.
  // kUnavailable: the connection is broken or closed. A passed `deadline` ends the transfer with
  // kDeadlineExceeded.
  virtual absl::StatusOr<std::unique_ptr<TransferHandle>> Post(absl::Span<const TransferOp> ops,
                                                               Time deadline) = 0;
  // The transports in use, for people and metrics: "sysv" or "posix" (shared memory), "tcp",
  // "rc_mlx5", "loopback".
  virtual std::string lane() const = 0;
  // False after a failure.
  virtual bool healthy() const = 0;
  // Closes by force: pending transfers end with kCancelled and no byte moves afterwards. Blocks
  // until that is so.
  virtual void Close() = 0;
};

class AccessGate;

class Transport {
 public:
  virtual ~Transport() = default;
  // Opaque address for Connect by others, at most 4 KiB.
  virtual std::string Address() const = 0;
  // With a gate (transport/access_gate.h), connections over active messages are taken only from who
  // has an address of AddressFor, as long as the gate welcomes its subject, and the gate is asked
  // at each access. Null: no such connection any more. Blocks until the former gate is no longer in
  // use. The in-process transport asks nobody.
  virtual void SetGate(AccessGate* gate) = 0;
  // As Address, for one subject; good for several connections. kResourceExhausted: too many.
  virtual absl::StatusOr<std::string> AddressFor(uint64_t subject) = 0;
  // Zeroed, page-aligned memory that peers can reach one-sidedly where the lane allows.
  // `huge_pages`: ask for them.
  virtual absl::StatusOr<std::unique_ptr<MemoryRegion>> Allocate(uint64_t bytes,
                                                                 bool huge_pages) = 0;
  // Registers memory of the caller's for local use in transfers; it cannot be exported.
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
  // Polling after the last event before sleeping on the event fd; ten times that while answers are
  // awaited.
  Duration spin = std::chrono::microseconds(80);
  // A dead peer is seen within this (at once, as a rule); also bounds the round trip of Import and
  // of trying out a lane.
  Duration peer_timeout = std::chrono::seconds(2);
};

class MetricRegistry;
// `metrics` may be null.
absl::StatusOr<std::unique_ptr<Transport>> CreateUcxTransport(const UcxOptions& options,
                                                              MetricRegistry* metrics);

// Of the library at run time, as "1.13.1".
std::string UcxVersion();

// In-process: addresses name objects of the same LoopbackNetwork.
class LoopbackNetwork;
// `clock` judges the deadlines; it must outlive the network.
std::shared_ptr<LoopbackNetwork> CreateLoopbackNetwork(const Clock* clock = SteadyClock::Get());
std::unique_ptr<Transport> CreateLoopbackTransport(std::shared_ptr<LoopbackNetwork> network);

}  // namespace oscarkv
