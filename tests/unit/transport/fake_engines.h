// Network libraries for tests of the lanes' logic: messages and one-sided operations inside this
// process, without UCX.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/mutex.h"
#include "transport/am/lane.h"
#include "transport/one_sided/lane.h"

namespace oscarkv {

// Carries bytes between engines. Thread-safe; outlives the engines.
class FakeAmNetwork {
 public:
  struct Inbox {
    Mutex mu;
    std::deque<std::pair<std::string, std::string>> messages GUARDED_BY(mu);  // header, payload
    UniqueFd event{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    std::atomic<bool> dead{false};  // endpoints towards it break
    std::atomic<bool> mute{false};  // what is sent to it is lost
  };
  std::shared_ptr<Inbox> Add(const std::string& address) {
    MutexLock lock(mu_);
    return inboxes_[address] = std::make_shared<Inbox>();
  }
  std::shared_ptr<Inbox> Find(absl::string_view address) {
    MutexLock lock(mu_);
    auto it = inboxes_.find(std::string(address));
    return it == inboxes_.end() ? nullptr : it->second;
  }
  static void Deliver(Inbox& inbox, std::string header, std::string payload) {
    if (inbox.mute) return;
    {
      MutexLock lock(inbox.mu);
      inbox.messages.emplace_back(std::move(header), std::move(payload));
    }
    Wake(inbox);
  }
  static void Wake(Inbox& inbox) {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(inbox.event.get(), &one, sizeof(one));
  }

 private:
  Mutex mu_;
  std::map<std::string, std::shared_ptr<Inbox>> inboxes_ GUARDED_BY(mu_);
};

class FakeAmEndpoint final : public AmEndpoint {
 public:
  explicit FakeAmEndpoint(std::shared_ptr<FakeAmNetwork::Inbox> to) : to_(std::move(to)) {}
  // A small, varying window, so that state machines meet full ones.
  size_t Room() const override { return status().ok() ? 3 : 0; }
  void Send(const AmHeader& header, absl::Span<const uint8_t> payload,
            std::shared_ptr<const void>) override {
    FakeAmNetwork::Deliver(
        *to_, std::string(reinterpret_cast<const char*>(&header), sizeof(header)),
        std::string(reinterpret_cast<const char*>(payload.data()), payload.size()));
  }
  void SendItems(AmHeader header, absl::Span<const AmItem> items) override {
    header.count = static_cast<uint16_t>(items.size());
    Send(header, {reinterpret_cast<const uint8_t*>(items.data()), items.size() * sizeof(AmItem)},
         nullptr);
  }
  void SendParts(AmHeader header, std::vector<AmPart> parts) override {
    header.count = static_cast<uint16_t>(parts.size() - 1);
    header.item = parts[0].item;
    std::string payload;
    for (size_t i = 1; i < parts.size(); ++i)
      payload.append(reinterpret_cast<const char*>(&parts[i].item), sizeof(AmItem));
    for (const AmPart& part : parts)
      payload.append(reinterpret_cast<const char*>(part.bytes), part.item.length);
    Send(header, {reinterpret_cast<const uint8_t*>(payload.data()), payload.size()}, nullptr);
  }
  absl::Status status() const override {
    return to_->dead ? absl::UnavailableError("fake peer is dead") : absl::OkStatus();
  }
  void Close() override { closed_ = true; }
  bool closed() const override { return closed_; }
  std::string transports() const override { return "fake"; }

 private:
  const std::shared_ptr<FakeAmNetwork::Inbox> to_;
  bool closed_ = false;
};

class FakeAmEngine final : public AmEngine {
 public:
  FakeAmEngine(FakeAmNetwork* network, std::string address)
      : network_(network), address_(std::move(address)), inbox_(network->Add(address_)) {}
  const std::string& address() const override { return address_; }
  void SetReceiver(Receiver receiver) override { receiver_ = std::move(receiver); }
  absl::StatusOr<std::unique_ptr<AmEndpoint>> Connect(absl::string_view address) override {
    auto inbox = network_->Find(address);
    if (inbox == nullptr) return absl::UnavailableError("no such fake address");
    return std::make_unique<FakeAmEndpoint>(std::move(inbox));
  }
  bool Progress() override {
    std::deque<std::pair<std::string, std::string>> messages;
    {
      MutexLock lock(inbox_->mu);
      messages.swap(inbox_->messages);
    }
    for (const auto& [header, payload] : messages) {
      receiver_({reinterpret_cast<const uint8_t*>(header.data()), header.size()},
                {reinterpret_cast<const uint8_t*>(payload.data()), payload.size()});
    }
    return !messages.empty();
  }
  bool Arm() override {
    uint64_t count;
    [[maybe_unused]] const ssize_t n = read(inbox_->event.get(), &count, sizeof(count));
    MutexLock lock(inbox_->mu);
    return inbox_->messages.empty();
  }
  int event_fd() const override { return inbox_->event.get(); }

 private:
  FakeAmNetwork* const network_;
  const std::string address_;
  const std::shared_ptr<FakeAmNetwork::Inbox> inbox_;
  Receiver receiver_;
};

// One-sided operations that complete when the test says so, as those of an RDMA device do when they
// like. The "remote" memory is of this process: a key is its address. Shared between the test and
// the engine; thread-safe.
struct FakeRmaState {
  std::atomic<bool> hold{false};  // operations stay in flight
  std::atomic<bool> broken{false};
  std::atomic<bool> refuse_key{false};
  std::atomic<int> started{0}, flushes{0};
  UniqueFd event{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  void Wake() {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(event.get(), &one, sizeof(one));
  }
};

class FakeRmaEndpoint final : public RmaEndpoint {
 public:
  FakeRmaEndpoint(std::shared_ptr<FakeRmaState> state, Done done)
      : state_(std::move(state)), done_(std::move(done)) {}

  absl::Status status() const override {
    return state_->broken ? absl::UnavailableError("fake endpoint broke") : absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<RmaKey>> Unpack(absl::string_view, uint64_t, uint64_t) override {
    if (state_->refuse_key) return absl::InvalidArgumentError("fake key refused");
    return std::make_unique<RmaKey>();
  }
  absl::StatusOr<Started> Start(const Transfer::Piece& piece, uint64_t remote_address,
                                const RmaKey&, const std::shared_ptr<Transfer>& owner) override {
    ++state_->started;
    pending_.push_back({piece.op->kind, piece.local, reinterpret_cast<uint8_t*>(remote_address),
                        piece.length, owner});
    return Started::kPending;
  }
  absl::StatusOr<Started> Flush(const std::shared_ptr<Transfer>& owner) override {
    ++state_->flushes;
    pending_.push_back({TransferKind::kWrite, nullptr, nullptr, 0, owner});
    return Started::kPending;
  }
  // By force: what is in flight is dropped, its bytes do not move.
  void Close() override {
    closed_ = true;
    for (Pending& p : std::exchange(pending_, {})) {
      const std::shared_ptr<Transfer> owner = std::move(p.owner);
      done_(owner, p.length, absl::CancelledError("fake endpoint closed"));
    }
  }
  bool closed() const override { return closed_; }
  std::string transports() const override { return "fake_rc"; }

  bool Progress() {
    if (state_->hold || pending_.empty()) return false;
    for (Pending& p : std::exchange(pending_, {})) {
      if (p.length > 0) {
        uint8_t* to = p.kind == TransferKind::kRead ? p.local : p.remote;
        std::memcpy(to, p.kind == TransferKind::kRead ? p.remote : p.local, p.length);
      }
      const std::shared_ptr<Transfer> owner = std::move(p.owner);
      done_(owner, p.length, absl::OkStatus());
    }
    return true;
  }

 private:
  struct Pending {
    TransferKind kind;
    uint8_t* local;
    uint8_t* remote;
    uint64_t length;
    std::shared_ptr<Transfer> owner;
  };
  const std::shared_ptr<FakeRmaState> state_;
  const Done done_;
  std::vector<Pending> pending_;
  bool closed_ = false;
};

class FakeRmaEngine final : public RmaEngine {
 public:
  explicit FakeRmaEngine(std::shared_ptr<FakeRmaState> state) : state_(std::move(state)) {}
  const std::string& address() const override { return address_; }
  absl::StatusOr<std::unique_ptr<RmaEndpoint>> Connect(absl::string_view,
                                                       RmaEndpoint::Done done) override {
    auto endpoint = std::make_unique<Forwarding>(
        this, std::make_shared<FakeRmaEndpoint>(state_, std::move(done)));
    endpoints_.push_back(endpoint->inner);
    return endpoint;
  }
  bool Progress() override {
    bool any = false;
    for (size_t i = 0; i < endpoints_.size(); ++i)
      any |= std::shared_ptr<FakeRmaEndpoint>(endpoints_[i])->Progress();
    return any;
  }
  bool Arm() override {
    uint64_t count;
    return read(state_->event.get(), &count, sizeof(count)) < 0;
  }
  int event_fd() const override { return state_->event.get(); }

 private:
  // What the lane owns; the engine keeps the other reference to drive it.
  struct Forwarding final : RmaEndpoint {
    Forwarding(FakeRmaEngine* e, std::shared_ptr<FakeRmaEndpoint> i)
        : engine(e), inner(std::move(i)) {}
    ~Forwarding() override {
      auto& all = engine->endpoints_;
      all.erase(std::find(all.begin(), all.end(), inner));
    }
    absl::Status status() const override { return inner->status(); }
    absl::StatusOr<std::unique_ptr<RmaKey>> Unpack(absl::string_view rkey, uint64_t base,
                                                   uint64_t length) override {
      return inner->Unpack(rkey, base, length);
    }
    absl::StatusOr<Started> Start(const Transfer::Piece& piece, uint64_t address, const RmaKey& key,
                                  const std::shared_ptr<Transfer>& owner) override {
      return inner->Start(piece, address, key, owner);
    }
    absl::StatusOr<Started> Flush(const std::shared_ptr<Transfer>& owner) override {
      return inner->Flush(owner);
    }
    void Close() override { inner->Close(); }
    bool closed() const override { return inner->closed(); }
    std::string transports() const override { return inner->transports(); }
    FakeRmaEngine* const engine;
    const std::shared_ptr<FakeRmaEndpoint> inner;
  };

  const std::shared_ptr<FakeRmaState> state_;
  const std::string address_ = "fake-rma";
  std::vector<std::shared_ptr<FakeRmaEndpoint>> endpoints_;
};

}  // namespace oscarkv
