#include "kvstore/cluster/etcd_stub.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/mutex.h"
#include "common/rpc/status.h"
#include "common/rpc/tls.h"
#include "common/status_macros.h"
#include "etcd/rpc.grpc.pb.h"
#include "kvstore/cluster/etcd_options.h"

namespace oscarkv {
namespace {

constexpr int64_t kMaxMembers = 10'000;

// The end of the range of all keys that begin with `folder`.
std::string EndOf(std::string folder) {
  folder.back() = static_cast<char>(folder.back() + 1);
  return folder;
}

class EtcdStub final : public Registry {
 public:
  EtcdStub(const std::string& endpoint, const EtcdAccess& access,
           const std::shared_ptr<grpc::ChannelCredentials>& credentials)
      : endpoint_(endpoint), access_(access) {
    grpc::ChannelArguments args;
    // A server that is cut off is noticed on a silent watch, too.
    args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
    args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 3'000);
    args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
    args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 2'000);
    args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1'000);
    const auto channel = grpc::CreateCustomChannel(endpoint, credentials, args);
    kv_ = etcdserverpb::KV::NewStub(channel);
    watch_ = etcdserverpb::Watch::NewStub(channel);
    lease_ = etcdserverpb::Lease::NewStub(channel);
    auth_ = etcdserverpb::Auth::NewStub(channel);
  }

  absl::StatusOr<Listing> List(const std::string& folder, Time deadline) override {
    grpc::ClientContext context;
    RETURN_IF_ERROR(Prepare(&context, deadline));
    etcdserverpb::RangeRequest request;
    request.set_key(folder);
    request.set_range_end(EndOf(folder));
    request.set_limit(kMaxMembers);
    etcdserverpb::RangeResponse response;
    const grpc::Status status = kv_->Range(&context, request, &response);
    if (!status.ok()) return Named(status);
    if (response.more()) {
      return absl::FailedPreconditionError(
          absl::StrCat("etcd ", endpoint_, ": more than ", kMaxMembers, " keys in ", folder));
    }
    Listing listing;
    listing.revision = response.header().revision();
    for (const mvccpb::KeyValue& kv : response.kvs())
      listing.entries.push_back({kv.key(), kv.value()});
    return listing;
  }

  absl::Status Watch(const std::string& folder, int64_t revision, Time deadline,
                     const std::function<void(const std::vector<Event>&)>& changed) override {
    grpc::ClientContext context;
    RETURN_IF_ERROR(Prepare(&context, deadline));
    {
      MutexLock lock(mu_);
      if (cancelled_) return absl::CancelledError("the watch was cancelled");
      watching_ = &context;
    }
    const auto stream = watch_->Watch(&context);
    etcdserverpb::WatchRequest request;
    request.mutable_create_request()->set_key(folder);
    request.mutable_create_request()->set_range_end(EndOf(folder));
    request.mutable_create_request()->set_start_revision(revision);
    absl::Status end;
    if (stream->Write(request)) end = ReadEvents(stream.get(), changed);
    if (!end.ok()) context.TryCancel();  // we leave first
    const grpc::Status status = stream->Finish();
    MutexLock lock(mu_);
    watching_ = nullptr;
    if (cancelled_) return absl::CancelledError("the watch was cancelled");
    return end.ok() ? Named(status) : end;
  }

  absl::StatusOr<int64_t> GrantLease(Duration ttl, Time deadline) override {
    grpc::ClientContext context;
    RETURN_IF_ERROR(Prepare(&context, deadline));
    etcdserverpb::LeaseGrantRequest request;
    request.set_ttl(std::max<int64_t>(1, std::chrono::ceil<std::chrono::seconds>(ttl).count()));
    etcdserverpb::LeaseGrantResponse response;
    const grpc::Status status = lease_->LeaseGrant(&context, request, &response);
    if (!status.ok()) return Named(status);
    if (!response.error().empty() || response.id() == 0)
      return absl::UnavailableError(absl::StrCat("etcd ", endpoint_, ": ", response.error()));
    return response.id();
  }

  absl::Status KeepLease(int64_t lease, Time deadline) override {
    grpc::ClientContext context;
    RETURN_IF_ERROR(Prepare(&context, deadline));
    const auto stream = lease_->LeaseKeepAlive(&context);
    etcdserverpb::LeaseKeepAliveRequest request;
    request.set_id(lease);
    etcdserverpb::LeaseKeepAliveResponse response;
    const bool answered = stream->Write(request) && stream->WritesDone() && stream->Read(&response);
    if (answered) context.TryCancel();
    const grpc::Status status = stream->Finish();
    if (!answered) return Named(status);
    if (response.ttl() > 0) return absl::OkStatus();
    return absl::NotFoundError(absl::StrCat("etcd ", endpoint_, ": the lease has expired"));
  }

  absl::Status RevokeLease(int64_t lease, Time deadline) override {
    grpc::ClientContext context;
    RETURN_IF_ERROR(Prepare(&context, deadline));
    etcdserverpb::LeaseRevokeRequest request;
    request.set_id(lease);
    etcdserverpb::LeaseRevokeResponse response;
    const grpc::Status status = lease_->LeaseRevoke(&context, request, &response);
    return status.ok() ? absl::OkStatus() : Named(status);
  }

  absl::Status Put(const Entry& entry, int64_t lease, Time deadline) override {
    grpc::ClientContext context;
    RETURN_IF_ERROR(Prepare(&context, deadline));
    etcdserverpb::PutRequest request;
    request.set_key(entry.key);
    request.set_value(entry.value);
    request.set_lease(lease);
    etcdserverpb::PutResponse response;
    const grpc::Status status = kv_->Put(&context, request, &response);
    return status.ok() ? absl::OkStatus() : Named(status);
  }

  void Cancel() override {
    MutexLock lock(mu_);
    cancelled_ = true;
    if (watching_ != nullptr) watching_->TryCancel();
  }

 private:
  using Stream = grpc::ClientReaderWriter<etcdserverpb::WatchRequest, etcdserverpb::WatchResponse>;

  // OK: the stream ended, its status says why.
  absl::Status ReadEvents(Stream* stream,
                          const std::function<void(const std::vector<Event>&)>& changed) {
    etcdserverpb::WatchResponse response;
    while (stream->Read(&response)) {
      if (response.compact_revision() != 0)
        return absl::OutOfRangeError(
            absl::StrCat("etcd ", endpoint_, ": compacted up to ", response.compact_revision()));
      if (response.canceled())
        return absl::UnavailableError(
            absl::StrCat("etcd ", endpoint_, " ended the watch: ", response.cancel_reason()));
      std::vector<Event> events;
      for (const mvccpb::Event& e : response.events()) {
        events.push_back({e.type() == mvccpb::Event::DELETE, {e.kv().key(), e.kv().value()}});
      }
      if (!events.empty()) changed(events);
    }
    return absl::OkStatus();
  }

  static void SetDeadline(grpc::ClientContext* context, Time deadline) {
    const Duration left = deadline - SteadyClock::Get()->Now();
    context->set_deadline(std::chrono::system_clock::now() +
                          std::chrono::duration_cast<std::chrono::microseconds>(left));
  }
  // The deadline, and the user's token where there is one.
  absl::Status Prepare(grpc::ClientContext* context, Time deadline) {
    SetDeadline(context, deadline);
    if (access_.user.empty()) return absl::OkStatus();
    ASSIGN_OR_RETURN(const std::string token, Token(deadline));
    context->AddMetadata("token", token);
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> Token(Time deadline) {
    {
      MutexLock lock(mu_);
      if (!token_.empty()) return token_;
    }
    etcdserverpb::AuthenticateRequest request;
    ASSIGN_OR_RETURN(*request.mutable_password(), ReadEtcdPassword(access_));
    request.set_name(access_.user);
    etcdserverpb::AuthenticateResponse response;
    grpc::ClientContext context;
    SetDeadline(&context, deadline);
    const grpc::Status status = auth_->Authenticate(&context, request, &response);
    if (!status.ok()) return Named(status);
    MutexLock lock(mu_);
    token_ = response.token();
    return token_;
  }
  absl::Status Named(const grpc::Status& status) {
    if (status.ok()) return absl::UnavailableError(absl::StrCat("etcd ", endpoint_, ": ended"));
    const absl::Status plain = rpc::FromGrpc(status);
    if (absl::IsUnauthenticated(plain)) {  // it forgets tokens that were not used for minutes
      MutexLock lock(mu_);
      token_.clear();
    }
    return absl::Status(plain.code(), absl::StrCat("etcd ", endpoint_, ": ", plain.message()));
  }

  const std::string endpoint_;
  const EtcdAccess access_;
  std::unique_ptr<etcdserverpb::KV::Stub> kv_;
  std::unique_ptr<etcdserverpb::Watch::Stub> watch_;
  std::unique_ptr<etcdserverpb::Lease::Stub> lease_;
  std::unique_ptr<etcdserverpb::Auth::Stub> auth_;
  Mutex mu_;
  std::string token_ GUARDED_BY(mu_);
  bool cancelled_ GUARDED_BY(mu_) = false;
  grpc::ClientContext* watching_ GUARDED_BY(mu_) = nullptr;
};

}  // namespace

RegistryFactory EtcdStubs(const EtcdAccess& access) {
  auth::SecurityOptions tls;
  tls.tls_ca = access.ca;
  tls.tls_cert = access.cert;
  tls.tls_key = access.key;
  return [access, credentials = rpc::ChannelCredentials(tls)](const std::string& endpoint) {
    return std::make_unique<EtcdStub>(endpoint, access, credentials);
  };
}

}  // namespace oscarkv
