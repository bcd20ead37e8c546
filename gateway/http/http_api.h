// What the gateway serves over HTTP: OpenAI's /v1 endpoints, health, metrics. Completions go the
// same way as gRPC's Generate (gateway/request_pipeline.h).
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/types/span.h"
#include "common/auth/certificate_metrics.h"
#include "common/auth/identity.h"
#include "common/clock.h"
#include "common/http/http_server.h"
#include "common/metrics.h"
#include "common/task_pool.h"
#include "gateway/http/openai_request.h"
#include "gateway/metrics.h"
#include "gateway/request_pipeline.h"
#include "gateway/worker_set.h"

namespace oscarkv::gateway {

struct HttpApiDeps {
  RequestPipeline* pipeline = nullptr;
  WorkerSet* workers = nullptr;
  KvClient* store = nullptr;  // may be null
  TaskPool* executor = nullptr;
  GatewayMetrics* metrics = nullptr;
  const MetricRegistry* registry = nullptr;
  auth::CertificateWatch* certificates = nullptr;
  const Tokenizer* tokenizer = nullptr;
  // Who a caller is, from its authorization header and its certificate's names, and that he has one
  // of the roles; counts refusals (common/rpc/guard.h). Thread-safe.
  std::function<absl::StatusOr<auth::Identity>(
      absl::string_view authorization, absl::Span<const std::string> names, auth::Roles roles)>
      check;
  std::string model;  // the name that clients may ask for
  uint32_t max_context = 0;
  Duration default_deadline{};
  Duration status_timeout{};  // for asking the store's nodes
  OpenAiLimits limits;
  // A chat's prompt, from the model's chat template; or why there is none. Thread-safe.
  std::function<absl::StatusOr<std::string>(const OpenAiRequest&)> render_chat;
};

// Thread-safe; handles on the server's thread and posts what takes time to the executor.
class HttpApi {
 public:
  explicit HttpApi(HttpApiDeps deps);
  void Handle(std::shared_ptr<HttpExchange> exchange);

 private:
  struct Route {
    const char* method;
    const char* path;   // one that ends in '/' matches what begins with it
    auth::Roles roles;  // 0: for everybody
    void (HttpApi::*handle)(std::shared_ptr<HttpExchange>);
  };
  static const Route kRoutes[];
  const Route* Find(const HttpRequest& request, std::string* allowed) const;

  void Health(std::shared_ptr<HttpExchange> exchange);
  void Live(std::shared_ptr<HttpExchange> exchange);
  void Metrics(std::shared_ptr<HttpExchange> exchange);
  void Console(std::shared_ptr<HttpExchange> exchange);
  void Status(std::shared_ptr<HttpExchange> exchange);
  void RequestById(std::shared_ptr<HttpExchange> exchange);
  void Models(std::shared_ptr<HttpExchange> exchange);
  void Model(std::shared_ptr<HttpExchange> exchange);
  void Completions(std::shared_ptr<HttpExchange> exchange);
  void ChatCompletions(std::shared_ptr<HttpExchange> exchange);

  // By the request's bearer token, else its client certificate.
  absl::StatusOr<auth::Identity> Caller(const HttpRequest& request, auth::Roles roles) const;
  // On the executor.
  void Complete(std::shared_ptr<HttpExchange> exchange, bool chat);
  absl::StatusOr<OpenAiRequest> Parse(const HttpRequest& request, bool chat) const;
  // Runs `work` on the executor, or answers that too much waits for it.
  void Post(const std::shared_ptr<HttpExchange>& exchange, const char* route,
            std::function<void()> work);
  // Sends and counts.
  void Reply(const std::shared_ptr<HttpExchange>& exchange, const char* route,
             HttpResponse response);

  const HttpApiDeps deps_;
  const int64_t started_;  // Unix seconds
  Mutex status_mu_;
  std::string status_ GUARDED_BY(status_mu_);
  Time status_time_ GUARDED_BY(status_mu_){};
};

}  // namespace oscarkv::gateway
