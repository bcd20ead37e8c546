#include "kvstore/server/kvstore_service.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/rpc/status.h"
#include "common/status_macros.h"
#include "common/trace.h"
#include "kvstore/adapter.h"

namespace oscarkv {
namespace {

constexpr uint64_t kStreamChunkBytes = 512 << 10;
constexpr Duration kMostBudget = std::chrono::hours(1);  // of calls without a deadline
constexpr size_t kMaxWriteErrors = kv::kMaxItemsPerCall;

Time Now() {
  return SteadyClock::Get()->Now();
}

// Items that failed, for responses that have items.
template <typename Response>
void CountItemErrors(KvNodeMetrics* metrics, absl::string_view call, const Response& response) {
  if constexpr (requires { response.statuses; }) {
    for (const absl::Status& s : response.statuses) {
      if (!s.ok() && !absl::IsAlreadyExists(s) && !absl::IsNotFound(s))
        metrics->item_errors.With({call, CodeLabel(s)}).Increment();
    }
  }
}

// A client's calls belong to its tenant: it opens sessions for that one, and uses no other's. The
// processes of the cluster (role worker) act for all.
class Caller {
 public:
  Caller(const rpc::Guard* guard, const grpc::ServerContextBase& context, auth::Roles roles)
      : guard_(guard), identity_(rpc::CheckCaller(guard, context, roles)) {}
  absl::Status status() const { return identity_.status(); }
  bool in_cluster() const { return identity_->everyone || identity_->Has(auth::kWorker); }

  absl::Status CheckTenant(std::string* tenant) const {
    if (tenant->empty() && !in_cluster()) *tenant = identity_->tenant;
    if (identity_->MayActFor(*tenant)) return absl::OkStatus();
    return guard_->Refuse(absl::PermissionDeniedError(
        absl::StrCat("'", identity_->name, "' may not act for tenant '", *tenant, "'")));
  }
  // Of an unknown session the node says so itself.
  absl::Status CheckSession(const KvNode& node, uint64_t session_id) const {
    if (in_cluster()) return absl::OkStatus();
    const std::optional<std::string> tenant = node.TenantOf(session_id);
    if (!tenant || *tenant == identity_->tenant) return absl::OkStatus();
    return guard_->Refuse(absl::PermissionDeniedError(
        absl::StrCat("this session is not of a client of '", identity_->name, "'")));
  }
  template <typename Native>
  absl::Status CheckRequest(const KvNode& node, Native* request) const {
    if constexpr (requires { request->tenant; }) return CheckTenant(&request->tenant);
    if constexpr (requires { request->session_id; }) return CheckSession(node, request->session_id);
    return absl::OkStatus();
  }

 private:
  const rpc::Guard* const guard_;
  const absl::StatusOr<auth::Identity> identity_;
};

// Shared memory and RDMA know no tenants: who is not of the cluster gets no key to the arena. Its
// blocks travel over the streams, where every piece is checked against the session's pins.
void HideTransport(kv::OpenSessionResponse* answer) {
  answer->transport_address.clear();
  answer->exported_arena.clear();
  answer->transport_name.clear();
}

// Each session its own address: with the session its connections end, and each access is the
// session's.
absl::Status GiveAddress(Transport* transport, kv::OpenSessionResponse* answer) {
  ASSIGN_OR_RETURN(answer->transport_address, transport->AddressFor(answer->session_id));
  return absl::OkStatus();
}

// Sends pieces of pinned blocks in chunks.
class ReadReactor final : public grpc::ServerWriteReactor<v1::ReadBlocksResponse> {
 public:
  ReadReactor(KvNode* node, KvNodeMetrics* metrics, const Caller& caller,
              const v1::ReadBlocksRequest& request)
      : node_(node), metrics_(metrics), session_id_(request.session_id()) {
    absl::Status checked = caller.status();
    if (checked.ok()) checked = caller.CheckSession(*node, session_id_);
    if (checked.ok()) checked = FromProto(request, &pieces_);
    if (checked.ok()) {
      Next();
    } else {
      Finish(rpc::ToGrpc(checked));
    }
  }
  void OnWriteDone(bool ok) override {
    if (ok) return Next();
    Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the reader went away"));
  }
  void OnDone() override { delete this; }

 private:
  void Next() {
    while (piece_ < pieces_.size() && at_ == pieces_[piece_].length) {
      ++piece_;
      at_ = 0;
    }
    if (piece_ == pieces_.size()) return Finish(grpc::Status::OK);
    const kv::ReadPiece& p = pieces_[piece_];
    const uint64_t length = std::min(kStreamChunkBytes, p.length - at_);
    chunk_.set_piece(piece_);
    chunk_.set_offset(at_);
    chunk_.mutable_data()->resize(length);
    const absl::Status read =
        node_->ReadPinned(session_id_, {p.pin_id, p.offset + at_, length},
                          reinterpret_cast<uint8_t*>(chunk_.mutable_data()->data()));
    if (!read.ok()) return Finish(rpc::ToGrpc(read));
    at_ += length;
    if (metrics_ != nullptr) metrics_->stream_bytes.With({"read"}).Add(length);
    StartWrite(&chunk_);
  }

  KvNode* const node_;
  KvNodeMetrics* const metrics_;
  const uint64_t session_id_;
  std::vector<kv::ReadPiece> pieces_;
  size_t piece_ = 0;
  uint64_t at_ = 0;  // in the piece
  v1::ReadBlocksResponse chunk_;
};

// Receives chunks of reserved blocks. What the node refuses is reported per block, the others go
// on.
class WriteReactor final : public grpc::ServerReadReactor<v1::WriteBlocksRequest> {
 public:
  WriteReactor(KvNode* node, KvNodeMetrics* metrics, Caller caller,
               v1::WriteBlocksResponse* response)
      : node_(node), metrics_(metrics), caller_(std::move(caller)), response_(response) {
    if (caller_.status().ok()) {
      StartRead(&chunk_);
    } else {
      Finish(rpc::ToGrpc(caller_.status()));
    }
  }
  void OnReadDone(bool ok) override {
    if (!ok) return Conclude();
    kv::WriteChunk chunk;
    absl::Status checked = caller_.CheckSession(*node_, chunk_.session_id());
    if (checked.ok()) checked = FromProto(chunk_, &chunk);
    if (!checked.ok()) return Finish(rpc::ToGrpc(checked));
    const absl::string_view data = chunk_.data();
    const absl::Status written = node_->WriteReserved(
        chunk_.session_id(), chunk, {reinterpret_cast<const uint8_t*>(data.data()), data.size()});
    if (absl::IsUnauthenticated(written)) return Finish(rpc::ToGrpc(written));
    if (written.ok()) {
      response_->set_bytes(response_->bytes() + data.size());
      if (metrics_ != nullptr) metrics_->stream_bytes.With({"write"}).Add(data.size());
    } else if (errors_.size() < kMaxWriteErrors) {
      errors_.try_emplace(chunk.key, written);
    }
    StartRead(&chunk_);
  }
  void OnDone() override { delete this; }

 private:
  void Conclude() {
    for (const auto& [key, status] : errors_) {
      v1::WriteError* error = response_->add_errors();
      KeyToProto(key, error->mutable_key());
      error->set_code(static_cast<uint32_t>(status.code()));
      error->set_message(std::string(status.message()));
    }
    Finish(grpc::Status::OK);
  }

  KvNode* const node_;
  KvNodeMetrics* const metrics_;
  const Caller caller_;
  v1::WriteBlocksResponse* const response_;
  v1::WriteBlocksRequest chunk_;
  absl::flat_hash_map<BlockKey, absl::Status> errors_;  // the first of each block
};

}  // namespace

template <typename Native, typename ProtoRequest, typename ProtoResponse>
grpc::ServerUnaryReactor* KvStoreService::Unary(absl::string_view call,
                                                grpc::CallbackServerContext* context,
                                                const ProtoRequest& request,
                                                ProtoResponse* response) {
  const Time started = Now();
  const TraceScope trace(rpc::TraceIdOf(*context));
  Native native;
  typename Native::Response answer;
  // How the node is, is for those who run the cluster.
  constexpr bool kStats = std::is_same_v<Native, kv::StatsRequest>;
  // What nodes ask each other speaks of all tenants' blocks.
  constexpr bool kOfNodes = std::is_same_v<Native, kv::CompareDigestsRequest> ||
                            std::is_same_v<Native, kv::CompareBlocksRequest>;
  constexpr auth::Roles kOthers = kOfNodes ? auth::Roles{}
                                  : kStats ? auth::kOperator
                                           : auth::kClient;
  const Caller caller(guard_, *context, auth::kWorker | kOthers);
  absl::Status status = caller.status();
  if (status.ok()) status = FromProto(request, &native);
  if (status.ok()) status = caller.CheckRequest(*node_, &native);
  if (status.ok()) status = node_->Handle(native, &answer);
  if constexpr (std::is_same_v<Native, kv::OpenSessionRequest>) {
    if (status.ok() && !caller.in_cluster()) {
      HideTransport(&answer);
    } else if (status.ok() && transport_ != nullptr) {
      status = GiveAddress(transport_, &answer);
    }
  }
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  Reply(call, status, answer, started, response, reactor);
  return reactor;
}

template <typename Response, typename ProtoResponse>
void KvStoreService::Reply(absl::string_view call, const absl::Status& status,
                           const Response& answer, Time started, ProtoResponse* response,
                           grpc::ServerUnaryReactor* reactor) {
  if (status.ok()) {
    ToProto(answer, response);
    if (metrics_ != nullptr) CountItemErrors(metrics_, call, answer);
  }
  Record(call, status, started);
  reactor->Finish(rpc::ToGrpc(status));
}

// Waits for the tier where it has to, without holding the thread.
grpc::ServerUnaryReactor* KvStoreService::GetStart(grpc::CallbackServerContext* context,
                                                   const v1::GetStartRequest* request,
                                                   v1::GetStartResponse* response) {
  const Time started = Now();
  const TraceScope trace(rpc::TraceIdOf(*context));
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  kv::GetStartRequest native;
  const Caller caller(guard_, *context, auth::kWorker | auth::kClient);
  absl::Status checked = caller.status();
  if (checked.ok()) checked = FromProto(*request, &native);
  if (checked.ok()) checked = caller.CheckRequest(*node_, &native);
  if (!checked.ok()) {
    Reply("GetStart", checked, kv::GetStartResponse{}, started, response, reactor);
    return reactor;
  }
  const Duration budget = std::clamp<Duration>(
      context->deadline() - std::chrono::system_clock::now(), Duration(0), kMostBudget);
  node_->StartGet(native, budget,
                  [=, this](const absl::Status& status, const kv::GetStartResponse& answer) {
                    Reply("GetStart", status, answer, started, response, reactor);
                  });
  return reactor;
}

void KvStoreService::Record(absl::string_view call, const absl::Status& status, Time started) {
  if (metrics_ == nullptr) return;
  metrics_->calls.With({call, CodeLabel(status)}).Increment();
  metrics_->call_seconds.HistogramWith({call}).Observe(Seconds(Now() - started));
}

#define OSCARKV_HANDLER(Name)                                                          \
  grpc::ServerUnaryReactor* KvStoreService::Name(grpc::CallbackServerContext* context, \
                                                 const v1::Name##Request* request,     \
                                                 v1::Name##Response* response) {       \
    return Unary<kv::Name##Request>(#Name, context, *request, response);               \
  }
OSCARKV_HANDLER(OpenSession)
OSCARKV_HANDLER(KeepAlive)
OSCARKV_HANDLER(CloseSession)
OSCARKV_HANDLER(MatchPrefix)
OSCARKV_HANDLER(Exists)
OSCARKV_HANDLER(RenewPins)
OSCARKV_HANDLER(Release)
OSCARKV_HANDLER(PutStart)
OSCARKV_HANDLER(PutEnd)
OSCARKV_HANDLER(PutRevoke)
OSCARKV_HANDLER(Erase)
OSCARKV_HANDLER(Stats)
OSCARKV_HANDLER(CompareDigests)
OSCARKV_HANDLER(CompareBlocks)
#undef OSCARKV_HANDLER

grpc::ServerWriteReactor<v1::ReadBlocksResponse>* KvStoreService::ReadBlocks(
    grpc::CallbackServerContext* context, const v1::ReadBlocksRequest* request) {
  return new ReadReactor(node_, metrics_, Caller(guard_, *context, auth::kWorker | auth::kClient),
                         *request);
}

grpc::ServerReadReactor<v1::WriteBlocksRequest>* KvStoreService::WriteBlocks(
    grpc::CallbackServerContext* context, v1::WriteBlocksResponse* response) {
  return new WriteReactor(node_, metrics_, Caller(guard_, *context, auth::kWorker | auth::kClient),
                          response);
}

}  // namespace oscarkv
