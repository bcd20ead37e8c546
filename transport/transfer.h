// A batch on its way through a lane: what Post made of the caller's ops. Used by one progress
// thread at a time; only `state` is shared with the caller.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "common/clock.h"
#include "transport/region_table.h"
#include "transport/transfer_state.h"
#include "transport/transport.h"

namespace oscarkv {

// A peer's region as a lane addresses it. Lanes derive their own.
struct RemoteCore {
  virtual ~RemoteCore() = default;
  uint64_t id = 0;
  uint64_t token = 0;
  uint64_t size = 0;
};

// An op whose bounds were checked on both sides.
struct ResolvedOp {
  TransferKind kind;
  uint8_t* local;
  uint64_t length;
  uint64_t remote_offset;
  std::shared_ptr<RegionCore> local_region;  // keeps the memory registered
  std::shared_ptr<const RemoteCore> remote;
};

// Everything that may still touch the buffers holds a reference: the lane's list and every send in
// flight. The last one gone, the batch is drained.
struct Transfer {
  Transfer(std::vector<ResolvedOp> o, Time d, Time now)
      : ops(std::move(o)), deadline(d), posted(now) {
    for (const ResolvedOp& op : ops) {
      (op.kind == TransferKind::kRead ? read_bytes : write_bytes) += op.length;
    }
    unconfirmed = read_bytes + write_bytes;
  }
  ~Transfer() {
    ops.clear();
    state->Drain();
  }
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  struct Piece {
    const ResolvedOp* op;
    uint8_t* local;
    uint64_t remote_offset;
    uint64_t length;
  };
  // The next piece to start, without taking it: at most max_read or max_write bytes. False when all
  // were taken.
  bool Peek(uint64_t max_read, uint64_t max_write, Piece* piece) {
    while (next_op < ops.size() && next_offset == ops[next_op].length) {
      ++next_op;
      next_offset = 0;
    }
    if (next_op == ops.size()) return false;
    const ResolvedOp& op = ops[next_op];
    const uint64_t most = op.kind == TransferKind::kRead ? max_read : max_write;
    *piece = {&op, op.local + next_offset, op.remote_offset + next_offset,
              std::min(most, op.length - next_offset)};
    return true;
  }
  void Take(const Piece& piece) { next_offset += piece.length; }

  const std::shared_ptr<TransferState> state = std::make_shared<TransferState>();
  std::vector<ResolvedOp> ops;
  const Time deadline, posted;
  uint64_t read_bytes = 0, write_bytes = 0;
  uint64_t unconfirmed = 0;  // bytes not yet known to have arrived
  size_t next_op = 0;        // the first byte not yet started
  uint64_t next_offset = 0;
};

}  // namespace oscarkv
