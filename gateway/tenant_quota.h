// What each tenant may use of this gateway: requests at once and tokens per second. A tenant whose
// balance of tokens is below zero is refused until it has come up again: what a request will cost
// is known only afterwards, so a burst may go into debt and is paid for by waiting.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "common/auth/identity.h"
#include "common/clock.h"
#include "common/mutex.h"

namespace oscarkv::gateway {

// Thread-safe. Outlives its shares.
class TenantQuota {
 public:
  using LimitsOf = std::function<auth::TenantLimits(const std::string& tenant)>;

  TenantQuota(LimitsOf limits_of, const Clock* clock)
      : limits_of_(std::move(limits_of)), clock_(clock) {}

  // A request's part in its tenant's use. Destruction gives it back.
  class Share {
   public:
    ~Share() { Leave(); }
    Share(const Share&) = delete;
    Share& operator=(const Share&) = delete;
    // Tokens that were taken in or given out for the request.
    void Charge(uint64_t tokens);
    // The request is over; only the first call counts.
    void Leave();

   private:
    friend class TenantQuota;
    Share(TenantQuota* quota, std::string tenant) : quota_(quota), tenant_(std::move(tenant)) {}
    TenantQuota* const quota_;
    const std::string tenant_;
    bool left_ = false;
  };

  // kResourceExhausted names the tenant, the limit and when to come back.
  absl::StatusOr<std::shared_ptr<Share>> Enter(const std::string& tenant);

 private:
  struct Use {
    int running = 0;
    double balance = 0;  // of tokens
    int64_t rate = 0;    // that the balance was kept by; 0: no limit
    Time updated{};
  };
  // Brings the balance up to now. At most a burst of ten seconds is saved up.
  void Refill(Use* use, int64_t rate) const;
  void Sweep() REQUIRES(mu_);

  const LimitsOf limits_of_;
  const Clock* const clock_;
  Mutex mu_;
  absl::flat_hash_map<std::string, Use> uses_ GUARDED_BY(mu_);
};

}  // namespace oscarkv::gateway
