// A small blocking client of the gateway, for the command-line tools.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/auth/security_options.h"
#include "common/clock.h"
#include "common/options.h"
#include "oscarkv/v1/gateway.pb.h"

namespace oscarkv::cli {

// Where the gateway is, and as whom to talk to it.
struct GatewayAddress {
  std::string endpoint = "127.0.0.1:7400";
  auth::SecurityOptions security;
};
// Rows for all of it.
void AddGatewayOptions(OptionTable* table, GatewayAddress* gateway);

class GatewayClient {
 public:
  // Fails with kUnavailable when nothing answers within `wait`, and says why.
  static absl::StatusOr<std::unique_ptr<GatewayClient>> Connect(const GatewayAddress& gateway,
                                                                Duration wait);
  ~GatewayClient();

  // Calls `on_message` for each message of the stream.
  absl::Status Generate(const v1::GenerateRequest& request, Duration timeout,
                        const std::function<void(const v1::GenerateResponse&)>& on_message);
  // The same, and when the stream breaks the request is sent again, with the tokens got so far, up
  // to `retries` times and within the same timeout: the messages go on as if nothing had been.
  // Gives the request an id if it has none. `on_retry` hears why.
  absl::Status GenerateWithRetries(
      v1::GenerateRequest request, Duration timeout, int retries,
      const std::function<void(const v1::GenerateResponse&)>& on_message,
      const std::function<void(const absl::Status&)>& on_retry);
  absl::StatusOr<v1::TokenizeResponse> Tokenize(const std::string& text);
  absl::StatusOr<v1::GetModelResponse> GetModel();
  absl::StatusOr<v1::GetStatusResponse> GetStatus();
  // kNotFound: the gateway does not know the id (any more).
  absl::StatusOr<v1::GetTraceResponse> GetTrace(const std::string& id);

 private:
  struct Impl;
  explicit GatewayClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace oscarkv::cli
