#include "gateway/gateway_server.h"

#include <random>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/log.h"
#include "common/rpc/client_security.h"
#include "common/rpc/guard.h"
#include "common/rpc/server.h"
#include "common/status_macros.h"
#include "common/task_pool.h"
#include "gateway/gateway_service.h"
#include "gateway/grpc_worker_stub.h"
#include "gateway/heartbeat.h"
#include "gateway/http/http_api.h"
#include "gateway/metrics.h"
#include "gateway/request_pipeline.h"
#include "gateway/router.h"
#include "gateway/tenant_quota.h"
#include "gateway/worker_set.h"
#include "kvstore/client/tenant_clients.h"
#include "model/chat_template.h"
#include "model/model_config.h"
#include "model/tokenizer.h"

namespace oscarkv::gateway {
namespace {

// How late a deadline may be noticed, and a worker's change of health.
constexpr Duration kBeat = std::chrono::milliseconds(50);
constexpr Duration kStatusTimeout = std::chrono::seconds(2);
constexpr auto kLastMessages = std::chrono::seconds(1);

// "models/reference" and "models/reference/" are reference.
std::string ModelName(absl::string_view folder) {
  while (folder.size() > 1 && folder.back() == '/') folder.remove_suffix(1);
  return std::string(folder.substr(folder.rfind('/') + 1));
}

absl::Status CheckEndpoints(absl::string_view option, const std::vector<std::string>& endpoints) {
  if (endpoints.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--", option, " is empty: expected HOST:PORT, or several with commas"));
  }
  std::set<absl::string_view> seen;
  for (const std::string& endpoint : endpoints) {
    const size_t colon = endpoint.rfind(':');
    int port = 0;
    if (colon == std::string::npos || colon == 0 ||
        !absl::SimpleAtoi(endpoint.substr(colon + 1), &port) || port < 1 || port > 65535) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", option, " has \"", endpoint, "\": expected HOST:PORT"));
    }
    if (!seen.insert(endpoint).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", option, " has ", endpoint, " twice: expected once"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckOptions(const GatewayOptions& options, bool have_store) {
  if (options.model.empty()) {
    return absl::InvalidArgumentError(
        "--model is empty: expected the folder of the workers' model");
  }
  RETURN_IF_ERROR(auth::CheckSecurityOptions(options.security));
  if (!have_store) RETURN_IF_ERROR(CheckStoreOptions(options.store));
  RETURN_IF_ERROR(CheckEndpoints("prefill", options.prefill));
  return CheckEndpoints("attention", options.attention);
}

absl::StatusOr<std::unique_ptr<TenantClients>> ConnectStore(
    const GatewayOptions& options, std::shared_ptr<const rpc::ClientSecurity> security,
    MetricRegistry* metrics) {
  KvClientOptions client = ClientOptions(options.store);
  client.security = std::move(security);
  client.name = "gateway";
  client.metrics = metrics;
  return TenantClients::Create(client, options.max_tenants);
}

}  // namespace

void AddOptions(OptionTable* table, GatewayOptions* o) {
  using std::chrono::hours;
  using std::chrono::milliseconds;
  using std::chrono::minutes;
  using std::chrono::seconds;
  table->AddString("listen", &o->listen, "HOST:PORT", "Address of the gRPC server; port 0: any.");
  table->AddString("model", &o->model, "DIR",
                   "Hugging Face folder of the model that the workers run.");
  AddStoreOptions(table, &o->store);
  table->AddStrings("prefill", &o->prefill, "HOST:PORT,...", "All prefill workers.");
  table->AddStrings("attention", &o->attention, "HOST:PORT,...", "All attention workers.");
  table->AddChoice("router", &o->router, {"prefix-aware", "round-robin"},
                   "How workers are picked: least loaded, equal prefixes together; or in turn.");
  table->AddInt("max-running", &o->max_running, 1, 65536, "Requests that run at once.");
  table->AddInt("max-waiting", &o->max_waiting, 0, 1 << 20,
                "Requests that may wait for others to end; more are refused.");
  table->AddInt("threads", &o->threads, 1, 256, "Threads for tokenising and asking the store.");
  table->AddDuration("default-deadline", &o->default_deadline, seconds(1), hours(24),
                     "Deadline of a request that comes without one.");
  table->AddDuration("match-timeout", &o->match_timeout, milliseconds(1), seconds(10),
                     "How long to wait for the store's answer which prefix it holds.");
  table->AddDuration("poll-interval", &o->poll_interval, milliseconds(50), minutes(1),
                     "How often each worker is asked how it is.");
  table->AddDuration("poll-timeout", &o->poll_timeout, milliseconds(50), minutes(1),
                     "A worker that does not answer for so long is not used.");
  table->AddDuration("worker-silence", &o->worker_silence, milliseconds(1500), minutes(10),
                     "An attention worker that sends neither a token nor a sign of life (one a "
                     "second) for so long is left, its answers are continued on others.");
  table->AddInt("max-resumes", &o->max_resumes, 0, 100,
                "How often an answer may be continued on another attention worker.");
  table->AddDuration(
      "resume-wait", &o->resume_wait, milliseconds(0), minutes(60),
      "How long a request under way, which keeps its place among --max-running, waits "
      "for a worker to come back when none of a role is usable; 0: it ends with "
      "UNAVAILABLE.");
  table->AddDuration("worker-wait", &o->worker_wait, milliseconds(0), minutes(10),
                     "How long the start waits for the workers' first answers.");
  table->AddBytes("max-message-size", &o->max_message_bytes, 64u << 10, 1u << 30,
                  "Largest request that is accepted.");
  table->AddInt("max-tenants", &o->max_tenants, 1, 4096,
                "Tenants that have sessions at the store at once, the default one not counted.");
  table->AddInt("tenant-max-running", &o->tenant_max_running, 0, 1 << 20,
                "Requests that one tenant may have under way, those that wait included, unless the "
                "auth file says otherwise; 0: no limit.");
  table->AddInt64("tenant-tokens-per-second", &o->tenant_tokens_per_second, 0, int64_t{1} << 40,
                  "Tokens of prompts and answers that one tenant may use, averaged over ten "
                  "seconds, unless the auth file says otherwise; 0: no limit.");
  auth::AddServerSecurityOptions(table, &o->security);
  table->AddString("http-listen", &o->http_listen, "HOST:PORT",
                   "Address of the OpenAI-compatible HTTP API; port 0: any; empty: none.");
  table->AddBytes("http-max-body", &o->http_max_body_bytes, 1u << 10, 64u << 20,
                  "Largest body of an HTTP request.");
  table->AddInt("http-max-connections", &o->http_max_connections, 1, 1 << 16,
                "HTTP connections that may be open at once; more are refused.");
}

// Destroyed from the last member to the first: no beat, no handler, no task, no worker's callback
// can reach what is gone.
struct GatewayServer::Impl {
  ~Impl() {
    if (http != nullptr) http->Stop(Duration{0});  // no handler from here on
  }

  GatewayOptions options;
  MetricRegistry* registry = nullptr;
  std::unique_ptr<GatewayMetrics> metrics;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat_template;  // may be null
  std::unique_ptr<TenantClients> stores;
  std::unique_ptr<rpc::Guard> guard;
  std::unique_ptr<auth::CertificateWatch> certificates;
  std::unique_ptr<TenantQuota> quota;
  std::unique_ptr<Router> router;
  std::unique_ptr<HttpServer> http;  // takes answers until the pipeline and the executor are gone
  std::unique_ptr<RequestPipeline> pipeline;
  std::unique_ptr<WorkerSet> workers;
  std::unique_ptr<TaskPool> executor;
  std::unique_ptr<GatewayService> service;
  std::unique_ptr<HttpApi> api;
  std::unique_ptr<rpc::Server> server;
  std::unique_ptr<Heartbeat> heartbeat;
  int port = 0;
  bool serving = false;  // what health says; the heartbeat's own

  absl::Status Load(MetricRegistry* given_registry, std::unique_ptr<KvClient> given_store);
  absl::Status Listen();
  absl::Status ListenHttp();
  void Beat();
};

absl::Status GatewayServer::Impl::Load(MetricRegistry* given_registry,
                                       std::unique_ptr<KvClient> given_store) {
  registry = given_registry;
  metrics = std::make_unique<GatewayMetrics>(registry);
  ASSIGN_OR_RETURN(router, MakeRouter(options.router));
  ASSIGN_OR_RETURN(tokenizer, Tokenizer::Load(options.model));
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(options.model));
  ASSIGN_OR_RETURN(const auto security, rpc::ClientSecurity::Create(options.security));
  if (given_store != nullptr) {
    stores = std::make_unique<TenantClients>(std::move(given_store));
  } else {
    ASSIGN_OR_RETURN(stores, ConnectStore(options, security, registry));
  }

  std::vector<std::unique_ptr<PrefillStub>> prefill;
  std::vector<std::unique_ptr<AttentionStub>> attention;
  for (const auto& target : options.prefill)
    prefill.push_back(MakeGrpcPrefillStub(target, security));
  for (const auto& target : options.attention)
    attention.push_back(MakeGrpcAttentionStub(target, security));
  WorkerSetOptions worker_options;
  worker_options.poll_interval = options.poll_interval;
  worker_options.poll_timeout = options.poll_timeout;
  worker_options.vocab_size = static_cast<uint32_t>(config.vocab_size);
  workers = std::make_unique<WorkerSet>(worker_options, std::move(prefill), std::move(attention),
                                        metrics.get(), SteadyClock::Get());

  ASSIGN_OR_RETURN(guard, rpc::Guard::Create(options.security, registry));
  const auth::TenantLimits limits{options.tenant_max_running, options.tenant_tokens_per_second};
  quota = std::make_unique<TenantQuota>(
      [this, limits](const std::string& tenant) { return guard->LimitsOf(tenant, limits); },
      SteadyClock::Get());
  executor = std::make_unique<TaskPool>(options.threads, "gateway-exec");
  PipelineOptions pipeline_options;
  pipeline_options.admission = {options.max_running, options.max_waiting};
  pipeline_options.model = {static_cast<uint32_t>(config.max_position_embeddings),
                            static_cast<uint32_t>(config.vocab_size)};
  pipeline_options.eos_tokens.assign(config.eos_token_ids.begin(), config.eos_token_ids.end());
  pipeline_options.match_timeout = options.match_timeout;
  pipeline_options.max_resumes = options.max_resumes;
  pipeline_options.worker_silence = options.worker_silence;
  pipeline_options.resume_wait = options.resume_wait;
  // Different in every process, so that ids from several gateways do not meet in a worker.
  const std::string name = absl::StrFormat("%08x", std::random_device()());
  pipeline = std::make_unique<RequestPipeline>(
      pipeline_options,
      PipelineDeps{tokenizer.get(),
                   [this](const std::string& tenant) {
                     return stores->Of(tenant).value_or(nullptr);  // without it: a miss
                   },
                   quota.get(), workers.get(), router.get(), executor.get(), metrics.get(),
                   SteadyClock::Get()},
      name);
  service = std::make_unique<GatewayService>(
      ServiceDeps{pipeline.get(), workers.get(), stores->standard(), executor.get(), metrics.get(),
                  tokenizer.get(), guard.get(), options.default_deadline, kStatusTimeout});
  HttpApiDeps deps;
  deps.pipeline = pipeline.get();
  deps.workers = workers.get();
  deps.executor = executor.get();
  deps.metrics = metrics.get();
  deps.registry = registry;
  certificates = std::make_unique<auth::CertificateWatch>(options.security, registry);
  deps.certificates = certificates.get();
  deps.tokenizer = tokenizer.get();
  deps.check = [this](absl::string_view authorization, absl::Span<const std::string> names,
                      auth::Roles roles) { return guard->Check(authorization, names, roles); };
  deps.model = ModelName(options.model);
  deps.max_context = static_cast<uint32_t>(config.max_position_embeddings);
  deps.default_deadline = options.default_deadline;
  deps.store = stores->standard();
  deps.status_timeout = kStatusTimeout;
  deps.limits.max_body_bytes = options.http_max_body_bytes;
  absl::StatusOr<std::unique_ptr<ChatTemplate>> chat = ChatTemplate::Load(options.model);
  if (chat.ok()) {
    chat_template = *std::move(chat);
    deps.render_chat = [this](const OpenAiRequest& request) {
      return chat_template->Render(request.messages, request.template_variables);
    };
  } else {
    // Everything but chats works without.
    if (!absl::IsNotFound(chat.status())) {
      LogWarn("no chats", {{"reason", std::string(chat.status().message())}});
    }
    deps.render_chat = [why = absl::UnimplementedError(chat.status().message())](
                           const OpenAiRequest&) -> absl::StatusOr<std::string> { return why; };
  }
  api = std::make_unique<HttpApi>(std::move(deps));
  return absl::OkStatus();
}

absl::Status GatewayServer::Impl::Listen() {
  rpc::ServerSettings settings;
  settings.listen = options.listen;
  settings.security = options.security;
  settings.max_receive_bytes = static_cast<int>(options.max_message_bytes);
  ASSIGN_OR_RETURN(server, rpc::Server::Start(settings, service.get()));
  port = server->port();
  server->health()->SetServingStatus(false);
  // Up, though it may not be routable: restarting a gateway does not bring back its workers.
  server->health()->SetServingStatus("liveness", true);
  return absl::OkStatus();
}

absl::Status GatewayServer::Impl::ListenHttp() {
  if (options.http_listen.empty()) return absl::OkStatus();
  HttpServerSettings settings;
  settings.listen = options.http_listen;
  settings.thread_name = "gateway-http";
  settings.security = options.security;
  if (!auth::IsLoopback(options.http_listen) && !options.security.serves_tls()) {
    LogWarn(
        "NO TLS for HTTP on an address that other machines reach: prompts, answers and tokens "
        "travel in plain text. Set --tls-cert and --tls-key (docs/security.md)",
        {{"http_listen", options.http_listen}});
  }
  settings.limits.max_connections = static_cast<size_t>(options.http_max_connections);
  settings.limits.max_body_bytes = options.http_max_body_bytes;
  HttpEvents events;
  events.connections = [this](int open) { metrics->http_connections.Set(open); };
  events.refused = [this](absl::string_view reason) {
    metrics->http_refused.With({reason}).Increment();
  };
  absl::StatusOr<std::unique_ptr<HttpServer>> started = HttpServer::Start(
      settings,
      [this](std::shared_ptr<HttpExchange> exchange) { api->Handle(std::move(exchange)); }, events);
  if (!started.ok()) {
    return absl::Status(started.status().code(),
                        absl::StrCat("--http-listen: ", started.status().message()));
  }
  http = *std::move(started);
  return absl::OkStatus();
}

void GatewayServer::Impl::Beat() {
  workers->Poll();
  pipeline->Tick();
  const bool routable = workers->routable();
  if (routable == serving) return;
  serving = routable;
  server->health()->SetServingStatus("", serving);
  if (serving) {
    LogInfo("serving: a usable worker of each role");
  } else {
    LogError("not serving", {{"reason", workers->Explain()}});
  }
}

absl::StatusOr<std::unique_ptr<GatewayServer>> GatewayServer::Start(
    const GatewayOptions& options, MetricRegistry* metrics, std::unique_ptr<KvClient> store) {
  RETURN_IF_ERROR(CheckOptions(options, store != nullptr));
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  RETURN_IF_ERROR(impl->Load(metrics, std::move(store)));
  impl->workers->Poll();
  impl->workers->WaitForAnswers(SteadyClock::Get()->Now() + options.worker_wait);
  RETURN_IF_ERROR(impl->Listen());
  RETURN_IF_ERROR(impl->ListenHttp());
  impl->Beat();
  impl->heartbeat = std::make_unique<Heartbeat>(kBeat, [impl = impl.get()] { impl->Beat(); });
  return std::unique_ptr<GatewayServer>(new GatewayServer(std::move(impl)));
}

GatewayServer::GatewayServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

GatewayServer::~GatewayServer() {
  Shutdown(Duration{0});
}

int GatewayServer::port() const {
  return impl_->port;
}

int GatewayServer::http_port() const {
  return impl_->http == nullptr ? 0 : impl_->http->port();
}

void GatewayServer::Shutdown(Duration drain) {
  if (impl_->server->stopped()) return;
  impl_->server->health()->Shutdown();  // NOT_SERVING from now on, whatever a beat says
  impl_->pipeline->Shutdown(SteadyClock::Get()->Now() + drain);
  // The requests have ended; this is for their last messages and for the short calls.
  if (impl_->http != nullptr) impl_->http->Stop(kLastMessages);
  impl_->server->Shutdown();
}

}  // namespace oscarkv::gateway
