#include "transport/lane.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace oscarkv {

void LaneConnection::Submit(std::shared_ptr<Transfer> transfer) {
  // Kept here: a refused command drops its reference, and the last one ends the transfer as
  // cancelled.
  const std::shared_ptr<Transfer> kept = transfer;
  const bool accepted = thread_->Run(
      [self = shared_from_this(), transfer = std::move(transfer)]() mutable {
        if (self->open()) {
          self->OnSubmit(std::move(transfer));
          return;
        }
        transfer->state->End(absl::UnavailableError("connection is broken or closed"));
        self->CountEnd(*transfer);
      },
      ProgressThread::Urgency::kSoon);
  if (!accepted) kept->state->End(absl::UnavailableError("transport was shut down"));
}

void LaneConnection::Sweep() {
  thread_->Run([self = shared_from_this()] {
    if (self->open()) self->OnSweep(SteadyClock::Get()->Now());
  });
}

void LaneConnection::Close() {
  if (!thread_->Run(
          [self = shared_from_this()] { self->Shut(absl::CancelledError("connection closed")); })) {
    thread_->Stop();  // joins: when that is over, everything is closed
    return;
  }
  MutexLock lock(mu_);
  while (!closed_) changed_.Wait(mu_);
}

std::string LaneConnection::transports() const {
  MutexLock lock(mu_);
  return transports_;
}

void LaneConnection::Shut(const absl::Status& status) {
  if (shut_) return;
  shut_ = true;
  healthy_.store(false, std::memory_order_release);
  if (open_) metrics_->peers->Add(-1);
  {
    MutexLock lock(mu_);
    why_shut_ = status;
    changed_.NotifyAll();
  }
  OnShut(status);
}

void LaneConnection::SetClosed() {
  MutexLock lock(mu_);
  closed_ = true;
  changed_.NotifyAll();
}

void LaneConnection::SetOpen(std::string transports) {
  open_ = true;
  metrics_->peers->Add(1);
  healthy_.store(true, std::memory_order_release);
  MutexLock lock(mu_);
  transports_ = std::move(transports);
  was_opened_ = true;
  changed_.NotifyAll();
}

absl::Status LaneConnection::WaitOpen(Time deadline) {
  {
    MutexLock lock(mu_);
    while (!was_opened_ && why_shut_.ok()) {
      const Time now = SteadyClock::Get()->Now();
      if (now >= deadline) break;
      changed_.WaitUntil(mu_, std::min(deadline, now + std::chrono::seconds(1)));
    }
    if (was_opened_) return absl::OkStatus();
    if (!why_shut_.ok()) {
      return absl::UnavailableError(absl::StrCat("cannot connect: ", why_shut_.message()));
    }
  }
  Close();
  return absl::DeadlineExceededError("the peer did not answer before the deadline of Connect");
}

}  // namespace oscarkv
