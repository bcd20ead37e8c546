#include "common/auth/watched_file.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace oscarkv::auth {
namespace {
constexpr Duration kLookEvery = std::chrono::seconds(1);
}  // namespace

WatchedFile::Stamp WatchedFile::StampOf(const std::string& path) {
  struct stat s {};
  if (stat(path.c_str(), &s) != 0) return {};
  return {s.st_dev, s.st_ino, static_cast<uint64_t>(s.st_size),
          s.st_mtim.tv_sec * 1'000'000'000 + s.st_mtim.tv_nsec};
}

bool WatchedFile::Changed() {
  const Time now = clock_->Now();
  if (now - looked_ < kLookEvery) return false;
  looked_ = now;
  return StampOf(path_) != stamp_;
}

absl::StatusOr<std::string> WatchedFile::Read() {
  looked_ = clock_->Now();
  stamp_ = StampOf(path_);  // before reading: a file that changes meanwhile is read again
  struct stat s {};
  if (stat(path_.c_str(), &s) != 0)
    return absl::InvalidArgumentError(absl::StrCat(path_, ": ", std::strerror(errno)));
  if (!S_ISREG(s.st_mode))
    return absl::InvalidArgumentError(absl::StrCat(path_, ": expected a regular file"));
  std::FILE* file = std::fopen(path_.c_str(), "rb");
  if (file == nullptr)
    return absl::InvalidArgumentError(absl::StrCat(path_, ": ", std::strerror(errno)));
  std::string text(max_bytes_ + 1, '\0');
  text.resize(std::fread(text.data(), 1, text.size(), file));
  const bool bad = std::ferror(file) != 0;
  std::fclose(file);
  if (bad) return absl::InvalidArgumentError(absl::StrCat(path_, ": cannot be read"));
  if (text.size() > max_bytes_) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": expected at most ", max_bytes_, " bytes"));
  }
  return text;
}

}  // namespace oscarkv::auth
