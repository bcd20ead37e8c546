#include "common/metrics_server.h"

#include <prometheus/client_metric.h>
#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/auth/auth_metrics.h"
#include "common/auth/authenticator.h"
#include "common/auth/certificate_metrics.h"
#include "common/http/http_server.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

prometheus::ClientMetric ToClientMetric(const MetricInfo& info,
                                        const MetricFamily::Series& series) {
  prometheus::ClientMetric out;
  for (size_t i = 0; i < info.labels.size(); ++i)
    out.label.push_back({info.labels[i], series.label_values[i]});
  switch (info.type) {
    case MetricType::kCounter:
      out.counter.value = series.metric.value();
      break;
    case MetricType::kGauge:
      out.gauge.value = series.metric.value();
      break;
    case MetricType::kHistogram: {
      uint64_t cumulative = 0;
      const std::vector<uint64_t> counts = series.histogram->Counts();
      for (size_t i = 0; i < info.bounds.size(); ++i) {
        cumulative += counts[i];
        out.histogram.bucket.push_back({cumulative, info.bounds[i]});
      }
      out.histogram.sample_count = cumulative + counts.back();
      out.histogram.sample_sum = series.histogram->sum();
      break;
    }
  }
  return out;
}

std::vector<prometheus::MetricFamily> Collect(const MetricRegistry& registry) {
  static constexpr prometheus::MetricType kTypes[] = {prometheus::MetricType::Counter,
                                                      prometheus::MetricType::Gauge,
                                                      prometheus::MetricType::Histogram};
  std::vector<prometheus::MetricFamily> out;
  registry.ForEach([&](const MetricFamily& family) {
    const MetricInfo& info = family.info();
    prometheus::MetricFamily f;
    f.name = info.name;
    f.help = info.help;
    f.type = kTypes[static_cast<int>(info.type)];
    family.ForEach(
        [&](const MetricFamily::Series& s) { f.metric.push_back(ToClientMetric(info, s)); });
    if (!f.metric.empty()) out.push_back(std::move(f));
  });
  return out;
}

HttpLimits Limits() {
  HttpLimits limits;
  limits.max_connections = 64;
  limits.max_body_bytes = 0;
  limits.max_unsent_bytes = 64 << 20;
  return limits;
}

HttpResponse Plain(int status, absl::string_view text) {
  HttpResponse response;
  response.status = status;
  response.content_type = "text/plain; charset=utf-8";
  response.body = absl::StrCat(text, "\n");
  return response;
}

}  // namespace

std::string MetricsText(const MetricRegistry& registry) {
  return prometheus::TextSerializer().Serialize(Collect(registry));
}

struct MetricsServer::Impl {
  Impl(const auth::SecurityOptions& security, MetricRegistry* r)
      : registry(r), metrics(r), auth_metrics(r), certificates(security, r) {}
  ~Impl() {
    if (server != nullptr) server->Stop(Duration{0});
  }
  HttpResponse Answer(const HttpRequest& request);

  const MetricRegistry* const registry;
  MetricsServerMetrics metrics;
  auth::AuthMetrics auth_metrics;
  auth::CertificateWatch certificates;
  std::shared_ptr<auth::Authenticator> authenticator;  // null: nobody is asked
  std::unique_ptr<HttpServer> server;
};

HttpResponse MetricsServer::Impl::Answer(const HttpRequest& request) {
  if (request.path != "/metrics") return Plain(404, "expected /metrics");
  if (request.method != "GET" && request.method != "HEAD") {
    HttpResponse response = Plain(405, "expected GET");
    response.headers.emplace_back("Allow", "GET");
    return response;
  }
  if (authenticator != nullptr) {
    const absl::StatusOr<auth::Identity> caller = authenticator->Check(
        request.header("Authorization"), request.certificate_names, auth::kOperator);
    if (!caller.ok()) {
      auth_metrics.refused.With({absl::StatusCodeToString(caller.status().code())}).Increment();
      const bool unknown = absl::IsUnauthenticated(caller.status());
      HttpResponse response = Plain(unknown ? 401 : 403, std::string(caller.status().message()));
      if (unknown) response.headers.emplace_back("WWW-Authenticate", "Bearer");
      return response;
    }
  }
  HttpResponse response;
  response.content_type = kMetricsMediaType;
  certificates.Refresh();
  response.body = MetricsText(*registry);
  return response;
}

MetricsServer::MetricsServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
MetricsServer::~MetricsServer() = default;

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(
    const MetricsServerSettings& settings, MetricRegistry* registry) {
  auto impl = std::make_unique<Impl>(settings.security, registry);
  if (settings.ask) {
    if (settings.security.auth_file.empty()) {
      return absl::InvalidArgumentError(
          "--metrics-auth=operator needs --auth-file, which says who is one");
    }
    ASSIGN_OR_RETURN(impl->authenticator, auth::Authenticator::Open(settings.security.auth_file));
  }
  HttpServerSettings http;
  http.listen = settings.listen;
  http.thread_name = "metrics";
  http.limits = Limits();
  if (settings.tls) http.security = settings.security;
  // Who is asked for a name may prove it by either.
  if (settings.ask && http.security.tls_client_auth == "require")
    http.security.tls_client_auth = "optional";
  HttpEvents events;
  events.refused = [impl = impl.get()](absl::string_view reason) {
    impl->metrics.refused.With({reason}).Increment();
  };
  absl::StatusOr<std::unique_ptr<HttpServer>> server = HttpServer::Start(
      http,
      [impl = impl.get()](std::shared_ptr<HttpExchange> exchange) {
        HttpResponse response = impl->Answer(exchange->request());
        impl->metrics.requests.With({absl::StrCat(response.status)}).Increment();
        exchange->Send(std::move(response));
      },
      events);
  if (!server.ok()) {
    return absl::Status(server.status().code(),
                        absl::StrCat("--metrics-listen: cannot serve ", "metrics on ",
                                     settings.listen, ": ", server.status().message()));
  }
  impl->server = *std::move(server);
  return std::unique_ptr<MetricsServer>(new MetricsServer(std::move(impl)));
}

int MetricsServer::port() const {
  return impl_->server->port();
}

}  // namespace oscarkv
