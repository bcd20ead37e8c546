// Membership from a registry: a fake one here; the real etcd is in tests/integration/etcd_test.py.
#include "kvstore/cluster/etcd_membership.h"

#include <gtest/gtest.h>

#include <optional>

#include "kvstore/cluster/member_record.h"

namespace oscarkv {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

Time In(Duration d) {
  return SteadyClock::Get()->Now() + d;
}

// One registry that many connections share; it can be unplugged and compacted, leases end on
// demand.
class FakeEtcd {
 public:
  RegistryFactory Factory() {
    return [this](const std::string&) { return std::make_unique<Connection>(this); };
  }
  void Put(const Member& m) {
    Change(false, {MemberFolder("/t/") + m.endpoint, MemberValue(m)}, 0);
  }
  void PutRaw(const std::string& endpoint, const std::string& value) {
    Change(false, {MemberFolder("/t/") + endpoint, value}, 0);
  }
  void Remove(const std::string& endpoint) {
    Change(true, {MemberFolder("/t/") + endpoint, ""}, 0);
  }
  void SetPlugged(bool plugged) {
    MutexLock lock(mu_);
    plugged_ = plugged;
    changed_.NotifyAll();
  }
  // Without an event: as if it happened behind a compaction.
  void Forget(const std::string& endpoint) {
    MutexLock lock(mu_);
    entries_.erase(MemberFolder("/t/") + endpoint);
    log_.clear();
    compacted_ = ++revision_;
    changed_.NotifyAll();
  }
  void EndLeases() {
    MutexLock lock(mu_);
    for (auto it = entries_.begin(); it != entries_.end();) {
      if (it->second.second == 0) {
        ++it;
        continue;
      }
      log_.push_back({++revision_, {true, {it->first, ""}}});
      it = entries_.erase(it);
    }
    leases_.clear();
    changed_.NotifyAll();
  }
  std::optional<Member> Find(const std::string& endpoint) {
    MutexLock lock(mu_);
    const auto it = entries_.find(MemberFolder("/t/") + endpoint);
    if (it == entries_.end()) return std::nullopt;
    return *ParseMemberRecord(MemberFolder("/t/"), it->first, it->second.first);
  }

 private:
  struct Logged {
    int64_t revision;
    Registry::Event event;
  };
  class Connection final : public Registry {
   public:
    explicit Connection(FakeEtcd* etcd) : etcd_(etcd) {}
    absl::StatusOr<Listing> List(const std::string&, Time) override {
      MutexLock lock(etcd_->mu_);
      if (!etcd_->plugged_) return absl::UnavailableError("unplugged");
      Listing listing;
      listing.revision = etcd_->revision_;
      for (const auto& [key, value] : etcd_->entries_)
        listing.entries.push_back({key, value.first});
      return listing;
    }
    absl::Status Watch(const std::string&, int64_t revision, Time deadline,
                       const std::function<void(const std::vector<Event>&)>& changed) override {
      for (;;) {
        std::vector<Event> events;
        {
          MutexLock lock(etcd_->mu_);
          for (;;) {
            if (cancelled_) return absl::CancelledError("cancelled");
            if (!etcd_->plugged_) return absl::UnavailableError("unplugged");
            if (revision <= etcd_->compacted_) return absl::OutOfRangeError("compacted");
            for (const Logged& l : etcd_->log_) {
              if (l.revision >= revision) events.push_back(l.event);
            }
            if (!events.empty()) break;
            if (!etcd_->changed_.WaitUntil(etcd_->mu_, deadline))
              return absl::DeadlineExceededError("time is up");
          }
          revision = etcd_->revision_ + 1;
        }
        changed(events);
      }
    }
    absl::StatusOr<int64_t> GrantLease(Duration, Time) override {
      MutexLock lock(etcd_->mu_);
      if (!etcd_->plugged_) return absl::UnavailableError("unplugged");
      etcd_->leases_.push_back(++etcd_->last_lease_);
      return etcd_->last_lease_;
    }
    absl::Status KeepLease(int64_t lease, Time) override {
      MutexLock lock(etcd_->mu_);
      if (!etcd_->plugged_) return absl::UnavailableError("unplugged");
      const bool known = std::count(etcd_->leases_.begin(), etcd_->leases_.end(), lease) > 0;
      return known ? absl::OkStatus() : absl::NotFoundError("expired");
    }
    absl::Status RevokeLease(int64_t, Time) override {
      etcd_->EndLeases();
      return absl::OkStatus();
    }
    absl::Status Put(const Entry& entry, int64_t lease, Time) override {
      {
        MutexLock lock(etcd_->mu_);
        if (!etcd_->plugged_) return absl::UnavailableError("unplugged");
      }
      etcd_->Change(false, entry, lease);
      return absl::OkStatus();
    }
    void Cancel() override {
      MutexLock lock(etcd_->mu_);
      cancelled_ = true;
      etcd_->changed_.NotifyAll();
    }

   private:
    FakeEtcd* const etcd_;
    bool cancelled_ = false;  // under the etcd's lock
  };

  void Change(bool removed, const Registry::Entry& entry, int64_t lease) {
    MutexLock lock(mu_);
    if (removed) {
      entries_.erase(entry.key);
    } else {
      entries_[entry.key] = {entry.value, lease};
    }
    log_.push_back({++revision_, {removed, entry}});
    changed_.NotifyAll();
  }

  Mutex mu_;
  CondVar changed_;
  bool plugged_ GUARDED_BY(mu_) = true;
  int64_t revision_ GUARDED_BY(mu_) = 1, compacted_ GUARDED_BY(mu_) = 0,
                    last_lease_ GUARDED_BY(mu_) = 0;
  std::map<std::string, std::pair<std::string, int64_t>> entries_ GUARDED_BY(mu_);
  std::vector<Logged> log_ GUARDED_BY(mu_);
  std::vector<int64_t> leases_ GUARDED_BY(mu_);
};

Member Node(const std::string& endpoint, uint64_t incarnation = 7) {
  Member m;
  m.endpoint = endpoint;
  m.zone = "z";
  m.weight = 2;
  m.incarnation = incarnation;
  m.capacity_bytes = 1 << 30;
  m.transport_address = std::string("\0\xff", 2);
  return m;
}

EtcdOptions Quick() {
  EtcdOptions o;
  o.endpoints = {"e:1"};
  o.prefix = "/t/";
  o.first_pause = o.longest_pause = milliseconds(5);
  o.lease_ttl = milliseconds(30);
  o.grace = seconds(600);
  return o;
}

// Until the condition holds; what is waited for is another thread.
template <typename Condition>
void Await(Condition condition) {
  const Time deadline = In(seconds(20));
  while (!condition()) {
    ASSERT_LT(SteadyClock::Get()->Now(), deadline) << "waited in vain";
    std::this_thread::sleep_for(milliseconds(1));
  }
}

std::string Names(const Membership& membership) {
  std::string names;
  const auto view = membership.Current();
  for (const Member& m : view->members) names += m.endpoint + " ";
  return names;
}

TEST(EtcdMembershipTest, JoinChangeLeave) {
  FakeEtcd etcd;
  etcd.Put(Node("a:1"));
  etcd.PutRaw("broken", "weight=heavy");
  EtcdMembership membership(Quick(), etcd.Factory());
  ASSERT_TRUE(membership.WaitForFirst(In(seconds(20))).ok());
  EXPECT_EQ(Names(membership), "a:1 ");
  EXPECT_EQ(membership.Current()->members[0], Node("a:1"));
  std::atomic<int> calls{0};
  membership.Listen([&] { ++calls; });
  etcd.Put(Node("b:1"));
  Await([&] { return Names(membership) == "a:1 b:1 "; });
  const uint64_t revision = membership.Current()->revision;
  etcd.Put(Node("a:1", 8));
  Await([&] { return membership.Current()->members[0].incarnation == 8; });
  EXPECT_GT(membership.Current()->revision, revision);
  etcd.Remove("b:1");
  Await([&] { return Names(membership) == "a:1 "; });
  EXPECT_GE(calls.load(), 3);
  membership.Listen(nullptr);
}

TEST(EtcdMembershipTest, TheViewStaysWhileTheRegistryIsAway) {
  FakeEtcd etcd;
  etcd.Put(Node("a:1"));
  etcd.Put(Node("b:1"));
  EtcdMembership membership(Quick(), etcd.Factory());
  ASSERT_TRUE(membership.WaitForFirst(In(seconds(20))).ok());
  etcd.SetPlugged(false);
  Await([&] { return membership.state().error.find("unplugged") != std::string::npos; });
  EXPECT_FALSE(membership.state().connected);
  EXPECT_EQ(Names(membership), "a:1 b:1 ");
  // Whoever lost its record meanwhile gets time to put it again.
  etcd.Forget("a:1");
  etcd.Put(Node("c:1"));
  etcd.SetPlugged(true);
  Await([&] { return Names(membership) == "a:1 b:1 c:1 "; });
  EXPECT_TRUE(membership.state().connected);
  etcd.Put(Node("a:1", 9));
  Await([&] { return membership.Current()->members[0].incarnation == 9; });
}

TEST(EtcdMembershipTest, GraceEnds) {
  FakeEtcd etcd;
  etcd.Put(Node("a:1"));
  etcd.Put(Node("b:1"));
  EtcdOptions o = Quick();
  o.grace = milliseconds(50);
  EtcdMembership membership(o, etcd.Factory());
  ASSERT_TRUE(membership.WaitForFirst(In(seconds(20))).ok());
  etcd.Forget("a:1");  // the watch ends: compacted; a new list lacks it
  Await([&] { return Names(membership) == "b:1 "; });
}

TEST(EtcdMembershipTest, NoRegistryAtTheStartIsAnError) {
  FakeEtcd etcd;
  etcd.SetPlugged(false);
  EtcdMembership membership(Quick(), etcd.Factory());
  Await([&] { return membership.state().error.find("unplugged") != std::string::npos; });
  EXPECT_EQ(membership.WaitForFirst(In(milliseconds(1))).code(), absl::StatusCode::kUnavailable);
}

TEST(EtcdRegistrationTest, KeepsTheRecordAndTakesItAway) {
  FakeEtcd etcd;
  std::atomic<int> registered{0};
  EtcdRegistration registration(Quick(), Node("a:1"), etcd.Factory(),
                                [&](bool is) { registered += is ? 1 : 0; });
  Await([&] { return registration.registered(); });
  EXPECT_EQ(etcd.Find("a:1"), Node("a:1"));
  etcd.EndLeases();  // as after a long standstill
  Await([&] { return registered == 2 && etcd.Find("a:1").has_value(); });
  etcd.SetPlugged(false);
  Await([&] { return !registration.registered(); });
  etcd.SetPlugged(true);
  Await([&] { return registration.registered(); });
  registration.Drain();
  Await([&] { return etcd.Find("a:1")->draining; });
  registration.Leave();
  EXPECT_FALSE(etcd.Find("a:1").has_value());
}

TEST(MemberRecordTest, WhatCannotBeReadIsNamed) {
  const std::string folder = MemberFolder("/t");
  EXPECT_EQ(folder, "/t/nodes/");
  EXPECT_EQ(*ParseMemberRecord(folder, folder + "a:1", MemberValue(Node("a:1"))), Node("a:1"));
  EXPECT_TRUE(ParseMemberRecord(folder, folder + "a:1", "later=1\nnonsense").ok());
  for (const char* value : {"version=2", "weight=0", "weight=nan", "weight=x", "capacity=-1",
                            "incarnation=xyz", "draining=2"}) {
    EXPECT_EQ(ParseMemberRecord(folder, folder + "a:1", value).status().code(),
              absl::StatusCode::kInvalidArgument)
        << value;
  }
  for (const char* name : {"", ":1", "a", "a:", "a:0", "a:99999"}) {
    EXPECT_FALSE(ParseMemberRecord(folder, folder + name, "").ok()) << name;
  }
  EXPECT_FALSE(ParseMemberRecord(folder, "/other/a:1", "").ok());
  EXPECT_FALSE(ParseMemberRecord(folder, folder + "a:1", std::string(1 << 20, 'x')).ok());
}

}  // namespace
}  // namespace oscarkv
