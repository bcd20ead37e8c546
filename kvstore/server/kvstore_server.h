// A running node: arena, KvNode, gRPC server and the thread of its clock.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/metrics.h"
#include "kvstore/server/options.h"
#include "transport/transport.h"

namespace oscarkv {

class KvStoreServer {
 public:
  // Makes the transport that the options name. `registry` (may be null) outlives the server.
  // kInvalidArgument names the option; kUnavailable: the address cannot be bound;
  // kResourceExhausted: no memory for the arena.
  static absl::StatusOr<std::unique_ptr<KvStoreServer>> Start(const KvStoreServerOptions& options,
                                                              MetricRegistry* registry);
  // With a transport of the caller's (it outlives the server); null: only the streaming data path.
  static absl::StatusOr<std::unique_ptr<KvStoreServer>> Start(const KvStoreServerOptions& options,
                                                              Transport* transport,
                                                              MetricRegistry* registry);
  ~KvStoreServer();

  int port() const;
  // With other nodes: restores there, within `drain`, the copies that go with this one. Then
  // answers "not serving" to health checks, ends calls within a second, frees the arena.
  // Idempotent.
  void Shutdown(Duration drain);

 private:
  struct Impl;
  explicit KvStoreServer(std::unique_ptr<Impl> impl);
  static absl::StatusOr<std::unique_ptr<KvStoreServer>> Start(const KvStoreServerOptions& options,
                                                              std::unique_ptr<Transport> owned,
                                                              Transport* transport,
                                                              MetricRegistry* registry);
  std::unique_ptr<Impl> impl_;
};

}  // namespace oscarkv
