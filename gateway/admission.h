// How many requests run at once and how many may wait for it. Beyond that a request is refused at
// once, with a hint when to come back: a bounded queue keeps waiting times honest.
#pragma once

#include <functional>
#include <list>
#include <memory>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "gateway/metrics.h"

namespace oscarkv::gateway {

struct AdmissionOptions {
  int max_running = 64;
  int max_waiting = 256;
};

// Thread-safe. First come, first served, by the order of Ready().
class Admission {
 public:
  // A request's place. Destruction gives it back and starts the next request that waits.
  class Ticket {
   public:
    ~Ticket();
    Ticket(const Ticket&) = delete;
    Ticket& operator=(const Ticket&) = delete;
    // Calls `run` once a running slot is free: inside this call, or later on the thread that gives
    // the slot back. Never after this ticket's destruction began, except for a `run` that is
    // already being called. At most once.
    void Ready(std::function<void()> run);

   private:
    friend class Admission;
    explicit Ticket(Admission* admission) : admission_(admission) {}
    Admission* const admission_;
    enum class State { kPreparing, kWaiting, kRunning } state = State::kPreparing;
    Time entered{};
    Time started{};
    std::list<Ticket*>::iterator position;
    std::function<void()> run;
  };

  Admission(const AdmissionOptions& options, GatewayMetrics* metrics, const Clock* clock);

  // kResourceExhausted when max_running + max_waiting requests are in. The admission outlives its
  // tickets.
  absl::StatusOr<std::unique_ptr<Ticket>> Enter();

  int running() const;
  int waiting() const;  // those that prepare included
  // Sets the gauge of the oldest waiting request's age.
  void UpdateQueueAge();

 private:
  std::function<void()> Start(Ticket* ticket) REQUIRES(mu_);
  void Leave(Ticket* ticket);
  void UpdateGauges() REQUIRES(mu_);

  const AdmissionOptions options_;
  GatewayMetrics* const metrics_;
  const Clock* const clock_;
  mutable Mutex mu_;
  std::list<Ticket*> queue_ GUARDED_BY(mu_);
  int entered_ GUARDED_BY(mu_) = 0;
  int running_ GUARDED_BY(mu_) = 0;
  double mean_run_seconds_ GUARDED_BY(mu_) = 1;  // moving average, for the retry hint
};

}  // namespace oscarkv::gateway
