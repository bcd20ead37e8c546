#include "common/rpc/guard.h"

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/status_macros.h"

namespace oscarkv::rpc {
namespace {

absl::string_view View(const grpc::string_ref& text) {
  return {text.data(), text.size()};
}

// The names that a client certificate proves; none without one.
std::vector<std::string> PeerNames(const grpc::ServerContextBase& context) {
  std::vector<std::string> names;
  const std::shared_ptr<const grpc::AuthContext> peer = context.auth_context();
  if (peer == nullptr || !peer->IsPeerAuthenticated()) return names;
  for (const char* property : {"x509_subject_alternative_name", "x509_common_name"}) {
    for (const grpc::string_ref& value : peer->FindPropertyValues(property))
      names.emplace_back(value.data(), value.size());
  }
  return names;
}

auth::Identity Everyone() {
  auth::Identity everyone;
  everyone.roles = auth::kAllRoles;
  everyone.everyone = true;
  return everyone;
}

}  // namespace

Guard::Guard(std::shared_ptr<auth::Authenticator> authenticator, MetricRegistry* registry)
    : authenticator_(std::move(authenticator)) {
  if (registry != nullptr) metrics_ = std::make_unique<auth::AuthMetrics>(registry);
}

absl::StatusOr<std::unique_ptr<Guard>> Guard::Create(const auth::SecurityOptions& options,
                                                     MetricRegistry* registry) {
  std::shared_ptr<auth::Authenticator> authenticator;
  if (!options.auth_file.empty()) {
    ASSIGN_OR_RETURN(authenticator, auth::Authenticator::Open(options.auth_file));
  }
  return std::make_unique<Guard>(std::move(authenticator), registry);
}

absl::StatusOr<auth::Identity> Guard::Check(const grpc::ServerContextBase& context,
                                            auth::Roles roles) const {
  if (authenticator_ == nullptr) return Everyone();
  const auto [begin, end] = context.client_metadata().equal_range("authorization");
  const absl::string_view header = begin == end ? "" : View(begin->second);
  if (begin != end && std::next(begin) != end)
    return Refuse(absl::UnauthenticatedError("several authorization headers: expected one"));
  return Check(header, PeerNames(context), roles);
}

absl::StatusOr<auth::Identity> Guard::Check(absl::string_view authorization,
                                            absl::Span<const std::string> names,
                                            auth::Roles roles) const {
  if (authenticator_ == nullptr) return Everyone();
  auto identity = authenticator_->Check(authorization, names, roles);
  return identity.ok() ? identity : Refuse(identity.status());
}

absl::Status Guard::Refuse(absl::Status status) const {
  if (metrics_ != nullptr)
    metrics_->refused.With({absl::StatusCodeToString(status.code())}).Increment();
  return status;
}

auth::TenantLimits Guard::LimitsOf(absl::string_view tenant,
                                   const auth::TenantLimits& defaults) const {
  return authenticator_ == nullptr ? defaults : authenticator_->LimitsOf(tenant, defaults);
}

absl::StatusOr<auth::Identity> CheckCaller(const Guard* guard,
                                           const grpc::ServerContextBase& context,
                                           auth::Roles roles) {
  return guard == nullptr ? Everyone() : guard->Check(context, roles);
}

}  // namespace oscarkv::rpc
