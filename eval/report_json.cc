// The report of an evaluation as JSON, both ways.
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "eval/report.h"
#include "nlohmann/json.hpp"

namespace oscarkv {
namespace {

using Json = nlohmann::json;
constexpr size_t kMaxTreatments = 64, kMaxSamples = 1 << 20;

absl::Status Wrong(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("no report of oscarkv eval: ", what));
}

constexpr struct {
  const char* name;
  std::vector<double> Divergence::*field;
} kWindowFields[] = {{"window_kl", &Divergence::window_kl},
                     {"window_nll", &Divergence::window_nll},
                     {"window_top1", &Divergence::window_top1},
                     {"window_kl_p99", &Divergence::window_p99}};

absl::StatusOr<std::vector<double>> Numbers(const Json& from, const std::string& name) {
  const auto it = from.find(name);
  if (it == from.end() || !it->is_array() || it->size() > kMaxSamples)
    return Wrong(absl::StrCat("a treatment lacks the list ", name));
  std::vector<double> out;
  for (const Json& v : *it) {
    if (!v.is_number() || !std::isfinite(v.get<double>()))
      return Wrong(absl::StrCat(name, " holds what is no number"));
    out.push_back(v.get<double>());
  }
  return out;
}

absl::StatusOr<std::vector<NeedleScore>> Needles(const Json& item) {
  const auto it = item.find("needles");
  if (it == item.end() || !it->is_array() || it->size() > kMaxSamples)
    return Wrong("a treatment lacks the list needles");
  std::vector<NeedleScore> out;
  for (const Json& n : *it) {
    if (!n.is_object() || !n.contains("length") || !n["length"].is_number_unsigned())
      return Wrong("a text with needles has no length");
    ASSIGN_OR_RETURN(const std::vector<double> right, Numbers(n, "right"));
    NeedleScore score;
    score.length = static_cast<int>(std::min<uint64_t>(n["length"].get<uint64_t>(), 1 << 30));
    if (const auto task = n.find("task"); task != n.end()) {  // older reports have none
      if (*task != "multi" && *task != "single" && *task != "copy")
        return Wrong("a text's task is none of multi, single and copy");
      score.task = task->get<std::string>();
    }
    for (const double r : right) {
      if (r != 0 && r != 1) return Wrong("right holds other numbers than 0 and 1");
      score.right.push_back(static_cast<int>(r));
    }
    out.push_back(std::move(score));
  }
  return out;
}

absl::StatusOr<TreatmentResult> Treatment(const Json& item) {
  TreatmentResult t;
  if (!item.is_object() || !item.contains("name") || !item["name"].is_string() ||
      !item.contains("codec") || !item["codec"].is_string() || !item.contains("bits") ||
      !item["bits"].is_number()) {
    return Wrong("a treatment lacks name, codec or bits");
  }
  t.name = item["name"].get<std::string>();
  t.codec = item["codec"].get<std::string>();
  t.bits = item["bits"].get<double>();
  for (const auto& f : kWindowFields) {
    ASSIGN_OR_RETURN(t.divergence.*f.field, Numbers(item, f.name));
  }
  ASSIGN_OR_RETURN(t.needles, Needles(item));
  if (item.contains("greedy")) {  // older reports have none
    ASSIGN_OR_RETURN(t.greedy, Numbers(item, "greedy"));
  }
  ASSIGN_OR_RETURN(const std::vector<double> score, Numbers(item, "layer_score_error"));
  ASSIGN_OR_RETURN(const std::vector<double> value, Numbers(item, "layer_value_error"));
  if (score.size() != value.size()) return Wrong("the lists of layers differ in length");
  for (size_t l = 0; l < score.size(); ++l) t.layers.push_back({score[l], value[l]});
  return t;
}

// The same windows and prompts as those of the first treatment.
absl::Status CheckPaired(const TreatmentResult& first, const TreatmentResult& t) {
  for (const auto& f : kWindowFields) {
    if ((t.divergence.*f.field).size() != first.divergence.window_nll.size())
      return Wrong(absl::StrCat("the treatments differ in the length of ", f.name));
  }
  if (t.greedy.size() != first.greedy.size())
    return Wrong("the treatments differ in the length of greedy");
  bool same = t.needles.size() == first.needles.size();
  for (size_t i = 0; same && i < t.needles.size(); ++i) {
    same = t.needles[i].length == first.needles[i].length &&
           t.needles[i].task == first.needles[i].task &&
           t.needles[i].right.size() == first.needles[i].right.size();
  }
  return same ? absl::OkStatus() : Wrong("the treatments differ in their needles");
}

}  // namespace

std::string EvalReport::ToJson() const {
  Json json = {
      {"positions", positions}, {"greedy_tokens", greedy_tokens}, {"treatments", Json::array()}};
  for (const TreatmentResult& t : treatments) {
    Json item = {{"name", t.name},
                 {"codec", t.codec},
                 {"bits", t.bits},
                 {"needles", Json::array()},
                 {"greedy", t.greedy},
                 {"layer_score_error", Json::array()},
                 {"layer_value_error", Json::array()}};
    for (const auto& f : kWindowFields) item[f.name] = t.divergence.*f.field;
    for (const NeedleScore& n : t.needles)
      item["needles"].push_back({{"length", n.length}, {"right", n.right}, {"task", n.task}});
    for (const LayerDamage& l : t.layers) {
      item["layer_score_error"].push_back(l.score);
      item["layer_value_error"].push_back(l.value);
    }
    json["treatments"].push_back(std::move(item));
  }
  return json.dump(1) + "\n";
}

absl::StatusOr<EvalReport> EvalReport::FromJson(absl::string_view text) {
  const Json json = Json::parse(text.begin(), text.end(), nullptr, false);
  if (!json.is_object() || !json.contains("positions") || !json["positions"].is_number_unsigned() ||
      !json.contains("treatments") || !json["treatments"].is_array()) {
    return Wrong("it has no positions and treatments");
  }
  const Json& items = json["treatments"];
  if (items.empty() || items.size() > kMaxTreatments) return Wrong("too many treatments, or none");
  EvalReport report;
  report.positions =
      static_cast<int>(std::min<uint64_t>(json["positions"].get<uint64_t>(), 1 << 30));
  if (const auto n = json.find("greedy_tokens"); n != json.end()) {
    if (!n->is_number_unsigned()) return Wrong("greedy_tokens is no number of tokens");
    report.greedy_tokens = static_cast<int>(std::min<uint64_t>(n->get<uint64_t>(), 1 << 30));
  }
  for (const Json& item : items) {
    ASSIGN_OR_RETURN(TreatmentResult t, Treatment(item));
    report.treatments.push_back(std::move(t));
    RETURN_IF_ERROR(CheckPaired(report.treatments[0], report.treatments.back()));
  }
  return report;
}

}  // namespace oscarkv
