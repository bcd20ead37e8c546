// A connection over one lane, as the peers of the UCX transport use it, and the part of it that all
// lanes share: commands to the progress thread, and waiting for the end.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/mutex.h"
#include "transport/descriptors.h"
#include "transport/metrics.h"
#include "transport/progress_thread.h"
#include "transport/transfer.h"

namespace oscarkv {

// Methods are for any thread but the progress thread, unless they say otherwise.
class LaneConnection : public std::enable_shared_from_this<LaneConnection> {
 public:
  virtual ~LaneConnection() = default;

  // Takes the transfer up; ends it with kUnavailable when the connection failed or was closed.
  void Submit(std::shared_ptr<Transfer> transfer);
  // Blocks until the transfer ended (true) or `deadline` passed (false); moves bytes itself
  // meanwhile.
  bool Await(TransferState& state, Time deadline) { return thread_->Await(state, deadline); }
  // Looks at once for transfers that their callers cancelled, so that they drain.
  void Sweep();
  // Pending transfers end with kCancelled; blocks until no buffer is in use any more. Idempotent.
  void Close();
  bool healthy() const { return healthy_.load(std::memory_order_acquire); }
  // As the network library names them; empty before the connection is open.
  std::string transports() const;
  // What is needed to address the region over this lane. May take a round trip on one-sided lanes.
  virtual absl::StatusOr<std::shared_ptr<RemoteCore>> Import(const RegionDescriptor& region) = 0;
  LaneClass lane_class() const { return lane_class_; }

  // --- on the progress thread ---
  // Ends everything with `status` and begins to close the endpoint. Idempotent.
  void Shut(const absl::Status& status);
  // The endpoint is closed.
  void SetClosed();

 protected:
  LaneConnection(LaneClass lane_class, ProgressThread* thread,
                 const TransportMetrics::Lane* metrics)
      : thread_(thread), metrics_(metrics), lane_class_(lane_class) {}

  // --- on the progress thread ---
  // Not called once shut, or before SetOpen.
  virtual void OnSubmit(std::shared_ptr<Transfer> transfer) = 0;
  virtual void OnSweep(Time now) = 0;
  // Ends all transfers; hands the endpoint over to be closed, or calls SetClosed when there is
  // none.
  virtual void OnShut(const absl::Status& status) = 0;
  void SetOpen(std::string transports);
  void CountEnd(const Transfer& transfer) const {
    metrics_->OnEnd(transfer, SteadyClock::Get()->Now());
  }
  bool open() const { return open_ && !shut_; }
  bool shut() const { return shut_; }

  // Blocks until the connection is open or was shut, or the deadline passed: then it is closed.
  absl::Status WaitOpen(Time deadline);

  ProgressThread* const thread_;
  const TransportMetrics::Lane* const metrics_;

 private:
  const LaneClass lane_class_;
  std::atomic<bool> healthy_{false};
  bool open_ = false, shut_ = false;  // of the progress thread

  mutable Mutex mu_;
  CondVar changed_;
  bool was_opened_ GUARDED_BY(mu_) = false;
  bool closed_ GUARDED_BY(mu_) = false;
  absl::Status why_shut_ GUARDED_BY(mu_);
  std::string transports_ GUARDED_BY(mu_);
};

}  // namespace oscarkv
