// Bearer tokens: making them, and presenting this process's own.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/auth/watched_file.h"
#include "common/mutex.h"

namespace oscarkv::auth {

inline constexpr size_t kMaxTokenBytes = 512;

// "okv_" and 43 characters of base64url: 256 random bits. kUnavailable: the system has none.
absl::StatusOr<std::string> NewToken();
// Lower-case hex of the token's SHA-256, as the auth file has it behind "sha256:".
std::string TokenDigest(absl::string_view token);

// The token of --token-file: the file's one line, read again when the file was replaced.
// Thread-safe.
class TokenSource {
 public:
  // kInvalidArgument: unreadable, empty, or not one line of printable characters.
  static absl::StatusOr<std::shared_ptr<TokenSource>> Open(const std::string& path,
                                                           const Clock* clock = SteadyClock::Get());
  // "Bearer TOKEN". What was read last, when the file is no good now.
  std::string Header() const;

 private:
  TokenSource(const std::string& path, const Clock* clock) : file_(path, kMaxTokenBytes, clock) {}
  absl::Status Read() const REQUIRES(mu_);

  mutable Mutex mu_;
  mutable WatchedFile file_ GUARDED_BY(mu_);
  mutable std::string token_ GUARDED_BY(mu_);
};

}  // namespace oscarkv::auth
