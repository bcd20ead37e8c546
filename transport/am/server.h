// The serving side of the active-message lane: answers the Reads and Writes of its sessions out of
// the exported regions. Pure logic, no network library. One thread at a time (the lane's progress
// thread).
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "transport/am/protocol.h"
#include "transport/region_table.h"

namespace oscarkv {

class AmServer {
 public:
  // `regions` outlives the server.
  explicit AmServer(const RegionTable* regions) : regions_(regions) {}

  // `session` is new and unguessable; `client` is the client's id of the connection; `channel`
  // outlives the session.
  void Open(uint64_t session, uint64_t client, AmChannel* channel);
  // Drops what it has not sent. Sends in flight end by themselves.
  void Close(uint64_t session);
  bool Has(uint64_t session) const { return sessions_.contains(session); }

  // Read, Write or Cancel of a session. False: of no session, or not for a server.
  bool OnMessage(const AmMessage& message);
  // Sends what there is room for, one message per session in turn. True when anything was sent.
  bool Pump();

  // Bytes of data sent and received since the last call.
  struct Bytes {
    uint64_t read = 0, written = 0;
  };
  Bytes TakeBytes();

 private:
  struct Job {  // a read item; partly sent
    uint64_t id;
    std::shared_ptr<RegionCore> region;
    uint64_t offset, length, sent;
  };
  struct Session {
    uint64_t client = 0;
    AmChannel* channel = nullptr;
    std::vector<Job> jobs;  // from `head` on; the rest is done
    size_t head = 0;
    std::vector<AmItem> failed, written;  // answers to be sent
  };

  void OnRead(Session& session, const AmMessage& message);
  void OnWrite(Session& session, const AmMessage& message);
  void OnCancel(Session& session, const AmMessage& message);
  // The region of an item whose range is valid; null with the reason in `code`.
  std::shared_ptr<RegionCore> Check(Session& session, const AmItem& item, uint32_t* code) const;
  bool SendAnswers(Session& session, AmKind kind, std::vector<AmItem>& items);
  bool SendData(Session& session);
  void OnPart(Session& session, AmItem item, absl::Span<const uint8_t> bytes);

  const RegionTable* const regions_;
  std::unordered_map<uint64_t, Session> sessions_;
  Bytes bytes_;
};

}  // namespace oscarkv
