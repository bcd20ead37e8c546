#include "gateway/heartbeat.h"

#include <pthread.h>

#include <utility>

namespace oscarkv::gateway {

Heartbeat::Heartbeat(Duration period, std::function<void()> beat)
    : period_(period), beat_(std::move(beat)), thread_([this] { Loop(); }) {
  pthread_setname_np(thread_.native_handle(), "gateway-beat");
}

Heartbeat::~Heartbeat() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
  }
  wake_.NotifyAll();
  thread_.join();
}

void Heartbeat::Loop() {
  while (true) {
    {
      const Time until = std::chrono::steady_clock::now() + period_;
      MutexLock lock(mu_);
      while (!stopping_ && wake_.WaitUntil(mu_, until)) {
      }
      if (stopping_) return;
    }
    beat_();
  }
}

}  // namespace oscarkv::gateway
