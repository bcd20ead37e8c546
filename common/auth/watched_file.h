// A small file that is read again when it was replaced. No thread: whoever uses it looks at the
// file's stamp at most once per interval.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "common/clock.h"

namespace oscarkv::auth {

// Thread-compatible.
class WatchedFile {
 public:
  WatchedFile(std::string path, size_t max_bytes, const Clock* clock)
      : path_(std::move(path)), max_bytes_(max_bytes), clock_(clock) {}

  const std::string& path() const { return path_; }
  // Whether the file is another than at the last Read. False within a second of the last look.
  bool Changed();
  // kInvalidArgument: it cannot be read, is no regular file, or is too large.
  absl::StatusOr<std::string> Read();

 private:
  struct Stamp {
    uint64_t device = 0, inode = 0, size = 0;
    int64_t modified_ns = 0;
    bool operator==(const Stamp&) const = default;
  };
  static Stamp StampOf(const std::string& path);

  const std::string path_;
  const size_t max_bytes_;
  const Clock* const clock_;
  Stamp stamp_;
  Time looked_{};
};

}  // namespace oscarkv::auth
