#include "eval/treatment.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "codec/oscar_codec.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

absl::StatusOr<std::shared_ptr<const KvCodec>> NaiveCodec(const kernels::KvShape& shape) {
  const size_t d = shape.head_dim;
  std::vector<float> identity(d * d);
  for (size_t i = 0; i < d; ++i) identity[i * d + i] = 1;
  RotationSet set(shape);
  for (int l = 0; l < shape.num_layers; ++l) RETURN_IF_ERROR(set.SetLayer(l, 1, identity));
  return std::make_shared<const OscarCodec>(set, set, 1.0f, 1.0f, true, "no rotation");
}

absl::StatusOr<std::shared_ptr<const KvCodec>> NamedCodec(absl::string_view name,
                                                          const std::string& files_dir,
                                                          const kernels::KvShape& shape) {
  CodecOptions options;
  if (name == "naive") return NaiveCodec(shape);
  if (name == "bf16") {
    options.profile = Profile::kBf16;
  } else if (name == "hadamard") {
    options.data_free = true;
  } else if (name == "oscar") {
    RETURN_IF_ERROR(FindCodecFiles(files_dir, &options));
    if (options.data_free)
      return absl::NotFoundError(absl::StrCat(files_dir, " has no rotation files for oscar"));
  } else if (name == "shaped" || name == "shaped-0" || name == "shaped-sym") {
    options.profile = name == "shaped-sym" ? Profile::kShapedSym : Profile::kShaped;
    RETURN_IF_ERROR(FindCodecFiles(files_dir, &options));
    if (name == "shaped-0") options.sweeps = 0;
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("treatment \"", name,
                     "\", known are naive, hadamard, oscar, shaped, shaped-0 and shaped-sym, "
                     "perhaps with -fake or -nowin behind"));
  }
  return CreateCodec(options, shape);
}

// Replaces the bf16 rows of a block, in all layers, by what they are worth as codes.
absl::Status ReplaceBlock(const TreatmentSetup& setup, SequenceKv* kv, int block) {
  const kernels::KvShape& shape = setup.codec->shape();
  const int rows = shape.num_kv_heads * kBlockTokens;
  std::vector<uint8_t> page(shape.PageLayerBytes());
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    kernels::Bf16* const stored = kv->pool().block_layer(kv->at(block).block, layer);
    if (setup.path == HistoryPath::kFake) {
      FakeQuantise(stored, rows, shape.head_dim, setup.clip[0]);
      FakeQuantise(stored + shape.Bf16SideElements(), rows, shape.head_dim, setup.clip[1]);
    } else {
      RETURN_IF_ERROR(setup.codec->EncodeLayer(layer, stored, page.data()));
      RETURN_IF_ERROR(setup.codec->DecodeLayer(layer, page.data(), stored));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TreatmentSetup> MakeTreatment(const std::string& name, const std::string& files_dir,
                                             const kernels::KvShape& shape) {
  TreatmentSetup out;
  absl::string_view base = name;
  if (absl::ConsumeSuffix(&base, "-fake")) {
    out.path = HistoryPath::kFake;
    if (base != "naive" && base != "hadamard" && base != "oscar") {
      return absl::InvalidArgumentError(
          absl::StrCat("treatment \"", name, "\": -fake exists of naive, hadamard and oscar"));
    }
    const CodecOptions usual;
    if (base != "naive") {
      out.clip[0] = usual.key_clip;
      out.clip[1] = usual.value_clip;
    }
  } else if (absl::ConsumeSuffix(&base, "-nowin")) {
    out.path = HistoryPath::kNoWindows;
    if (base == "bf16")
      return absl::InvalidArgumentError("treatment \"bf16-nowin\": bf16 has no windows");
  }
  ASSIGN_OR_RETURN(out.codec, NamedCodec(base, files_dir, shape));
  return out;
}

PrefillHistory HistoryOf(HistoryPath path) {
  return path == HistoryPath::kPages ? PrefillHistory::kCanonical : PrefillHistory::kExact;
}

absl::Status PrefillTreatment(const TreatmentSetup& setup, Transformer* model,
                              LocalSequence* sequence, absl::Span<const int32_t> tokens, int start,
                              const PrefillChunk& chunk) {
  if (setup.path == HistoryPath::kPages)
    return sequence->Prefill(*model, tokens, start, chunk).status();
  // Block by block, and every block is replaced once, when it leaves what is attended exactly.
  const bool windows = setup.path == HistoryPath::kFake;
  for (int at = 0; at < static_cast<int>(tokens.size()); at += kBlockTokens) {
    const int block = BlockOf(start + at), leaves = block - 1 - (windows ? kWindowBlocks : 0);
    if (leaves >= (windows ? kSinkBlocks : 0))
      RETURN_IF_ERROR(ReplaceBlock(setup, &sequence->kv(), leaves));
    PrefillChunk part = chunk;
    part.logits_from = std::max(0, chunk.logits_from - at);
    if (chunk.on_logits) {
      part.on_logits = [&chunk, at](int row, const float* logits) {
        chunk.on_logits(at + row, logits);
      };
    }
    RETURN_IF_ERROR(
        sequence->Prefill(*model, tokens.subspan(at, kBlockTokens), start + at, part).status());
  }
  return absl::OkStatus();
}

void FakeQuantise(kernels::Bf16* rows, int num_rows, int d, float clip) {
  std::vector<float> x(d), magnitude(d);
  for (int r = 0; r < num_rows; ++r) {
    kernels::Bf16* const row = rows + static_cast<int64_t>(r) * d;
    for (int i = 0; i < d; ++i) magnitude[i] = std::abs(x[i] = kernels::ToFloat(row[i]));
    std::sort(magnitude.begin(), magnitude.end());
    const float limit = magnitude[std::min(d - 1, static_cast<int>(clip * static_cast<float>(d)))];
    for (float& v : x) v = std::clamp(v, -limit, limit);
    const auto [low, high] = std::minmax_element(x.begin(), x.end());
    const float least = *low, step = std::max(*high - least, 1e-8f) / 3;
    for (int i = 0; i < d; ++i)
      row[i] = kernels::ToBf16(least + step * std::floor((x[i] - least) / step + 0.5f));
  }
}

}  // namespace oscarkv
