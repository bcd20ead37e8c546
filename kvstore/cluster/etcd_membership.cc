#include "kvstore/cluster/etcd_membership.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "kvstore/cluster/member_record.h"

namespace oscarkv {
namespace {

// A watch is made anew after this: no call of ours is without a deadline.
constexpr Duration kWatchTime = std::chrono::minutes(10);

Time Now() {
  return SteadyClock::Get()->Now();
}

}  // namespace

// --- The view ---

EtcdMembership::EtcdMembership(const EtcdOptions& options, RegistryFactory make_registry)
    : options_(options),
      folder_(MemberFolder(options.prefix)),
      make_registry_(std::move(make_registry)),
      state_{"etcd", false, "not connected yet"} {
  thread_ = std::thread([this] { Run(); });
}

EtcdMembership::~EtcdMembership() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    if (registry_ != nullptr) registry_->Cancel();
    changed_.NotifyAll();
  }
  thread_.join();
}

absl::Status EtcdMembership::WaitForFirst(Time deadline) {
  MutexLock lock(mu_);
  while (!have_list_ && changed_.WaitUntil(mu_, deadline)) {
  }
  if (have_list_) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("no list of nodes: ", state_.error));
}

std::shared_ptr<const MemberList> EtcdMembership::Current() const {
  MutexLock lock(mu_);
  return list_;
}

MembershipState EtcdMembership::state() const {
  MutexLock lock(mu_);
  return state_;
}

void EtcdMembership::Listen(std::function<void()> changed) {
  MutexLock lock(listener_mu_);  // held while it runs: afterwards it runs no more
  listener_ = std::move(changed);
}

bool EtcdMembership::Pause(Duration pause) {
  const Time until = Now() + pause;
  MutexLock lock(mu_);
  while (!stop_ && changed_.WaitUntil(mu_, until)) {
  }
  return !stop_;
}

void EtcdMembership::SetState(const absl::Status& error) {
  const bool connected = error.ok();
  bool differs;
  {
    MutexLock lock(mu_);
    differs = state_.connected != connected;
    state_.connected = connected;
    state_.error = connected ? "" : std::string(error.message());
  }
  if (differs) {
    if (connected) {
      LogInfo("etcd: connected", {});
    } else {
      LogError("etcd cannot be reached: the list of nodes stays as it is",
               {{"why", error.ToString()}});
    }
    MutexLock lock(listener_mu_);
    if (listener_) listener_();
  }
}

void EtcdMembership::Run() {
  Duration pause = options_.first_pause;
  for (size_t n = 0;; ++n) {
    const auto registry = make_registry_(options_.endpoints[n % options_.endpoints.size()]);
    {
      MutexLock lock(mu_);
      if (stop_) return;
      registry_ = registry.get();
    }
    const Time began = Now();
    const absl::Status end = Follow(registry.get());
    {
      MutexLock lock(mu_);
      registry_ = nullptr;
      if (stop_) return;
    }
    SetState(end);
    if (Now() - began > options_.longest_pause) pause = options_.first_pause;
    if (!Pause(pause)) return;
    pause = std::min(2 * pause, options_.longest_pause);
  }
}

absl::Status EtcdMembership::Follow(Registry* registry) {
  for (;;) {
    ASSIGN_OR_RETURN(const Registry::Listing listing,
                     registry->List(folder_, Now() + options_.call_timeout));
    TakeList(listing);
    SetState(absl::OkStatus());
    // While members are missing the watch ends when the first one's time is up.
    Time until = Now() + kWatchTime;
    for (const auto& [key, time] : missing_) until = std::min(until, time);
    absl::Status end =
        registry->Watch(folder_, listing.revision + 1, until,
                        [this](const std::vector<Registry::Event>& events) { TakeEvents(events); });
    // After its deadline, or when its revision was compacted away, a watch begins with a new list.
    if (!absl::IsOutOfRange(end) && !absl::IsDeadlineExceeded(end)) return end;
  }
}

void EtcdMembership::TakeList(const Registry::Listing& listing) {
  std::map<std::string, Member> now;
  for (const Registry::Entry& entry : listing.entries) {
    absl::StatusOr<Member> member = ParseMemberRecord(folder_, entry.key, entry.value);
    if (member.ok()) {
      now[entry.key] = *std::move(member);
    } else {
      LogError("etcd: a record is left out", {{"why", member.status().ToString()}});
    }
  }
  std::map<std::string, Time> missing;
  for (auto& [key, member] : members_) {
    if (now.contains(key)) continue;
    const auto known = missing_.find(key);
    const Time until = known == missing_.end() ? Now() + options_.grace : known->second;
    if (until <= Now()) continue;
    missing[key] = until;
    now[key] = std::move(member);
  }
  members_ = std::move(now);
  missing_ = std::move(missing);
  Publish();
}

void EtcdMembership::TakeEvents(const std::vector<Registry::Event>& events) {
  for (const Registry::Event& event : events) {
    missing_.erase(event.entry.key);
    if (event.removed) {
      members_.erase(event.entry.key);
      continue;
    }
    absl::StatusOr<Member> member = ParseMemberRecord(folder_, event.entry.key, event.entry.value);
    if (member.ok()) {
      members_[event.entry.key] = *std::move(member);
    } else {
      LogError("etcd: a record is left out", {{"why", member.status().ToString()}});
    }
  }
  Publish();
}

void EtcdMembership::Publish() {
  for (auto it = missing_.begin(); it != missing_.end();) {
    if (it->second > Now()) {
      ++it;
      continue;
    }
    members_.erase(it->first);
    it = missing_.erase(it);
  }
  std::vector<Member> members;
  for (const auto& [key, member] : members_) members.push_back(member);
  std::sort(members.begin(), members.end(),
            [](const Member& a, const Member& b) { return a.endpoint < b.endpoint; });
  {
    MutexLock lock(mu_);
    const bool first = !std::exchange(have_list_, true);
    if (first) changed_.NotifyAll();
    if (!first && list_->members == members) return;
    list_ = std::make_shared<const MemberList>(MemberList{list_->revision + 1, std::move(members)});
  }
  MutexLock lock(listener_mu_);
  if (listener_) listener_();
}

// --- A node's registration ---

EtcdRegistration::EtcdRegistration(const EtcdOptions& options, Member member,
                                   RegistryFactory make_registry,
                                   std::function<void(bool registered)> report)
    : options_(options),
      make_registry_(std::move(make_registry)),
      report_(std::move(report)),
      member_(std::move(member)) {
  thread_ = std::thread([this] { Run(); });
}

EtcdRegistration::~EtcdRegistration() {
  Leave();
}

bool EtcdRegistration::registered() const {
  MutexLock lock(mu_);
  return registered_;
}

void EtcdRegistration::Drain() {
  MutexLock lock(mu_);
  member_.draining = true;
  dirty_ = true;
  changed_.NotifyAll();
}

void EtcdRegistration::Leave() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    changed_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

bool EtcdRegistration::Pause(Duration pause) {
  const Time until = Now() + pause;
  MutexLock lock(mu_);
  while (!stop_ && !dirty_ && changed_.WaitUntil(mu_, until)) {
  }
  return !stop_;
}

void EtcdRegistration::Report(bool registered, const absl::Status& why) {
  {
    MutexLock lock(mu_);
    if (registered_ == registered) return;
    registered_ = registered;
  }
  if (registered) {
    LogInfo("etcd: registered", {});
  } else {
    LogError("etcd: the registration is lost and tried again", {{"why", why.ToString()}});
  }
  report_(registered);
}

void EtcdRegistration::Run() {
  Duration pause = options_.first_pause;
  for (size_t n = 0;; ++n) {
    const auto registry = make_registry_(options_.endpoints[n % options_.endpoints.size()]);
    const Time began = Now();
    const absl::Status end = Keep(registry.get());
    if (end.ok()) return;
    Report(false, end);
    if (Now() - began > options_.longest_pause) pause = options_.first_pause;
    {
      MutexLock lock(mu_);
      dirty_ = false;  // every attempt puts the record anyway
    }
    if (!Pause(pause)) return;
    pause = std::min(2 * pause, options_.longest_pause);
  }
}

// Until an error, or OK when stopped.
absl::Status EtcdRegistration::Keep(Registry* registry) {
  const auto soon = [&] { return Now() + options_.call_timeout; };
  ASSIGN_OR_RETURN(const int64_t lease, registry->GrantLease(options_.lease_ttl, soon()));
  bool put = true;
  for (;;) {
    Member member;
    {
      MutexLock lock(mu_);
      member = member_;
      put |= std::exchange(dirty_, false);
    }
    if (std::exchange(put, false)) {
      RETURN_IF_ERROR(registry->Put(
          {absl::StrCat(MemberFolder(options_.prefix), member.endpoint), MemberValue(member)},
          lease, soon()));
      Report(true, absl::OkStatus());
    }
    if (!Pause(options_.lease_ttl / 3)) {
      registry->RevokeLease(lease, soon()).IgnoreError();  // else it expires
      return absl::OkStatus();
    }
    // One that is lost on the way is tried again before the lease runs out.
    absl::Status kept = registry->KeepLease(lease, soon());
    if (absl::IsUnavailable(kept) || absl::IsDeadlineExceeded(kept))
      kept = registry->KeepLease(lease, soon());
    RETURN_IF_ERROR(kept);
  }
}

}  // namespace oscarkv
