// The report of an evaluation as tables for people, and its arithmetic.
#include "eval/report.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace oscarkv {
namespace {

double MeanWithout(const std::vector<double>& v, int left_out) {
  double sum = 0;
  for (int i = 0; i < static_cast<int>(v.size()); ++i) sum += i == left_out ? 0 : v[i];
  const size_t n = v.size() - (left_out >= 0 ? 1 : 0);
  return n == 0 ? 0 : sum / static_cast<double>(n);
}
double Mean(const std::vector<double>& v) {
  return MeanWithout(v, -1);
}

double HalfWidth(const std::vector<double>& v) {
  if (v.size() < 2) return 0;
  const Interval i =
      JackknifeInterval(static_cast<int>(v.size()), [&](int out) { return MeanWithout(v, out); });
  return (i.high - i.low) / 2;
}

struct Count {
  int right = 0, prompts = 0;
};
// By task and length.
using Counts = std::map<std::pair<std::string, int>, Count>;
Counts CountsOf(const std::vector<NeedleScore>& scores) {
  Counts counts;
  for (const NeedleScore& s : scores) {
    Count& count = counts[{s.task, s.length}];
    for (const int right : s.right) {
      count.right += right;
      ++count.prompts;
    }
  }
  return counts;
}

// What a column of a task is called.
std::string TaskName(const std::string& task) {
  return task == "multi" ? "needles" : task == "single" ? "single needles" : "copies";
}

std::string Share(const Count& c) {
  const Interval i = WilsonInterval(c.right, c.prompts);
  return absl::StrFormat(" %d of %d (%.3f-%.3f) |", c.right, c.prompts, i.low, i.high);
}

void AppendRule(int columns, std::string* out) {
  absl::StrAppend(out, "\n|");
  for (int i = 0; i < columns; ++i) absl::StrAppend(out, "---|");
}

std::string Figures(const EvalReport& r) {
  const bool windows = !r.treatments[0].divergence.window_nll.empty();
  const Counts lengths = CountsOf(r.treatments[0].needles);
  std::string out = absl::StrFormat("%d positions of %d windows\n| treatment | bits |", r.positions,
                                    static_cast<int>(r.treatments[0].divergence.window_nll.size()));
  int columns = 2;
  if (windows) {
    absl::StrAppend(&out, " perplexity | KL to bf16 | KL p99 | top-1 |");
    columns += 4;
  }
  for (const auto& [key, unused] : lengths) {
    absl::StrAppendFormat(&out, " %s at %d |", TaskName(key.first), key.second);
    ++columns;
  }
  if (lengths.size() > 1) {
    absl::StrAppend(&out, " all questions |");
    ++columns;
  }
  AppendRule(columns, &out);
  for (const TreatmentResult& t : r.treatments) {
    const Divergence& d = t.divergence;
    absl::StrAppendFormat(&out, "\n| %s | %.4g |", t.name, t.bits);
    if (windows) {
      absl::StrAppendFormat(&out, " %.3f | %.4f +- %.4f | %.3f | %.4f |",
                            std::exp(Mean(d.window_nll)), Mean(d.window_kl), HalfWidth(d.window_kl),
                            Mean(d.window_p99), Mean(d.window_top1));
    }
    Count all;
    for (const auto& [key, count] : CountsOf(t.needles)) {
      absl::StrAppend(&out, Share(count));
      all.right += count.right;
      all.prompts += count.prompts;
    }
    if (lengths.size() > 1) absl::StrAppend(&out, Share(all));
  }
  return out + "\n";
}

std::string Differences(const EvalReport& r) {
  size_t base = 1;
  for (size_t i = 1; i < r.treatments.size(); ++i) {
    if (r.treatments[i].name == "oscar") base = i;
  }
  if (r.treatments.size() < 3) return "";
  const TreatmentResult& baseline = r.treatments[base];
  std::string out =
      absl::StrCat("\nAgainst ", baseline.name,
                   " on the same windows and prompts (95 % intervals)\n| treatment ",
                   "| KL, share of it | perplexity loss, share of it | needles: only this / only ",
                   baseline.name, " right | difference of the shares |");
  AppendRule(5, &out);
  for (size_t i = 0; i < r.treatments.size(); ++i) {
    if (i == base) continue;
    const PairedComparison c = Compare(r.treatments[0], baseline, r.treatments[i]);
    absl::StrAppendFormat(&out, "\n| %s |", c.name);
    if (c.has_windows) {
      absl::StrAppendFormat(&out, " %.3f (%.3f to %.3f) | %.3f (%.3f to %.3f) |", c.kl_ratio,
                            c.kl_interval.low, c.kl_interval.high, c.loss_ratio,
                            c.loss_interval.low, c.loss_interval.high);
    } else {
      absl::StrAppend(&out, " - | - |");
    }
    if (c.questions > 0) {
      absl::StrAppendFormat(&out, " %d / %d of %d | %+.4f (%+.4f to %+.4f) |", c.only_this,
                            c.only_other, c.questions, c.needle_difference(), c.needle_interval.low,
                            c.needle_interval.high);
    } else {
      absl::StrAppend(&out, " - | - |");
    }
  }
  return out + "\n";
}

double Median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  const size_t n = v.size();
  return n == 0 ? 0 : (v[(n - 1) / 2] + v[n / 2]) / 2;
}

std::string Greedy(const EvalReport& r) {
  const int n = static_cast<int>(r.treatments[0].greedy.size());
  if (n == 0) return "";
  std::string out = absl::StrFormat(
      "\nGreedy decoding of %d tokens behind %d windows: tokens before the first that is not "
      "bf16's (95 %% intervals by bootstrap over windows)\n| treatment | median | mean | never "
      "another |",
      r.greedy_tokens, n);
  AppendRule(4, &out);
  for (const TreatmentResult& t : r.treatments) {
    const std::vector<double>& g = t.greedy;
    const auto drawn = [&](const std::vector<int>& units) {
      std::vector<double> v;
      for (const int u : units) v.push_back(g[u]);
      return v;
    };
    const Interval median =
        BootstrapInterval(n, [&](const std::vector<int>& units) { return Median(drawn(units)); });
    const Interval mean =
        BootstrapInterval(n, [&](const std::vector<int>& units) { return Mean(drawn(units)); });
    absl::StrAppendFormat(&out, "\n| %s | %.1f (%.1f to %.1f) | %.1f (%.1f to %.1f) | %d of %d |",
                          t.name, Median(g), median.low, median.high, Mean(g), mean.low, mean.high,
                          static_cast<int>(std::count(g.begin(), g.end(), r.greedy_tokens)), n);
  }
  return out + "\n";
}

std::string Layers(const EvalReport& r) {
  std::string head, rule = "\n|---|", body;
  size_t layers = 0;
  for (const TreatmentResult& t : r.treatments) {
    if (t.layers.empty()) continue;
    absl::StrAppend(&head, " ", t.name, " |");
    absl::StrAppend(&rule, "---|");
    layers = std::max(layers, t.layers.size());
  }
  if (layers == 0) return "";
  for (size_t l = 0; l < layers; ++l) {
    absl::StrAppend(&body, "\n| ", l, " |");
    for (const TreatmentResult& t : r.treatments) {
      if (!t.layers.empty())
        absl::StrAppendFormat(&body, " %.3f / %.3f |", t.layers[l].score, t.layers[l].value);
    }
  }
  return absl::StrCat("\nPer layer, score error in nats / value error relative\n| layer |", head,
                      rule, body, "\n");
}

}  // namespace

PairedComparison Compare(const TreatmentResult& bf16, const TreatmentResult& baseline,
                         const TreatmentResult& treatment) {
  PairedComparison out;
  out.name = treatment.name;
  const Divergence &b = baseline.divergence, &t = treatment.divergence;
  const int windows = static_cast<int>(b.window_kl.size());
  if (windows > 0 && Mean(b.window_kl) > 0) {
    out.has_windows = true;
    const auto kl = [&](int left_out) {
      return MeanWithout(t.window_kl, left_out) / MeanWithout(b.window_kl, left_out);
    };
    const auto loss = [&](int left_out) {
      const double exact = std::exp(MeanWithout(bf16.divergence.window_nll, left_out));
      return (std::exp(MeanWithout(t.window_nll, left_out)) - exact) /
             (std::exp(MeanWithout(b.window_nll, left_out)) - exact);
    };
    out.kl_ratio = kl(-1);
    out.kl_interval = JackknifeInterval(windows, kl);
    out.loss_ratio = loss(-1);
    out.loss_interval = JackknifeInterval(windows, loss);
  }
  // Differences and questions per text: the texts were drawn, not the questions.
  std::vector<int> differences, questions;
  for (size_t i = 0; i < treatment.needles.size(); ++i) {
    const std::vector<int>&ours = treatment.needles[i].right, &theirs = baseline.needles[i].right;
    int difference = 0;
    for (size_t q = 0; q < ours.size(); ++q) {
      out.only_this += ours[q] > theirs[q];
      out.only_other += ours[q] < theirs[q];
      difference += ours[q] - theirs[q];
    }
    differences.push_back(difference);
    questions.push_back(static_cast<int>(ours.size()));
    out.questions += questions.back();
  }
  out.needle_interval = JackknifeInterval(static_cast<int>(questions.size()), [&](int left_out) {
    int difference = out.only_this - out.only_other, n = out.questions;
    if (left_out >= 0) {
      difference -= differences[left_out];
      n -= questions[left_out];
    }
    return n == 0 ? 0 : static_cast<double>(difference) / n;
  });
  return out;
}

std::string EvalReport::ToTable() const {
  return absl::StrCat(Figures(*this), Differences(*this), Greedy(*this), Layers(*this));
}

absl::Status EvalReport::Add(const EvalReport& other) {
  const auto names = [](const EvalReport& r) {
    std::string all;
    for (const TreatmentResult& t : r.treatments)
      absl::StrAppend(&all, all.empty() ? "" : ",", t.name);
    return all;
  };
  if (names(*this) != names(other)) {
    return absl::InvalidArgumentError(
        absl::StrCat("it holds treatments ", names(other), ", expected ", names(*this)));
  }
  if (greedy_tokens != other.greedy_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("its continuations have ", other.greedy_tokens,
                                                   " tokens, expected ", greedy_tokens));
  }
  positions += other.positions;
  for (size_t i = 0; i < treatments.size(); ++i) {
    TreatmentResult& to = treatments[i];
    const TreatmentResult& from = other.treatments[i];
    for (const auto field : {&Divergence::window_kl, &Divergence::window_nll,
                             &Divergence::window_top1, &Divergence::window_p99}) {
      const std::vector<double>& more = from.divergence.*field;
      (to.divergence.*field).insert((to.divergence.*field).end(), more.begin(), more.end());
    }
    to.greedy.insert(to.greedy.end(), from.greedy.begin(), from.greedy.end());
    to.needles.insert(to.needles.end(), from.needles.begin(), from.needles.end());
    if (to.layers.empty()) to.layers = from.layers;
    if (to.codec.empty()) to.codec = from.codec;
  }
  return absl::OkStatus();
}

}  // namespace oscarkv
