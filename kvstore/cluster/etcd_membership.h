// Membership from a registry with leases (etcd): the client's view, and a node's own registration.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "common/mutex.h"
#include "kvstore/cluster/membership.h"
#include "kvstore/cluster/registry.h"

namespace oscarkv {

struct EtcdOptions {
  std::vector<std::string> endpoints;  // HOST:PORT, tried in turn
  std::string prefix = "/oscarkv/";
  Duration call_timeout = std::chrono::seconds(2);
  Duration first_pause = std::chrono::milliseconds(100);  // after an error; doubles up to ...
  Duration longest_pause = std::chrono::seconds(5);
  // A member that is missing in a list made after an interruption stays in the view so long: its
  // lease may have run out only because the registry was away, and it registers again.
  Duration grace = std::chrono::seconds(30);
  Duration lease_ttl = std::chrono::seconds(10);  // a node that is silent so long is no member
};

// Lists, then watches from the list's revision; one thread. While the registry cannot be reached
// the view stays as it was.
class EtcdMembership final : public Membership {
 public:
  EtcdMembership(const EtcdOptions& options, RegistryFactory make_registry);
  ~EtcdMembership() override;

  // Waits for the first list. kUnavailable names the endpoint and the reason.
  absl::Status WaitForFirst(Time deadline);

  std::shared_ptr<const MemberList> Current() const override;
  MembershipState state() const override;
  void Listen(std::function<void()> changed) override;

 private:
  void Run();
  // One connection to the registry, until it breaks.
  absl::Status Follow(Registry* registry);
  void TakeList(const Registry::Listing& listing);
  void TakeEvents(const std::vector<Registry::Event>& events);
  // Makes Current from members_ and missing_, tells the listener.
  void Publish();
  void SetState(const absl::Status& error);
  bool Pause(Duration pause);  // false: stopped

  const EtcdOptions options_;
  const std::string folder_;
  const RegistryFactory make_registry_;
  // The thread's own.
  std::map<std::string, Member> members_;  // by key
  std::map<std::string, Time>
      missing_;  // keys of members_ that a list did not have, and until when

  mutable Mutex mu_;
  CondVar changed_;
  std::shared_ptr<const MemberList> list_ GUARDED_BY(mu_) = std::make_shared<const MemberList>();
  MembershipState state_ GUARDED_BY(mu_);
  bool have_list_ GUARDED_BY(mu_) = false;
  bool stop_ GUARDED_BY(mu_) = false;
  Registry* registry_ GUARDED_BY(mu_) = nullptr;  // the one in use
  Mutex listener_mu_;
  std::function<void()> listener_ GUARDED_BY(listener_mu_);
  std::thread thread_;  // last
};

// Keeps a node registered: a lease, the record under it, keepalives; again from the start when the
// lease was lost. One thread.
class EtcdRegistration {
 public:
  EtcdRegistration(const EtcdOptions& options, Member member, RegistryFactory make_registry,
                   std::function<void(bool registered)> report);
  ~EtcdRegistration();  // leaves

  bool registered() const;
  // Says that the node is about to leave: it is read from, not written to.
  void Drain();
  // Takes the record away. Idempotent.
  void Leave();

 private:
  void Run();
  absl::Status Keep(Registry* registry);
  bool Pause(Duration pause);
  void Report(bool registered, const absl::Status& why);

  const EtcdOptions options_;
  const RegistryFactory make_registry_;
  const std::function<void(bool)> report_;
  mutable Mutex mu_;
  CondVar changed_;
  Member member_ GUARDED_BY(mu_);
  bool dirty_ GUARDED_BY(mu_) = false;  // the record has to be put again
  bool stop_ GUARDED_BY(mu_) = false;
  bool registered_ GUARDED_BY(mu_) = false;
  std::thread thread_;  // last
};

}  // namespace oscarkv
