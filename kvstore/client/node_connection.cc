#include "kvstore/client/node_connection.h"

#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace oscarkv {

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
    why_down_ = absl::UnavailableError(absl::StrCat("kvstore node ", node_, ": ", why.ToString()));
  }
  LogWarn("kvstore node lost", {{"node", node_}, {"why", why.ToString()}});
  if (metrics_ != nullptr) metrics_->node_up.With({node_}).Set(0);
  wake_();
}

void NodeConnection::Judge(const LinkPtr& link, const absl::Status& status) {
  if (absl::IsUnauthenticated(status) || absl::IsUnavailable(status)) return Fail(link, status);
  if (!absl::IsDeadlineExceeded(status) || suspect_.exchange(true)) return;
  wake_();
}

void NodeConnection::SetUp(LinkPtr link) {
  bool again;
  {
    MutexLock lock(mu_);
    link_ = std::move(link);
    again = ever_up_;
    ever_up_ = true;
  }
  if (metrics_ == nullptr) return;
  metrics_->node_up.With({node_}).Set(1);
  if (again) metrics_->reconnects.With({node_}).Increment();
}

void NodeConnection::SetDown(const absl::Status& why) {
  MutexLock lock(mu_);
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
