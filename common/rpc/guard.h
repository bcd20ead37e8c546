// Checks at the door of every handler who calls.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/auth/auth_metrics.h"
#include "common/auth/authenticator.h"
#include "common/auth/security_options.h"

namespace oscarkv::rpc {

// Thread-safe; does not block.
class Guard {
 public:
  // `authenticator` null: nobody is asked who he is, and everybody may do all. `registry` (may be
  // null) outlives the guard; several guards may share it.
  Guard(std::shared_ptr<auth::Authenticator> authenticator, MetricRegistry* registry);
  // Of the options' auth file. kInvalidArgument: the file is no good.
  static absl::StatusOr<std::unique_ptr<Guard>> Create(const auth::SecurityOptions& options,
                                                       MetricRegistry* registry);

  // Who calls, by its bearer token or else its certificate. kUnauthenticated; kPermissionDenied:
  // none of `roles`.
  absl::StatusOr<auth::Identity> Check(const grpc::ServerContextBase& context,
                                       auth::Roles roles) const;
  // The same for a caller over HTTP: `authorization` is the header's value, `names` those that a
  // client certificate proves.
  absl::StatusOr<auth::Identity> Check(absl::string_view authorization,
                                       absl::Span<const std::string> names,
                                       auth::Roles roles) const;
  // Counts a refusal that a handler found itself (another tenant's session), and returns it.
  absl::Status Refuse(absl::Status status) const;
  auth::TenantLimits LimitsOf(absl::string_view tenant, const auth::TenantLimits& defaults) const;
  bool enabled() const { return authenticator_ != nullptr; }

 private:
  const std::shared_ptr<auth::Authenticator> authenticator_;
  std::unique_ptr<auth::AuthMetrics> metrics_;  // may be null
};

// `guard` may be null: then everybody may do all.
absl::StatusOr<auth::Identity> CheckCaller(const Guard* guard,
                                           const grpc::ServerContextBase& context,
                                           auth::Roles roles);

}  // namespace oscarkv::rpc
