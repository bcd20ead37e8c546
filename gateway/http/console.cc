#include "gateway/http/console.h"

#include <cstddef>

namespace oscarkv::gateway {

// Made by cmake/Embed.cmake.
namespace embedded {
extern const unsigned char kPage[], kStyle[], kScript[], kIcon[];
extern const size_t kPageSize, kStyleSize, kScriptSize, kIconSize;
}  // namespace embedded

namespace {

absl::string_view Text(const unsigned char* bytes, size_t size) {
  return {reinterpret_cast<const char*>(bytes), size};
}

}  // namespace

const ConsoleFile* FindConsoleFile(absl::string_view path) {
  using namespace embedded;
  static const ConsoleFile kFiles[] = {
      {"/", "text/html; charset=utf-8", Text(kPage, kPageSize)},
      {"/console/console.css", "text/css; charset=utf-8", Text(kStyle, kStyleSize)},
      {"/console/console.js", "text/javascript; charset=utf-8", Text(kScript, kScriptSize)},
      {"/console/icon.svg", "image/svg+xml", Text(kIcon, kIconSize)},
  };
  for (const ConsoleFile& file : kFiles) {
    if (path == file.path) return &file;
  }
  return nullptr;
}

}  // namespace oscarkv::gateway
