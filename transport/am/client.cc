#include "transport/am/client.h"

#include <algorithm>
#include <utility>

namespace oscarkv {
namespace {

constexpr uint64_t kSlotBits = 16;

}  // namespace

AmClient::AmClient(uint64_t session, AmChannel* channel,
                   std::function<void(const Transfer&)> on_end)
    : session_(session),
      channel_(channel),
      on_end_(std::move(on_end)),
      slots_(kReadSlots + kWriteSlots) {
  static_assert(kReadSlots + kWriteSlots < (1 << kSlotBits));
  for (uint32_t i = slots_.size(); i-- > 0;) free_slots_.push_back(i);
}

void AmClient::Submit(std::shared_ptr<Transfer> transfer) {
  if (!transfer->state->Start()) {
    on_end_(*transfer);
    return;
  }
  if (transfer->unconfirmed == 0) {
    transfer->state->End(absl::OkStatus());
    on_end_(*transfer);
    return;
  }
  transfers_.push_back(std::move(transfer));
}

bool AmClient::HasRoom(TransferKind kind, uint64_t* length) const {
  if (kind == TransferKind::kWrite) return write_slots_ < kWriteSlots;
  if (read_slots_ == kReadSlots || read_bytes_ >= kReadWindow) return false;
  *length = std::min(*length, kReadWindow - read_bytes_);
  return true;
}

bool AmClient::Pump() {
  SendCancels();
  bool sent = false, full = false;
  for (size_t i = 0; i < transfers_.size() && !full; ++i) {
    const std::shared_ptr<Transfer>& transfer = transfers_[i];
    Transfer::Piece piece;
    while (transfer->Peek(kMaxReadItem, kMaxPiece, &piece)) {
      // Room for the two messages that collect the reads and the writes of this turn.
      if (channel_->Room() < 2 || !HasRoom(piece.op->kind, &piece.length)) {
        full = true;
        break;
      }
      if (piece.op->kind == TransferKind::kRead) {
        StartRead(transfer, piece);
      } else if (const uint64_t length = RoomForPart(writes_.size(), write_used_, piece.length);
                 length == 0) {
        FlushWrites();
        continue;
      } else {
        piece.length = length;
        StartWrite(transfer, piece);
      }
      transfer->Take(piece);
      sent = true;
    }
  }
  FlushReads();
  FlushWrites();
  return sent;
}

AmItem AmClient::MakeItem(const std::shared_ptr<Transfer>& transfer, const Transfer::Piece& piece) {
  AmItem item;
  item.region = piece.op->remote->id;
  item.token = piece.op->remote->token;
  item.offset = piece.remote_offset;
  item.length = static_cast<uint32_t>(piece.length);
  item.id = TakeSlot(transfer, piece);
  return item;
}

void AmClient::StartRead(const std::shared_ptr<Transfer>& transfer, const Transfer::Piece& piece) {
  reads_.push_back(MakeItem(transfer, piece));
  if (reads_.size() == kMaxItems) FlushReads();
}

void AmClient::StartWrite(const std::shared_ptr<Transfer>& transfer, const Transfer::Piece& piece) {
  write_used_ += PartBytes(writes_.size(), piece.length);
  writes_.push_back({MakeItem(transfer, piece), piece.local, transfer});
}

void AmClient::FlushWrites() {
  if (writes_.empty()) return;
  AmHeader header;
  header.kind = AmKind::kWrite;
  header.to = session_;
  channel_->SendParts(header, std::exchange(writes_, {}));
  write_used_ = 0;
}

void AmClient::FlushReads() {
  if (reads_.empty()) return;
  AmHeader header;
  header.kind = AmKind::kRead;
  header.to = session_;
  channel_->SendItems(header, reads_);
  reads_.clear();
}

void AmClient::SendCancels() {
  while (!cancels_.empty() && channel_->Room() > 0) {
    const size_t n = std::min(kMaxItems, cancels_.size());
    AmHeader header;
    header.kind = AmKind::kCancel;
    header.to = session_;
    channel_->SendItems(header, absl::MakeConstSpan(cancels_).subspan(cancels_.size() - n));
    cancels_.resize(cancels_.size() - n);
  }
}

uint64_t AmClient::TakeSlot(const std::shared_ptr<Transfer>& transfer,
                            const Transfer::Piece& piece) {
  const uint32_t index = free_slots_.back();
  free_slots_.pop_back();
  Slot& slot = slots_[index];
  slot.transfer = transfer;
  slot.kind = piece.op->kind;
  slot.local = piece.local;
  slot.length = static_cast<uint32_t>(piece.length);
  slot.arrived = 0;
  ++(slot.kind == TransferKind::kRead ? read_slots_ : write_slots_);
  if (slot.kind == TransferKind::kRead) read_bytes_ += slot.length;
  return slot.generation << kSlotBits | index;
}

AmClient::Slot* AmClient::FindSlot(uint64_t id, TransferKind kind) {
  const uint64_t index = id & ((1 << kSlotBits) - 1);
  if (index >= slots_.size()) return nullptr;
  Slot& slot = slots_[index];
  return slot.transfer != nullptr && slot.generation == id >> kSlotBits && slot.kind == kind
             ? &slot
             : nullptr;
}

void AmClient::FreeSlot(Slot& slot) {
  --(slot.kind == TransferKind::kRead ? read_slots_ : write_slots_);
  if (slot.kind == TransferKind::kRead) read_bytes_ -= slot.length;
  slot.transfer = nullptr;
  ++slot.generation;
  free_slots_.push_back(static_cast<uint32_t>(&slot - slots_.data()));
}

bool AmClient::OnMessage(const AmMessage& message) {
  switch (message.header.kind) {
    case AmKind::kData: {
      bool honest = true;
      message.ForEachPart([&](const AmItem& item, absl::Span<const uint8_t> bytes) {
        honest &= OnPart(item, bytes);
      });
      return honest;
    }
    case AmKind::kFailed:
    case AmKind::kWritten:
      return OnItems(message);
    default:
      return false;
  }
}

bool AmClient::OnPart(const AmItem& item, absl::Span<const uint8_t> bytes) {
  Slot* slot = FindSlot(item.id, TransferKind::kRead);
  if (slot == nullptr) return true;  // of a transfer that was dropped
  const std::shared_ptr<Transfer> transfer = slot->transfer;
  // Parts of an item come in order: one endpoint, one lane. Insisting on it means that no byte is
  // counted twice.
  if (item.offset != slot->arrived || item.length > slot->length - slot->arrived) {
    Drop(transfer, absl::InternalError("the peer sent a part out of order"));
    return false;
  }
  if (transfer->state->ended()) {  // cancelled a moment ago: stop writing at once
    Drop(transfer, absl::CancelledError("transfer cancelled"));
    return true;
  }
  std::memcpy(slot->local + item.offset, bytes.data(), bytes.size());
  slot->arrived += item.length;
  if (slot->arrived == slot->length) FreeSlot(*slot);
  Confirm(*transfer, item.length);
  return true;
}

bool AmClient::OnItems(const AmMessage& message) {
  const bool written = message.header.kind == AmKind::kWritten;
  bool honest = true;
  for (size_t i = 0; i < message.header.count; ++i) {
    const AmItem item = message.Item(i);
    Slot* slot = FindSlot(item.id, written ? TransferKind::kWrite : TransferKind::kRead);
    if (slot == nullptr) continue;
    const std::shared_ptr<Transfer> transfer = slot->transfer;
    if (written && item.code == 0) {
      const uint64_t length = slot->length;
      FreeSlot(*slot);
      Confirm(*transfer, length);
      continue;
    }
    absl::Status status = AmStatus(item.code);
    if (status.ok()) {  // "failed: ok"
      honest = false;
      status = absl::InternalError("the peer failed the request without a reason");
    }
    Drop(transfer, std::move(status));
  }
  return honest;
}

void AmClient::Confirm(Transfer& transfer, uint64_t bytes) {
  transfer.unconfirmed -= bytes;
  if (transfer.unconfirmed > 0) return;
  auto it = std::find_if(transfers_.begin(), transfers_.end(),
                         [&](const std::shared_ptr<Transfer>& t) { return t.get() == &transfer; });
  if (it == transfers_.end()) return;
  // A write that the server confirmed may still be in the hands of the network library here; its
  // slot there holds a reference, so "drained" waits for it.
  std::shared_ptr<Transfer> done = std::move(*it);
  transfers_.erase(it);
  done->state->End(absl::OkStatus());
  on_end_(*done);
}

void AmClient::Drop(const std::shared_ptr<Transfer>& transfer, absl::Status status) {
  auto it = std::find(transfers_.begin(), transfers_.end(), transfer);
  if (it == transfers_.end()) return;
  const std::shared_ptr<Transfer> dropped = std::move(*it);
  transfers_.erase(it);
  for (Slot& slot : slots_) {
    if (slot.transfer != dropped) continue;
    if (slot.kind == TransferKind::kRead) {
      AmItem item;
      item.id = slot.generation << kSlotBits | static_cast<uint64_t>(&slot - slots_.data());
      cancels_.push_back(item);
    }
    FreeSlot(slot);
  }
  dropped->state->End(std::move(status));
  on_end_(*dropped);
}

void AmClient::Sweep(Time now) {
  // Backwards, as Drop erases.
  for (size_t i = transfers_.size(); i-- > 0;) {
    const std::shared_ptr<Transfer> transfer = transfers_[i];
    if (transfer->state->ended()) {
      Drop(transfer, absl::CancelledError("transfer cancelled"));
    } else if (now >= transfer->deadline) {
      Drop(transfer, absl::DeadlineExceededError("transfer did not end before its deadline"));
    }
  }
}

void AmClient::FailAll(const absl::Status& status) {
  while (!transfers_.empty()) Drop(std::shared_ptr<Transfer>(transfers_.back()), status);
  cancels_.clear();
}

Time AmClient::NextDeadline() const {
  Time next = Time::max();
  for (const auto& transfer : transfers_) next = std::min(next, transfer->deadline);
  return next;
}

}  // namespace oscarkv
