#include "common/auth/auth_file.h"

#include <algorithm>
#include <ctime>
#include <set>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"

namespace oscarkv::auth {
namespace {

constexpr int kMaxRunning = 1 << 20;
constexpr int64_t kMaxRate = 1'000'000'000'000;

absl::Status Expected(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("expected ", what));
}

bool IsName(absl::string_view text, size_t max) {
  return !text.empty() && text.size() <= max && std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
           absl::string_view("-_.:@/").find(c) != absl::string_view::npos;
  });
}

absl::StatusOr<Roles> ParseRoles(absl::string_view text) {
  Roles roles = 0;
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    const Roles role = part == "client"     ? kClient
                       : part == "worker"   ? kWorker
                       : part == "operator" ? kOperator
                                            : 0;
    if (role == 0) return Expected("roles=client, worker or operator, several with commas");
    roles |= role;
  }
  return roles;
}

absl::Status SetEntryField(absl::string_view name, absl::string_view value, AuthEntry* entry) {
  if (name == "tenant" || name == "name") {
    if (!IsName(value, kMaxAuthNameBytes)) {
      return Expected(absl::StrCat(name, "= 1 to ", kMaxAuthNameBytes,
                                   " letters, digits or characters of -_.:@/"));
    }
    (name == "name" ? entry->identity.name : entry->identity.tenant) = std::string(value);
    return absl::OkStatus();
  }
  if (name == "roles") {
    ASSIGN_OR_RETURN(entry->identity.roles, ParseRoles(value));
    return absl::OkStatus();
  }
  if (name == "expires") {
    ASSIGN_OR_RETURN(entry->expires_unix_s, ParseUtc(value));
    return absl::OkStatus();
  }
  return Expected("tenant=, roles=, expires= or name=");
}

absl::Status SetLimit(absl::string_view name, absl::string_view value, TenantLimits* limits) {
  if (name == "max-running") {
    if (absl::SimpleAtoi(value, &limits->max_running) && limits->max_running >= 0 &&
        limits->max_running <= kMaxRunning)
      return absl::OkStatus();
    return Expected(absl::StrCat("max-running= a number in 0..", kMaxRunning));
  }
  if (name == "tokens-per-second") {
    if (absl::SimpleAtoi(value, &limits->tokens_per_second) && limits->tokens_per_second >= 0 &&
        limits->tokens_per_second <= kMaxRate)
      return absl::OkStatus();
    return Expected(absl::StrCat("tokens-per-second= a number in 0..", kMaxRate));
  }
  return Expected("max-running= or tokens-per-second=");
}

// Calls set(name, value) for the words from the third on, each name at most once.
template <typename Set>
absl::Status ForFields(const std::vector<absl::string_view>& words, Set set) {
  std::set<absl::string_view> seen;
  for (size_t i = 2; i < words.size(); ++i) {
    const size_t equals = words[i].find('=');
    if (equals == absl::string_view::npos) return Expected("name=value from the third word on");
    const absl::string_view name = words[i].substr(0, equals);
    if (!seen.insert(name).second) return Expected("each name= once");
    RETURN_IF_ERROR(set(name, words[i].substr(equals + 1)));
  }
  return absl::OkStatus();
}

absl::Status ParseEntry(const std::vector<absl::string_view>& words, AuthFile* file) {
  const bool token = words[0] == "token";
  absl::string_view what = words[1];
  AuthEntry entry;
  entry.identity.roles = kClient;
  RETURN_IF_ERROR(ForFields(words, [&](absl::string_view name, absl::string_view value) {
    return SetEntryField(name, value, &entry);
  }));
  if (!token) {
    if (!IsName(what, 253)) return Expected("cert and a name of a certificate");
    if (entry.identity.name.empty()) entry.identity.name = std::string(what);
    if (!file->certificates.try_emplace(std::string(what), entry).second)
      return Expected("each certificate name once");
    return absl::OkStatus();
  }
  if (!absl::ConsumePrefix(&what, "sha256:") || what.size() != 64 ||
      !std::all_of(what.begin(), what.end(),
                   [](char c) { return absl::ascii_isxdigit(static_cast<unsigned char>(c)); })) {
    return Expected("token sha256: and 64 hex digits, as `oscarkv token new` writes them");
  }
  const std::string digest = absl::AsciiStrToLower(what);
  if (entry.identity.name.empty())
    entry.identity.name = absl::StrCat("token-", digest.substr(0, 8));
  if (!file->tokens.try_emplace(digest, entry).second) return Expected("each token once");
  return absl::OkStatus();
}

absl::Status ParseLine(absl::string_view line, AuthFile* file) {
  const std::vector<absl::string_view> words =
      absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
  if (words.size() < 2) return Expected("token, cert or tenant, then a name");
  if (words[0] == "token" || words[0] == "cert") return ParseEntry(words, file);
  if (words[0] != "tenant") return Expected("token, cert or tenant as the first word");
  if (!IsName(words[1], kMaxAuthNameBytes)) return Expected("a tenant's name");
  TenantLimits limits;
  RETURN_IF_ERROR(ForFields(words, [&](absl::string_view name, absl::string_view value) {
    return SetLimit(name, value, &limits);
  }));
  if (!file->tenants.try_emplace(std::string(words[1]), limits).second)
    return Expected("each tenant once");
  return absl::OkStatus();
}

}  // namespace

std::string RolesText(Roles roles) {
  std::vector<const char*> names;
  if ((roles & kClient) != 0) names.push_back("client");
  if ((roles & kWorker) != 0) names.push_back("worker");
  if ((roles & kOperator) != 0) names.push_back("operator");
  return absl::StrJoin(names, ",");
}

absl::StatusOr<int64_t> ParseUtc(absl::string_view text) {
  std::tm t{};
  const std::string copy(text);
  const char* end = strptime(copy.c_str(), "%Y-%m-%dT%H:%M:%SZ", &t);
  // timegm would turn a 31st of February into a day of March.
  const std::tm parsed = t;
  const int64_t seconds = end == nullptr ? -1 : timegm(&t);
  if (end == nullptr || *end != '\0' || copy.size() != 20 || seconds < 0 ||
      parsed.tm_mday != t.tm_mday)
    return Expected("a time such as 2027-01-31T00:00:00Z");
  return seconds;
}

absl::StatusOr<AuthFile> ParseAuthFile(absl::string_view source, absl::string_view text) {
  if (text.size() > kMaxAuthFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ": ", text.size(), " bytes: expected at most ", kMaxAuthFileBytes));
  }
  AuthFile file;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line.front() == '#') continue;
    if (const absl::Status status = ParseLine(line, &file); !status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(source, ", line ", number, ": ", status.message()));
    }
  }
  return file;
}

}  // namespace oscarkv::auth
