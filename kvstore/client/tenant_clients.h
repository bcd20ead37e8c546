// The store's clients of a process that acts for many tenants: one for each, so that sessions,
// quotas and what is seen are the tenant's own. Made when they are first asked for, given up when
// the room is needed and nobody uses them.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "common/mutex.h"
#include "kvstore/client/client.h"

namespace oscarkv {

// Thread-safe.
class TenantClients {
 public:
  using Factory = std::function<absl::StatusOr<std::unique_ptr<KvClient>>(const std::string&)>;

  // `standard`: of the tenant "", never given up; may be null, then all tenants have none. At most
  // `max_tenants` others at once.
  TenantClients(std::shared_ptr<KvClient> standard, Factory factory, size_t max_tenants,
                const Clock* clock = SteadyClock::Get())
      : standard_(std::move(standard)),
        factory_(std::move(factory)),
        max_tenants_(max_tenants),
        clock_(clock) {}

  // `only` for all tenants: for a store of the caller's own making.
  explicit TenantClients(std::shared_ptr<KvClient> only)
      : TenantClients(std::move(only), nullptr, 0) {}
  // With clients of KvClient::Create for `options` with each tenant's name.
  static absl::StatusOr<std::unique_ptr<TenantClients>> Create(const KvClientOptions& options,
                                                               size_t max_tenants);

  // Blocks while the client connects: not for callback threads. kResourceExhausted: all clients are
  // in use; else why it could not be made, which is remembered for a second.
  absl::StatusOr<std::shared_ptr<KvClient>> Of(const std::string& tenant);
  // Of the tenant "".
  KvClient* standard() const { return standard_.get(); }

 private:
  struct Entry {
    bool making = false;
    std::shared_ptr<KvClient> client;  // null while it is made, or after a failure
    absl::Status failure;
    Time retry_at{};
    uint64_t used = 0;  // the turn of its last use
  };
  // Room for one more; gives up the one that was unused for longest.
  bool MakeRoom(std::shared_ptr<KvClient>* given_up) REQUIRES(mu_);

  const std::shared_ptr<KvClient> standard_;
  const Factory factory_;
  const size_t max_tenants_;
  const Clock* const clock_;
  Mutex mu_;
  CondVar made_;
  uint64_t turn_ GUARDED_BY(mu_) = 0;
  absl::flat_hash_map<std::string, Entry> entries_ GUARDED_BY(mu_);
};

}  // namespace oscarkv
