#include "common/metrics.h"

#include <algorithm>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace oscarkv {

Histogram::Histogram(const std::vector<double>* bounds)
    : bounds_(bounds), counts_(new std::atomic<uint64_t>[bounds->size() + 1]) {
  for (size_t i = 0; i <= bounds->size(); ++i) counts_[i] = 0;
}

void Histogram::Observe(double v) {
  const size_t i = std::lower_bound(bounds_->begin(), bounds_->end(), v) - bounds_->begin();
  counts_[i].fetch_add(1, std::memory_order_relaxed);
  sum_.Add(v);
}

std::vector<uint64_t> Histogram::Counts() const {
  std::vector<uint64_t> out(bounds_->size() + 1);
  for (size_t i = 0; i < out.size(); ++i) out[i] = counts_[i].load(std::memory_order_relaxed);
  return out;
}

double Histogram::Quantile(double q) const {
  const std::vector<uint64_t> counts = Counts();
  uint64_t total = 0;
  for (uint64_t c : counts) total += c;
  if (total == 0 || bounds_->empty()) return 0;
  double rank = q * static_cast<double>(total);
  for (size_t i = 0; i < counts.size(); ++i) {
    if (rank <= static_cast<double>(counts[i]) || i + 1 == counts.size()) {
      if (i == bounds_->size()) return bounds_->back();
      const double low = i == 0 ? 0 : (*bounds_)[i - 1];
      const double share = counts[i] == 0 ? 0 : rank / static_cast<double>(counts[i]);
      return low + share * ((*bounds_)[i] - low);
    }
    rank -= static_cast<double>(counts[i]);
  }
  return bounds_->back();
}

MetricFamily::Series& MetricFamily::Find(std::initializer_list<absl::string_view> label_values) {
  if (label_values.size() != info_.labels.size()) std::abort();  // a bug in the room's metrics.h
  const std::string key = absl::StrJoin(label_values, "\x1f");
  MutexLock lock(mu_);
  std::unique_ptr<Series>& slot = series_[key];
  if (slot == nullptr) {
    slot = std::make_unique<Series>();
    for (absl::string_view v : label_values) slot->label_values.emplace_back(std::string(v));
    if (info_.type == MetricType::kHistogram)
      slot->histogram = std::make_unique<Histogram>(&info_.bounds);
  }
  return *slot;
}

Metric& MetricFamily::With(std::initializer_list<absl::string_view> label_values) {
  return Find(label_values).metric;
}

Histogram& MetricFamily::HistogramWith(std::initializer_list<absl::string_view> label_values) {
  return *Find(label_values).histogram;
}

MetricFamily& MetricRegistry::Add(MetricInfo info) {
  MutexLock lock(mu_);
  for (MetricFamily& f : families_) {
    if (f.info().name == info.name)
      return f;  // two objects of one room in a process share the family
  }
  MetricFamily& family = families_.emplace_back(std::move(info));
  // A series without labels exists from the start, so that a scrape shows a zero instead of
  // nothing.
  if (family.info().labels.empty()) {
    if (family.info().type == MetricType::kHistogram) {
      family.GetHistogram();
    } else {
      family.Get();
    }
  }
  return family;
}

MetricFamily& MetricRegistry::AddCounter(std::string name, std::string help,
                                         std::vector<std::string> labels) {
  return Add({std::move(name), std::move(help), MetricType::kCounter, std::move(labels), {}});
}
MetricFamily& MetricRegistry::AddGauge(std::string name, std::string help,
                                       std::vector<std::string> labels) {
  return Add({std::move(name), std::move(help), MetricType::kGauge, std::move(labels), {}});
}
MetricFamily& MetricRegistry::AddHistogram(std::string name, std::string help,
                                           std::vector<double> bounds,
                                           std::vector<std::string> labels) {
  return Add({std::move(name), std::move(help), MetricType::kHistogram, std::move(labels),
              std::move(bounds)});
}

std::vector<double> LatencySecondsBounds() {
  std::vector<double> bounds;
  for (double decade = 1e-6; decade < 50; decade *= 10) {
    for (double step : {1.0, 2.0, 5.0}) bounds.push_back(decade * step);
  }
  bounds.push_back(100);
  return bounds;
}

std::string MetricsMarkdown(const MetricRegistry& registry) {
  static constexpr const char* kTypes[] = {"counter", "gauge", "histogram"};
  std::map<std::string, std::string> rows;
  registry.ForEach([&](const MetricFamily& f) {
    const MetricInfo& i = f.info();
    rows[i.name] = absl::StrCat(
        "| `", i.name, "` | ", kTypes[static_cast<int>(i.type)], " | ",
        i.labels.empty() ? "" : absl::StrCat("`", absl::StrJoin(i.labels, "`, `"), "`"), " | ",
        i.help, " |\n");
  });
  std::string out = "| name | type | labels | meaning |\n|---|---|---|---|\n";
  for (const auto& [name, row] : rows) out += row;
  return out;
}

}  // namespace oscarkv
