// Scripts and pages of figures made up here.
#include "eval/figures.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

namespace oscarkv {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

EvalReport Report() {
  EvalReport r;
  for (const char* name : {"bf16", "oscar", "sha'ped"}) {
    TreatmentResult t;
    t.name = name;
    t.divergence = {{0.1, 0.2}, {3.0, 3.1}, {0.9, 0.8}, {0.5, 0.6}};
    t.needles = {{2048, {1, 0, 1}}, {4096, {1, 1, 1}}, {2048, {0}, "copy"}};
    if (r.treatments.size() > 0) t.layers = {{0.5, 0.3}, {0.4, 0.2}};
    r.treatments.push_back(t);
  }
  return r;
}

TEST(FiguresTest, OfAnEvaluation) {
  const std::vector<Figure> figures = EvalFigures(Report());
  ASSERT_EQ(figures.size(), 4u);
  EXPECT_EQ(figures[0].name, "divergence");
  EXPECT_EQ(figures[1].name, "needles-multi");
  EXPECT_EQ(figures[2].name, "needles-copy");
  EXPECT_EQ(figures[3].name, "layers");
  // KL of both treatments, each 0.15 on average.
  EXPECT_THAT(figures[0].script, AllOf(HasSubstr("2 0.15 "), HasSubstr("\"oscar\" 1\n")));
  EXPECT_THAT(figures[1].script, HasSubstr("66.6667"));
  EXPECT_THAT(figures[1].script, HasSubstr("title 'sha''ped'"));  // no way out of the quotes
  EvalReport empty = Report();
  for (TreatmentResult& t : empty.treatments) t.divergence = {}, t.needles = {}, t.layers = {};
  EXPECT_TRUE(EvalFigures(empty).empty());
  empty.treatments.resize(1);
  EXPECT_TRUE(EvalFigures(empty).empty());
}

TEST(FiguresTest, OfACalibration) {
  ActivationStats stats({2, 1, 64}, 1, 8, 100);
  std::vector<LayerSummary> layers(2);
  for (LayerSummary& layer : layers) {
    for (SideSummary& side : layer.sides) {
      side.spectrum.eigenvalues = {0.5, 1, 1.5};
      side.AddHead(0.2, 0.1);
      side.AddHead(0.4, 0.2);
    }
  }
  EXPECT_NEAR(layers[0].sides[0].damage_before, 0.3, 1e-12);
  CodecOptions options;
  options.data_free = true;
  const auto codec = CreateCodec(options, stats.shape());
  ASSERT_TRUE(codec.ok());
  const std::vector<Figure> figures = CalibrationFigures(layers, stats, **codec);
  ASSERT_EQ(figures.size(), 2u);  // no sample, no rows
  EXPECT_THAT(figures[0].script, AllOf(HasSubstr("-0.060 0.2 0.1"), HasSubstr("1.060 0.4 0.2")));
  EXPECT_THAT(figures[1].script, HasSubstr("1 1.5 0\n2 1 0\n3 0.5 0\n"));
  const std::string script = GnuplotScript(figures[0], "a'b.svg");
  EXPECT_THAT(script, HasSubstr("set output 'a''b.svg'"));
}

TEST(FiguresTest, Histogram) {
  std::vector<float> rows(4 * 64, 2.0f);
  std::fill_n(rows.begin() + 64, 64, 0.0f);  // nothing to say about a row of zeros
  for (int i = 0; i < 32; ++i) rows[128 + i] = -2;
  const std::vector<double> h = RowHistogram(rows, 64, 4, 2);  // [-2, -1), ..., [1, 2]
  EXPECT_NEAR(h[0], 0, 1e-12);
  EXPECT_NEAR(h[1], 1.0 / 6, 1e-12);
  EXPECT_NEAR(h[3], 5.0 / 6, 1e-12);
  EXPECT_NEAR(std::accumulate(h.begin(), h.end(), 0.0), 1, 1e-12);
}

TEST(FiguresTest, Page) {
  const std::vector<Figure> figures = EvalFigures(Report());
  const std::string page =
      HtmlReport("a < b", "| x & y |", figures, {"<?xml?><!DOCTYPE x><svg>1</svg>", "2", "3", "4"});
  EXPECT_THAT(page, AllOf(HasSubstr("<h1>a &lt; b</h1>"), HasSubstr("<figure>\n<svg>1</svg>"),
                          HasSubstr("| x &amp; y |")));
  EXPECT_THAT(page, Not(HasSubstr("<?xml")));
  EXPECT_THAT(HtmlReport("t", "", figures, {}), HasSubstr("gnuplot was not found"));
}

}  // namespace
}  // namespace oscarkv
