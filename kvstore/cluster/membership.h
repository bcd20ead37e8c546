// Which nodes make up the store. A static list here; a registry with leases stands behind the same
// interface later.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace oscarkv {

// The members at one moment. Immutable.
struct MemberList {
  uint64_t revision = 0;           // grows with every change
  std::vector<std::string> nodes;  // gRPC endpoints, sorted, distinct
};

// Thread-safe; no call blocks.
class Membership {
 public:
  virtual ~Membership() = default;
  virtual std::shared_ptr<const MemberList> Current() const = 0;
};

class StaticMembership final : public Membership {
 public:
  // Sorts and removes duplicates: every client of the same list sees the same order.
  explicit StaticMembership(std::vector<std::string> nodes);
  std::shared_ptr<const MemberList> Current() const override { return list_; }

 private:
  std::shared_ptr<const MemberList> list_;
};

}  // namespace oscarkv
