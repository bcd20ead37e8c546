#include "eval/calibrate.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "codec/codec.h"
#include "common/sha256.h"
#include "common/status_macros.h"
#include "eval/collector.h"
#include "eval/damage.h"
#include "kernels/q2_encode/op.h"
#include "model/rope_tables.h"
#include "model/safetensors.h"
#include "model/streamed_transformer.h"
#include "model/tokenizer.h"

namespace oscarkv {
namespace {

using Prompts = std::vector<std::vector<int32_t>>;

// What a checkpoint must have been made from to go on with.
std::string RunDigest(const CollectOptions& o, const Sha256Digest& model, const Prompts& prompts) {
  Sha256 sha;
  sha.UpdateField("oscarkv.calibration").Update(model.data(), model.size());
  sha.UpdateU64(o.weighted_values)
      .UpdateU64(o.importance)
      .UpdateU64(o.compute == kernels::Compute::kBf16);
  sha.UpdateU64(o.sample_rows).UpdateU64(prompts.size());
  for (const auto& p : prompts) sha.UpdateU64(p.size()).Update(p.data(), p.size() * sizeof(p[0]));
  return ToHex(sha.Finish());
}

CalibrationMemory MemoryOf(const CollectOptions& o, const ModelConfig& c, const Prompts& prompts,
                           uint64_t statistics) {
  uint64_t tokens = 0, longest = 0;
  for (const auto& p : prompts) {
    tokens += p.size();
    longest = std::max<uint64_t>(longest, p.size());
  }
  const uint64_t d = c.head_dim, kv_heads = c.num_kv_heads, group = c.num_heads / kv_heads;
  const StreamedTransformer::LayerMemory layer = StreamedTransformer::MemoryOfLayer(c, o.compute);
  CalibrationMemory m;
  m.layer = layer.weights + layer.reading;
  m.hidden = sizeof(float) * tokens * c.hidden_size;
  // The weights of a prompt's rows are found by one head on each thread: six copies of its K or V,
  // the scores of 128 queries, three or more numbers for each row (importance.cc).
  m.activations = StreamedTransformer::MemoryOfPrompt(c, longest);
  if (o.importance)
    m.activations += std::min<uint64_t>(o.threads, kv_heads) * longest *
                     (6 * 4 * d + 4 * 2 * 64 + 8 * (2 + group));
  m.statistics = statistics + sizeof(double) * c.num_layers * kv_heads * d * d;
  // A checkpoint is made as a whole, and once more with its header.
  if (!o.checkpoint_file.empty()) m.statistics += 2 * statistics;
  // Measured: 30 MiB, and what oneDNN compiles and malloc keeps; parsing a tokenizer takes six
  // times its file.
  std::error_code ec;
  const uint64_t tokenizer = std::filesystem::file_size(o.model_dir + "/tokenizer.json", ec);
  m.program = (uint64_t{96} << 20) + (ec ? 0 : 8 * tokenizer);
  m.model = StreamedTransformer::MemoryOfModel(c, o.compute);
  return m;
}

absl::StatusOr<bool> ChooseByLayers(const CollectOptions& o, const CalibrationMemory& memory,
                                    std::optional<bool> begun_by_layers) {
  using Order = CollectOptions::Order;
  if (o.order == Order::kAuto) {
    if (begun_by_layers.has_value()) return *begun_by_layers;
    return o.available_bytes > 0 && memory.ByPrompts() > o.available_bytes / 4 * 3;
  }
  const bool by_layers = o.order == Order::kLayers;
  if (begun_by_layers.value_or(by_layers) == by_layers) return by_layers;
  return absl::FailedPreconditionError(absl::StrCat(
      o.checkpoint_file, ": was begun ", by_layers ? "prompt by prompt" : "layer by layer",
      ": go on with it in that way, delete it, or name another by --checkpoint"));
}

absl::Status RunCollector(const CollectOptions& options, const ModelConfig& config, bool by_layers,
                          Collector* collector) {
  CodecOptions identity;
  identity.profile = Profile::kBf16;
  ASSIGN_OR_RETURN(std::shared_ptr<const KvCodec> codec, CreateCodec(identity, config.kv_shape()));
  TransformerOptions model_options;
  model_options.compute = options.compute;
  model_options.threads = options.threads;
  model_options.fp32_kv = true;
  if (by_layers) {
    ASSIGN_OR_RETURN(const auto model,
                     StreamedTransformer::Open(options.model_dir, std::move(codec), model_options));
    return collector->ByLayers(model.get());
  }
  ASSIGN_OR_RETURN(const auto model,
                   Transformer::Load(options.model_dir, std::move(codec), model_options));
  return collector->ByPrompts(model.get());
}

double OrthogonalityError(const std::vector<double>& m, int d) {
  const std::vector<double> gram = [&] {
    std::vector<double> identity(size_t{1} * d * d);
    for (int i = 0; i < d; ++i) identity[i * d + i] = 1;
    return Congruence(m, identity, d);
  }();
  double worst = 0;
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < d; ++j)
      worst = std::max(worst, std::abs(gram[i * d + j] - (i == j ? 1 : 0)));
  }
  return worst;
}

// The codes of profile oscar.
PageRoundTrip OscarRoundTrip(int d, float clip) {
  return [d, clip](const kernels::Bf16* rows, float* decoded) {
    std::vector<uint8_t> page(kernels::PageHeadBytes(d));
    kernels::EncodeArgs args;
    args.head_dim = d;
    args.rows = rows;
    args.row_stride = d;
    args.clip_ratio = clip;
    args.page_head = page.data();
    if (kernels::EncodePageHead(kernels::Backend::kCpu, args, nullptr) !=
        kernels::KernelStatus::kOk) {
      std::fill_n(decoded, kernels::kPageTokens * d, NAN);
      return;
    }
    kernels::DecodePageHead(kernels::Backend::kCpu, d, kernels::Side::kKey, page.data(), decoded);
  };
}

double RotationDamage(const Collected& c, int layer, int head, kernels::Side side,
                      const std::vector<double>& rotation, float clip) {
  const int d = c.stats->shape().head_dim;
  const std::vector<double> s = side == kernels::Side::kKey
                                    ? c.stats->QuerySecondMoment(layer, head)
                                    : c.output_gram[layer * c.stats->shape().num_kv_heads + head];
  DamageTransform t;
  t.matrix = rotation;
  t.mean.assign(d, 0.0);
  t.centre = c.stats->Mean(layer, head, side);
  t.metric = Congruence(rotation, s, d);
  return MeasureDamage(c.stats->Sample(layer, head, side), d, t, OscarRoundTrip(d, clip));
}

// The mean of several matrices.
std::vector<double> Average(const std::vector<std::vector<double>>& all) {
  std::vector<double> mean(all[0].size());
  for (const auto& m : all) {
    for (size_t i = 0; i < m.size(); ++i) mean[i] += m[i] / static_cast<double>(all.size());
  }
  return mean;
}

// Keeps the worse of two heads' spectra.
void Merge(const Spectrum& s, Spectrum* to) {
  if (to->eigenvalues.empty() || s.rank < to->rank ||
      (s.rank == to->rank && s.condition > to->condition))
    *to = s;
}

}  // namespace

absl::StatusOr<std::vector<std::vector<double>>> OutputGrams(const std::string& model_dir,
                                                             const ModelConfig& c) {
  ASSIGN_OR_RETURN(const std::unique_ptr<TensorStore> store, TensorStore::Open(model_dir));
  const int d = c.head_dim, group = c.num_heads / c.num_kv_heads, width = c.num_heads * d;
  std::vector<std::vector<double>> grams;
  for (int layer = 0; layer < c.num_layers; ++layer) {
    const std::string name = absl::StrCat("model.layers.", layer, ".self_attn.o_proj.weight");
    ASSIGN_OR_RETURN(const std::vector<float> w, store->ReadF32(name, {c.hidden_size, width}));
    for (int h = 0; h < c.num_kv_heads; ++h) {
      std::vector<double> lower(size_t{1} * d * d), rows(size_t{1} * c.hidden_size * d);
      for (int q = h * group; q < (h + 1) * group; ++q) {
        for (int r = 0; r < c.hidden_size; ++r)
          std::copy_n(w.begin() + size_t{1} * r * width + q * d, d, rows.begin() + r * d);
        AddSecondMoment(rows.data(), nullptr, c.hidden_size, d, lower.data());
      }
      grams.push_back(Symmetric(lower, d, 1));
    }
    ASSIGN_OR_RETURN(const TensorView read, store->Find(name));
    store->Release(read);
  }
  return grams;
}

absl::StatusOr<Collected> CollectStats(const CollectOptions& options) {
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(options.model_dir));
  if (options.plan.prompt_tokens <= kSinkTokens) {
    return absl::InvalidArgumentError(absl::StrCat("prompts of ", options.plan.prompt_tokens,
                                                   " tokens hold nothing behind the first ",
                                                   kSinkTokens, ", which are left out"));
  }
  if (options.context > config.max_position_embeddings) {
    return absl::InvalidArgumentError(absl::StrCat("a context of ", options.context,
                                                   " positions: the model's has ",
                                                   config.max_position_embeddings));
  }
  ASSIGN_OR_RETURN(const std::vector<Text> texts, ReadTexts(options.text_files));
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(options.model_dir));
  ASSIGN_OR_RETURN(const Prompts prompts, MakePrompts(texts, *tokenizer, options.plan));
  Collected out;
  for (const auto& p : prompts)
    out.tokens += std::max<int64_t>(0, static_cast<int64_t>(p.size()) - kSinkTokens);
  out.prompts = static_cast<int>(prompts.size());
  out.stats = std::make_unique<ActivationStats>(config.kv_shape(), config.num_heads,
                                                options.sample_rows, out.tokens);
  ASSIGN_OR_RETURN(const Sha256Digest fingerprint, ModelFingerprint(options.model_dir));
  const std::string digest = RunDigest(options, fingerprint, prompts);
  ASSIGN_OR_RETURN(out.output_gram, OutputGrams(options.model_dir, config));
  Collector collector(options, digest, prompts, out.output_gram, out.stats.get());
  ASSIGN_OR_RETURN(const std::optional<bool> begun_by_layers, collector.Resume());
  out.memory = MemoryOf(options, config, prompts, out.stats->MemoryBytes());
  ASSIGN_OR_RETURN(out.by_layers, ChooseByLayers(options, out.memory, begun_by_layers));
  if (options.on_plan) options.on_plan(out);
  RETURN_IF_ERROR(RunCollector(options, config, out.by_layers, &collector));
  const bool spread = options.context > options.plan.prompt_tokens;
  if (spread) {
    ASSIGN_OR_RETURN(std::vector<float> inv_freq,
                     RopeInverseFrequencies(config.rope, config.head_dim));
    out.stats->SpreadOverPositions(std::move(inv_freq), options.plan.prompt_tokens,
                                   options.context);
  }
  out.provenance = {{"calibration.model_fingerprint", ToHex(fingerprint)},
                    {"calibration.prompts", absl::StrCat(out.prompts)},
                    {"calibration.tokens", absl::StrCat(out.tokens)},
                    {"calibration.seed", absl::StrCat(options.plan.seed)},
                    {"calibration.run", digest}};
  if (spread) out.provenance["calibration.context"] = absl::StrCat(options.context);
  return out;
}

double HadamardDamage(const Collected& c, int layer, int head, kernels::Side side) {
  static constexpr float kClip[2] = {0.96f, 0.92f};
  const int d = c.stats->shape().head_dim;
  const RotationSet set = HadamardRotations({1, 1, d});
  return RotationDamage(c, layer, head, side,
                        std::vector<double>(set.At(0, 0), set.At(0, 0) + size_t{1} * d * d),
                        kClip[static_cast<int>(side)]);
}

absl::StatusOr<OscarFiles> FitOscarProfile(const Collected& c, bool per_head, const float clip[2]) {
  const kernels::KvShape& shape = c.stats->shape();
  const int d = shape.head_dim, groups = per_head ? shape.num_kv_heads : 1;
  OscarFiles out{RotationSet(shape), RotationSet(shape), {}, {}, {}};
  out.summary.resize(shape.num_layers);
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    for (const kernels::Side side : {kernels::Side::kKey, kernels::Side::kValue}) {
      const bool key = side == kernels::Side::kKey;
      SideSummary& summary = out.summary[layer].sides[static_cast<int>(side)];
      summary.condition = 1;
      std::vector<float> matrices;
      for (int g = 0; g < groups; ++g) {
        std::vector<std::vector<double>> targets;
        for (int h = 0; h < shape.num_kv_heads; ++h) {
          if (per_head && h != g) continue;
          targets.push_back(key ? c.stats->QuerySecondMoment(layer, h)
                                : c.stats->WeightedValues(layer, h));
        }
        auto fit = FitOscar(Average(targets), d);
        if (!fit.ok()) {
          return absl::Status(
              fit.status().code(),
              absl::StrCat("layer ", layer, key ? ", K: " : ", V: ", fit.status().message()));
        }
        Merge(fit->spectrum, &summary.spectrum);
        summary.error = std::max(summary.error, OrthogonalityError(fit->rotation, d));
        auto& eigenvalues = key ? out.key_eigenvalues : out.value_eigenvalues;
        eigenvalues.insert(eigenvalues.end(), fit->spectrum.eigenvalues.begin(),
                           fit->spectrum.eigenvalues.end());
        matrices.insert(matrices.end(), fit->rotation.begin(), fit->rotation.end());
        for (int h = 0; h < shape.num_kv_heads; ++h) {
          if (per_head && h != g) continue;
          const float ratio = clip[static_cast<int>(side)];
          summary.AddHead(HadamardDamage(c, layer, h, side),
                          RotationDamage(c, layer, h, side, fit->rotation, ratio));
        }
      }
      RETURN_IF_ERROR((key ? out.keys : out.values).SetLayer(layer, groups, matrices));
    }
  }
  return out;
}

void SideSummary::AddHead(double before, double after) {
  head_before.push_back(before);
  head_after.push_back(after);
  const auto mean = [](const std::vector<double>& v) {
    double sum = 0;
    for (const double x : v) sum += x;
    return sum / static_cast<double>(v.size());
  };
  damage_before = mean(head_before);
  damage_after = mean(head_after);
}

std::string FormatSummary(const std::vector<LayerSummary>& layers, int head_dim) {
  std::string out =
      absl::StrFormat("%-6s %-4s %10s %10s %12s %10s %22s\n", "layer", "side", "error", "cond",
                      "cond(S)", "top tenth", "damage, before->after");
  std::string notes;
  for (size_t l = 0; l < layers.size(); ++l) {
    for (int side : {0, 1}) {
      const SideSummary& s = layers[l].sides[side];
      absl::StrAppendFormat(&out, "%-6d %-4s %10.1e %10.3g %12.3g %9.1f%% %10.4f -> %8.4f\n", l,
                            side == 0 ? "K" : "V", s.error, s.condition, s.spectrum.condition,
                            100 * s.spectrum.top_share, s.damage_before, s.damage_after);
      if (s.spectrum.rank == head_dim) continue;
      absl::StrAppendFormat(&notes,
                            "note: layer %d, %s: the covariance has rank %d of %d: calibrate on "
                            "more text, or accept that the other directions were never seen\n",
                            l, side == 0 ? "K" : "V", s.spectrum.rank, head_dim);
    }
  }
  return out + notes;
}

}  // namespace oscarkv
