// A thread that calls a function at a steady pace, for what must happen as time passes.
#pragma once

#include <functional>
#include <thread>

#include "common/clock.h"
#include "common/mutex.h"

namespace oscarkv::gateway {

class Heartbeat {
 public:
  Heartbeat(Duration period, std::function<void()> beat);
  ~Heartbeat();  // waits for a beat under way

 private:
  void Loop();

  const Duration period_;
  const std::function<void()> beat_;
  Mutex mu_;
  CondVar wake_;
  bool stopping_ GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace oscarkv::gateway
