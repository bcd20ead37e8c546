#include "transport/ucx/am_engine.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "common/status_macros.h"

namespace oscarkv {
namespace {

constexpr unsigned kAmId = 1;
constexpr size_t kSendSlots = 16;  // messages handed to UCX and not yet sent, for each endpoint

class UcxAmEndpoint;

// What UCX reads from until a message is sent.
struct SendSlot {
  UcxAmEndpoint* endpoint = nullptr;
  AmHeader header;
  AmItem items[kMaxItems];  // also those of the parts but the first
  ucp_dt_iov_t spans[1 + kMaxParts];
  std::shared_ptr<const void> owners[kMaxParts];  // of the payload
};

class UcxAmEndpoint final : public AmEndpoint {
 public:
  explicit UcxAmEndpoint(std::unique_ptr<UcxEndpoint> endpoint)
      : endpoint_(std::move(endpoint)), slots_(std::make_unique<SendSlot[]>(kSendSlots)) {
    for (size_t i = 0; i < kSendSlots; ++i) {
      slots_[i].endpoint = this;
      free_.push_back(&slots_[i]);
    }
  }
  ~UcxAmEndpoint() override {
    if (closed()) return;
    // UCX did not give the buffers back in time (it should): it may still read them, so they stay,
    // for ever.
    for (size_t i = 0; i < kSendSlots; ++i) slots_[i].endpoint = nullptr;
    (void)slots_.release();
    (void)endpoint_.release();
  }

  size_t Room() const override { return status().ok() ? free_.size() : 0; }
  void Send(const AmHeader& header, absl::Span<const uint8_t> payload,
            std::shared_ptr<const void> owner) override {
    SendSlot* slot = Take(header);
    slot->owners[0] = std::move(owner);
    Post(slot, payload.data(), payload.size(), ucp_dt_make_contig(1));
  }
  void SendItems(AmHeader header, absl::Span<const AmItem> items) override {
    header.count = static_cast<uint16_t>(items.size());
    SendSlot* slot = Take(header);
    std::copy(items.begin(), items.end(), slot->items);
    Post(slot, slot->items, items.size() * sizeof(AmItem), ucp_dt_make_contig(1));
  }
  void SendParts(AmHeader header, std::vector<AmPart> parts) override {
    header.count = static_cast<uint16_t>(parts.size() - 1);
    header.item = parts[0].item;
    SendSlot* slot = Take(header);
    for (size_t i = 1; i < parts.size(); ++i) slot->items[i - 1] = parts[i].item;
    size_t spans = 0;
    if (header.count > 0) slot->spans[spans++] = {slot->items, header.count * sizeof(AmItem)};
    for (size_t i = 0; i < parts.size(); ++i) {
      slot->spans[spans++] = {const_cast<uint8_t*>(parts[i].bytes), parts[i].item.length};
      slot->owners[i] = std::move(parts[i].owner);
    }
    if (spans == 1) {
      Post(slot, slot->spans[0].buffer, slot->spans[0].length, ucp_dt_make_contig(1));
    } else {
      Post(slot, slot->spans, spans, ucp_dt_make_iov());
    }
  }
  absl::Status status() const override { return endpoint_->status(); }
  void Close() override { endpoint_->Close(); }
  bool closed() const override { return endpoint_->closed() && free_.size() == kSendSlots; }
  std::string transports() const override { return endpoint_->transports(); }

 private:
  SendSlot* Take(const AmHeader& header) {
    SendSlot* slot = free_.back();
    free_.pop_back();
    slot->header = header;
    return slot;
  }
  void Release(SendSlot* slot) {
    for (auto& owner : slot->owners) owner.reset();
    free_.push_back(slot);
  }
  void Post(SendSlot* slot, const void* payload, size_t count, ucp_datatype_t type) {
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                         UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_DATATYPE;
    param.datatype = type;
    param.cb.send = OnSent;
    param.user_data = slot;
    // Never the rendezvous protocol: it makes the receiver read our memory by itself, one-sidedly
    // in effect.
    param.flags = UCP_AM_SEND_FLAG_EAGER;
    void* request = ucp_am_send_nbx(endpoint_->get(), kAmId, &slot->header, sizeof(slot->header),
                                    payload, count, &param);
    if (UCS_PTR_IS_PTR(request)) return;  // OnSent follows
    if (UCS_PTR_IS_ERR(request))
      endpoint_->SetFailed(UcxStatus(UCS_PTR_STATUS(request), "cannot send to the peer"));
    Release(slot);
  }
  static void OnSent(void* request, ucs_status_t status, void* user_data) {
    ucp_request_free(request);
    auto* slot = static_cast<SendSlot*>(user_data);
    if (slot->endpoint == nullptr) return;  // abandoned
    if (status != UCS_OK)
      slot->endpoint->endpoint_->SetFailed(UcxStatus(status, "cannot send to the peer"));
    slot->endpoint->Release(slot);
  }

  std::unique_ptr<UcxEndpoint> endpoint_;
  std::unique_ptr<SendSlot[]> slots_;
  std::vector<SendSlot*> free_;
};

class UcxAmEngine final : public AmEngine {
 public:
  explicit UcxAmEngine(std::unique_ptr<UcxWorker> worker) : worker_(std::move(worker)) {}

  absl::Status Init() {
    ucp_am_handler_param_t param{};
    param.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                       UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
    param.id = kAmId;
    param.flags = UCP_AM_FLAG_WHOLE_MSG;
    param.cb = OnMessage;
    param.arg = this;
    return UcxStatus(ucp_worker_set_am_recv_handler(worker_->get(), &param),
                     "cannot set the message handler");
  }

  const std::string& address() const override { return worker_->address(); }
  void SetReceiver(Receiver receiver) override { receiver_ = std::move(receiver); }
  absl::StatusOr<std::unique_ptr<AmEndpoint>> Connect(absl::string_view address) override {
    ASSIGN_OR_RETURN(auto endpoint,
                     UcxEndpoint::Create(worker_.get(), address, /*peer_errors=*/true));
    return std::make_unique<UcxAmEndpoint>(std::move(endpoint));
  }
  bool Progress() override { return worker_->Progress(); }
  bool Arm() override { return worker_->Arm(); }
  int event_fd() const override { return worker_->event_fd(); }

 private:
  static ucs_status_t OnMessage(void* arg, const void* header, size_t header_length, void* data,
                                size_t length, const ucp_am_recv_param_t* param) {
    auto* self = static_cast<UcxAmEngine*>(arg);
    // A rendezvous request carries no bytes yet; we never send such, so it goes the way of
    // malformed messages.
    if ((param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0) {
      self->receiver_({}, {});
      return UCS_ERR_REJECTED;
    }
    self->receiver_({static_cast<const uint8_t*>(header), header_length},
                    {static_cast<const uint8_t*>(data), length});
    return UCS_OK;  // the bytes were copied
  }

  std::unique_ptr<UcxWorker> worker_;
  Receiver receiver_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<AmEngine>> CreateUcxAmEngine(std::shared_ptr<UcxContext> context) {
  ASSIGN_OR_RETURN(auto worker, UcxWorker::Create(std::move(context)));
  auto engine = std::make_unique<UcxAmEngine>(std::move(worker));
  RETURN_IF_ERROR(engine->Init());
  return engine;
}

}  // namespace oscarkv
