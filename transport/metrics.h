// The metrics of the transport; the only place for their names. Thread-safe.
#pragma once

#include <array>
#include <memory>

#include "common/metrics.h"
#include "transport/descriptors.h"
#include "transport/transfer.h"

namespace oscarkv {

class TransportMetrics {
 public:
  // `registry` may be null: then the values go nowhere.
  explicit TransportMetrics(MetricRegistry* registry);

  // The series of one lane class, looked up once.
  struct Lane {
    Metric* read_bytes;
    Metric* written_bytes;
    Metric* served_read_bytes;
    Metric* served_written_bytes;
    Metric* transfers;
    Metric* peers;
    Metric* malformed;
    Metric* refused_hello;
    Metric* refused_access;
    Histogram* seconds;
    MetricFamily* errors;
    std::string name;

    // A transfer of this node that ended.
    void OnEnd(const Transfer& transfer, Time now) const;
  };
  const Lane& lane(LaneClass lane) const { return lanes_[static_cast<size_t>(lane) - 1]; }
  // Connections that had to use a slower lane than both sides have.
  Metric& degraded() const { return *degraded_; }

 private:
  std::unique_ptr<MetricRegistry> own_;
  std::array<Lane, kNumLaneClasses> lanes_;
  Metric* degraded_;
};

}  // namespace oscarkv
