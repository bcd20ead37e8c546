// Figures of a calibration and of an evaluation, as scripts for gnuplot with their data in them.
// Nothing is run here: whoever has gnuplot makes SVG of them (cli/report_files.h).
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "codec/codec.h"
#include "eval/calibrate.h"
#include "eval/report.h"

namespace oscarkv {

struct Figure {
  std::string name;     // of its file: "damage"
  std::string caption;  // a sentence for people
  int width = 900, height = 400;
  std::string script = {};  // gnuplot, without terminal and output
};

// Damage per layer and head before and after, spectra of the covariances, values of rows before and
// after the transform of `codec`, which the fit made. Layers without a sample have no rows to show.
std::vector<Figure> CalibrationFigures(const std::vector<LayerSummary>& layers,
                                       const ActivationStats& stats, const KvCodec& codec);
// Divergence, perplexity and agreement of the treatments; retrieval by length; errors per layer.
// What was not measured has no figure.
std::vector<Figure> EvalFigures(const EvalReport& report);

// The figure's script with terminal and output file.
std::string GnuplotScript(const Figure& figure, const std::string& svg_file);

// A page that needs nothing but itself. `svgs`: one per figure, or empty: then the tables only, and
// a line that says why there are no figures.
std::string HtmlReport(absl::string_view title, absl::string_view tables,
                       const std::vector<Figure>& figures, const std::vector<std::string>& svgs);

// Shares of the values of `rows` [n][d] in `bins` even bins of [-limit, limit], in units of each
// row's root mean square about zero; values beyond fall into the outermost bins.
std::vector<double> RowHistogram(absl::Span<const float> rows, int d, int bins, double limit);

}  // namespace oscarkv
