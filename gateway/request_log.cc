#include "gateway/request_log.h"

#include <algorithm>
#include <utility>

namespace oscarkv::gateway {

void RequestLog::Add(RequestRecord record) {
  MutexLock lock(mu_);
  records_.push_front(std::move(record));
  if (records_.size() > capacity_) records_.pop_back();
}

std::optional<RequestRecord> RequestLog::Find(absl::string_view id) const {
  MutexLock lock(mu_);
  for (const RequestRecord& record : records_) {
    if (record.request_id == id || record.trace_id == id) return record;
  }
  return std::nullopt;
}

std::vector<RequestRecord> RequestLog::Latest(size_t most) const {
  MutexLock lock(mu_);
  const auto end = records_.begin() + static_cast<ptrdiff_t>(std::min(most, records_.size()));
  return std::vector<RequestRecord>(records_.begin(), end);
}

}  // namespace oscarkv::gateway
