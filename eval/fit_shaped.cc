#include "eval/fit_shaped.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "codec/shaped_metric.h"
#include "common/status_macros.h"
#include "eval/damage.h"
#include "kernels/q2_encode/shaped.h"

namespace oscarkv {
namespace {

PageRoundTrip ShapedRoundTrip(int d, const ShapedTables& tables, float widen, float gain,
                              int sweeps, bool symmetric) {
  return [=, &tables](const kernels::Bf16* rows, float* decoded) {
    std::vector<uint8_t> page(kernels::PageHeadBytes(d, !symmetric));
    kernels::ShapedArgs args;
    args.head_dim = d;
    args.rows = rows;
    args.row_stride = d;
    args.metric = tables.view();
    args.widen = widen;
    args.gain = gain;
    args.sweeps = sweeps;
    args.symmetric = symmetric;
    args.page_head = page.data();
    if (kernels::EncodePageHeadShaped(kernels::Backend::kCpu, args, nullptr) !=
        kernels::KernelStatus::kOk) {
      std::fill_n(decoded, kernels::kPageTokens * d, NAN);
      return;
    }
    kernels::DecodePageHead(kernels::Backend::kCpu, d, kernels::Side::kKey, page.data(), decoded,
                            !symmetric);
  };
}

// One side of one layer.
class SideFitter {
 public:
  SideFitter(const Collected& c, const ShapedFitOptions& options, int layer, kernels::Side side)
      : c_(c), options_(options), layer_(layer), side_(side), d_(c.stats->shape().head_dim) {}

  absl::Status Run(ShapedSide* side, SideSummary* summary) {
    double best = std::numeric_limits<double>::infinity();
    for (const double t : options_.t) {
      std::vector<Head> heads;
      for (int h = 0; h < c_.stats->shape().num_kv_heads; ++h) {
        ASSIGN_OR_RETURN(Head head, Fit(h, t));
        heads.push_back(std::move(head));
      }
      for (const float widen : options_.widen) {
        double damage = 0;
        for (size_t h = 0; options_.t.size() * options_.widen.size() > 1 && h < heads.size(); ++h)
          damage += Damage(static_cast<int>(h), heads[h], widen, 0);
        if (!(damage < best)) continue;
        best = damage;
        side->widen = widen;
        chosen_ = heads;
      }
    }
    if (chosen_.empty()) return absl::InternalError("the damage on the sample is not finite");
    side->gain = side_ == kernels::Side::kKey ? options_.key_gain : options_.value_gain;
    for (size_t h = 0; h < chosen_.size(); ++h) Store(static_cast<int>(h), side, summary);
    return absl::OkStatus();
  }

 private:
  struct Head {
    std::shared_ptr<const ShapedFit> fit;
    std::shared_ptr<const ShapedTables> tables;
    std::vector<float> metric;
  };

  // What multiplies the rows: queries, or the output projection.
  std::vector<double> Consumer(int h, bool important) const {
    if (side_ == kernels::Side::kValue)
      return c_.output_gram[layer_ * c_.stats->shape().num_kv_heads + h];
    return important ? c_.stats->ImportantQueries(layer_, h)
                     : c_.stats->QuerySecondMoment(layer_, h);
  }

  absl::StatusOr<Head> Fit(int h, double t) const {
    auto fit = FitShaped(c_.stats->ImportantCovariance(layer_, h, side_),
                         Consumer(h, /*important=*/true), d_, t);
    if (!fit.ok()) {
      return absl::Status(
          fit.status().code(),
          absl::StrCat("layer ", layer_, side_ == kernels::Side::kKey ? ", K" : ", V", ", kv head ",
                       h, ": ", fit.status().message()));
    }
    Round(&fit->transform);
    Head head;
    ASSIGN_OR_RETURN(ShapedTables tables, RoundMetric(&fit->metric));
    head.metric.assign(fit->metric.begin(), fit->metric.end());
    head.tables = std::make_shared<const ShapedTables>(std::move(tables));
    head.fit = std::make_shared<const ShapedFit>(*std::move(fit));
    return head;
  }

  // To what the file holds in half the bytes.
  static void Round(std::vector<double>* values) {
    for (double& v : *values) v = kernels::Fp16ToFloat(kernels::FloatToFp16(static_cast<float>(v)));
  }

  // Rounds a metric, too, which may take its definiteness if it is ill-conditioned: then with the
  // least of a few ridges that keeps it.
  absl::StatusOr<ShapedTables> RoundMetric(std::vector<double>* metric) const {
    absl::Status status;
    for (const double ridge : {0.0, 1e-3, 1e-2, 1e-1}) {  // of the mean diagonal, which is 1
      std::vector<double> rounded = *metric;
      for (int i = 0; i < d_; ++i) rounded[i * d_ + i] += ridge;
      Round(&rounded);
      const std::vector<float> values(rounded.begin(), rounded.end());
      absl::StatusOr<ShapedTables> tables = ShapedTables::Create(values.data(), d_);
      status = tables.status();
      if (!tables.ok()) continue;
      *metric = std::move(rounded);
      return tables;
    }
    return status;
  }

  double Damage(int h, const Head& head, float widen, float gain) const {
    DamageTransform t;
    t.matrix.resize(static_cast<size_t>(d_) * d_);
    for (int i = 0; i < d_; ++i) {
      for (int j = 0; j < d_; ++j) t.matrix[j * d_ + i] = head.fit->transform[i * d_ + j];
    }
    t.mean = c_.stats->ImportantMean(layer_, h, side_);
    // As for the Hadamard rotation that this is compared with: all rows and queries alike.
    t.centre = c_.stats->Mean(layer_, h, side_);
    t.metric = Congruence(head.fit->inverse, Consumer(h, /*important=*/false), d_);
    return MeasureDamage(
        c_.stats->Sample(layer_, h, side_), d_, t,
        ShapedRoundTrip(d_, *head.tables, widen, gain, options_.sweeps, options_.symmetric));
  }

  void Store(int h, ShapedSide* side, SideSummary* summary) {
    const Head& head = chosen_[h];
    for (int j = 0; j < d_; ++j) {
      for (int i = 0; i < d_; ++i)
        side->transform.push_back(static_cast<float>(head.fit->transform[i * d_ + j]));
    }
    const std::vector<double> mean = c_.stats->ImportantMean(layer_, h, side_);
    side->mean.insert(side->mean.end(), mean.begin(), mean.end());
    side->metric.insert(side->metric.end(), head.metric.begin(), head.metric.end());
    summary->error = std::max(summary->error, head.fit->inverse_error);
    summary->condition = std::max(summary->condition, head.fit->condition);
    // The worse of the head's two covariances, over heads.
    for (const Spectrum* s : {&head.fit->keys, &head.fit->queries}) {
      if (summary->spectrum.eigenvalues.empty() || s->rank < summary->spectrum.rank ||
          s->condition > summary->spectrum.condition)
        summary->spectrum = *s;
    }
    summary->AddHead(HadamardDamage(c_, layer_, h, side_),
                     Damage(h, head, side->widen, side->gain));
  }

  const Collected& c_;
  const ShapedFitOptions& options_;
  const int layer_;
  const kernels::Side side_;
  const int d_;
  std::vector<Head> chosen_;
};

}  // namespace

absl::StatusOr<ShapedFitResult> FitShapedProfile(const Collected& c,
                                                 const ShapedFitOptions& options) {
  const kernels::KvShape& shape = c.stats->shape();
  ShapedFitResult out;
  out.parameters.shape = shape;
  out.parameters.symmetric = options.symmetric;
  out.parameters.sides.resize(2 * shape.num_layers);
  out.parameters.metadata = c.provenance;
  out.summary.resize(shape.num_layers);
  std::vector<absl::Status> status(2 * shape.num_layers);
  const auto fit = [&](int i) {
    SideFitter fitter(c, options, i / 2, static_cast<kernels::Side>(i % 2));
    status[i] = fitter.Run(&out.parameters.sides[i], &out.summary[i / 2].sides[i % 2]);
  };
  if (options.executor != nullptr) {
    options.executor->ParallelFor(2 * shape.num_layers, fit);
  } else {
    for (int i = 0; i < 2 * shape.num_layers; ++i) fit(i);
  }
  for (const absl::Status& s : status) RETURN_IF_ERROR(s);
  return out;
}

}  // namespace oscarkv
