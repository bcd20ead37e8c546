#include "transport/am/server.h"

#include <algorithm>
#include <utility>

namespace oscarkv {
namespace {

// A client of ours has at most AmClient::kReadSlots reads outstanding; cancelled ones may linger.
// More is not ours.
constexpr size_t kMaxJobs = 4096;
// Answers wait for room; a client that does not take them and goes on asking is cut short.
constexpr size_t kMaxAnswers = 16384;

uint32_t Code(absl::StatusCode code) {
  return static_cast<uint32_t>(code);
}

}  // namespace

void AmServer::Open(uint64_t session, uint64_t client, AmChannel* channel, uint64_t subject) {
  Session& s = sessions_[session];
  s.client = client;
  s.subject = subject;
  s.channel = channel;
}

void AmServer::Expel(uint64_t session) {
  const auto it = sessions_.find(session);
  if (it == sessions_.end()) return;
  Session& s = it->second;
  s.expelled = true;
  for (; s.head < s.jobs.size(); ++s.head) {
    AmItem item;
    item.id = s.jobs[s.head].id;
    item.code = Code(absl::StatusCode::kPermissionDenied);
    s.failed.push_back(item);
  }
  s.jobs.clear();
  s.head = 0;
}

void AmServer::Close(uint64_t session) {
  sessions_.erase(session);
}

AmServer::Bytes AmServer::TakeBytes() {
  return std::exchange(bytes_, {});
}

bool AmServer::OnMessage(const AmMessage& message) {
  auto it = sessions_.find(message.header.to);
  if (it == sessions_.end()) return false;
  switch (message.header.kind) {
    case AmKind::kRead:
      OnRead(it->second, message);
      return true;
    case AmKind::kWrite:
      OnWrite(it->second, message);
      return true;
    case AmKind::kCancel:
      OnCancel(it->second, message);
      return true;
    default:
      return false;
  }
}

std::shared_ptr<RegionCore> AmServer::Check(const Session& session, const AmItem& item, bool write,
                                            uint32_t* code) {
  // The table is asked every time: a withdrawn region must not be served from the session's memory.
  std::shared_ptr<RegionCore> region = regions_->FindId(item.region);
  if (region == nullptr || region->token == 0) {
    *code = Code(absl::StatusCode::kNotFound);
    return nullptr;
  }
  if (region->token != item.token) {
    *code = Code(absl::StatusCode::kPermissionDenied);
    return nullptr;
  }
  const uint64_t size = region->span.size();
  if (item.offset > size || item.length > size - item.offset) {
    *code = Code(absl::StatusCode::kInvalidArgument);
    return nullptr;
  }
  if (session.expelled ||
      (gate_ != nullptr && !gate_->Allowed(session.subject, write, item.offset, item.length))) {
    ++bytes_.refused;
    *code = Code(absl::StatusCode::kPermissionDenied);
    return nullptr;
  }
  return region;
}

void AmServer::OnRead(Session& session, const AmMessage& message) {
  for (size_t i = 0; i < message.header.count; ++i) {
    AmItem item = message.Item(i);
    uint32_t code = 0;
    std::shared_ptr<RegionCore> region;
    if (item.length == 0 || item.length > kMaxReadItem) {
      code = Code(absl::StatusCode::kInvalidArgument);
    } else if (session.jobs.size() - session.head >= kMaxJobs) {
      code = Code(absl::StatusCode::kResourceExhausted);
    } else {
      region = Check(session, item, /*write=*/false, &code);
    }
    if (region != nullptr) {
      session.jobs.push_back({item.id, std::move(region), item.offset, item.length, 0});
    } else if (session.failed.size() < kMaxAnswers) {
      item.code = code;
      session.failed.push_back(item);
    }
  }
}

void AmServer::OnWrite(Session& session, const AmMessage& message) {
  message.ForEachPart(
      [&](const AmItem& item, absl::Span<const uint8_t> bytes) { OnPart(session, item, bytes); });
}

void AmServer::OnPart(Session& session, AmItem item, absl::Span<const uint8_t> bytes) {
  uint32_t code = 0;
  if (std::shared_ptr<RegionCore> region = Check(session, item, /*write=*/true, &code);
      region != nullptr) {
    std::memcpy(region->span.data() + item.offset, bytes.data(), bytes.size());
    bytes_.written += bytes.size();
  }
  item.code = code;
  if (session.written.size() < kMaxAnswers) session.written.push_back(item);
}

void AmServer::OnCancel(Session& session, const AmMessage& message) {
  for (size_t i = 0; i < message.header.count; ++i) {
    const uint64_t id = message.Item(i).id;
    auto begin = session.jobs.begin() + session.head;
    session.jobs.erase(
        std::remove_if(begin, session.jobs.end(), [id](const Job& job) { return job.id == id; }),
        session.jobs.end());
  }
}

bool AmServer::Pump() {
  bool sent_any = false;
  for (auto& [id, session] : sessions_) {
    sent_any |= SendAnswers(session, AmKind::kWritten, session.written);
    sent_any |= SendAnswers(session, AmKind::kFailed, session.failed);
  }
  for (bool sent = true; sent;) {
    sent = false;
    for (auto& [id, session] : sessions_) sent |= SendData(session);
    sent_any |= sent;
  }
  return sent_any;
}

bool AmServer::SendAnswers(Session& session, AmKind kind, std::vector<AmItem>& items) {
  size_t sent = 0;
  while (sent < items.size() && session.channel->Room() > 0) {
    const size_t n = std::min(kMaxItems, items.size() - sent);
    AmHeader header;
    header.kind = kind;
    header.to = session.client;
    session.channel->SendItems(header, absl::MakeConstSpan(items).subspan(sent, n));
    sent += n;
  }
  items.erase(items.begin(), items.begin() + sent);
  return sent > 0;
}

bool AmServer::SendData(Session& session) {
  if (session.head == session.jobs.size() || session.channel->Room() == 0) return false;
  std::vector<AmPart> parts;
  uint64_t used = 0;
  while (session.head < session.jobs.size()) {
    Job& job = session.jobs[session.head];
    const uint64_t length = RoomForPart(parts.size(), used, job.length - job.sent);
    if (length == 0) break;
    used += PartBytes(parts.size(), length);
    AmItem item;
    item.id = job.id;
    item.offset = job.sent;
    item.length = static_cast<uint32_t>(length);
    const uint8_t* bytes = job.region->span.data() + job.offset + job.sent;
    job.sent += length;
    bytes_.read += length;
    const bool done = job.sent == job.length;
    parts.push_back({item, bytes, done ? std::move(job.region) : job.region});
    if (done) ++session.head;
  }
  if (session.head == session.jobs.size()) {
    session.jobs.clear();
    session.head = 0;
  } else if (session.head >= 256) {  // keep the vector short under a steady stream
    session.jobs.erase(session.jobs.begin(), session.jobs.begin() + session.head);
    session.head = 0;
  }
  AmHeader header;
  header.kind = AmKind::kData;
  header.to = session.client;
  session.channel->SendParts(header, std::move(parts));
  return true;
}

}  // namespace oscarkv
