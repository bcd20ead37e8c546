// SHA-256 digests: block keys and the fingerprints of models and codecs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"

namespace oscarkv {

using Sha256Digest = std::array<uint8_t, 32>;

// Incremental; one thread at a time.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  Sha256& Update(const void* data, size_t size);
  Sha256& Update(absl::string_view s) { return Update(s.data(), s.size()); }
  // Little-endian, eight bytes.
  Sha256& UpdateU64(uint64_t v);
  // Length (UpdateU64) then bytes: unambiguous concatenation of strings.
  Sha256& UpdateField(absl::string_view s) { return UpdateU64(s.size()).Update(s); }
  // The digest; afterwards the object starts anew.
  Sha256Digest Finish();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

std::string ToHex(const void* data, size_t size);
inline std::string ToHex(const Sha256Digest& d) {
  return ToHex(d.data(), d.size());
}

}  // namespace oscarkv
