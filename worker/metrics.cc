#include "worker/metrics.h"

#include <utility>

namespace oscarkv::worker {

WorkerMetrics::WorkerMetrics(MetricRegistry* registry, std::string role)
    : role_(std::move(role)),
      transfers_(registry->AddCounter(
          "oscarkv_worker_blocks_total",
          "Blocks moved from (get) or to (put) the store, by outcome: a status code's name.",
          {"role", "op", "code"})),
      bytes_(registry->AddCounter("oscarkv_worker_transfer_bytes_total",
                                  "Bytes of blocks moved from (get) or to (put) the store.",
                                  {"role", "op"})),
      pool_slots_(registry->AddGauge(
          "oscarkv_worker_pool_slots",
          "Slots of the worker's KV pool: page (2-bit) or block (bf16), used or free.",
          {"role", "kind", "state"})),
      compression_(registry->AddGauge(
          "oscarkv_worker_kv_compression_ratio",
          "Bytes of a block of 64 tokens in bf16 divided by its bytes as stored.", {"role"})),
      staging_(registry->AddGauge(
          "oscarkv_worker_pool_staging",
          "With a GPU, 1 for what the host's copy of the pools is: page_locked, which the GPU "
          "reads "
          "and writes by itself, or pageable, where the driver copies in between; else 0.",
          {"role", "memory"})) {
  for (const char* op : {"get", "put"}) {
    transfers_.With({role_, op, "OK"});
    bytes_.With({role_, op});
  }
}

void WorkerMetrics::CountGet(const absl::Status& status) {
  transfers_.With({role_, "get", absl::StatusCodeToString(status.code())}).Increment();
}

void WorkerMetrics::CountPut(const absl::Status& status) {
  transfers_.With({role_, "put", absl::StatusCodeToString(status.code())}).Increment();
}

void WorkerMetrics::CountBytes(const TransferTotals& get, const TransferTotals& put) {
  bytes_.With({role_, "get"}).Add(static_cast<double>(get.bytes));
  bytes_.With({role_, "put"}).Add(static_cast<double>(put.bytes));
}

void WorkerMetrics::SetPool(const KvPool& pool) {
  const int free_pages = pool.free_pages(), free_blocks = pool.free_blocks();
  pool_slots_.With({role_, "page", "free"}).Set(free_pages);
  pool_slots_.With({role_, "page", "used"}).Set(pool.num_pages() - free_pages);
  pool_slots_.With({role_, "block", "free"}).Set(free_blocks);
  pool_slots_.With({role_, "block", "used"}).Set(pool.num_blocks() - free_blocks);
}

void WorkerMetrics::SetStaging(PoolStaging staging) {
  if (staging == PoolStaging::kNone) return;
  staging_.With({role_, "page_locked"}).Set(staging == PoolStaging::kPageLocked ? 1 : 0);
  staging_.With({role_, "pageable"}).Set(staging == PoolStaging::kPageable ? 1 : 0);
}

void WorkerMetrics::SetCompression(double ratio) {
  compression_.With({role_}).Set(ratio);
}

}  // namespace oscarkv::worker
