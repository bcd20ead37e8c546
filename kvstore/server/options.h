// Options of `oscarkv kvstore`.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "common/auth/security_options.h"
#include "common/clock.h"
#include "common/options.h"

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
  std::string data_path = "ucx";   // "ucx" or "grpc": without a transport, only the streams
  std::string ucx_lanes = "auto";  // as UcxOptions
  std::string ucx_devices;
  auth::SecurityOptions security;
};

void AddOptions(OptionTable* table, KvStoreServerOptions* options);
// kInvalidArgument: options that contradict each other.
absl::Status CheckOptions(const KvStoreServerOptions& options);

}  // namespace oscarkv
