#include "kvstore/client/node_connection.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace oscarkv {
namespace {

constexpr int kFailures = 3;
constexpr Duration kFirstBreakerPause = std::chrono::seconds(1);
constexpr Duration kLongestBreakerPause = std::chrono::seconds(15);
// How long after its return a node is searched, but not relied on.
constexpr Duration kSettleTime = std::chrono::seconds(60);
constexpr double kSmoothing = 0.2;
constexpr size_t kMaxLate = 1024;  // more late calls than this are left to the pins' TTL

}  // namespace

void Link::AddPins(const std::vector<uint64_t>& pins) const {
  MutexLock lock(mu_);
  pins_.insert(pins.begin(), pins.end());
}

void Link::RemovePins(const std::vector<uint64_t>& pins) const {
  MutexLock lock(mu_);
  for (uint64_t pin : pins) pins_.erase(pin);
}

std::vector<uint64_t> Link::pins() const {
  MutexLock lock(mu_);
  return {pins_.begin(), pins_.end()};
}

NodeConnection::NodeConnection(std::string node, std::shared_ptr<KvStub> stub,
                               KvClientMetrics* metrics, std::function<void()> wake)
    : node_(std::move(node)),
      stub_(std::move(stub)),
      metrics_(metrics),
      wake_(std::move(wake)),
      why_down_(
          absl::UnavailableError(absl::StrCat("kvstore node ", node_, ": not connected yet"))) {
  if (metrics_ != nullptr) metrics_->node_up.With({node_}).Set(0);
}

LinkPtr NodeConnection::link(absl::Status* why) const {
  MutexLock lock(mu_);
  if (link_ == nullptr && why != nullptr) *why = why_down_;
  return link_;
}

void NodeConnection::Fail(const LinkPtr& link, const absl::Status& why) {
  {
    MutexLock lock(mu_);
    if (link == nullptr || link_ != link) return;
    failed_.push_back(std::move(link_));
    link_ = nullptr;
    ever_down_ = true;
    why_down_ = absl::UnavailableError(absl::StrCat("kvstore node ", node_, ": ", why.ToString()));
  }
  LogWarn("kvstore node lost", {{"node", node_}, {"why", why.ToString()}});
  if (metrics_ != nullptr) metrics_->node_up.With({node_}).Set(0);
  wake_();
}

void NodeConnection::Judge(const LinkPtr& link, const absl::Status& status) {
  const bool failed = absl::IsUnauthenticated(status) || absl::IsUnavailable(status) ||
                      absl::IsDeadlineExceeded(status);
  if (failed || status.ok()) {
    MutexLock lock(mu_);
    failures_ = failed ? failures_ + 1 : 0;
    if (!failed) breaker_pause_ = Duration(0);
    if (failures_ >= kFailures) {
      breaker_pause_ = breaker_pause_ == Duration(0)
                           ? kFirstBreakerPause
                           : std::min(2 * breaker_pause_, kLongestBreakerPause);
      trusted_from_ = SteadyClock::Get()->Now() + breaker_pause_;
    }
    if (metrics_ != nullptr) metrics_->breaker_open.With({node_}).Set(failures_ >= kFailures);
  }
  if (absl::IsUnauthenticated(status) || absl::IsUnavailable(status)) return Fail(link, status);
  if (!absl::IsDeadlineExceeded(status) || suspect_.exchange(true)) return;
  wake_();
}

NodeCondition NodeConnection::condition(Time now) const {
  const double per_byte = nanoseconds_per_byte_.load(std::memory_order_relaxed);
  const uint64_t waiting = in_flight_.load(std::memory_order_relaxed);
  MutexLock lock(mu_);
  return {link_,
          link_ == nullptr ? why_down_ : absl::OkStatus(),
          now >= settled_from_,
          now >= trusted_from_,
          per_byte,
          waiting};
}

void NodeConnection::ReadEnds(uint64_t bytes, Duration time) {
  in_flight_.fetch_sub(bytes, std::memory_order_relaxed);
  if (time <= Duration(0) || bytes == 0) return;
  const double now = static_cast<double>(time.count()) / static_cast<double>(bytes);
  const double before = nanoseconds_per_byte_.load(std::memory_order_relaxed);
  // Two calls that end at once may lose one of their samples, which does not matter.
  nanoseconds_per_byte_.store(before == 0 ? now : before + kSmoothing * (now - before),
                              std::memory_order_relaxed);
}

void NodeConnection::AwaitLate(std::shared_ptr<PinCall> call, LinkPtr link) {
  if (metrics_ != nullptr) metrics_->hedges.With({node_}).Increment();
  MutexLock lock(mu_);
  if (late_.size() < kMaxLate) late_.emplace_back(std::move(call), std::move(link));
}

std::vector<NodeConnection::LatePins> NodeConnection::TakeLatePins() {
  std::vector<LatePins> out;
  MutexLock lock(mu_);
  std::erase_if(late_, [&](auto& late) {
    MutexLock call_lock(late.first->mu);
    if (!late.first->answered) return false;
    if (!late.first->response.ok()) return true;
    LatePins pins{late.second, {}, {}};
    const size_t n =
        std::min(late.first->response->statuses.size(), late.first->response->locations.size());
    for (size_t i = 0; i < n; ++i) {
      if (!late.first->response->statuses[i].ok()) continue;
      pins.pins.push_back(late.first->response->locations[i].pin_id);
      pins.generations.push_back(late.first->response->locations[i].generation);
    }
    if (!pins.pins.empty()) out.push_back(std::move(pins));
    return true;
  });
  return out;
}

void NodeConnection::Expect(uint64_t incarnation) {
  LinkPtr stale;
  {
    MutexLock lock(mu_);
    expected_ = incarnation;
    if (link_ != nullptr && incarnation != 0 && link_->grant.incarnation != incarnation)
      stale = link_;
  }
  if (stale != nullptr) Fail(stale, CheckIncarnation(stale->grant.incarnation));
}

absl::Status NodeConnection::CheckIncarnation(uint64_t incarnation) const {
  {
    MutexLock lock(mu_);
    if (expected_ == 0 || expected_ == incarnation) return absl::OkStatus();
  }
  if (metrics_ != nullptr) metrics_->stale_nodes.With({node_}).Increment();
  return absl::FailedPreconditionError(
      "stale endpoint: another process answers there than the one that is registered");
}

void NodeConnection::SetUp(LinkPtr link) {
  bool again;
  {
    MutexLock lock(mu_);
    link_ = std::move(link);
    again = ever_up_;
    ever_up_ = true;
    failures_ = 0;
    trusted_from_ = Time{};
    if (ever_down_) settled_from_ = SteadyClock::Get()->Now() + kSettleTime;
  }
  if (metrics_ == nullptr) return;
  metrics_->node_up.With({node_}).Set(1);
  metrics_->breaker_open.With({node_}).Set(0);
  if (again) metrics_->reconnects.With({node_}).Increment();
}

void NodeConnection::SetDown(const absl::Status& why) {
  MutexLock lock(mu_);
  ever_down_ = true;
  why_down_ = absl::UnavailableError(absl::StrCat("kvstore node ", node_, ": ", why.ToString()));
}

void NodeConnection::Retire() {
  MutexLock lock(mu_);
  if (link_ == nullptr) return;
  failed_.push_back(std::move(link_));
  link_ = nullptr;
  why_down_ = absl::UnavailableError("the client is closing");
}

std::vector<LinkPtr> NodeConnection::TakeFailedLinks() {
  MutexLock lock(mu_);
  return std::exchange(failed_, {});
}

}  // namespace oscarkv
