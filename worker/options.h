// Options that prefill and attention workers share.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/auth/security_options.h"
#include "common/clock.h"
#include "common/options.h"
#include "kvstore/client/options.h"

namespace oscarkv::worker {

struct WorkerOptions {
  std::string listen = "127.0.0.1:0";
  std::string model;
  StoreOptions store;
  std::string profile = "oscar";
  std::string prefill_history = "exact";
  bool deterministic = false;
  float key_clip = 0.96f;
  float value_clip = 0.92f;
  std::string shaped_file;  // profile shaped; empty: in the model's folder
  std::string key_rotation;
  std::string value_rotation;
  std::string device = "cpu";
  std::string compute = "auto";
  int threads = 0;
  std::string data_path = "ucx";
  std::string ucx_lanes = "auto";
  std::string ucx_devices;
  uint64_t page_pool_bytes = 0;
  uint64_t block_pool_bytes = 0;
  float pool_fraction = 0;
  bool device_affinity = true;
  Duration handover_ttl = std::chrono::seconds(120);
  Duration store_timeout = std::chrono::seconds(5);
  int io_threads = 4;
  int max_tenants = 64;
  auth::SecurityOptions security;
};
// Rows for all of them.
void AddWorkerOptions(OptionTable* table, WorkerOptions* options);

// What a table cannot check: options that must be there, or together.
absl::Status CheckWorkerOptions(const WorkerOptions& options);

}  // namespace oscarkv::worker
