// What became of the latest requests, and when: for `oscarkv trace`, the console, and whoever asks
// why an answer took so long.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/mutex.h"
#include "gateway/types.h"

namespace oscarkv::gateway {

struct RequestPhase {
  const char* name = "";
  Duration begin{0};        // since the request's arrival; a phase ends where the next one begins
  std::string worker = {};  // that was asked
  std::vector<CallPart> parts = {};  // of that worker's time
};

struct RequestRecord {
  std::string request_id;
  std::string trace_id;
  std::string tenant;
  int64_t arrived_unix_ms = 0;
  Duration lasted{0};  // so far, while it runs
  bool ended = false;
  absl::Status status;  // of one that ended
  std::vector<RequestPhase> phases;
  Usage usage;

  Duration PhaseLasted(size_t i) const {
    return (i + 1 < phases.size() ? phases[i + 1].begin : lasted) - phases[i].begin;
  }
};

// The last `capacity` requests that ended. Thread-safe.
class RequestLog {
 public:
  explicit RequestLog(size_t capacity) : capacity_(capacity) {}
  void Add(RequestRecord record);
  // By the id of the request or of its trace; the latest, when several have it.
  std::optional<RequestRecord> Find(absl::string_view id) const;
  // The latest first.
  std::vector<RequestRecord> Latest(size_t most) const;

 private:
  const size_t capacity_;
  mutable Mutex mu_;
  std::deque<RequestRecord> records_ GUARDED_BY(mu_);  // the latest in front
};

}  // namespace oscarkv::gateway
