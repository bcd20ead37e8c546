#include "common/metrics_server.h"

#include <prometheus/client_metric.h>
#include <prometheus/collectable.h>
#include <prometheus/exposer.h>
#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <exception>

#include "absl/strings/str_cat.h"

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

class RegistryCollectable final : public prometheus::Collectable {
 public:
  explicit RegistryCollectable(const MetricRegistry* registry) : registry_(registry) {}

  std::vector<prometheus::MetricFamily> Collect() const override {
    static constexpr prometheus::MetricType kTypes[] = {prometheus::MetricType::Counter,
                                                        prometheus::MetricType::Gauge,
                                                        prometheus::MetricType::Histogram};
    std::vector<prometheus::MetricFamily> out;
    registry_->ForEach([&](const MetricFamily& family) {
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

 private:
  const MetricRegistry* const registry_;
};

}  // namespace

std::string MetricsText(const MetricRegistry& registry) {
  return prometheus::TextSerializer().Serialize(RegistryCollectable(&registry).Collect());
}

struct MetricsServer::Impl {
  std::unique_ptr<prometheus::Exposer> exposer;
  std::shared_ptr<RegistryCollectable> collectable;
};

MetricsServer::MetricsServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
MetricsServer::~MetricsServer() = default;

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(
    const std::string& address, const MetricRegistry* registry) {
  auto impl = std::make_unique<Impl>();
  try {  // the library reports a busy port by an exception
    impl->exposer = std::make_unique<prometheus::Exposer>(address, 1);
  } catch (const std::exception& e) {
    return absl::UnavailableError(
        absl::StrCat("cannot serve metrics on ", address, ": ", e.what()));
  }
  impl->collectable = std::make_shared<RegistryCollectable>(registry);
  impl->exposer->RegisterCollectable(impl->collectable);
  return std::unique_ptr<MetricsServer>(new MetricsServer(std::move(impl)));
}

int MetricsServer::port() const {
  const std::vector<int> ports = impl_->exposer->GetListeningPorts();
  return ports.empty() ? 0 : ports.front();
}

}  // namespace oscarkv
