#include "transport/am/lane.h"

#include <sys/random.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace oscarkv {
namespace {

// Enough for any cluster of ours; a bound on what Hellos can make us hold.
constexpr size_t kMaxSessions = 1024;
// Deadlines are looked at this often while transfers are in flight.
constexpr Duration kSweepInterval = std::chrono::milliseconds(1);
// The gate is asked this often whether connections and addresses still hold.
constexpr Duration kGateSweepInterval = std::chrono::seconds(1);
// The connections of subjects that are no longer welcome are kept to say so.
constexpr Duration kExpelledLinger = std::chrono::seconds(10);
// More than a node has sessions; those of sessions that ended are forgotten at the next sweep.
constexpr size_t kMaxSubjects = 16384;

Sha256Digest DigestOf(const NodeSecret& secret) {
  return Sha256().Update(secret.data(), secret.size()).Finish();
}

}  // namespace

uint64_t RandomId() {
  uint64_t id = 0;
  while (id == 0) {
    if (getrandom(&id, sizeof(id), 0) != sizeof(id)) id = 0;
  }
  return id;
}

class AmLane::Connection final : public LaneConnection {
 public:
  Connection(AmLane* lane, std::string worker_address, const NodeSecret& peer_secret)
      : LaneConnection(LaneClass::kTcp, lane->thread_.get(), lane->metrics_),
        lane_(lane),
        id_(RandomId()),
        worker_address_(std::move(worker_address)),
        hello_(std::make_shared<std::string>(reinterpret_cast<const char*>(peer_secret.data()),
                                             peer_secret.size())) {
    hello_->append(lane->address());
  }

  absl::StatusOr<std::shared_ptr<RemoteCore>> Import(const RegionDescriptor& region) override;
  using LaneConnection::WaitOpen;
  uint64_t id() const { return id_; }

  // --- on the progress thread ---
  void Start();
  bool Pump(Time now, bool sweep);
  bool OnMessage(const AmMessage& message);
  bool busy() const { return !client_.has_value() || !client_->idle(); }
  Time NextDeadline() const { return client_.has_value() ? client_->NextDeadline() : Time::max(); }

 private:
  void OnSubmit(std::shared_ptr<Transfer> transfer) override {
    client_->Submit(std::move(transfer));
    client_->Sweep(SteadyClock::Get()->Now());  // its deadline may have passed already
  }
  void OnSweep(Time now) override { client_->Sweep(now); }
  void OnShut(const absl::Status& status) override;

  AmLane* const lane_;
  const uint64_t id_;
  const std::string worker_address_;
  const std::shared_ptr<std::string> hello_;  // the payload of our Hello

  // Of the progress thread.
  std::unique_ptr<AmEndpoint> endpoint_;
  std::optional<AmClient> client_;  // once the peer welcomed us
  bool hello_sent_ = false;
};

void AmLane::Connection::Start() {
  if (shut()) return;
  auto endpoint = lane_->engine_->Connect(worker_address_);
  if (endpoint.ok()) {
    endpoint_ = *std::move(endpoint);
  } else {
    Shut(endpoint.status());
  }
}

bool AmLane::Connection::Pump(Time now, bool sweep) {
  if (const absl::Status status = endpoint_->status(); !status.ok()) {
    Shut(status);
    return true;
  }
  if (!hello_sent_) {
    if (endpoint_->Room() == 0) return false;
    hello_sent_ = true;
    AmHeader header;
    header.kind = AmKind::kHello;
    header.item.id = id_;
    endpoint_->Send(header, {reinterpret_cast<const uint8_t*>(hello_->data()), hello_->size()},
                    hello_);
    return true;
  }
  if (!client_.has_value()) return false;
  if (sweep) client_->Sweep(now);
  return client_->Pump();
}

bool AmLane::Connection::OnMessage(const AmMessage& message) {
  if (shut()) return true;
  if (message.header.kind != AmKind::kWelcome)
    return client_.has_value() && client_->OnMessage(message);
  if (client_.has_value() || !hello_sent_ || message.header.item.id == 0) return false;
  client_.emplace(message.header.item.id, endpoint_.get(),
                  [this](const Transfer& transfer) { CountEnd(transfer); });
  SetOpen(endpoint_->transports());
  return true;
}

void AmLane::Connection::OnShut(const absl::Status& status) {
  if (client_.has_value()) client_->FailAll(status);
  client_.reset();
  std::shared_ptr<LaneConnection> self = shared_from_this();
  lane_->connections_.erase(id_);
  if (endpoint_ == nullptr) {
    SetClosed();
    return;
  }
  endpoint_->Close();
  lane_->closing_.push_back({std::move(endpoint_), std::move(self)});
}

absl::StatusOr<std::shared_ptr<RemoteCore>> AmLane::Connection::Import(
    const RegionDescriptor& region) {
  auto core = std::make_shared<RemoteCore>();
  core->id = region.id;
  core->token = region.token;
  core->size = region.size;
  return core;
}

AmLane::AmLane(std::unique_ptr<AmEngine> engine, NodeSecret secret, const RegionTable* regions,
               const TransportMetrics::Lane* metrics, Duration spin)
    : engine_(std::move(engine)), secret_(secret), metrics_(metrics), server_(regions) {
  engine_->SetReceiver([this](absl::Span<const uint8_t> header, absl::Span<const uint8_t> payload) {
    OnMessage(header, payload);
  });
  // Not make_unique: the driver is a private base.
  thread_.reset(new ProgressThread(this, "okv-tcp", spin));
}

absl::StatusOr<std::shared_ptr<LaneConnection>> AmLane::Connect(const std::string& worker_address,
                                                                const NodeSecret& peer_secret,
                                                                Time deadline) {
  auto connection = std::make_shared<Connection>(this, worker_address, peer_secret);
  const bool accepted = thread_->Run([this, connection] {
    connections_.emplace(connection->id(), connection);
    connection->Start();
  });
  if (!accepted) return absl::UnavailableError("transport was shut down");
  if (absl::Status status = connection->WaitOpen(deadline); !status.ok()) return status;
  return connection;
}

void AmLane::OnMessage(absl::Span<const uint8_t> header, absl::Span<const uint8_t> payload) {
  AmMessage message;
  bool good = ParseAm(header, payload, &message);
  if (good) {
    switch (message.header.kind) {
      case AmKind::kHello:
        good = OnHello(message);
        break;
      case AmKind::kRead:
      case AmKind::kWrite:
      case AmKind::kCancel:
        good = server_.OnMessage(message);
        break;
      default: {
        auto it = connections_.find(message.header.to);
        // Answers to a connection that was closed a moment ago are no offence, nor can they be told
        // from forged ones.
        if (it != connections_.end()) good = it->second->OnMessage(message);
      }
    }
  }
  if (!good) metrics_->malformed->Increment();
}

bool AmLane::OnHello(const AmMessage& message) {
  const auto payload = message.payload;
  if (payload.size() <= secret_.size()) return false;
  NodeSecret shown;
  std::copy_n(payload.begin(), shown.size(), shown.begin());
  const std::optional<uint64_t> subject = SubjectOf(shown);
  if (!subject || closing_all_ || sessions_.size() + hellos_.size() >= kMaxSessions) {
    // There is no endpoint to close yet: who is not known gets no answer.
    metrics_->refused_hello->Increment();
    return true;
  }
  const auto address = payload.subspan(secret_.size());
  hellos_.push_back({message.header.item.id, *subject,
                     std::string(reinterpret_cast<const char*>(address.data()), address.size())});
  return true;
}

std::optional<uint64_t> AmLane::SubjectOf(const NodeSecret& secret) {
  if (!gated_) {
    // In constant time: the secret must not be guessed byte by byte.
    uint8_t difference = 0;
    for (size_t i = 0; i < secret_.size(); ++i) difference |= secret_[i] ^ secret[i];
    return difference == 0 ? std::make_optional<uint64_t>(0) : std::nullopt;
  }
  std::optional<uint64_t> subject;
  {
    MutexLock lock(subjects_mu_);
    const auto it = subjects_.find(DigestOf(secret));
    if (it != subjects_.end()) subject = it->second;
  }
  if (subject && gate_ != nullptr && gate_->Welcome(*subject)) return subject;
  return std::nullopt;
}

absl::StatusOr<NodeSecret> AmLane::Admit(uint64_t subject) {
  const uint64_t halves[2] = {RandomId(), RandomId()};
  NodeSecret secret;
  std::memcpy(secret.data(), halves, sizeof(halves));
  {
    MutexLock lock(subjects_mu_);
    if (subjects_.size() >= kMaxSubjects) {
      return absl::ResourceExhaustedError(
          absl::StrCat(subjects_.size(), " addresses of this node are in use"));
    }
    subjects_.emplace(DigestOf(secret), subject);
    has_subjects_ = true;
  }
  thread_->Run([] {});  // it may sleep without a time to wake up
  return secret;
}

void AmLane::SetGate(AccessGate* gate) {
  thread_->RunAndWait([this, gate] {
    gated_ = true;
    gate_ = gate;
    server_.SetGate(gate);
    if (gate != nullptr) return;
    hellos_.clear();
    while (!sessions_.empty()) CloseSession(sessions_.begin()->first);
  });
}

// Forgets and closes whom the gate does not welcome any more.
bool AmLane::AskGate(Time now) {
  if (gate_ == nullptr || now - last_gate_sweep_ < kGateSweepInterval) return false;
  last_gate_sweep_ = now;
  {
    MutexLock lock(subjects_mu_);
    for (auto it = subjects_.begin(); it != subjects_.end();) {
      it = gate_->Welcome(it->second) ? std::next(it) : subjects_.erase(it);
    }
    has_subjects_ = !subjects_.empty();
  }
  std::vector<uint64_t> gone;
  for (auto& [id, session] : sessions_) {
    if (gate_->Welcome(session.subject)) continue;
    if (session.expelled == Time{}) {
      session.expelled = now;
      server_.Expel(id);
    } else if (now - session.expelled > kExpelledLinger) {
      gone.push_back(id);
    }
  }
  for (uint64_t id : gone) CloseSession(id);
  return !gone.empty();
}

bool AmLane::AcceptHellos() {
  // Not in the receiver: the library does not like endpoints made in its callbacks.
  for (const Hello& hello : std::exchange(hellos_, {})) {
    auto endpoint = engine_->Connect(hello.address);
    if (!endpoint.ok()) {
      LogWarn("transport: cannot answer a peer", {{"error", endpoint.status().ToString()}});
      continue;
    }
    const uint64_t id = RandomId();
    server_.Open(id, hello.client, endpoint->get(), hello.subject);
    sessions_.emplace(id, Session{*std::move(endpoint), hello.client, hello.subject, false, {}});
  }
  return true;
}

bool AmLane::Pump(Time now) {
  bool active = AskGate(now);
  active |= !hellos_.empty() && AcceptHellos();
  active |= PumpSessions();
  active |= PumpConnections(now);
  for (size_t i = closing_.size(); i-- > 0;) {
    if (!closing_[i].endpoint->closed()) continue;
    closing_[i].endpoint.reset();
    if (closing_[i].connection != nullptr) closing_[i].connection->SetClosed();
    closing_.erase(closing_.begin() + i);
    active = true;
  }
  return active;
}

bool AmLane::PumpSessions() {
  bool active = false;
  std::vector<uint64_t> broken;
  for (auto& [id, session] : sessions_) {
    if (!session.endpoint->status().ok()) {
      broken.push_back(id);
    } else if (!session.welcomed && session.endpoint->Room() > 0) {
      AmHeader header;
      header.kind = AmKind::kWelcome;
      header.to = session.client;
      header.item.id = id;
      session.endpoint->Send(header, {}, nullptr);
      session.welcomed = active = true;
    }
  }
  for (uint64_t id : broken) CloseSession(id);
  active |= server_.Pump();
  if (active) {
    const AmServer::Bytes bytes = server_.TakeBytes();
    if (bytes.read > 0) metrics_->served_read_bytes->Add(static_cast<double>(bytes.read));
    if (bytes.written > 0) metrics_->served_written_bytes->Add(static_cast<double>(bytes.written));
    if (bytes.refused > 0) metrics_->refused_access->Add(static_cast<double>(bytes.refused));
  }
  return active || !broken.empty();
}

void AmLane::CloseSession(uint64_t id) {
  auto it = sessions_.find(id);
  server_.Close(id);
  it->second.endpoint->Close();
  closing_.push_back({std::move(it->second.endpoint), nullptr});
  sessions_.erase(it);
}

bool AmLane::PumpConnections(Time now) {
  const bool sweep = now - last_sweep_ >= kSweepInterval;
  if (sweep) last_sweep_ = now;
  bool active = false;
  for (auto it = connections_.begin(); it != connections_.end();) {
    const std::shared_ptr<Connection> connection = it->second;
    ++it;  // Pump may erase this one
    active |= connection->Pump(now, sweep);
  }
  return active;
}

bool AmLane::Busy() const {
  return !closing_.empty() || std::any_of(connections_.begin(), connections_.end(),
                                          [](const auto& c) { return c.second->busy(); });
}

Time AmLane::NextDeadline() const {
  // A closing endpoint may need a look without an event.
  if (!closing_.empty()) return SteadyClock::Get()->Now() + std::chrono::milliseconds(1);
  Time next = Time::max();
  if (gate_ != nullptr && (has_subjects_ || !sessions_.empty()))
    next = last_gate_sweep_ + kGateSweepInterval;
  for (const auto& [id, connection] : connections_)
    next = std::min(next, connection->NextDeadline());
  return next;
}

void AmLane::BeginClose() {
  closing_all_ = true;
  while (!connections_.empty()) {
    const std::shared_ptr<Connection> connection = connections_.begin()->second;
    connection->Shut(absl::UnavailableError("transport was shut down"));
  }
  while (!sessions_.empty()) CloseSession(sessions_.begin()->first);
}

}  // namespace oscarkv
