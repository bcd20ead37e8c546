// What membership needs of etcd v3, as blocking calls; etcd_stub.h speaks gRPC, tests have a fake.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"

namespace oscarkv {

// One endpoint of the registry. Thread-safe. Errors of reaching it are kUnavailable or
// kDeadlineExceeded.
class Registry {
 public:
  virtual ~Registry() = default;

  struct Entry {
    std::string key, value;
  };
  struct Listing {
    int64_t revision = 0;  // of the registry when it was made
    std::vector<Entry> entries;
  };
  virtual absl::StatusOr<Listing> List(const std::string& folder, Time deadline) = 0;

  struct Event {
    bool removed = false;
    Entry entry;  // removed: without value
  };
  // Blocks; calls `changed` with the events from `revision` on as they come. Ends with
  // kDeadlineExceeded at the deadline, kCancelled after Cancel, kOutOfRange when that revision was
  // compacted away.
  virtual absl::Status Watch(const std::string& folder, int64_t revision, Time deadline,
                             const std::function<void(const std::vector<Event>&)>& changed) = 0;

  virtual absl::StatusOr<int64_t> GrantLease(Duration ttl, Time deadline) = 0;
  // kNotFound: the lease has expired, and what was put with it is gone.
  virtual absl::Status KeepLease(int64_t lease, Time deadline) = 0;
  virtual absl::Status RevokeLease(int64_t lease, Time deadline) = 0;
  virtual absl::Status Put(const Entry& entry, int64_t lease, Time deadline) = 0;

  // Ends a running Watch and all later ones.
  virtual void Cancel() = 0;
};

using RegistryFactory = std::function<std::unique_ptr<Registry>(const std::string& endpoint)>;

}  // namespace oscarkv
