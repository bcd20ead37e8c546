// The codecs that an evaluation compares, and the paths that their history takes to attention.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "codec/codec.h"
#include "eval/local_sequence.h"
#include "model/transformer.h"

namespace oscarkv {

enum class HistoryPath {
  kPages,      // the product's: encoded, and attended as pages behind sink and window
  kFake,       // a cross-check: the same rows quantised and given back in floating point by code
               // that knows neither codes nor pages; profile oscar's quantiser only
  kNoWindows,  // every full block before the query's own is attended as its page, the sink, too
};

struct TreatmentSetup {
  std::shared_ptr<const KvCodec> codec;
  HistoryPath path = HistoryPath::kPages;
  float clip[2] = {1, 1};  // kFake: K, V
};

// By name: bf16, naive (no transform, no clip), hadamard, oscar, shaped, shaped-0 (no sweeps),
// shaped-sym (levels about zero, 2.125 bits); -fake (of the first three codecs) and -nowin behind
// it choose the path. kInvalidArgument for an unknown name; what FindCodecFiles says.
absl::StatusOr<TreatmentSetup> MakeTreatment(const std::string& name, const std::string& files_dir,
                                             const kernels::KvShape& shape);
// The model's prefill history that a path is built on.
PrefillHistory HistoryOf(HistoryPath path);

// Prefills tokens at [start, start + size), start a multiple of 64 unless the path is kPages, with
// the wishes of `chunk` (its tokens, start and kv are set here; rows count from `start`).
absl::Status PrefillTreatment(const TreatmentSetup& setup, Transformer* model,
                              LocalSequence* sequence, absl::Span<const int32_t> tokens, int start,
                              const PrefillChunk& chunk);

// Profile oscar's quantiser as its paper writes it: rows [rows][d] are clipped at the
// (int)(clip * d)-th smallest magnitude, and become the nearest of four even levels between their
// least and greatest value. In fp32, scale and zero unrounded.
void FakeQuantise(kernels::Bf16* rows, int num_rows, int d, float clip);

}  // namespace oscarkv
