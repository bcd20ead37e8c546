// The asking side of the active-message lane: turns transfers into Read and Write messages, keeps a
// window of them in flight, matches the answers by id. Pure logic, no network library. One thread
// at a time (the lane's progress thread).
//
// Every piece in flight has a slot; its id is slot and generation, so that an answer that comes
// after its transfer was cancelled or ran out of time is recognised and dropped: such a transfer's
// buffer is never written again.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "common/clock.h"
#include "transport/am/protocol.h"
#include "transport/transfer.h"

namespace oscarkv {

class AmClient {
 public:
  static constexpr size_t kReadSlots = 256, kWriteSlots = 64;
  static constexpr uint64_t kReadWindow = 16 << 20;  // bytes asked for and not yet here

  // `session` is the server's id of the connection; `channel` outlives the client. `on_end` sees
  // every transfer as it is dropped, its state ended.
  AmClient(uint64_t session, AmChannel* channel, std::function<void(const Transfer&)> on_end);
  ~AmClient() { FailAll(absl::CancelledError("connection closed")); }

  void Submit(std::shared_ptr<Transfer> transfer);
  // Starts pieces while there is room. True when anything was sent.
  bool Pump();
  // Data, Failed or Written. False: the message cannot be the answer of an honest server.
  bool OnMessage(const AmMessage& message);
  // Drops transfers whose deadline passed or which their callers cancelled. Cheap when there are
  // none.
  void Sweep(Time now);
  void FailAll(const absl::Status& status);

  bool idle() const { return transfers_.empty(); }
  // The earliest deadline; Time::max() when idle.
  Time NextDeadline() const;

 private:
  struct Slot {
    std::shared_ptr<Transfer> transfer;  // null: free
    TransferKind kind = TransferKind::kRead;
    uint8_t* local = nullptr;
    uint32_t length = 0, arrived = 0;
    uint64_t generation = 0;
  };

  uint64_t TakeSlot(const std::shared_ptr<Transfer>& transfer, const Transfer::Piece& piece);
  Slot* FindSlot(uint64_t id, TransferKind kind);
  void FreeSlot(Slot& slot);
  bool HasRoom(TransferKind kind, uint64_t* length) const;
  bool OnPart(const AmItem& item, absl::Span<const uint8_t> bytes);
  bool OnItems(const AmMessage& message);
  void Confirm(Transfer& transfer, uint64_t bytes);
  // Ends the transfer, frees its slots, tells the server to forget its reads.
  void Drop(const std::shared_ptr<Transfer>& transfer, absl::Status status);
  void StartRead(const std::shared_ptr<Transfer>& transfer, const Transfer::Piece& piece);
  void StartWrite(const std::shared_ptr<Transfer>& transfer, const Transfer::Piece& piece);
  AmItem MakeItem(const std::shared_ptr<Transfer>& transfer, const Transfer::Piece& piece);
  void FlushReads();
  void FlushWrites();
  void SendCancels();

  const uint64_t session_;
  AmChannel* const channel_;
  const std::function<void(const Transfer&)> on_end_;
  std::vector<std::shared_ptr<Transfer>> transfers_;  // in the order of Submit
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_slots_;
  size_t read_slots_ = 0, write_slots_ = 0;
  uint64_t read_bytes_ = 0;
  std::vector<AmItem> reads_;    // of the Read message being put together
  std::vector<AmPart> writes_;   // of the Write message being put together
  uint64_t write_used_ = 0;      // bytes of its payload
  std::vector<AmItem> cancels_;  // to be sent
};

}  // namespace oscarkv
