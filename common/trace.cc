#include "common/trace.h"

#include <algorithm>
#include <cstdint>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"

namespace oscarkv {
namespace {

constexpr size_t kTraceDigits = 32, kSpanDigits = 16;

bool IsId(absl::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); }) &&
         std::any_of(text.begin(), text.end(), [](char c) { return c != '0'; });
}

std::string& Current() {
  static thread_local std::string current;
  return current;
}

std::string Random64() {
  std::random_device random;
  const uint64_t value = uint64_t{random()} << 32 | random();
  return absl::StrCat(absl::Hex(value | 1, absl::kZeroPad16));  // not zero
}

}  // namespace

std::optional<std::string> TraceIdOf(absl::string_view traceparent) {
  constexpr size_t kSize = 2 + 1 + kTraceDigits + 1 + kSpanDigits + 1 + 2;
  if (traceparent.size() < kSize) return std::nullopt;
  const absl::string_view version = traceparent.substr(0, 2);
  const bool longer = traceparent.size() > kSize;
  if (version == "ff" || (version == "00" && longer)) return std::nullopt;
  if (version != "00" && !IsId(version)) return std::nullopt;
  if (longer && traceparent[kSize] != '-') return std::nullopt;
  if (traceparent[2] != '-' || traceparent[35] != '-' || traceparent[52] != '-') {
    return std::nullopt;
  }
  const absl::string_view trace = traceparent.substr(3, kTraceDigits);
  if (!IsId(trace) || !IsId(traceparent.substr(36, kSpanDigits))) return std::nullopt;
  return std::string(trace);
}

std::string MakeTraceparent(absl::string_view trace_id) {
  return absl::StrCat("00-", trace_id, "-", Random64(), "-01");
}

std::string NewTraceId() {
  return absl::StrCat(Random64(), Random64());
}

const std::string& CurrentTrace() {
  return Current();
}

TraceScope::TraceScope(std::string trace_id)
    : before_(std::exchange(Current(), std::move(trace_id))) {}

TraceScope::~TraceScope() {
  Current() = std::move(before_);
}

}  // namespace oscarkv
