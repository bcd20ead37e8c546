// Which nodes make up the store: a fixed list, or a registry with leases
// (kvstore/cluster/etcd_membership.h).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace oscarkv {

struct Member {
  std::string endpoint = {};    // gRPC, "host:port". Its name in placement: decides what it owns
  std::string zone = {};        // replicas go to different zones first; "": a zone of its own
  double weight = 1;            // its share of the blocks, against the others' weights
  uint64_t incarnation = 0;     // of its process; 0: not known
  uint64_t capacity_bytes = 0;  // 0: not known
  bool draining = false;        // about to leave: read from, not written to
  std::string transport_address = {};  // as it registered it; may be empty
  bool operator==(const Member&) const = default;
};

// "HOST:PORT[@ZONE][/WEIGHT]", as in --nodes. kInvalidArgument says what was wrong.
absl::StatusOr<Member> ParseMember(absl::string_view text);

// The members at one moment. Immutable.
struct MemberList {
  uint64_t revision = 0;        // grows with every change
  std::vector<Member> members;  // sorted by endpoint, which is distinct
};

// Where the view comes from and how fresh it is.
struct MembershipState {
  std::string source;     // "static", "etcd"
  bool connected = true;  // false: the registry cannot be reached, the view is the last one known
  std::string error;      // why not
};

// Thread-safe; no call blocks.
class Membership {
 public:
  virtual ~Membership() = default;
  virtual std::shared_ptr<const MemberList> Current() const = 0;
  virtual MembershipState state() const = 0;
  // `changed` runs after each change of Current or state, on a thread of the membership's; it must
  // not block for long. At most one listener; null ends it, and when that call returned it runs no
  // more.
  virtual void Listen(std::function<void()> changed) = 0;
};

class StaticMembership final : public Membership {
 public:
  // Sorts and removes duplicates: every client of the same list sees the same order.
  explicit StaticMembership(std::vector<Member> members);
  // From --nodes. kInvalidArgument: an entry that cannot be read, or twice with different zones.
  static absl::StatusOr<std::unique_ptr<StaticMembership>> Parse(
      const std::vector<std::string>& nodes);

  std::shared_ptr<const MemberList> Current() const override { return list_; }
  MembershipState state() const override { return {"static", true, ""}; }
  void Listen(std::function<void()>) override {}  // it never changes

 private:
  std::shared_ptr<const MemberList> list_;
};

}  // namespace oscarkv
