#include "gateway/http/http_api.h"

#include <chrono>
#include <random>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/metrics_server.h"
#include "common/status_macros.h"
#include "common/trace.h"
#include "gateway/http/completion_sink.h"
#include "gateway/http/console.h"
#include "gateway/http/openai_response.h"
#include "gateway/http/status_json.h"

namespace oscarkv::gateway {
namespace {

constexpr size_t kMaxQueuedTasks = 256;
constexpr Duration kStatusLife = std::chrono::milliseconds(500);
constexpr char kOther[] = "other";

using Json = nlohmann::ordered_json;

int64_t UnixSeconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

HttpResponse JsonResponse(int status, const Json& json) {
  HttpResponse response;
  response.status = status;
  response.body = absl::StrCat(Dump(json), "\n");
  response.headers.emplace_back("Cache-Control", "no-store");
  return response;
}

// Required: a page of somewhere else, which may send forms to here without asking, may not send
// this.
bool IsJson(const HttpRequest& request) {
  absl::string_view type = request.header("Content-Type");
  type = absl::StripAsciiWhitespace(type.substr(0, type.find(';')));
  return absl::EqualsIgnoreCase(type, "application/json");
}

}  // namespace

const HttpApi::Route HttpApi::kRoutes[] = {
    {"GET", "/health", 0, &HttpApi::Health},
    {"GET", "/health/live", 0, &HttpApi::Live},
    {"GET", "/", 0, &HttpApi::Console},
    {"GET", "/console/", 0, &HttpApi::Console},
    {"GET", "/api/status", auth::kOperator, &HttpApi::Status},
    {"GET", "/api/requests/", auth::kOperator, &HttpApi::RequestById},
    {"GET", "/metrics", auth::kOperator, &HttpApi::Metrics},
    {"GET", "/v1/models", auth::kAllRoles, &HttpApi::Models},
    {"GET", "/v1/models/", auth::kAllRoles, &HttpApi::Model},
    {"POST", "/v1/completions", auth::kClient, &HttpApi::Completions},
    {"POST", "/v1/chat/completions", auth::kClient, &HttpApi::ChatCompletions},
};

HttpApi::HttpApi(HttpApiDeps deps) : deps_(std::move(deps)), started_(UnixSeconds()) {}

const HttpApi::Route* HttpApi::Find(const HttpRequest& request, std::string* allowed) const {
  const absl::string_view method =
      request.method == "HEAD" ? absl::string_view("GET") : absl::string_view(request.method);
  for (const Route& route : kRoutes) {
    const absl::string_view path = route.path;
    const bool prefix = path.size() > 1 && path.back() == '/';
    const bool matches =
        prefix ? absl::StartsWith(request.path, path) && request.path.size() > path.size()
               : request.path == path;
    if (!matches) continue;
    if (method == route.method) return &route;
    absl::StrAppend(allowed, allowed->empty() ? "" : ", ", route.method);
  }
  return nullptr;
}

void HttpApi::Handle(std::shared_ptr<HttpExchange> exchange) {
  const HttpRequest& request = exchange->request();
  std::string allowed;
  const Route* route = Find(request, &allowed);
  if (route == nullptr && allowed.empty()) {
    return Reply(exchange, kOther,
                 ErrorResponse(404,
                               absl::StrCat("there is no ", request.method, " ",
                                            request.path.substr(0, 200), " here"),
                               "unknown_url"));
  }
  if (route == nullptr) {
    HttpResponse response =
        ErrorResponse(405, absl::StrCat(request.path, " takes ", allowed, ", not ", request.method),
                      "method_not_allowed");
    response.headers.emplace_back("Allow", allowed);
    return Reply(exchange, kOther, std::move(response));
  }
  if (request.method == "POST" && !IsJson(request)) {
    return Reply(
        exchange, route->path,
        ErrorResponse(415, "expected Content-Type: application/json", "unsupported_media_type"));
  }
  if (route->roles != 0) {
    const absl::StatusOr<auth::Identity> caller = Caller(request, route->roles);
    if (!caller.ok()) return Reply(exchange, route->path, ErrorResponse(caller.status()));
  }
  (this->*route->handle)(std::move(exchange));
}

absl::StatusOr<auth::Identity> HttpApi::Caller(const HttpRequest& request,
                                               auth::Roles roles) const {
  return deps_.check(request.header("Authorization"), request.certificate_names, roles);
}

void HttpApi::Reply(const std::shared_ptr<HttpExchange>& exchange, const char* route,
                    HttpResponse response) {
  deps_.metrics->http_requests.With({route, absl::StrCat(response.status)}).Increment();
  exchange->Send(std::move(response));
}

void HttpApi::Post(const std::shared_ptr<HttpExchange>& exchange, const char* route,
                   std::function<void()> work) {
  if (deps_.executor->TryPost(std::move(work), kMaxQueuedTasks)) return;
  Reply(exchange, route,
        ErrorResponse(absl::ResourceExhaustedError(
            absl::StrCat("the gateway is busy: ", kMaxQueuedTasks, " tasks wait; retry in 1 s"))));
}

void HttpApi::Health(std::shared_ptr<HttpExchange> exchange) {
  const bool routable = deps_.workers->routable();
  Json json = {{"status", routable ? "ok" : "unavailable"}};
  if (!routable) json["reason"] = deps_.workers->Explain();
  Reply(exchange, "/health", JsonResponse(routable ? 200 : 503, json));
}

void HttpApi::Live(std::shared_ptr<HttpExchange> exchange) {
  Reply(exchange, "/health/live", JsonResponse(200, {{"status", "ok"}}));
}

void HttpApi::Metrics(std::shared_ptr<HttpExchange> exchange) {
  Post(exchange, "/metrics", [this, exchange] {
    HttpResponse response;
    response.content_type = kMetricsMediaType;
    deps_.certificates->Refresh();
    response.body = MetricsText(*deps_.registry);
    Reply(exchange, "/metrics", std::move(response));
  });
}

void HttpApi::Console(std::shared_ptr<HttpExchange> exchange) {
  const std::string& path = exchange->request().path;
  const ConsoleFile* file = FindConsoleFile(path);
  if (file == nullptr) {
    return Reply(exchange, kOther,
                 ErrorResponse(404, absl::StrCat("there is no ", path.substr(0, 200), " here"),
                               "unknown_url"));
  }
  HttpResponse response;
  response.content_type = file->content_type;
  response.body = std::string(file->content);
  // Nothing from elsewhere, nothing inline, in nobody's frame.
  response.headers = {{"Content-Security-Policy",
                       "default-src 'none'; script-src 'self'; style-src 'self'; connect-src "
                       "'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
                       "frame-ancestors 'none'"},
                      {"X-Content-Type-Options", "nosniff"},
                      {"Referrer-Policy", "no-referrer"},
                      {"Cache-Control", "no-cache"}};
  Reply(exchange, "/console/", std::move(response));
}

void HttpApi::Status(std::shared_ptr<HttpExchange> exchange) {
  Post(exchange, "/api/status", [this, exchange] {
    std::string body;
    {
      // One at a time asks the store, whoever comes soon after gets what it said.
      MutexLock lock(status_mu_);
      const Time now = SteadyClock::Get()->Now();
      if (status_.empty() || now - status_time_ >= kStatusLife) {
        status_ = Dump(StatusJson(deps_));
        status_time_ = SteadyClock::Get()->Now();
      }
      body = status_;
    }
    HttpResponse response;
    response.body = std::move(body);
    response.headers.emplace_back("Cache-Control", "no-store");
    Reply(exchange, "/api/status", std::move(response));
  });
}

void HttpApi::RequestById(std::shared_ptr<HttpExchange> exchange) {
  const std::string id = exchange->request().path.substr(sizeof("/api/requests/") - 1);
  const absl::StatusOr<RequestRecord> record = deps_.pipeline->Find(id);
  if (!record.ok()) {
    return Reply(exchange, "/api/requests/",
                 ErrorResponse(404, std::string(record.status().message()), "not_found"));
  }
  Reply(exchange, "/api/requests/", JsonResponse(200, RecordJson(*record)));
}

void HttpApi::Models(std::shared_ptr<HttpExchange> exchange) {
  const Json model = {{"id", deps_.model},
                      {"object", "model"},
                      {"created", started_},
                      {"owned_by", "oscarkv"},
                      {"max_model_len", deps_.max_context}};
  Reply(exchange, "/v1/models",
        JsonResponse(200, {{"object", "list"}, {"data", Json::array({model})}}));
}

void HttpApi::Model(std::shared_ptr<HttpExchange> exchange) {
  const std::string asked = exchange->request().path.substr(sizeof("/v1/models/") - 1);
  if (asked != deps_.model) {
    return Reply(exchange, "/v1/models/",
                 ErrorResponse(404,
                               absl::StrCat("there is no model \"", asked.substr(0, 200),
                                            "\" here, only \"", deps_.model, "\""),
                               "model_not_found"));
  }
  Reply(exchange, "/v1/models/",
        JsonResponse(200, {{"id", deps_.model},
                           {"object", "model"},
                           {"created", started_},
                           {"owned_by", "oscarkv"},
                           {"max_model_len", deps_.max_context}}));
}

void HttpApi::Completions(std::shared_ptr<HttpExchange> exchange) {
  Post(exchange, "/v1/completions", [this, exchange] { Complete(exchange, /*chat=*/false); });
}

void HttpApi::ChatCompletions(std::shared_ptr<HttpExchange> exchange) {
  Post(exchange, "/v1/chat/completions", [this, exchange] { Complete(exchange, /*chat=*/true); });
}

absl::StatusOr<OpenAiRequest> HttpApi::Parse(const HttpRequest& request, bool chat) const {
  ASSIGN_OR_RETURN(OpenAiRequest parsed, chat ? ParseChatRequest(request.body, deps_.limits)
                                              : ParseCompletionRequest(request.body, deps_.limits));
  if (!parsed.model.empty() && parsed.model != deps_.model) {
    return WithParam(
        absl::NotFoundError(absl::StrCat("there is no model \"", parsed.model.substr(0, 200),
                                         "\" here, only \"", deps_.model, "\"")),
        "model");
  }
  if (chat) {
    ASSIGN_OR_RETURN(parsed.input.prompt, deps_.render_chat(parsed));
    parsed.input.add_special = false;
  }
  // An answer that nobody asked to be the same every time is not.
  if (!parsed.seeded) {
    std::random_device random;
    parsed.input.sampling.seed = uint64_t{random()} << 32 | random();
  }
  return parsed;
}

void HttpApi::Complete(std::shared_ptr<HttpExchange> exchange, bool chat) {
  const char* route = chat ? "/v1/chat/completions" : "/v1/completions";
  absl::StatusOr<OpenAiRequest> request = Parse(exchange->request(), chat);
  if (!request.ok()) return Reply(exchange, route, ErrorResponse(request.status()));
  const absl::StatusOr<auth::Identity> caller = Caller(exchange->request(), auth::kClient);
  if (!caller.ok()) return Reply(exchange, route, ErrorResponse(caller.status()));
  request->input.tenant = caller->tenant;
  request->input.trace_id = TraceIdOf(exchange->request().header(kTraceparent)).value_or("");
  AnswerIdentity identity;
  identity.chat = chat;
  identity.logprobs = request->logprobs;
  identity.include_usage = request->include_usage;
  identity.model = deps_.model;
  identity.created = UnixSeconds();
  auto* sink =
      new CompletionSink(exchange, OpenAiAnswer(std::move(identity), deps_.tokenizer),
                         request->stream, [metrics = deps_.metrics, route](int code) {
                           metrics->http_requests.With({route, absl::StrCat(code)}).Increment();
                         });
  const Time deadline = SteadyClock::Get()->Now() + deps_.default_deadline;
  const std::shared_ptr<Request> started =
      deps_.pipeline->Start(std::move(request->input), deadline, sink);
  if (started != nullptr) exchange->OnGone([started] { started->CancelByClient(); });
}

}  // namespace oscarkv::gateway
