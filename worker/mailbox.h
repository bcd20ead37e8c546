// The one way into an engine's thread: others post events, the thread runs them between two steps.
// All state of a sequence lives on that thread and needs no lock.
#pragma once

#include <deque>
#include <functional>

#include "common/clock.h"
#include "common/mutex.h"

namespace oscarkv::worker {

// Thread-safe; RunPending and Wait are for the owning thread.
class Mailbox {
 public:
  void Post(std::function<void()> event);
  // Runs the events that were there when it was called. False: there were none.
  bool RunPending();
  // Returns when there is an event, or after `timeout`; Duration::max(): only when there is an
  // event.
  void Wait(Duration timeout);

 private:
  Mutex mu_;
  CondVar arrived_;
  std::deque<std::function<void()>> events_ GUARDED_BY(mu_);
};

}  // namespace oscarkv::worker
