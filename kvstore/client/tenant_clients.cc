#include "kvstore/client/tenant_clients.h"

#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace oscarkv {
namespace {
constexpr Duration kRetryAfter = std::chrono::seconds(1);
}  // namespace

bool TenantClients::MakeRoom(std::shared_ptr<KvClient>* given_up) {
  if (entries_.size() < max_tenants_) return true;
  auto oldest = entries_.end();
  for (auto it = entries_.begin(); it != entries_.end(); ++it) {
    // Whoever got a client from us holds a reference; new ones are given out under mu_ only.
    const bool idle =
        !it->second.making && (it->second.client == nullptr || it->second.client.use_count() == 1);
    if (idle && (oldest == entries_.end() || it->second.used < oldest->second.used)) oldest = it;
  }
  if (oldest == entries_.end()) return false;
  *given_up = std::move(oldest->second.client);
  entries_.erase(oldest);
  return true;
}

absl::StatusOr<std::shared_ptr<KvClient>> TenantClients::Of(const std::string& tenant) {
  if (tenant.empty() || standard_ == nullptr || factory_ == nullptr) return standard_;
  std::shared_ptr<KvClient> given_up;  // closed without the lock
  {
    MutexLock lock(mu_);
    for (;;) {
      const auto it = entries_.find(tenant);
      if (it == entries_.end()) break;
      if (it->second.making) {
        made_.Wait(mu_);
        continue;
      }
      it->second.used = ++turn_;
      if (it->second.client != nullptr) return it->second.client;
      if (clock_->Now() < it->second.retry_at) return it->second.failure;
      entries_.erase(it);
      break;
    }
    if (!MakeRoom(&given_up)) {
      return absl::ResourceExhaustedError(
          absl::StrCat("tenant '", tenant, "': all ", max_tenants_,
                       " store clients are in use (--max-tenants)"));
    }
    Entry& entry = entries_[tenant];
    entry.making = true;
    entry.used = ++turn_;
  }
  given_up.reset();
  absl::StatusOr<std::unique_ptr<KvClient>> client = factory_(tenant);
  MutexLock lock(mu_);
  Entry& entry = entries_[tenant];  // what is being made is not given up
  entry.making = false;
  made_.NotifyAll();
  if (client.ok()) {
    entry.client = *std::move(client);
    return entry.client;
  }
  entry.failure = client.status();
  entry.retry_at = clock_->Now() + kRetryAfter;
  LogWarn("no store client for a tenant",
          {{"tenant", tenant}, {"why", client.status().ToString()}});
  return client.status();
}

}  // namespace oscarkv
