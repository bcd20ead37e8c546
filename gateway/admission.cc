#include "gateway/admission.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "gateway/retry_hint.h"

namespace oscarkv::gateway {
namespace {

double Seconds(Duration d) {
  return std::chrono::duration<double>(d).count();
}

}  // namespace

Admission::Admission(const AdmissionOptions& options, GatewayMetrics* metrics, const Clock* clock)
    : options_(options), metrics_(metrics), clock_(clock) {}

absl::StatusOr<std::unique_ptr<Admission::Ticket>> Admission::Enter() {
  MutexLock lock(mu_);
  const int places = options_.max_running + options_.max_waiting;
  if (entered_ >= places) {
    // A place becomes free as soon as any running request ends.
    const double hint = std::clamp(mean_run_seconds_ / options_.max_running, 0.1, 60.0);
    return WithRetryHint(
        absl::ResourceExhaustedError(absl::StrFormat(
            "the gateway is full: %d requests run and %d "
            "wait, allowed are %d and %d; retry in %.1f s",
            running_, entered_ - running_, options_.max_running, options_.max_waiting, hint)),
        hint);
  }
  ++entered_;
  auto ticket = std::unique_ptr<Ticket>(new Ticket(this));
  ticket->entered = clock_->Now();
  UpdateGauges();
  return ticket;
}

void Admission::Ticket::Ready(std::function<void()> callback) {
  std::function<void()> now;
  {
    MutexLock lock(admission_->mu_);
    run = std::move(callback);
    if (admission_->running_ < admission_->options_.max_running) {
      now = admission_->Start(this);
    } else {
      state = State::kWaiting;
      position = admission_->queue_.insert(admission_->queue_.end(), this);
    }
    admission_->UpdateGauges();
  }
  if (now) now();
}

std::function<void()> Admission::Start(Ticket* ticket) {
  ticket->state = Ticket::State::kRunning;
  ticket->started = clock_->Now();
  metrics_->queue_seconds.Observe(Seconds(ticket->started - ticket->entered));
  ++running_;
  return std::move(ticket->run);
}

Admission::Ticket::~Ticket() {
  admission_->Leave(this);
}

void Admission::Leave(Ticket* ticket) {
  std::function<void()> next;
  {
    MutexLock lock(mu_);
    --entered_;
    if (ticket->state == Ticket::State::kWaiting) queue_.erase(ticket->position);
    if (ticket->state == Ticket::State::kRunning) {
      --running_;
      mean_run_seconds_ += 0.1 * (Seconds(clock_->Now() - ticket->started) - mean_run_seconds_);
      if (!queue_.empty()) {
        Ticket* first = queue_.front();
        queue_.pop_front();
        next = Start(first);
      }
    }
    UpdateGauges();
  }
  if (next) next();
}

int Admission::running() const {
  MutexLock lock(mu_);
  return running_;
}

int Admission::waiting() const {
  MutexLock lock(mu_);
  return entered_ - running_;
}

void Admission::UpdateQueueAge() {
  MutexLock lock(mu_);
  const Time now = clock_->Now();
  metrics_->queue_age_seconds.Set(queue_.empty() ? 0 : Seconds(now - queue_.front()->entered));
}

void Admission::UpdateGauges() {
  metrics_->running.Set(running_);
  metrics_->waiting.Set(entered_ - running_);
}

}  // namespace oscarkv::gateway
