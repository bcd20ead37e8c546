#include "model/bounded_json.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

using nlohmann::json;

// A first pass that builds nothing: it stops at the first thing that is wrong and says where.
class Checker final : public nlohmann::json_sax<json> {
 public:
  explicit Checker(const JsonLimits& limits) : limits_(limits) {}

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return Enter(); }
  bool start_array(std::size_t) override { return Enter(); }
  bool end_object() override { return Leave(); }
  bool end_array() override { return Leave(); }
  bool key(string_t& key) override {
    if (!keys_.back().insert(key).second) {
      error_ = absl::StrCat("key \"", key.substr(0, 100), "\" appears twice in one object");
      return false;
    }
    if (keys_.back().size() <= limits_.max_members) return true;
    error_ = absl::StrCat("an object has more than ", limits_.max_members, " members");
    return false;
  }
  bool parse_error(std::size_t position, const std::string& token,
                   const nlohmann::detail::exception& e) override {
    error_ = absl::StrCat("not valid JSON at byte ", position, ": ",
                          absl::string_view(e.what()).substr(0, 300));
    return false;
  }
  const std::string& error() const { return error_; }

 private:
  bool Enter() {
    keys_.emplace_back();
    if (keys_.size() <= limits_.max_depth) return true;
    error_ = absl::StrCat("nested deeper than ", limits_.max_depth, " levels");
    return false;
  }
  bool Leave() {
    keys_.pop_back();
    return true;
  }

  const JsonLimits limits_;
  std::vector<absl::flat_hash_set<std::string>> keys_;  // one per open object or array
  std::string error_;
};

template <typename Json>
absl::StatusOr<Json> Parse(absl::string_view text, absl::string_view what,
                           const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": ", text.size(), " bytes, the limit is ", limits.max_bytes));
  }
  Checker checker(limits);
  if (!json::sax_parse(text.begin(), text.end(), &checker)) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": ", checker.error()));
  }
  Json parsed = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": not valid JSON"));
  }
  return parsed;
}

template <typename Json>
bool Integer(const Json& value, int64_t min, int64_t max, int64_t* out) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned() &&
      value.template get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return false;
  }
  *out = value.template get<int64_t>();
  return *out >= min && *out <= max;
}

template <typename Json>
std::string Excerpt(const Json& value) {
  std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
  if (text.size() > 120) text = absl::StrCat(text.substr(0, 120), "...");
  return text;
}

}  // namespace

absl::StatusOr<json> ParseBoundedJson(absl::string_view text, absl::string_view what,
                                      const JsonLimits& limits) {
  return Parse<json>(text, what, limits);
}

absl::StatusOr<nlohmann::ordered_json> ParseBoundedOrderedJson(absl::string_view text,
                                                               absl::string_view what,
                                                               const JsonLimits& limits) {
  return Parse<nlohmann::ordered_json>(text, what, limits);
}

absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t max_bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  struct Closer {
    int fd;
    ~Closer() { ::close(fd); }
  } closer{fd};
  struct stat info;
  if (::fstat(fd, &info) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("stat ", path));
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  if (static_cast<uint64_t>(info.st_size) > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", info.st_size, " bytes, the limit is ", max_bytes));
  }
  std::string text(static_cast<size_t>(info.st_size), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::read(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path));
    if (n == 0) return absl::DataLossError(absl::StrCat(path, ": became shorter while read"));
    done += static_cast<size_t>(n);
  }
  return text;
}

const json* FindMember(const json& object, absl::string_view key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(std::string(key));
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

bool JsonInteger(const json& value, int64_t min, int64_t max, int64_t* out) {
  return Integer(value, min, max, out);
}
bool JsonInteger(const nlohmann::ordered_json& value, int64_t min, int64_t max, int64_t* out) {
  return Integer(value, min, max, out);
}

std::string JsonExcerpt(const json& value) {
  return Excerpt(value);
}
std::string JsonExcerpt(const nlohmann::ordered_json& value) {
  return Excerpt(value);
}

}  // namespace oscarkv
