// The report of an evaluation as a table for people and as JSON.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "eval/evaluate.h"
#include "nlohmann/json.hpp"

namespace oscarkv {
namespace {

double Mean(const std::vector<double>& v) {
  double sum = 0;
  for (const double x : v) sum += x;
  return v.empty() ? 0 : sum / static_cast<double>(v.size());
}

// 95 % half-width of a mean over windows, by the normal approximation; 0 for fewer than two.
double HalfWidth(const std::vector<double>& v) {
  if (v.size() < 2) return 0;
  const double mean = Mean(v);
  double squares = 0;
  for (const double x : v) squares += (x - mean) * (x - mean);
  const auto n = static_cast<double>(v.size());
  return 1.96 * std::sqrt(squares / (n - 1) / n);
}

double Quantile(std::vector<float> v, double q) {
  if (v.empty()) return 0;
  const auto at = v.begin() + static_cast<int64_t>(q * static_cast<double>(v.size() - 1));
  std::nth_element(v.begin(), at, v.end());
  return *at;
}

}  // namespace

std::string EvalReport::ToTable() const {
  std::string out = absl::StrFormat(
      "%d positions of %d windows\n| treatment | bits | perplexity | KL to bf16 | KL p99 | top-1 |",
      positions, static_cast<int>(treatments[0].divergence.window_nll.size()));
  for (const NeedleCount& n : treatments[0].needles)
    absl::StrAppendFormat(&out, " needles at %d |", n.length);
  absl::StrAppend(&out, "\n|---|---|---|---|---|---|");
  for (size_t i = 0; i < treatments[0].needles.size(); ++i) absl::StrAppend(&out, "---|");
  for (const TreatmentResult& t : treatments) {
    const Divergence& d = t.divergence;
    absl::StrAppendFormat(&out, "\n| %s | %.4g | %.3f | %.4f +- %.4f | %.3f | %.4f |", t.name,
                          t.bits, std::exp(Mean(d.window_nll)), Mean(d.window_kl),
                          HalfWidth(d.window_kl), Quantile(d.kl, 0.99), Mean(d.window_top1));
    for (const NeedleCount& n : t.needles) {
      const Interval i = WilsonInterval(n.right, n.prompts);
      absl::StrAppendFormat(&out, " %d of %d (%.2f-%.2f) |", n.right, n.prompts, i.low, i.high);
    }
  }
  absl::StrAppend(&out, "\n\nPer layer, score error in nats / value error relative\n| layer |");
  for (const TreatmentResult& t : treatments) {
    if (!t.layers.empty()) absl::StrAppend(&out, " ", t.name, " |");
  }
  absl::StrAppend(&out, "\n|---|");
  size_t layers = 0;
  for (const TreatmentResult& t : treatments) {
    if (!t.layers.empty()) absl::StrAppend(&out, "---|");
    layers = std::max(layers, t.layers.size());
  }
  for (size_t l = 0; l < layers; ++l) {
    absl::StrAppend(&out, "\n| ", l, " |");
    for (const TreatmentResult& t : treatments) {
      if (!t.layers.empty())
        absl::StrAppendFormat(&out, " %.3f / %.3f |", t.layers[l].score, t.layers[l].value);
    }
  }
  return out + "\n";
}

std::string EvalReport::ToJson() const {
  nlohmann::json json = {{"positions", positions}, {"treatments", nlohmann::json::array()}};
  for (const TreatmentResult& t : treatments) {
    const Divergence& d = t.divergence;
    nlohmann::json item = {{"name", t.name},
                           {"codec", t.codec},
                           {"bits", t.bits},
                           {"perplexity", std::exp(Mean(d.window_nll))},
                           {"kl", Mean(d.window_kl)},
                           {"kl_half_width", HalfWidth(d.window_kl)},
                           {"kl_p99", Quantile(d.kl, 0.99)},
                           {"top1", Mean(d.window_top1)},
                           {"window_kl", d.window_kl},
                           {"window_nll", d.window_nll},
                           {"needles", nlohmann::json::array()},
                           {"layers", nlohmann::json::array()}};
    for (const NeedleCount& n : t.needles)
      item["needles"].push_back({{"length", n.length}, {"prompts", n.prompts}, {"right", n.right}});
    for (const LayerDamage& l : t.layers)
      item["layers"].push_back({{"score_error", l.score}, {"value_error", l.value}});
    json["treatments"].push_back(std::move(item));
  }
  return json.dump(1) + "\n";
}

}  // namespace oscarkv
