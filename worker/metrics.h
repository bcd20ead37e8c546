// Metrics that prefill and attention workers share; `role` tells them apart.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/metrics.h"
#include "kvstore/client/client.h"
#include "model/model_runner.h"
#include "worker/kv_arena.h"

namespace oscarkv::worker {

// The series of one worker. Thread-safe.
class WorkerMetrics {
 public:
  explicit WorkerMetrics(MetricRegistry* registry, std::string role = "worker");

  // Outcome of moving one block; kOk and kAlreadyExists are successes.
  void CountGet(const absl::Status& status);
  void CountPut(const absl::Status& status);
  void CountBytes(const TransferTotals& get, const TransferTotals& put);
  void SetPool(const KvPool& pool);
  void SetCompression(double ratio);
  // How copies between the pools and a GPU go.
  void SetStaging(PoolStaging staging);

 private:
  const std::string role_;
  MetricFamily& transfers_;    // {role, op, code}
  MetricFamily& bytes_;        // {role, op}
  MetricFamily& pool_slots_;   // {role, kind, state}
  MetricFamily& compression_;  // {role}
  MetricFamily& staging_;      // {role, memory}
};

}  // namespace oscarkv::worker
