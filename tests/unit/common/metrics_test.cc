#include "common/metrics.h"

#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace oscarkv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(MetricTest, CounterFromManyThreads) {
  MetricRegistry registry;
  Metric& counter = registry.AddCounter("c", "Counts.").Get();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10000; ++i) counter.Increment();
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(counter.value(), 40000);
  counter.Add(0.5);
  EXPECT_EQ(counter.value(), 40000.5);
}

TEST(MetricTest, GaugeIsSet) {
  MetricRegistry registry;
  Metric& gauge = registry.AddGauge("g", "Now.").Get();
  gauge.Set(3);
  gauge.Add(-5);
  EXPECT_EQ(gauge.value(), -2);
}

TEST(HistogramTest, BoundsAreInclusive) {
  MetricRegistry registry;
  Histogram& h = registry.AddHistogram("h", "Sizes.", {1, 2, 5}).GetHistogram();
  for (const double v : {0.5, 1.0, 1.5, 2.0, 2.1, 5.0, 5.1, 100.0}) h.Observe(v);
  EXPECT_THAT(h.Counts(), ElementsAre(2, 2, 2, 2));
  EXPECT_DOUBLE_EQ(h.sum(), 117.2);
}

TEST(HistogramTest, Quantiles) {
  MetricRegistry registry;
  Histogram& h = registry.AddHistogram("h", "Sizes.", {10, 20, 40}).GetHistogram();
  EXPECT_EQ(h.Quantile(0.5), 0) << "no observation";
  for (int i = 0; i < 10; ++i) h.Observe(5);
  EXPECT_DOUBLE_EQ(h.Quantile(0.5), 5);
  for (int i = 0; i < 10; ++i) h.Observe(30);
  EXPECT_DOUBLE_EQ(h.Quantile(0.5), 10);
  EXPECT_DOUBLE_EQ(h.Quantile(0.75), 30);
  EXPECT_DOUBLE_EQ(h.Quantile(1), 40);
  for (int i = 0; i < 100; ++i) h.Observe(1000);
  EXPECT_DOUBLE_EQ(h.Quantile(0.99), 40) << "behind the last bound nothing is known";
}

TEST(MetricFamilyTest, SeriesByLabels) {
  MetricRegistry registry;
  MetricFamily& family = registry.AddCounter("bytes", "Bytes.", {"lane", "peer"});
  Metric& a = family.With({"tcp", "x"});
  a.Add(3);
  EXPECT_EQ(&family.With({"tcp", "x"}), &a);
  EXPECT_NE(&family.With({"tcp", "y"}), &a);
  EXPECT_NE(&family.With({"tcpx", ""}), &family.With({"tcp", "x"})) << "labels do not run together";
  std::vector<std::vector<std::string>> seen;
  family.ForEach([&](const MetricFamily::Series& s) { seen.push_back(s.label_values); });
  EXPECT_EQ(seen.size(), 3u);
  EXPECT_DEATH(family.With({"tcp"}), "");
}

TEST(MetricRegistryTest, SameNameIsTheSameFamily) {
  MetricRegistry registry;
  MetricFamily& a = registry.AddCounter("c", "Counts.");
  EXPECT_EQ(&registry.AddCounter("c", "Counts."), &a);
  int families = 0;
  registry.ForEach([&](const MetricFamily&) { ++families; });
  EXPECT_EQ(families, 1);
}

TEST(MetricRegistryTest, SeriesWithoutLabelsExistFromTheStart) {
  MetricRegistry registry;
  registry.AddCounter("c", "Counts.");
  registry.AddHistogram("h", "Sizes.", {1});
  registry.AddCounter("labelled", "Counts.", {"x"});
  std::vector<std::string> names;
  registry.ForEach([&](const MetricFamily& f) {
    f.ForEach([&](const MetricFamily::Series& s) {
      names.push_back(f.info().name);
      EXPECT_EQ(s.histogram != nullptr, f.info().name == "h");
    });
  });
  EXPECT_THAT(names, ElementsAre("c", "h"));
}

TEST(MetricRegistryTest, LatencyBoundsGrow) {
  const std::vector<double> bounds = LatencySecondsBounds();
  EXPECT_DOUBLE_EQ(bounds.front(), 1e-6);
  EXPECT_DOUBLE_EQ(bounds.back(), 100);
  for (size_t i = 1; i < bounds.size(); ++i) EXPECT_GT(bounds[i], bounds[i - 1]);
}

TEST(MetricRegistryTest, Markdown) {
  MetricRegistry registry;
  registry.AddHistogram("b_seconds", "Time.", {1}, {"lane", "op"});
  registry.AddCounter("a_total", "Counts.");
  const std::string text = MetricsMarkdown(registry);
  EXPECT_THAT(text, HasSubstr("| `a_total` | counter |  | Counts. |\n| `b_seconds` | histogram | "
                              "`lane`, `op` | Time. |\n"));
}

}  // namespace
}  // namespace oscarkv
