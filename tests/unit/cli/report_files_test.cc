#include "cli/report_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>

#include "codec/tensor_file.h"

namespace oscarkv::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string Read(const std::string& path) {
  const auto bytes = ReadWholeFile(path, 1 << 24);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return bytes.ok() ? std::string(bytes->begin(), bytes->end()) : "";
}

// Everything that the figures use of gnuplot.
std::vector<Figure> Figures() {
  EvalReport r;
  for (const char* name : {"bf16", "oscar", "shaped"}) {
    TreatmentResult t;
    t.name = name;
    t.divergence = {{0.1, 0.2}, {3.0, 3.1}, {0.9, 0.8}, {0.5, 0.6}};
    t.needles = {{2048, {1, 0, 1}}, {4096, {1, 1, 1}}};
    if (!r.treatments.empty()) t.layers = {{0.5, 0.3}, {0.4, 0.2}};
    r.treatments.push_back(t);
  }
  std::vector<Figure> figures = EvalFigures(r);
  std::vector<LayerSummary> layers(2);
  for (LayerSummary& layer : layers) {
    for (SideSummary& side : layer.sides) {
      side.spectrum.eigenvalues = {0.5, 1, 1.5};
      side.AddHead(0.2, 0.1);
    }
  }
  CodecOptions options;
  options.data_free = true;
  const auto codec = CreateCodec(options, {2, 1, 64});
  for (const Figure& f :
       CalibrationFigures(layers, ActivationStats({2, 1, 64}, 1, 8, 100), **codec))
    figures.push_back(f);
  return figures;
}

class ReportFilesTest : public testing::Test {
 protected:
  ReportFilesTest() : dir_(testing::TempDir() + "/report files'") {
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
  }
  ~ReportFilesTest() override { std::filesystem::remove_all(dir_); }
  const std::string dir_;
};

TEST_F(ReportFilesTest, DrawsFigures) {
  if (system("gnuplot --version > /dev/null 2>&1") != 0) GTEST_SKIP() << "no gnuplot";
  const std::vector<Figure> figures = Figures();
  ASSERT_EQ(figures.size(), 5u);
  const absl::Status status = WriteReportFiles(dir_ + "/r.html", "title", "| table |", figures);
  ASSERT_TRUE(status.ok()) << status;
  for (const Figure& f : figures) {
    const std::string svg = Read(dir_ + "/r-" + f.name + ".svg");
    EXPECT_THAT(svg, AllOf(HasSubstr("<svg"), HasSubstr("</svg>"))) << f.name;
    EXPECT_LT(svg.size(), 100'000u) << f.name;
  }
  EXPECT_THAT(Read(dir_ + "/r.html"), AllOf(HasSubstr("| table |"), HasSubstr("</svg>")));
  // Nothing else is left behind.
  const auto files = std::filesystem::directory_iterator(dir_);
  EXPECT_EQ(std::distance(begin(files), end(files)), 6);
  Figure broken = figures[0];
  broken.script = "plot $nothing\n";
  EXPECT_THAT(std::string(WriteReportFiles(dir_ + "/r.html", "title", "", {broken}).message()),
              HasSubstr("gnuplot failed"));
}

TEST_F(ReportFilesTest, TablesWithoutGnuplot) {
  const std::string path = getenv("PATH");
  setenv("PATH", dir_.c_str(), 1);
  const absl::Status status = WriteReportFiles(dir_ + "/r.html", "title", "| table |", Figures());
  setenv("PATH", path.c_str(), 1);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_THAT(Read(dir_ + "/r.html"), AllOf(HasSubstr("| table |"), HasSubstr("gnuplot was not")));
}

TEST_F(ReportFilesTest, Refused) {
  EXPECT_TRUE(CheckReportPath("").ok());
  EXPECT_THAT(std::string(CheckReportPath("x.pdf").message()), HasSubstr("ends with .html"));
  EXPECT_FALSE(WriteReportFiles(dir_ + "/none/r.html", "title", "", {}).ok());
}

}  // namespace
}  // namespace oscarkv::cli
