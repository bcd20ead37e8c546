#include "gateway/tenant_quota.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "gateway/retry_hint.h"

namespace oscarkv::gateway {
namespace {
constexpr double kBurstSeconds = 10;
// Tenants remembered before those with nothing to remember are dropped.
constexpr size_t kSweepAbove = 4096;
}  // namespace

void TenantQuota::Refill(Use* use, int64_t rate) const {
  const Time now = clock_->Now();
  const double most = static_cast<double>(rate) * kBurstSeconds;
  if (use->rate == 0) {
    use->balance = most;
  } else {
    const double seconds = std::chrono::duration<double>(now - use->updated).count();
    use->balance = std::min(most, use->balance + static_cast<double>(rate) * seconds);
  }
  use->rate = rate;
  use->updated = now;
}

absl::StatusOr<std::shared_ptr<TenantQuota::Share>> TenantQuota::Enter(const std::string& tenant) {
  const auth::TenantLimits limits = limits_of_(tenant);
  const std::string name = tenant.empty() ? "default" : tenant;
  MutexLock lock(mu_);
  if (uses_.size() > kSweepAbove) Sweep();
  Use& use = uses_[tenant];
  if (limits.max_running > 0 && use.running >= limits.max_running) {
    return absl::ResourceExhaustedError(absl::StrCat("tenant '", name,
                                                     "': limit max-running=", limits.max_running,
                                                     ": so many of its requests are under way"));
  }
  Refill(&use, limits.tokens_per_second);
  if (limits.tokens_per_second > 0 && use.balance <= 0) {
    const double wait = std::ceil(-use.balance / static_cast<double>(limits.tokens_per_second)) + 1;
    return WithRetryHint(
        absl::ResourceExhaustedError(
            absl::StrCat("tenant '", name, "': limit tokens-per-second=", limits.tokens_per_second,
                         ": retry in ", static_cast<int64_t>(wait), " s")),
        wait);
  }
  ++use.running;
  return std::shared_ptr<Share>(new Share(this, tenant));
}

void TenantQuota::Sweep() {
  absl::erase_if(uses_, [this](auto& item) {
    Use& use = item.second;
    if (use.running > 0) return false;
    if (use.rate == 0) return true;
    Refill(&use, use.rate);
    return use.balance >= static_cast<double>(use.rate) * kBurstSeconds;
  });
}

void TenantQuota::Share::Charge(uint64_t tokens) {
  MutexLock lock(quota_->mu_);
  const auto it = quota_->uses_.find(tenant_);
  if (!left_ && it != quota_->uses_.end()) it->second.balance -= static_cast<double>(tokens);
}

void TenantQuota::Share::Leave() {
  MutexLock lock(quota_->mu_);
  if (std::exchange(left_, true)) return;
  --quota_->uses_[tenant_].running;
}

}  // namespace oscarkv::gateway
