// W3C trace context: which trace a request belongs to, as its header "traceparent" says
// ("00-<32 hex digits>-<16 hex digits>-<2 hex digits>").
#pragma once

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace oscarkv {

inline constexpr char kTraceparent[] = "traceparent";  // of HTTP and of gRPC's metadata

// The id of the trace, 32 lower-case hex digits; nothing when the header is not a valid one (it is
// then to be ignored, says the standard). Longer forms of later versions are understood.
std::optional<std::string> TraceIdOf(absl::string_view traceparent);
// A header that names a new span of this trace. trace_id: as TraceIdOf gives it.
std::string MakeTraceparent(absl::string_view trace_id);
// Random, never all zeros.
std::string NewTraceId();

// The trace of the request that this thread works for at the moment; empty: none. Log lines carry
// it, and so do calls to KV nodes.
const std::string& CurrentTrace();

// While it lives, its thread works for this trace; then for the one before. trace_id: as TraceIdOf
// gives it, or empty.
class TraceScope {
 public:
  explicit TraceScope(std::string trace_id);
  ~TraceScope();
  TraceScope(const TraceScope&) = delete;
  TraceScope& operator=(const TraceScope&) = delete;

 private:
  std::string before_;
};

}  // namespace oscarkv
