#include "transport/ucx/rma_engine.h"

#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

// Whether [begin, end) is mapped readable and writable in this process. UCX does not check the
// bounds of shared segments: a wrong size in a descriptor would be a crash.
bool IsMapped(uint64_t begin, uint64_t end) {
  std::ifstream maps("/proc/self/maps");
  std::string line;
  while (begin < end && std::getline(maps, line)) {
    uint64_t from = 0, to = 0;
    char permissions[8] = {};
    if (std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %7s", &from, &to, permissions) != 3)
      continue;
    if (to <= begin) continue;
    if (from > begin || permissions[0] != 'r' || permissions[1] != 'w') return false;
    begin = to;
  }
  return begin >= end;
}

struct UcxRmaKey final : RmaKey {
  explicit UcxRmaKey(ucp_rkey_h k) : key(k) {}
  ~UcxRmaKey() override { ucp_rkey_destroy(key); }
  const ucp_rkey_h key;
};

class UcxRmaEndpoint final : public RmaEndpoint {
 public:
  UcxRmaEndpoint(std::unique_ptr<UcxEndpoint> endpoint, bool shared_memory, Done done)
      : endpoint_(std::move(endpoint)),
        shared_memory_(shared_memory),
        calls_(std::make_shared<Calls>(Calls{std::move(done), 0})) {}
  ~UcxRmaEndpoint() override {
    calls_->done = nullptr;
    if (!closed()) (void)endpoint_.release();  // UCX holds on to it: see UcxAmEndpoint
  }

  absl::Status status() const override { return endpoint_->status(); }
  absl::StatusOr<std::unique_ptr<RmaKey>> Unpack(absl::string_view rkey, uint64_t base,
                                                 uint64_t length) override {
    ucp_rkey_h handle = nullptr;
    RETURN_IF_ERROR(UcxStatus(ucp_ep_rkey_unpack(endpoint_->get(), rkey.data(), &handle),
                              "cannot use the peer's memory"));
    auto key = std::make_unique<UcxRmaKey>(handle);
    if (!shared_memory_) return key;
    void* here = nullptr;
    RETURN_IF_ERROR(
        UcxStatus(ucp_rkey_ptr(handle, base, &here), "the peer's memory is not mapped here"));
    const auto begin = reinterpret_cast<uint64_t>(here);
    if (begin + length < begin || !IsMapped(begin, begin + length)) {
      return absl::InvalidArgumentError(absl::StrCat("the peer's segment is smaller than the ",
                                                     length, " bytes that its descriptor says"));
    }
    return key;
  }
  absl::StatusOr<Started> Start(const Transfer::Piece& piece, uint64_t remote_address,
                                const RmaKey& key,
                                const std::shared_ptr<Transfer>& owner) override {
    const ucp_rkey_h rkey = static_cast<const UcxRmaKey&>(key).key;
    return Call(owner, piece.length, [&](const ucp_request_param_t* param) {
      return piece.op->kind == TransferKind::kRead
                 ? ucp_get_nbx(endpoint_->get(), piece.local, piece.length, remote_address, rkey,
                               param)
                 : ucp_put_nbx(endpoint_->get(), piece.local, piece.length, remote_address, rkey,
                               param);
    });
  }
  absl::StatusOr<Started> Flush(const std::shared_ptr<Transfer>& owner) override {
    return Call(owner, 0, [&](const ucp_request_param_t* param) {
      return ucp_ep_flush_nbx(endpoint_->get(), param);
    });
  }
  void Close() override { endpoint_->Close(); }
  bool closed() const override { return endpoint_->closed() && calls_->pending == 0; }
  std::string transports() const override { return endpoint_->transports(); }

 private:
  // Outlives the endpoint if UCX is late.
  struct Calls {
    Done done;
    int pending;
  };
  struct Pending {
    std::shared_ptr<Calls> calls;
    std::shared_ptr<Transfer> owner;
    uint64_t bytes;
  };

  template <typename F>
  absl::StatusOr<Started> Call(const std::shared_ptr<Transfer>& owner, uint64_t bytes, F call) {
    // Allocated before the outcome is known; on shared memory most calls end at once, so the
    // allocation is kept for the next.
    if (spare_ == nullptr) spare_ = std::make_unique<Pending>();
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
    param.cb.send = OnDone;
    param.user_data = spare_.get();
    void* request = call(&param);
    if (request == nullptr) return Started::kDone;
    if (UCS_PTR_IS_ERR(request))
      return UcxStatus(UCS_PTR_STATUS(request), "one-sided transfer failed");
    Pending* pending =
        spare_.release();  // OnDone deletes it; UCX calls back from its progress only
    *pending = {calls_, owner, bytes};
    ++calls_->pending;
    return Started::kPending;
  }
  static void OnDone(void* request, ucs_status_t status, void* user_data) {
    ucp_request_free(request);
    const std::unique_ptr<Pending> pending(static_cast<Pending*>(user_data));
    --pending->calls->pending;
    if (pending->calls->done) {
      pending->calls->done(pending->owner, pending->bytes,
                           UcxStatus(status, "one-sided transfer failed"));
    }
  }

  std::unique_ptr<UcxEndpoint> endpoint_;
  const bool shared_memory_;
  const std::shared_ptr<Calls> calls_;
  std::unique_ptr<Pending> spare_;
};

class UcxRmaEngine final : public RmaEngine {
 public:
  UcxRmaEngine(std::unique_ptr<UcxWorker> worker, bool shared_memory)
      : worker_(std::move(worker)), shared_memory_(shared_memory) {}
  const std::string& address() const override { return worker_->address(); }
  absl::StatusOr<std::unique_ptr<RmaEndpoint>> Connect(absl::string_view address,
                                                       RmaEndpoint::Done done) override {
    ASSIGN_OR_RETURN(auto endpoint,
                     UcxEndpoint::Create(worker_.get(), address, /*peer_errors=*/!shared_memory_));
    return std::make_unique<UcxRmaEndpoint>(std::move(endpoint), shared_memory_, std::move(done));
  }
  bool Progress() override { return worker_->Progress(); }
  bool Arm() override { return worker_->Arm(); }
  int event_fd() const override { return worker_->event_fd(); }

 private:
  std::unique_ptr<UcxWorker> worker_;
  const bool shared_memory_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RmaEngine>> CreateUcxRmaEngine(std::shared_ptr<UcxContext> context,
                                                              bool shared_memory) {
  ASSIGN_OR_RETURN(auto worker, UcxWorker::Create(std::move(context)));
  return std::make_unique<UcxRmaEngine>(std::move(worker), shared_memory);
}

}  // namespace oscarkv
