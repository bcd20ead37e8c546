// Order of the steps: repetition penalty, temperature, top-k, top-p (over what top-k left,
// renormalised), min-p (against the best token). Then the inverse of the cumulative distribution at
// u(seed, position), tokens in the order of their ids where nothing was filtered and best first
// otherwise. Sums are in double and in a fixed order; the uniform number is integer arithmetic: the
// same inputs give the same token everywhere (up to the last bit of the C library's exp).
#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"

namespace oscarkv {
namespace {

constexpr int kMaxLogprobs = 20;

absl::Status Bad(absl::string_view field, double value, absl::string_view allowed) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, "; allowed: ", allowed));
}

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection whose output bits all depend
// on all input bits.
uint64_t Mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Uniform in [0, 1), 53 bits.
double Uniform(uint64_t seed, int position) {
  constexpr uint64_t kGamma = 0x9e3779b97f4a7c15u;
  const uint64_t stream = Mix(seed + kGamma);
  const uint64_t bits = Mix(stream + kGamma * (static_cast<uint64_t>(position) + 1));
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

struct Candidate {
  int32_t token;
  float logit;
};

bool Better(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

// NaN counts as minus infinity: such a token is never chosen.
float Sane(float logit) {
  return std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit;
}

// log(sum(exp(logits))).
double LogSumExp(absl::Span<const float> logits) {
  float best = -std::numeric_limits<float>::infinity();
  for (float l : logits) best = std::max(best, Sane(l));
  if (!std::isfinite(best)) return best;
  double sum = 0;
  for (float l : logits) sum += std::exp(static_cast<double>(Sane(l)) - best);
  return best + std::log(sum);
}

// The n best tokens, best first. n is small.
std::vector<Candidate> Best(absl::Span<const float> logits, int n) {
  std::vector<Candidate> best;
  if (n <= 0) return best;
  for (size_t i = 0; i < logits.size(); ++i) {
    const Candidate c{static_cast<int32_t>(i), Sane(logits[i])};
    if (static_cast<int>(best.size()) == n && !Better(c, best.back())) continue;
    if (static_cast<int>(best.size()) == n) best.pop_back();
    best.insert(std::upper_bound(best.begin(), best.end(), c, Better), c);
  }
  return best;
}

void Penalise(absl::Span<const int32_t> history, float penalty, std::vector<float>* logits) {
  std::vector<bool> seen(logits->size(), false);
  for (int32_t token : history) {
    if (token < 0 || static_cast<size_t>(token) >= logits->size() || seen[token]) continue;
    seen[token] = true;
    float& l = (*logits)[token];
    l = l > 0 ? l / penalty : l * penalty;
  }
}

// Turns logits into unnormalised probabilities at a temperature, the best token's being 1.
class Weights {
 public:
  Weights(float best, float temperature) : best_(best), inverse_(1.0 / temperature) {}
  double operator()(float logit) const {
    return std::exp((static_cast<double>(logit) - best_) * inverse_);
  }

 private:
  double best_, inverse_;
};

// Sorts the first *sorted candidates, at least doubling it at each call: most distributions need
// few.
void SortMore(std::vector<Candidate>* c, size_t* sorted) {
  const size_t next = std::min(c->size(), std::max<size_t>(64, *sorted * 8));
  std::partial_sort(c->begin() + *sorted, c->begin() + next, c->end(), Better);
  *sorted = next;
}

// What top-k, top-p and min-p leave, best first.
std::vector<Candidate> Filter(absl::Span<const float> logits, const SamplingParams& params,
                              const Weights& weight) {
  std::vector<Candidate> c;
  c.reserve(logits.size());
  for (size_t i = 0; i < logits.size(); ++i)
    c.push_back({static_cast<int32_t>(i), Sane(logits[i])});
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < c.size()) {
    std::nth_element(c.begin(), c.begin() + params.top_k - 1, c.end(), Better);
    c.resize(params.top_k);
  }
  double total = 0;
  if (params.top_p < 1) {
    for (const Candidate& x : c) total += weight(x.logit);
  }
  size_t sorted = 0, kept = 0;
  double sum = 0;
  while (kept < c.size()) {
    if (kept == sorted) SortMore(&c, &sorted);
    const double w = weight(c[kept].logit);
    if (kept > 0 && w < params.min_p) break;  // the best one's weight is 1
    ++kept;
    sum += w;
    if (params.top_p < 1 && sum >= params.top_p * total) break;
  }
  c.resize(kept);
  return c;
}

// The first element where the running sum of weights exceeds u * total.
template <typename GetLogit>
size_t Invert(size_t n, const GetLogit& logit, const Weights& weight, double u) {
  double total = 0;
  for (size_t i = 0; i < n; ++i) total += weight(logit(i));
  const double target = u * total;
  double sum = 0;
  size_t last = 0;
  for (size_t i = 0; i < n; ++i) {
    const double w = weight(logit(i));
    if (w <= 0) continue;
    sum += w;
    last = i;
    if (sum > target) return i;
  }
  return last;
}

int32_t Choose(absl::Span<const float> logits, const SamplingParams& params, int position) {
  const std::vector<Candidate> best = Best(logits, 1);
  if (best.empty() || best[0].logit == -std::numeric_limits<float>::infinity()) return -1;
  if (params.temperature <= 0 || std::isinf(best[0].logit)) return best[0].token;
  const Weights weight(best[0].logit, params.temperature);
  const double u = Uniform(params.seed, position);
  if (params.top_k == 0 && params.top_p >= 1 && params.min_p <= 0) {
    return static_cast<int32_t>(Invert(
        logits.size(), [&](size_t i) { return Sane(logits[i]); }, weight, u));
  }
  const std::vector<Candidate> c = Filter(logits, params, weight);
  return c[Invert(
               c.size(), [&](size_t i) { return c[i].logit; }, weight, u)]
      .token;
}

}  // namespace

absl::Status ValidateSampling(const SamplingParams& p) {
  // Written so that NaN fails each test.
  if (!(p.temperature >= 0 && p.temperature <= 100))
    return Bad("temperature", p.temperature, "0 (greedy) to 100");
  if (p.top_k < 0) return Bad("top_k", p.top_k, "0 (off) or more");
  if (!(p.top_p > 0 && p.top_p <= 1)) return Bad("top_p", p.top_p, "above 0, up to 1 (off)");
  if (!(p.min_p >= 0 && p.min_p < 1)) return Bad("min_p", p.min_p, "0 (off) to below 1");
  if (!(p.repetition_penalty > 0 && p.repetition_penalty <= 100)) {
    return Bad("repetition_penalty", p.repetition_penalty, "above 0, up to 100; 1 is off");
  }
  if (p.logprobs < 0 || p.logprobs > kMaxLogprobs) {
    return Bad("logprobs", p.logprobs, absl::StrCat("0 to ", kMaxLogprobs));
  }
  return absl::OkStatus();
}

SampledToken Sample(absl::Span<const float> logits, const SamplingParams& params,
                    absl::Span<const int32_t> history, int position) {
  SampledToken out;
  if (params.repetition_penalty != 1) {
    std::vector<float> penalised(logits.begin(), logits.end());
    Penalise(history, params.repetition_penalty, &penalised);
    out.token = Choose(penalised, params, position);
  } else {
    out.token = Choose(logits, params, position);
  }
  if (out.token < 0) return out;
  const double norm = LogSumExp(logits);
  out.logprob = static_cast<float>(Sane(logits[out.token]) - norm);
  for (const Candidate& c : Best(logits, params.logprobs)) {
    out.top.push_back({c.token, static_cast<float>(c.logit - norm)});
  }
  return out;
}

}  // namespace oscarkv
