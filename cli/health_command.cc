// oscarkv health: asks a server of any role for its health, with TLS where it is served. For
// probes: those of Kubernetes speak plain gRPC only.
#include <grpcpp/grpcpp.h>

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "cli/command.h"
#include "common/auth/security_options.h"
#include "common/rpc/client_security.h"
#include "common/rpc/status.h"
#include "common/status_macros.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace oscarkv::cli {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

class HealthCommand final : public Command {
 public:
  std::string name() const override { return "health"; }
  std::string summary() const override {
    return "Ask a server of any role whether it serves; exit status 0 when it does";
  }
  void AddOptions(OptionTable* table) override {
    table->AddString("address", &address_, "HOST:PORT", "The server's gRPC endpoint");
    table->AddString("service", &service_, "NAME",
                     "Empty: whether it serves; liveness: whether the gateway is up");
    table->AddDuration("timeout", &timeout_, std::chrono::milliseconds(10), std::chrono::minutes(1),
                       "How long to wait for the answer");
    auth::AddClientSecurityOptions(table, &security_);
  }
  absl::Status Run() override {
    ASSIGN_OR_RETURN(const auto security, rpc::ClientSecurity::Create(security_));
    const auto stub = grpc::health::v1::Health::NewStub(security->Connect(address_, {}));
    grpc::ClientContext context;
    context.set_deadline(rpc::ToSystem(SteadyClock::Get()->Now() + timeout_));
    HealthCheckRequest request;
    request.set_service(service_);
    HealthCheckResponse response;
    RETURN_IF_ERROR(rpc::FromGrpc(stub->Check(&context, request, &response)));
    const std::string status = HealthCheckResponse::ServingStatus_Name(response.status());
    std::printf("%s\n", status.c_str());
    if (response.status() == HealthCheckResponse::SERVING) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat(address_, " is ", status));
  }

 private:
  std::string address_ = "127.0.0.1:7400", service_;
  Duration timeout_ = std::chrono::seconds(3);
  auth::SecurityOptions security_;
};

}  // namespace

std::unique_ptr<Command> NewHealthCommand() {
  return std::make_unique<HealthCommand>();
}

}  // namespace oscarkv::cli
