// A Transport that misbehaves on demand. Wraps any other (usually the loopback) and numbers the
// operations that can fail, so that a test can sweep a fault over all of them:
//
//   for (uint64_t n = 0;; ++n) {
//     faulty.Inject({.at = n, .kind = FaultKind::kFail});
//     RunScenario();            // must neither hang, nor leak, nor lie
//     if (!faulty.fired()) break;  // the scenario has fewer than n + 1 operations
//   }
//
// Operations, in the order in which they are called: Allocate, Register, Connect, Import, Post, and
// the completion of a transfer (counted when its handle first shows the end). Thread-safe. Outlived
// by nothing that it made.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/mutex.h"
#include "transport/transport.h"

namespace oscarkv {

enum class FaultKind {
  kNone,
  // Any operation returns Fault::status; a completion reports it although the bytes have moved.
  kFail,
  // A transfer is held back until Release(): like a one-sided operation in flight it cannot be
  // taken back. Cancelling it or letting its deadline pass ends it, but Drained() stays false and
  // Release() still moves the bytes (a late write).
  kDelay,
  // A transfer reports success without having moved the second half of its last op.
  kTruncate,
  // A transfer reports success, but one bit of the last byte of its last op is wrong.
  kCorrupt,
  // The connection breaks: this and every later operation of the peer ends with kUnavailable.
  kDisconnect,
};

struct Fault {
  uint64_t at = 0;  // counted from 0 since the last Inject
  FaultKind kind = FaultKind::kNone;
  absl::Status status = absl::UnavailableError("injected fault");
};

enum class TransportCall { kAllocate, kRegister, kConnect, kImport, kPost, kComplete };

class FaultyTransport final : public Transport {
 public:
  explicit FaultyTransport(std::unique_ptr<Transport> inner);
  ~FaultyTransport() override;

  // Replaces the fault, counts operations from 0 again. kDelay, kTruncate, kCorrupt fire only when
  // the operation is a Post, kDisconnect when it is one of a peer.
  void Inject(Fault fault);
  // Whether the fault happened since Inject.
  bool fired() const;
  // Operations since Inject.
  uint64_t operations() const;
  // Moves the bytes of delayed transfers and lets them end. Blocks until they did. Returns how many
  // there were.
  size_t Release();
  // Called before every operation, without locks: a place to interleave other events. Set it while
  // nothing is going on.
  void SetHook(std::function<void(TransportCall, uint64_t n)> hook);

  std::string Address() const override;
  void SetGate(AccessGate* gate) override;
  absl::StatusOr<std::string> AddressFor(uint64_t subject) override;
  absl::StatusOr<std::unique_ptr<MemoryRegion>> Allocate(uint64_t bytes, bool huge_pages) override;
  absl::StatusOr<std::unique_ptr<MemoryRegion>> Register(absl::Span<uint8_t> memory) override;
  absl::StatusOr<std::unique_ptr<Peer>> Connect(absl::string_view address, Time deadline) override;
  std::string name() const override;

  struct Shared;  // what peers and handles share with the transport

 private:
  const std::shared_ptr<Shared> shared_;
};

}  // namespace oscarkv
