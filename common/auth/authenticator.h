// From a bearer token or the names of a verified certificate to an identity, by the file of
// --auth-file (common/auth/auth_file.h). The file is read again within a second of its replacement;
// a file that is no good is logged and the one before stays in force, so that a slip of the pen
// locks nobody out and lets nobody in.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/auth/auth_file.h"
#include "common/auth/watched_file.h"
#include "common/mutex.h"

namespace oscarkv::auth {

// Seconds since 1970, as calendars have it; expiry dates are judged by it.
using WallClock = std::function<int64_t()>;
int64_t SystemUnixSeconds();

// Thread-safe. Reads a file now and then, does not block otherwise.
class Authenticator {
 public:
  // kInvalidArgument: the file cannot be read or is wrong.
  static absl::StatusOr<std::shared_ptr<Authenticator>> Open(
      const std::string& path, const Clock* clock = SteadyClock::Get(),
      WallClock wall = SystemUnixSeconds);

  // `authorization`: the header's value, "Bearer TOKEN". kUnauthenticated: of another form, an
  // unknown or an expired token; the message never holds the token.
  absl::StatusOr<Identity> Bearer(absl::string_view authorization);
  // The first of the names that the file knows. kUnauthenticated: none, or expired.
  absl::StatusOr<Identity> Certificate(absl::Span<const std::string> names);
  // `authorization` if it is not empty, else `names`. The identity must have one of `roles`:
  // kPermissionDenied.
  absl::StatusOr<Identity> Check(absl::string_view authorization,
                                 absl::Span<const std::string> names, Roles roles);
  // What the file says of the tenant; `defaults` for one that it does not name.
  TenantLimits LimitsOf(absl::string_view tenant, const TenantLimits& defaults);

 private:
  Authenticator(const std::string& path, const Clock* clock, WallClock wall)
      : wall_(std::move(wall)), file_(path, kMaxAuthFileBytes, clock) {}
  absl::Status Read() REQUIRES(mu_);
  std::shared_ptr<const AuthFile> Current();
  absl::StatusOr<Identity> Admit(const AuthEntry& entry) const;

  const WallClock wall_;
  Mutex mu_;
  WatchedFile file_ GUARDED_BY(mu_);
  std::shared_ptr<const AuthFile> entries_ GUARDED_BY(mu_);
};

}  // namespace oscarkv::auth
