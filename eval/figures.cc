#include "eval/figures.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"

namespace oscarkv {
namespace {

constexpr const char* kSide[] = {"keys", "values"};
// Okabe and Ito's colours: distinct for colour-blind readers, too.
constexpr const char* kColours[] = {"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                    "#56B4E9", "#E69F00", "#000000", "#999999"};
constexpr const char kGrey[] = "#888888";

const char* Colour(size_t i) {
  return kColours[i % std::size(kColours)];
}

// A string of gnuplot's between single quotes.
std::string Quoted(absl::string_view text) {
  return absl::StrCat("'", absl::StrReplaceAll(text, {{"'", "''"}, {"\n", " "}}), "'");
}

// $NAME << EOD ... EOD
void AppendData(absl::string_view name, const std::string& rows, std::string* script) {
  absl::StrAppend(script, "$", name, " << EOD\n", rows, "EOD\n");
}

std::string Panels(int count) {
  return absl::StrFormat("set multiplot layout 1,%d margins 0.09,0.98,0.16,0.86 spacing 0.10\n",
                         count);
}

// 1, 2 and 5 times powers of ten: a panel of one decade has more than one label.
std::string LogTics() {
  std::vector<std::string> tics;
  for (double power = 1e-6; power < 10; power *= 10) {
    for (const int factor : {1, 2, 5}) tics.push_back(absl::StrFormat("%g", factor * power));
  }
  return absl::StrJoin(tics, ", ");
}

// Per layer and head, before and after.
Figure DamageFigure(const std::vector<LayerSummary>& layers) {
  Figure f{"damage",
           "Damage of 2-bit codes per layer and kv head, as a share of the rows' energy in the "
           "metric of what reads them: with a Hadamard rotation, and with this fit."};
  std::string plots;
  for (int side : {0, 1}) {
    std::string rows;
    double low = HUGE_VAL, high = 0;
    for (size_t l = 0; l < layers.size(); ++l) {
      const SideSummary& s = layers[l].sides[side];
      const auto heads = static_cast<double>(s.head_before.size());
      for (size_t h = 0; h < s.head_before.size(); ++h) {
        const double x = static_cast<double>(l) + (static_cast<double>(h) + 0.5 - heads / 2) * 0.12;
        absl::StrAppendFormat(&rows, "%.3f %.6g %.6g\n", x, s.head_before[h], s.head_after[h]);
        low = std::min({low, s.head_before[h], s.head_after[h]});
        high = std::max({high, s.head_before[h], s.head_after[h]});
      }
    }
    const std::string name = absl::StrCat("damage", side);
    AppendData(name, rows, &f.script);
    absl::StrAppendFormat(
        &plots,
        "set title %s\nset yrange [%.6g:%.6g]\n"
        "plot $%s using 1:2 with points pt 6 ps 0.7 lw 1.5 lc rgb '%s' title 'Hadamard', $%s using "
        "1:3 with points pt 7 ps 0.7 lc rgb '%s' title 'fitted'\n",
        Quoted(absl::StrCat("damage to ", kSide[side])), std::max(low, 1e-6) / 1.3,
        std::max(high, 1e-6) * 2.5, name, kGrey, name, Colour(side));  // with room for the key
  }
  absl::StrAppendFormat(&f.script,
                        "set logscale y\nset xlabel 'layer'\nset xrange [-0.6:%.1f]\n"
                        "set xtics %d\nset format y '%%g'\nset key top right horizontal\n"
                        "set ytics (%s)\n%s%s",
                        static_cast<double>(layers.size()) - 0.4,
                        static_cast<int>(layers.size() + 11) / 12, LogTics(), Panels(2), plots);
  return f;
}

// One line per layer, from blue to yellow.
Figure SpectraFigure(const std::vector<LayerSummary>& layers) {
  Figure f{"spectra",
           "Eigenvalues of the covariances that were fitted, over their mean, one line per layer "
           "(of its worst-conditioned head): steep ones have much to gain."};
  std::string plots;
  for (int side : {0, 1}) {
    std::string rows;
    for (size_t l = 0; l < layers.size(); ++l) {
      std::vector<double> values = layers[l].sides[side].spectrum.eigenvalues;
      std::reverse(values.begin(), values.end());
      double mean = 0;
      for (const double v : values) mean += v / static_cast<double>(values.size());
      for (size_t i = 0; i < values.size(); ++i)
        absl::StrAppendFormat(&rows, "%d %.6g %d\n", i + 1,
                              std::max(values[i] / std::max(mean, 1e-300), 1e-10), l);
      absl::StrAppend(&rows, "\n");
    }
    const std::string name = absl::StrCat("spectra", side);
    AppendData(name, rows, &f.script);
    absl::StrAppendFormat(&plots,
                          "set title %s\nplot $%s using 1:2:3 with lines lw 1.5 lc palette "
                          "notitle\n",
                          Quoted(absl::StrCat("spectra, ", kSide[side])), name);
  }
  absl::StrAppendFormat(
      &f.script,
      "set logscale y\nset xlabel 'eigenvalue, largest first'\nset format y '%%g'\nset autoscale "
      "xfix\n"
      "set palette defined (0 '#440154', 1 '#3b528b', 2 '#21918c', 3 '#5ec962', 4 '#e8c513')\n"
      "set cblabel 'layer'\nset cbrange [0:%d]\nset cbtics %d\n"
      "set multiplot layout 1,2 margins 0.09,0.89,0.16,0.86 spacing 0.18\n%s",
      std::max<int>(1, static_cast<int>(layers.size()) - 1),
      static_cast<int>(layers.size() + 11) / 12, plots);
  return f;
}

// (x - mean) M for every row.
std::vector<float> Transformed(const std::vector<float>& rows, int d, const float* mean,
                               const float* m) {
  std::vector<float> out(rows.size());
  for (size_t r = 0; r + d <= rows.size(); r += d) {
    for (int i = 0; i < d; ++i) {
      const float x = rows[r + i] - (mean == nullptr ? 0 : mean[i]);
      for (int j = 0; j < d; ++j) out[r + j] += x * m[i * d + j];
    }
  }
  return out;
}

Figure RowsFigure(int layer, const ActivationStats& stats, const KvCodec& codec) {
  constexpr int kBins = 80;
  constexpr double kLimit = 4;
  Figure f{"rows",
           absl::StrCat("Values of sampled rows of layer ", layer,
                        ", kv head 0, in units of each row's root mean square, before and after "
                        "the transform: four levels fit the second better.")};
  const int d = stats.shape().head_dim;
  std::string plots;
  for (int side : {0, 1}) {
    const bool key = side == 0;
    const std::vector<float>& rows = stats.Sample(layer, 0, static_cast<kernels::Side>(side));
    const float* m = key ? codec.KeyRotation(layer, 0) : codec.ValueRotation(layer, 0);
    const float* mean = key ? codec.KeyMean(layer, 0) : codec.ValueMean(layer, 0);
    const std::vector<double> before = RowHistogram(rows, d, kBins, kLimit);
    const std::vector<double> after =
        RowHistogram(m == nullptr ? rows : Transformed(rows, d, mean, m), d, kBins, kLimit);
    std::string data;
    for (int b = 0; b < kBins; ++b) {
      absl::StrAppendFormat(&data, "%.4f %.6g %.6g\n", kLimit * (2 * (b + 0.5) / kBins - 1),
                            100 * before[b], 100 * after[b]);
    }
    const std::string name = absl::StrCat("rows", side);
    AppendData(name, data, &f.script);
    absl::StrAppendFormat(
        &plots,
        "set title %s\nplot $%s using 1:2 with filledcurves y1=0 fs transparent solid 0.35 lc rgb "
        "'%s' title 'before', $%s using 1:3 with lines lw 2 lc rgb '%s' title 'after'\n",
        Quoted(absl::StrCat("rows of ", kSide[side])), name, kGrey, name, Colour(side));
  }
  absl::StrAppendFormat(&f.script,
                        "set xlabel 'value / root mean square'\nset ylabel 'per cent of values'\n"
                        "set xrange [-%g:%g]\nset yrange [0:*]\nset key top right\n%s%s",
                        kLimit, kLimit, Panels(2), plots);
  return f;
}

// 1, 2 or 5 times a power of ten: at most five of it come up to `upper`.
double TicStep(double upper) {
  const double power = std::pow(10, std::floor(std::log10(upper / 5)));
  for (const double step : {power, 2 * power, 5 * power}) {
    if (step * 5 >= upper) return step;
  }
  return 10 * power;
}

struct Bars {
  std::string name, title;
  std::vector<double> value, half;  // per treatment
};

// Treatments' bars beside each other, one panel per figure of merit.
Figure DivergenceFigure(const EvalReport& r, const std::vector<Bars>& panels) {
  Figure f{"divergence",
           "What the treatments cost: divergence from bf16, perplexity above bf16's, and positions "
           "whose most likely token is another one; bars are means over windows, whiskers 95 % "
           "intervals."};
  std::string plots;
  const size_t n = r.treatments.size() - 1;
  for (const Bars& p : panels) {
    std::string rows;
    double upper = 1e-9;
    const double largest = *std::max_element(p.value.begin(), p.value.end());
    for (size_t i = 0; i < n; ++i) {
      absl::StrAppendFormat(&rows, "%d %.6g %.6g \"%s\" %d\n", n - i, p.value[i], p.half[i],
                            absl::StrReplaceAll(r.treatments[i + 1].name, {{"\"", ""}}), i + 1);
      // Few windows have wide intervals: those may leave the panel, which is there for the bars.
      upper = std::max(upper, std::min(1.02 * (p.value[i] + p.half[i]), 1.5 * largest));
    }
    AppendData(p.name, rows, &f.script);
    absl::StrAppendFormat(
        &plots,
        "set title %s\nset xrange [0:%.6g]\nset xtics %.6g\n%splot $%s using "
        "($2/2):1:($2/2):(0.32):5%s with boxxyerror fs solid 0.75 "
        "noborder lc variable notitle, $%s using 2:1:3 with xerrorbars pt 0 lw 1.5 lc rgb 'black' "
        "notitle\n",
        Quoted(p.title), upper, TicStep(upper), plots.empty() ? "" : "set format y ''\n", p.name,
        plots.empty() ? ":ytic(4)" : "", p.name);
  }
  for (size_t i = 0; i < n; ++i)
    absl::StrAppendFormat(&f.script, "set linetype %d lc rgb '%s'\n", i + 1, Colour(i));
  f.height = 140 + 34 * static_cast<int>(n);
  absl::StrAppendFormat(&f.script,
                        "set ytics scale 0\nset yrange [0.4:%.1f]\n"
                        "set multiplot layout 1,%d margins 0.14,0.97,0.20,0.86 spacing 0.04\n%s",
                        static_cast<double>(n) + 0.6, panels.size(), plots);
  return f;
}

std::vector<Bars> Merits(const EvalReport& r) {
  std::vector<Bars> out = {{"kl", "KL to bf16", {}, {}},
                           {"loss", "perplexity above bf16's", {}, {}},
                           {"top1", "other top-1, %", {}, {}}};
  const std::vector<double>& exact = r.treatments[0].divergence.window_nll;
  const int windows = static_cast<int>(exact.size());
  const auto mean = [](const std::vector<double>& v, int left_out) {
    double sum = 0;
    for (int i = 0; i < static_cast<int>(v.size()); ++i) sum += i == left_out ? 0 : v[i];
    return sum / static_cast<double>(v.size() - (left_out >= 0 ? 1 : 0));
  };
  for (size_t i = 1; i < r.treatments.size(); ++i) {
    const Divergence& d = r.treatments[i].divergence;
    const std::function<double(int)> figures[] = {
        [&](int o) { return mean(d.window_kl, o); },
        [&](int o) { return std::exp(mean(d.window_nll, o)) - std::exp(mean(exact, o)); },
        [&](int o) { return 100 * (1 - mean(d.window_top1, o)); }};
    for (size_t p = 0; p < out.size(); ++p) {
      out[p].value.push_back(figures[p](-1));
      const Interval interval = JackknifeInterval(windows, figures[p]);
      const double half = (interval.high - interval.low) / 2;
      out[p].half.push_back(std::isfinite(half) ? half : 0);
    }
  }
  return out;
}

// Shares of right answers by length, with their intervals; treatments a little apart.
Figure NeedleFigure(const EvalReport& r, const std::string& task) {
  const char* const what = task == "multi"    ? "One of five hidden numbers found"
                           : task == "single" ? "The only hidden number found"
                                              : "Numbers of a list copied";
  Figure f{absl::StrCat("needles-", task),
           absl::StrCat(what,
                        ", by the length of the text, the same questions for every treatment; "
                        "whiskers are 95 % intervals.")};
  std::vector<std::string> plots;
  for (size_t i = 0; i < r.treatments.size(); ++i) {
    std::map<int, std::pair<int, int>> counts;  // length: right, asked
    for (const NeedleScore& s : r.treatments[i].needles) {
      if (s.task != task) continue;
      for (const int right : s.right) {
        counts[s.length].first += right;
        ++counts[s.length].second;
      }
    }
    const double shift =
        1 + 0.02 * (static_cast<double>(i) - static_cast<double>(r.treatments.size() - 1) / 2);
    std::string rows;
    for (const auto& [length, count] : counts) {
      const Interval wilson = WilsonInterval(count.first, count.second);
      absl::StrAppendFormat(&rows, "%.1f %.6g %.6g %.6g\n", length * shift,
                            100.0 * count.first / count.second, 100 * wilson.low,
                            100 * wilson.high);
    }
    const std::string name = absl::StrCat("needles", i);
    AppendData(name, rows, &f.script);
    plots.push_back(absl::StrFormat(
        "$%s using 1:2:3:4 with yerrorlines pt 7 ps 0.6 lw 1.5 lc rgb '%s' title %s", name,
        i == 0 ? kGrey : Colour(i - 1), Quoted(r.treatments[i].name)));
  }
  absl::StrAppendFormat(&f.script,
                        "set logscale x 2\nset xlabel 'tokens'\nset ylabel 'per cent right'\n"
                        "set xtics (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)\n"
                        "set offsets graph 0.05, graph 0.05, 0, graph 0.04\nset yrange [*:100.5]\n"
                        "set key outside right\nplot %s\n",
                        absl::StrJoin(plots, ", "));
  return f;
}

Figure LayersFigure(const EvalReport& r) {
  Figure f{"layers",
           "Errors of the stored rows of one window per layer: of scores in nats, and of values "
           "behind the output projection, relative to them."};
  std::vector<std::string> plots[2];
  for (size_t i = 1; i < r.treatments.size(); ++i) {
    const TreatmentResult& t = r.treatments[i];
    if (t.layers.empty()) continue;
    std::string rows;
    for (size_t l = 0; l < t.layers.size(); ++l)
      absl::StrAppendFormat(&rows, "%d %.6g %.6g\n", l, t.layers[l].score, t.layers[l].value);
    const std::string name = absl::StrCat("layers", i);
    AppendData(name, rows, &f.script);
    for (int side : {0, 1}) {
      plots[side].push_back(absl::StrFormat(
          "$%s using 1:%d with linespoints pt 7 ps 0.5 lw 1.5 lc rgb '%s' %s", name, side + 2,
          Colour(i - 1), side == 0 ? "notitle" : absl::StrCat("title ", Quoted(t.name))));
    }
  }
  absl::StrAppendFormat(
      &f.script,
      "set xlabel 'layer'\nset yrange [0:*]\n"
      "set multiplot layout 1,2 margins 0.08,0.83,0.16,0.86 spacing 0.09\n"
      "set title 'score error, nats'\nplot %s\n"
      "set key at screen 0.99,0.84 right top\nset title 'value error, relative'\nplot %s\n",
      absl::StrJoin(plots[0], ", "), absl::StrJoin(plots[1], ", "));
  return f;
}

std::string Escaped(absl::string_view text) {
  return absl::StrReplaceAll(text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}});
}

}  // namespace

std::vector<double> RowHistogram(absl::Span<const float> rows, int d, int bins, double limit) {
  std::vector<double> out(bins);
  size_t counted = 0;
  for (size_t r = 0; r + d <= rows.size(); r += d) {
    double squares = 0;
    for (int i = 0; i < d; ++i) squares += double{rows[r + i]} * rows[r + i];
    if (!(squares > 0)) continue;
    const double rms = std::sqrt(squares / d);
    for (int i = 0; i < d; ++i) {
      const double at = (rows[r + i] / rms / limit + 1) / 2 * bins;
      ++out[std::clamp(static_cast<int>(std::floor(at)), 0, bins - 1)];
    }
    counted += d;
  }
  for (double& v : out) v /= static_cast<double>(std::max<size_t>(counted, 1));
  return out;
}

std::vector<Figure> CalibrationFigures(const std::vector<LayerSummary>& layers,
                                       const ActivationStats& stats, const KvCodec& codec) {
  std::vector<Figure> figures = {DamageFigure(layers), SpectraFigure(layers)};
  const int layer = static_cast<int>(layers.size()) / 2;
  if (!stats.Sample(layer, 0, kernels::Side::kKey).empty())
    figures.push_back(RowsFigure(layer, stats, codec));
  return figures;
}

std::vector<Figure> EvalFigures(const EvalReport& report) {
  std::vector<Figure> figures;
  if (report.treatments.size() < 2) return figures;
  if (!report.treatments[0].divergence.window_nll.empty())
    figures.push_back(DivergenceFigure(report, Merits(report)));
  for (const char* task : {"multi", "single", "copy"}) {
    const auto& needles = report.treatments[0].needles;
    if (std::any_of(needles.begin(), needles.end(),
                    [task](const NeedleScore& s) { return s.task == task; }))
      figures.push_back(NeedleFigure(report, task));
  }
  if (std::any_of(report.treatments.begin(), report.treatments.end(),
                  [](const TreatmentResult& t) { return !t.layers.empty(); }))
    figures.push_back(LayersFigure(report));
  return figures;
}

std::string GnuplotScript(const Figure& figure, const std::string& svg_file) {
  return absl::StrFormat(
      "set encoding utf8\nset terminal svg noenhanced size %d,%d font 'sans-serif,13' background "
      "'white'\nset output %s\nset border 3 lw 0.8 lc rgb '#444444'\nset tics nomirror\n"
      "set grid lw 0.5 lc rgb '#dddddd'\nset style fill solid\n%sunset multiplot\nunset output\n",
      figure.width, figure.height, Quoted(svg_file), figure.script);
}

std::string HtmlReport(absl::string_view title, absl::string_view tables,
                       const std::vector<Figure>& figures, const std::vector<std::string>& svgs) {
  std::string out = absl::StrCat(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>",
      Escaped(title),
      "</title>\n<style>\nbody { font: 15px/1.5 sans-serif; max-width: 940px; margin: 2em auto; "
      "padding: 0 1em; color: #222; }\npre { font-size: 12px; overflow-x: auto; background: "
      "#f6f6f6; padding: 1em; }\nfigure { margin: 2em 0; }\nfigcaption { color: #555; }\nsvg { "
      "max-width: 100%; height: auto; }\n</style>\n</head>\n<body>\n<h1>",
      Escaped(title), "</h1>\n");
  for (size_t i = 0; i < svgs.size() && i < figures.size(); ++i) {
    // Within HTML an SVG has no XML declaration, nor a document type.
    const size_t start = std::min(svgs[i].find("<svg"), svgs[i].size());
    absl::StrAppend(&out, "<figure>\n", svgs[i].substr(start), "\n<figcaption>",
                    Escaped(figures[i].caption), "</figcaption>\n</figure>\n");
  }
  if (svgs.empty() && !figures.empty()) {
    absl::StrAppend(&out, "<p>gnuplot was not found when this was written: no figures.</p>\n");
  }
  absl::StrAppend(&out, "<pre>", Escaped(tables), "</pre>\n</body>\n</html>\n");
  return out;
}

}  // namespace oscarkv
