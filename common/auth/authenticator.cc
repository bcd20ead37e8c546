#include "common/auth/authenticator.h"

#include <ctime>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/auth/token.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace oscarkv::auth {

int64_t SystemUnixSeconds() {
  return std::time(nullptr);
}

absl::StatusOr<std::shared_ptr<Authenticator>> Authenticator::Open(const std::string& path,
                                                                   const Clock* clock,
                                                                   WallClock wall) {
  std::shared_ptr<Authenticator> made(new Authenticator(path, clock, std::move(wall)));
  MutexLock lock(made->mu_);
  RETURN_IF_ERROR(made->Read());
  return made;
}

absl::Status Authenticator::Read() {
  ASSIGN_OR_RETURN(const std::string text, file_.Read());
  ASSIGN_OR_RETURN(AuthFile entries, ParseAuthFile(file_.path(), text));
  entries_ = std::make_shared<const AuthFile>(std::move(entries));
  return absl::OkStatus();
}

std::shared_ptr<const AuthFile> Authenticator::Current() {
  MutexLock lock(mu_);
  if (file_.Changed()) {
    const absl::Status status = Read();
    if (status.ok()) {
      LogInfo("auth file read again", {{"file", file_.path()},
                                       {"tokens", absl::StrCat(entries_->tokens.size())},
                                       {"certs", absl::StrCat(entries_->certificates.size())}});
    } else {
      LogError("the auth file is no good: the former one stays in force",
               {{"error", std::string(status.message())}});
    }
  }
  return entries_;
}

absl::StatusOr<Identity> Authenticator::Admit(const AuthEntry& entry) const {
  if (wall_() >= entry.expires_unix_s) {
    return absl::UnauthenticatedError(
        absl::StrCat("the credentials of '", entry.identity.name, "' have expired"));
  }
  return entry.identity;
}

absl::StatusOr<Identity> Authenticator::Bearer(absl::string_view authorization) {
  constexpr absl::string_view kScheme = "bearer ";
  if (!absl::StartsWithIgnoreCase(authorization, kScheme)) {
    return absl::UnauthenticatedError("the authorization header is not \"Bearer TOKEN\"");
  }
  const absl::string_view token = absl::StripAsciiWhitespace(authorization.substr(kScheme.size()));
  if (token.empty() || token.size() > kMaxTokenBytes)
    return absl::UnauthenticatedError("the bearer token has the wrong length");
  const std::shared_ptr<const AuthFile> entries = Current();
  // Found by its digest: how long that takes says nothing about the tokens that exist.
  const auto it = entries->tokens.find(TokenDigest(token));
  if (it == entries->tokens.end()) return absl::UnauthenticatedError("unknown bearer token");
  return Admit(it->second);
}

absl::StatusOr<Identity> Authenticator::Certificate(absl::Span<const std::string> names) {
  const std::shared_ptr<const AuthFile> entries = Current();
  for (const std::string& name : names) {
    const auto it = entries->certificates.find(name);
    if (it != entries->certificates.end()) return Admit(it->second);
  }
  if (names.empty()) {
    return absl::UnauthenticatedError(
        "no credentials: expected a bearer token in the authorization header or a client "
        "certificate");
  }
  return absl::UnauthenticatedError(absl::StrCat("no entry for the client certificate's names (",
                                                 absl::StrJoin(names, ", ").substr(0, 200), ")"));
}

absl::StatusOr<Identity> Authenticator::Check(absl::string_view authorization,
                                              absl::Span<const std::string> names, Roles roles) {
  ASSIGN_OR_RETURN(const Identity identity,
                   authorization.empty() ? Certificate(names) : Bearer(authorization));
  if (identity.Has(roles)) return identity;
  return absl::PermissionDeniedError(absl::StrCat("'", identity.name, "' has the role ",
                                                  RolesText(identity.roles), ", this call needs ",
                                                  RolesText(roles)));
}

TenantLimits Authenticator::LimitsOf(absl::string_view tenant, const TenantLimits& defaults) {
  const std::shared_ptr<const AuthFile> entries = Current();
  const auto it = entries->tenants.find(tenant);
  return it == entries->tenants.end() ? defaults : it->second;
}

}  // namespace oscarkv::auth
