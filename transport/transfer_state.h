// The state of one posted batch, shared by the handle that the caller holds and the thread that
// moves the bytes.
//
//   posted --Start()--> moving --End(status)--> ended --Drain()--> drained
//      \------------------End(status)---------------------------> ended and drained
//
// (End(kOk) also drains.)//
// "Ended" is what the caller waits for and fixes the status; "drained" means that no byte of the
// local buffers changes any more. They differ when a batch is cancelled or runs out of time while
// bytes are in flight. Thread-safe.
#pragma once

#include <atomic>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/mutex.h"

namespace oscarkv {

class TransferState {
 public:
  // The mover takes the batch up. False: it ended before (cancelled), do not touch its buffers.
  bool Start();
  // Ends the batch; the first call decides the status. Returns whether this call was it.
  bool End(absl::Status status);
  // The mover has let go of the buffers. Ends the batch as cancelled if nobody ended it before.
  void Drain();

  bool ended() const { return ended_.load(std::memory_order_acquire); }
  bool drained() const { return drained_.load(std::memory_order_acquire); }
  // Final once ended(); kOk before.
  absl::Status status() const;
  // Blocks until the batch ended (true) or `clock` passed `deadline` (false).
  bool WaitEnded(Time deadline, const Clock& clock);
  // As WaitEnded, until drained.
  bool WaitDrained(Time deadline, const Clock& clock);

 private:
  bool WaitFor(const std::atomic<bool>& flag, Time deadline, const Clock& clock);

  mutable Mutex mu_;
  CondVar changed_;
  bool started_ GUARDED_BY(mu_) = false;
  absl::Status status_ GUARDED_BY(mu_);
  std::atomic<bool> ended_{false};
  std::atomic<bool> drained_{false};
};

}  // namespace oscarkv
