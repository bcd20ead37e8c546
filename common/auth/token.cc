#include "common/auth/token.h"

#include <sys/random.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/sha256.h"
#include "common/status_macros.h"

namespace oscarkv::auth {

absl::StatusOr<std::string> NewToken() {
  char bytes[32];
  if (getrandom(bytes, sizeof(bytes), 0) != static_cast<ssize_t>(sizeof(bytes)))
    return absl::UnavailableError("the system gives no random bytes");
  return absl::StrCat("okv_", absl::WebSafeBase64Escape(absl::string_view(bytes, sizeof(bytes))));
}

std::string TokenDigest(absl::string_view token) {
  return ToHex(Sha256().Update(token).Finish());
}

absl::StatusOr<std::shared_ptr<TokenSource>> TokenSource::Open(const std::string& path,
                                                               const Clock* clock) {
  std::shared_ptr<TokenSource> source(new TokenSource(path, clock));
  MutexLock lock(source->mu_);
  RETURN_IF_ERROR(source->Read());
  return source;
}

absl::Status TokenSource::Read() const {
  ASSIGN_OR_RETURN(const std::string text, file_.Read());
  const absl::string_view token = absl::StripAsciiWhitespace(text);
  const bool printable = std::all_of(token.begin(), token.end(), [](char c) {
    return absl::ascii_isgraph(static_cast<unsigned char>(c));
  });
  if (token.empty() || !printable) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_.path(), ": expected one line with a token"));
  }
  token_ = std::string(token);
  return absl::OkStatus();
}

std::string TokenSource::Header() const {
  MutexLock lock(mu_);
  // A file that is being replaced, or gone: the token may still be good.
  if (file_.Changed()) Read().IgnoreError();
  return absl::StrCat("Bearer ", token_);
}

}  // namespace oscarkv::auth
