// Options of `oscarkv kvstore`.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "common/auth/security_options.h"
#include "common/clock.h"
#include "common/options.h"
#include "kvstore/etcd_access.h"

namespace oscarkv {

struct KvStoreServerOptions {
  std::string listen = "127.0.0.1:0";  // port 0 picks a free one
  std::string name;  // in metrics and logs; empty: `listen`, or kvstore-N when its port is 0
  uint64_t capacity = uint64_t{1} << 30;
  bool huge_pages = true;
  uint64_t slab_bytes = 0;    // 0: by capacity
  uint64_t tenant_quota = 0;  // 0: none
  std::string eviction = "s3fifo";
  float high_watermark = 0.95f;
  float low_watermark = 0.90f;
  Duration session_ttl = std::chrono::seconds(10);
  Duration pin_ttl = std::chrono::seconds(60);
  Duration put_ttl = std::chrono::seconds(60);
  bool verify_on_put = true;
  std::string ssd_path;  // empty: only memory
  uint64_t ssd_capacity = uint64_t{64} << 30;
  std::string ssd_write_rate = "0";  // ParseWriteRate
  std::string ssd_admission = "reused";
  uint64_t ssd_tenant_quota = 0;  // 0: none
  uint64_t ssd_queue = uint64_t{128} << 20;
  uint64_t ssd_scrub_rate = uint64_t{8} << 20;  // bytes per second; 0: off
  Duration ssd_wait = std::chrono::seconds(2);
  std::string data_access = "arena";  // "arena" or "granted"
  std::string data_path = "ucx";      // "ucx" or "grpc": without a transport, only the streams
  std::string ucx_lanes = "auto";     // as UcxOptions
  std::string ucx_devices;
  std::vector<std::string> etcd;  // endpoints; empty: the node registers nowhere
  std::string etcd_prefix = "/oscarkv/";
  EtcdAccess etcd_access;
  std::string advertise;  // how clients reach it; empty: `listen` with the real port
  std::string zone;
  float weight = 0;  // 0: its capacity in GiB
  // Lost copies are restored when the node knows the others, by these or by etcd.
  std::vector<std::string> nodes;
  int replicas = 0;                           // as of the clients
  uint64_t repair_rate = uint64_t{64} << 20;  // bytes per second; 0: no repair
  Duration repair_interval = std::chrono::seconds(10);
  Duration repair_grace = std::chrono::seconds(30);
  int hot_copies = 2;        // beyond the replicas, of blocks that are read much; 0: none
  float hot_reads = 20;      // per second: more is much
  float hot_memory = 0.05f;  // share of the capacity that other nodes' extra copies may take
  uint64_t scrub_rate = uint64_t{16} << 20;  // bytes per second; 0: off
  auth::SecurityOptions security;
};

void AddOptions(OptionTable* table, KvStoreServerOptions* options);
// "50MiB" or "50MiB/s": bytes per second; "3TB/day": spread over a day; "0": no limit.
// kInvalidArgument.
absl::Status ParseWriteRate(const std::string& text, uint64_t* bytes_per_second);
// kInvalidArgument: options that contradict each other.
absl::Status CheckOptions(const KvStoreServerOptions& options);

}  // namespace oscarkv
