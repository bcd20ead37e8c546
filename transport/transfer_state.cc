#include "transport/transfer_state.h"

#include <algorithm>
#include <utility>

namespace oscarkv {

bool TransferState::Start() {
  MutexLock lock(mu_);
  if (ended()) return false;
  started_ = true;
  return true;
}

bool TransferState::End(absl::Status status) {
  MutexLock lock(mu_);
  if (ended()) return false;
  status_ = std::move(status);
  // Success means that every byte has arrived: nothing is left to move.
  if (!started_ || status_.ok()) drained_.store(true, std::memory_order_release);
  ended_.store(true, std::memory_order_release);
  changed_.NotifyAll();
  return true;
}

void TransferState::Drain() {
  MutexLock lock(mu_);
  drained_.store(true, std::memory_order_release);
  if (!ended()) {
    status_ = absl::CancelledError("transfer dropped before it ended");
    ended_.store(true, std::memory_order_release);
  }
  changed_.NotifyAll();
}

absl::Status TransferState::status() const {
  MutexLock lock(mu_);
  return status_;
}

bool TransferState::WaitEnded(Time deadline, const Clock& clock) {
  return WaitFor(ended_, deadline, clock);
}

bool TransferState::WaitDrained(Time deadline, const Clock& clock) {
  return WaitFor(drained_, deadline, clock);
}

bool TransferState::WaitFor(const std::atomic<bool>& flag, Time deadline, const Clock& clock) {
  // A clock of a test stands still while we sleep: look at it again every few milliseconds of real
  // time.
  constexpr Duration kLookAgain = std::chrono::milliseconds(5);
  const bool real_clock = &clock == SteadyClock::Get();
  MutexLock lock(mu_);
  while (!flag.load(std::memory_order_acquire)) {
    const Duration left = deadline - clock.Now();
    if (left <= Duration::zero()) return false;
    // Bounded, so that deadlines like Time::max() do not overflow in the condition variable.
    changed_.WaitFor(mu_,
                     real_clock ? std::min<Duration>(left, std::chrono::seconds(1)) : kLookAgain);
  }
  return true;
}

}  // namespace oscarkv
