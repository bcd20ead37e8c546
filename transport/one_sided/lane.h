// A one-sided lane of a node: reads and writes the memory of peers without their doing. Shared
// memory and RDMA, over an RmaEngine that hides the network library. All state belongs to the
// progress thread; connections talk to it by commands.
//
// Each exported region ends in a trailer of one page that holds its id and token. Import reads it
// through the lane and compares: a stale or foreign key (segment numbers are reused) is found out
// before anything is written there.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "transport/descriptors.h"
#include "transport/lane.h"
#include "transport/liveness.h"
#include "transport/metrics.h"
#include "transport/progress_thread.h"

namespace oscarkv {

struct RegionTrailer {
  uint64_t magic = 0x5245474b56434f31;
  uint64_t id = 0, token = 0, size = 0;
};
constexpr uint64_t kTrailerBytes = 4096;
// Where the trailer of a region of `size` bytes is, from the region's start.
constexpr uint64_t TrailerOffset(uint64_t size) {
  return (size + kTrailerBytes - 1) / kTrailerBytes * kTrailerBytes;
}

// A peer's region, unpacked. Destroyed on the progress thread, before its endpoint.
class RmaKey {
 public:
  virtual ~RmaKey() = default;
};

// One endpoint towards a peer. On the progress thread only.
class RmaEndpoint {
 public:
  // Called later on the progress thread. `transfer` is the one that was passed in; its reference
  // was just given back.
  using Done = std::function<void(const std::shared_ptr<Transfer>& transfer, uint64_t bytes,
                                  const absl::Status& status)>;
  enum class Started { kDone, kPending };

  virtual ~RmaEndpoint() = default;
  virtual absl::Status status() const = 0;
  // `bytes_at`: [base, base + length) must be reachable with the key.
  virtual absl::StatusOr<std::unique_ptr<RmaKey>> Unpack(absl::string_view rkey, uint64_t base,
                                                         uint64_t length) = 0;
  // Moves piece.length bytes. kPending: `done` follows, and `owner` is kept until then.
  virtual absl::StatusOr<Started> Start(const Transfer::Piece& piece, uint64_t remote_address,
                                        const RmaKey& key,
                                        const std::shared_ptr<Transfer>& owner) = 0;
  // Until all writes before are visible at the peer. As Start; `bytes` of `done` is 0.
  virtual absl::StatusOr<Started> Flush(const std::shared_ptr<Transfer>& owner) = 0;
  // Closes by force where the library can; operations in flight end.
  virtual void Close() = 0;
  virtual bool closed() const = 0;
  virtual std::string transports() const = 0;
};

// The network library as this lane needs it. On the progress thread only, but for address().
class RmaEngine {
 public:
  virtual ~RmaEngine() = default;
  virtual const std::string& address() const = 0;
  virtual absl::StatusOr<std::unique_ptr<RmaEndpoint>> Connect(absl::string_view address,
                                                               RmaEndpoint::Done done) = 0;
  virtual bool Progress() = 0;
  virtual bool Arm() = 0;
  virtual int event_fd() const = 0;
};

class OneSidedLane final : private ProgressDriver {
 public:
  // `listener`: null where the network library itself notices dead peers.
  OneSidedLane(LaneClass lane_class, std::unique_ptr<RmaEngine> engine,
               std::unique_ptr<LivenessListener> listener, const TransportMetrics::Lane* metrics,
               Duration spin, Duration import_timeout);
  ~OneSidedLane() override;

  // Any thread. Connects and proves that the lane works by reading the trailer of `probe`.
  // `liveness`: watched; not ok() where the library notices dead peers.
  absl::StatusOr<std::shared_ptr<LaneConnection>> Connect(const std::string& worker_address,
                                                          const RegionDescriptor& probe,
                                                          UniqueFd liveness);
  const std::string& address() const { return engine_->address(); }
  void Stop() { thread_->Stop(); }

 private:
  class Connection;
  struct Remote;

  bool Progress() override { return engine_->Progress(); }
  bool Pump(Time now) override;
  bool Busy() const override;
  Time NextDeadline() const override;
  bool Arm() override { return engine_->Arm(); }
  int event_fd() const override { return engine_->event_fd(); }
  void BeginClose() override;
  bool Closed() const override { return closing_.empty(); }

  const LaneClass lane_class_;
  std::unique_ptr<RmaEngine> engine_;
  std::unique_ptr<LivenessListener> listener_;
  const TransportMetrics::Lane* const metrics_;
  const Duration import_timeout_;

  // Of the progress thread.
  std::vector<std::shared_ptr<Connection>> connections_;
  struct Closing {
    std::unique_ptr<RmaEndpoint> endpoint;
    std::shared_ptr<Connection> connection;
  };
  std::vector<Closing> closing_;

  std::unique_ptr<ProgressThread> thread_;  // last: starts when the rest is there
};

}  // namespace oscarkv
