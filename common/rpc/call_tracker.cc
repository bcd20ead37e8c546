#include "common/rpc/call_tracker.h"

#include <utility>

namespace oscarkv::rpc {

// Lock order: a call's lock is never held while the tracker's is taken.

CallTracker::~CallTracker() {
  MutexLock lock(mu_);
  for (TrackedCall* call : calls_) call->Cancel();
  while (!calls_.empty()) none_.Wait(mu_);
}

TrackedCall::TrackedCall(CallTracker* tracker, Time deadline)
    : tracker_(tracker), context_(std::make_unique<grpc::ClientContext>()) {
  context_->set_deadline(ToSystem(deadline));
  tracker->security_->Authorize(context_.get());
  MutexLock lock(tracker->mu_);
  tracker->calls_.insert(this);
}

grpc::ClientContext* TrackedCall::context() {
  MutexLock lock(mu_);
  return context_.get();
}

void TrackedCall::Cancel() {
  MutexLock lock(mu_);
  if (context_ != nullptr) context_->TryCancel();
}

void TrackedCall::End() {
  CallTracker* tracker;
  std::unique_ptr<grpc::ClientContext> context;
  {
    MutexLock lock(mu_);
    tracker = std::exchange(tracker_, nullptr);
    context = std::move(context_);
  }
  if (tracker == nullptr) return;
  context.reset();
  MutexLock lock(tracker->mu_);
  tracker->calls_.erase(this);
  if (tracker->calls_.empty()) tracker->none_.NotifyAll();
}

}  // namespace oscarkv::rpc
