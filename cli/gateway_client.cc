#include "cli/gateway_client.h"

#include <grpcpp/grpcpp.h>

#include "absl/strings/str_cat.h"
#include "common/rpc/status.h"
#include "oscarkv/v1/gateway.grpc.pb.h"

namespace oscarkv::cli {
namespace {
constexpr Duration kShortCall = std::chrono::seconds(20);
}

struct GatewayClient::Impl {
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Gateway::Stub> stub;
};

GatewayClient::GatewayClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
GatewayClient::~GatewayClient() = default;

absl::StatusOr<std::unique_ptr<GatewayClient>> GatewayClient::Connect(const std::string& address,
                                                                      Duration wait) {
  auto impl = std::make_unique<Impl>();
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(64 << 20);
  impl->channel = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), args);
  if (!impl->channel->WaitForConnected(rpc::ToSystem(SteadyClock::Get()->Now() + wait))) {
    return absl::UnavailableError(absl::StrCat("no gateway answers at ", address,
                                               "; start one with `oscarkv serve --model DIR`"));
  }
  impl->stub = v1::Gateway::NewStub(impl->channel);
  return std::unique_ptr<GatewayClient>(new GatewayClient(std::move(impl)));
}

absl::Status GatewayClient::Generate(
    const v1::GenerateRequest& request, Duration timeout,
    const std::function<void(const v1::GenerateResponse&)>& on_message) {
  grpc::ClientContext context;
  context.set_deadline(rpc::ToSystem(SteadyClock::Get()->Now() + timeout));
  auto reader = impl_->stub->Generate(&context, request);
  v1::GenerateResponse message;
  while (reader->Read(&message)) on_message(message);
  return rpc::FromGrpc(reader->Finish());
}

// One unary call with a short deadline.
#define OSCARKV_UNARY(method, request)                                           \
  grpc::ClientContext context;                                                   \
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

#undef OSCARKV_UNARY

}  // namespace oscarkv::cli
