#include "cli/gateway_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/rpc/client_security.h"
#include "common/rpc/status.h"
#include "common/status_macros.h"
#include "oscarkv/v1/gateway.grpc.pb.h"

namespace oscarkv::cli {
namespace {
constexpr Duration kShortCall = std::chrono::seconds(20);
constexpr Duration kRetryPause = std::chrono::milliseconds(200);  // times the number of attempts
constexpr Duration kReconnect = std::chrono::seconds(5);
constexpr Duration kWhy = std::chrono::seconds(2);
}  // namespace

void AddGatewayOptions(OptionTable* table, GatewayAddress* gateway) {
  table->AddString("gateway", &gateway->endpoint, "HOST:PORT", "The gateway's gRPC endpoint");
  auth::AddClientSecurityOptions(table, &gateway->security);
}

struct GatewayClient::Impl {
  std::shared_ptr<const rpc::ClientSecurity> security;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Gateway::Stub> stub;
};

GatewayClient::GatewayClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
GatewayClient::~GatewayClient() = default;

absl::StatusOr<std::unique_ptr<GatewayClient>> GatewayClient::Connect(const GatewayAddress& gateway,
                                                                      Duration wait) {
  auto impl = std::make_unique<Impl>();
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  // A gateway's host that vanished: otherwise only the request's deadline would end the wait.
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  args.SetMaxReceiveMessageSize(64 << 20);
  ASSIGN_OR_RETURN(impl->security, rpc::ClientSecurity::Create(gateway.security));
  impl->channel = impl->security->Connect(gateway.endpoint, args);
  impl->stub = v1::Gateway::NewStub(impl->channel);
  if (!impl->channel->WaitForConnected(rpc::ToSystem(SteadyClock::Get()->Now() + wait))) {
    // A call that does not wait says what the last attempt failed with.
    grpc::ClientContext context;
    context.set_deadline(rpc::ToSystem(SteadyClock::Get()->Now() + kWhy));
    v1::GetModelResponse response;
    const grpc::Status why = impl->stub->GetModel(&context, {}, &response);
    return absl::UnavailableError(absl::StrCat("no gateway answers at ", gateway.endpoint,
                                               "; start one with `oscarkv serve --model DIR` (",
                                               why.error_message(), ")"));
  }
  return std::unique_ptr<GatewayClient>(new GatewayClient(std::move(impl)));
}

absl::Status GatewayClient::Generate(
    const v1::GenerateRequest& request, Duration timeout,
    const std::function<void(const v1::GenerateResponse&)>& on_message) {
  grpc::ClientContext context;
  impl_->security->Authorize(&context);
  context.set_deadline(rpc::ToSystem(SteadyClock::Get()->Now() + timeout));
  auto reader = impl_->stub->Generate(&context, request);
  v1::GenerateResponse message;
  while (reader->Read(&message)) on_message(message);
  return rpc::FromGrpc(reader->Finish());
}

absl::Status GatewayClient::GenerateWithRetries(
    v1::GenerateRequest request, Duration timeout, int retries,
    const std::function<void(const v1::GenerateResponse&)>& on_message,
    const std::function<void(const absl::Status&)>& on_retry) {
  const Time deadline = SteadyClock::Get()->Now() + timeout;
  if (request.request_id().empty()) {
    std::random_device random;
    request.set_request_id(absl::StrFormat("cli-%08x%08x", random(), random()));
  }
  for (int attempt = 1;; ++attempt) {
    request.set_attempt(attempt);
    const Time now = SteadyClock::Get()->Now();
    absl::Status status = Generate(request, std::max(Duration(0), deadline - now),
                                   [&](const v1::GenerateResponse& message) {
                                     for (const v1::Token& token : message.tokens())
                                       request.add_resume_tokens(token.id());
                                     on_message(message);
                                   });
    // gRPC says kUnknown ("Stream removed") for some of the ways in which a connection breaks, and
    // kCancelled, which we never ask for, when a call meets a server in its last moments.
    // A gateway that comes back is asked by all its clients at once and may be full: an answer that
    // has begun waits its turn, a new one is refused as it was meant to be.
    const bool begun = attempt > 1 || request.resume_tokens_size() > 0;
    const bool again = absl::IsUnavailable(status) || absl::IsUnknown(status) ||
                       absl::IsCancelled(status) || (begun && absl::IsResourceExhausted(status));
    if (!again || attempt > retries) return status;
    on_retry(status);
    const Time next = std::min(deadline, SteadyClock::Get()->Now() + attempt * kRetryPause);
    std::this_thread::sleep_until(next);
    // Asks for a connection again; the call's own status tells when there is none.
    impl_->channel->WaitForConnected(rpc::ToSystem(std::min(deadline, next + kReconnect)));
  }
}

// One unary call with a short deadline.
#define OSCARKV_UNARY(method, request)                                           \
  grpc::ClientContext context;                                                   \
  impl_->security->Authorize(&context);                                          \
  context.set_deadline(rpc::ToSystem(SteadyClock::Get()->Now() + kShortCall));   \
  v1::method##Response response;                                                 \
  const grpc::Status status = impl_->stub->method(&context, request, &response); \
  if (!status.ok()) return rpc::FromGrpc(status);                                \
  return response

absl::StatusOr<v1::TokenizeResponse> GatewayClient::Tokenize(const std::string& text) {
  v1::TokenizeRequest request;
  request.set_text(text);
  OSCARKV_UNARY(Tokenize, request);
}

absl::StatusOr<v1::GetModelResponse> GatewayClient::GetModel() {
  OSCARKV_UNARY(GetModel, v1::GetModelRequest());
}

absl::StatusOr<v1::GetStatusResponse> GatewayClient::GetStatus() {
  OSCARKV_UNARY(GetStatus, v1::GetStatusRequest());
}

absl::StatusOr<v1::GetTraceResponse> GatewayClient::GetTrace(const std::string& id) {
  v1::GetTraceRequest request;
  request.set_id(id);
  OSCARKV_UNARY(GetTrace, request);
}

#undef OSCARKV_UNARY

}  // namespace oscarkv::cli
