// The serving side of the active-message lane: answers the Reads and Writes of its sessions out of
// the exported regions. Pure logic, no network library. One thread at a time (the lane's progress
// thread).
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "transport/access_gate.h"
#include "transport/am/protocol.h"
#include "transport/region_table.h"

namespace oscarkv {

class AmServer {
 public:
  // `regions` outlives the server.
  explicit AmServer(const RegionTable* regions) : regions_(regions) {}

  // `session` is new and unguessable; `client` is the client's id of the connection; `channel`
  // outlives the session.
  // `subject`: whom the gate is asked about.
  void Open(uint64_t session, uint64_t client, AmChannel* channel, uint64_t subject = 0);
  // Asked at each access from now on; null: nobody is.
  void SetGate(AccessGate* gate) { gate_ = gate; }
  // Whatever the session asks for from now on, or still waits for, is answered with
  // kPermissionDenied.
  void Expel(uint64_t session);
  // Drops what it has not sent. Sends in flight end by themselves.
  void Close(uint64_t session);
  bool Has(uint64_t session) const { return sessions_.contains(session); }

  // Read, Write or Cancel of a session. False: of no session, or not for a server.
  bool OnMessage(const AmMessage& message);
  // Sends what there is room for, one message per session in turn. True when anything was sent.
  bool Pump();

  // Since the last call: bytes of data sent and received, accesses that the gate refused.
  struct Bytes {
    uint64_t read = 0, written = 0, refused = 0;
  };
  Bytes TakeBytes();

 private:
  struct Job {  // a read item; partly sent
    uint64_t id;
    std::shared_ptr<RegionCore> region;
    uint64_t offset, length, sent;
  };
  struct Session {
    uint64_t client = 0, subject = 0;
    AmChannel* channel = nullptr;
    bool expelled = false;
    std::vector<Job> jobs;  // from `head` on; the rest is done
    size_t head = 0;
    std::vector<AmItem> failed, written;  // answers to be sent
  };

  void OnRead(Session& session, const AmMessage& message);
  void OnWrite(Session& session, const AmMessage& message);
  void OnCancel(Session& session, const AmMessage& message);
  // The region of an item whose range is valid; null with the reason in `code`.
  std::shared_ptr<RegionCore> Check(const Session& session, const AmItem& item, bool write,
                                    uint32_t* code);
  bool SendAnswers(Session& session, AmKind kind, std::vector<AmItem>& items);
  bool SendData(Session& session);
  void OnPart(Session& session, AmItem item, absl::Span<const uint8_t> bytes);

  const RegionTable* const regions_;
  AccessGate* gate_ = nullptr;
  std::unordered_map<uint64_t, Session> sessions_;
  Bytes bytes_;
};

}  // namespace oscarkv
