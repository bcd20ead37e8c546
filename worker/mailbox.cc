#include "worker/mailbox.h"

#include <utility>

namespace oscarkv::worker {

void Mailbox::Post(std::function<void()> event) {
  // Notified under the lock: the poster may be an I/O thread whose last event lets the owner end
  // and destroy this mailbox.
  MutexLock lock(mu_);
  events_.push_back(std::move(event));
  arrived_.NotifyOne();
}

bool Mailbox::RunPending() {
  std::deque<std::function<void()>> events;
  {
    MutexLock lock(mu_);
    events.swap(events_);
  }
  for (auto& event : events) event();
  return !events.empty();
}

void Mailbox::Wait(Duration timeout) {
  const bool forever = timeout == Duration::max();
  const Time deadline = forever ? Time::max() : SteadyClock::Get()->Now() + timeout;
  MutexLock lock(mu_);
  while (events_.empty()) {
    if (forever) {
      arrived_.Wait(mu_);
    } else if (!arrived_.WaitUntil(mu_, deadline)) {
      return;
    }
  }
}

}  // namespace oscarkv::worker
