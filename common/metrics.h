// Counters, gauges and histograms, cheap enough for hot paths, exported to Prometheus by
// common/metrics_server.h.
//
// One metrics.h per room declares a struct of families built over a Registry; no name is written
// anywhere else. A family's With(labels) takes a lock: keep the returned reference. All classes are
// thread-safe; references live as long as the Registry.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/mutex.h"

namespace oscarkv {

enum class MetricType { kCounter, kGauge, kHistogram };

// One value; a counter only grows.
class Metric {
 public:
  void Add(double v) {
    double old = value_.load(std::memory_order_relaxed);
    while (!value_.compare_exchange_weak(old, old + v, std::memory_order_relaxed)) {
    }
  }
  void Increment() { Add(1); }
  void Set(double v) { value_.store(v, std::memory_order_relaxed); }
  double value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

class Histogram {
 public:
  explicit Histogram(const std::vector<double>* bounds);
  void Observe(double v);
  // counts[i] counts values <= bounds[i] and above the bound before it; the last one counts the
  // rest.
  std::vector<uint64_t> Counts() const;
  double sum() const { return sum_.value(); }
  const std::vector<double>& bounds() const { return *bounds_; }
  // The value below which a share `q` of the observations lies, interpolated inside a bucket; 0
  // without observations.
  double Quantile(double q) const;

 private:
  const std::vector<double>* bounds_;
  std::unique_ptr<std::atomic<uint64_t>[]> counts_;
  Metric sum_;
};

struct MetricInfo {
  std::string name;  // oscarkv_<room>_<what>_<unit>[_total]
  std::string help;
  MetricType type;
  std::vector<std::string> labels;
  std::vector<double> bounds;  // of a histogram
};

class MetricFamily {
 public:
  explicit MetricFamily(MetricInfo info) : info_(std::move(info)) {}
  const MetricInfo& info() const { return info_; }

  // The series with these label values, made at first use. The number of values must equal that of
  // the labels.
  Metric& With(std::initializer_list<absl::string_view> label_values);
  Metric& Get() { return With({}); }
  Histogram& HistogramWith(std::initializer_list<absl::string_view> label_values);
  Histogram& GetHistogram() { return HistogramWith({}); }

  struct Series {
    std::vector<std::string> label_values;
    Metric metric;
    std::unique_ptr<Histogram> histogram;
  };
  // Calls `f(const Series&)` for every series.
  template <typename F>
  void ForEach(F f) const {
    MutexLock lock(mu_);
    for (const auto& [key, series] : series_) f(*series);
  }

 private:
  Series& Find(std::initializer_list<absl::string_view> label_values);

  const MetricInfo info_;
  mutable Mutex mu_;
  std::map<std::string, std::unique_ptr<Series>> series_ GUARDED_BY(mu_);
};

class MetricRegistry {
 public:
  MetricFamily& AddCounter(std::string name, std::string help,
                           std::vector<std::string> labels = {});
  MetricFamily& AddGauge(std::string name, std::string help, std::vector<std::string> labels = {});
  MetricFamily& AddHistogram(std::string name, std::string help, std::vector<double> bounds,
                             std::vector<std::string> labels = {});
  template <typename F>
  void ForEach(F f) const {
    MutexLock lock(mu_);
    for (const auto& family : families_) f(family);
  }

 private:
  MetricFamily& Add(MetricInfo info);
  mutable Mutex mu_;
  std::deque<MetricFamily> families_ GUARDED_BY(mu_);
};

// 1 us .. 100 s, two buckets a decade and a half step: for latencies in seconds.
std::vector<double> LatencySecondsBounds();

// The table of docs/metrics.md for the families of `registry`, sorted by name.
std::string MetricsMarkdown(const MetricRegistry& registry);

}  // namespace oscarkv
