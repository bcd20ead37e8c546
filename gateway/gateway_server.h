// The gateway as a whole: model folder's tokenizer and end-of-text ids, store client, worker stubs,
// core, gRPC server.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/auth/security_options.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "common/options.h"
#include "kvstore/client/client.h"
#include "kvstore/client/options.h"

namespace oscarkv::gateway {

struct GatewayOptions {
  std::string listen = "127.0.0.1:7400";
  std::string model;  // folder with tokenizer.json and config.json: that of the workers
  StoreOptions store;
  std::vector<std::string> prefill;
  std::vector<std::string> attention;
  std::string router = "prefix-aware";
  int max_running = 64;
  int max_waiting = 256;
  int threads = 4;
  Duration default_deadline = std::chrono::minutes(10);
  Duration match_timeout = std::chrono::milliseconds(100);
  Duration poll_interval = std::chrono::seconds(1);
  Duration poll_timeout = std::chrono::seconds(3);
  Duration worker_silence = std::chrono::seconds(10);
  int max_resumes = 3;
  Duration resume_wait = std::chrono::seconds(30);
  Duration worker_wait = std::chrono::seconds(5);
  uint64_t max_message_bytes = 16u << 20;
  int max_tenants = 64;
  int tenant_max_running = 0;
  int64_t tenant_tokens_per_second = 0;
  auth::SecurityOptions security;
  std::string http_listen;  // empty: no HTTP
  uint64_t http_max_body_bytes = 4u << 20;
  int http_max_connections = 1024;
};
// Rows for all of them.
void AddOptions(OptionTable* table, GatewayOptions* options);

class GatewayServer {
 public:
  // Serves once this returned: workers have been asked once (for up to worker_wait), whatever they
  // said. Health says SERVING while there is a usable worker of each role; its service "liveness"
  // does so until Shutdown. store: the client to use; null makes one from options.store. Errors:
  // kInvalidArgument (option), kUnavailable (address in use; no kvstore node answers), those of
  // loading the model folder. metrics outlives the server.
  static absl::StatusOr<std::unique_ptr<GatewayServer>> Start(
      const GatewayOptions& options, MetricRegistry* metrics,
      std::unique_ptr<KvClient> store = nullptr);
  ~GatewayServer();

  int port() const;
  int http_port() const;  // 0: none
  // Health says NOT_SERVING, new requests are refused, those under way may end within `drain`, then
  // are ended with UNAVAILABLE. Blocks; may be called again.
  void Shutdown(Duration drain);

 private:
  struct Impl;
  explicit GatewayServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace oscarkv::gateway
