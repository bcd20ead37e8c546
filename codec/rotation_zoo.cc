#include "codec/rotation_zoo.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "codec/rotation_source.h"
#include "codec/tensor_file.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

constexpr size_t Square(int d) {
  return size_t{1} * d * d;
}

// max |M^T M - I| of a finite matrix, in double.
double OrthogonalityError(const float* m, int d) {
  std::vector<double> gram(Square(d), 0.0);  // its upper triangle
  for (int r = 0; r < d; ++r) {
    const float* row = m + size_t{1} * r * d;
    for (int i = 0; i < d; ++i) {
      const double a = row[i];
      double* g = gram.data() + size_t{1} * i * d;
      for (int j = i; j < d; ++j) g[j] += a * row[j];
    }
  }
  double worst = 0;
  for (int i = 0; i < d; ++i) {
    for (int j = i; j < d; ++j)
      worst = std::max(worst, std::abs(gram[size_t{1} * i * d + j] - (i == j ? 1 : 0)));
  }
  return worst;
}

absl::Status CheckMatrix(const float* m, int d, double tolerance) {
  for (size_t i = 0; i < Square(d); ++i) {
    if (!std::isfinite(m[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat("rotation[", i / d, "][", i % d, "] is ", m[i]));
    }
  }
  if (const double error = OrthogonalityError(m, d); error > tolerance) {
    return absl::InvalidArgumentError(
        absl::StrFormat("rotation is not orthogonal: max |M^T M - I| is %.3g, at most %g is taken",
                        error, tolerance));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Annotate(const absl::Status& s, absl::string_view where) {
  return s.ok() ? s : absl::Status(s.code(), absl::StrCat(where, ": ", s.message()));
}

RotationSet::RotationSet(const kernels::KvShape& shape)
    : shape_(shape), index_(size_t{1} * shape.num_layers * shape.num_kv_heads, kUnset) {}

absl::Status RotationSet::SetLayer(int layer, int heads, absl::Span<const float> matrices,
                                   double tolerance) {
  const int d = shape_.head_dim;
  size_t* index = index_.data() + size_t{1} * layer * shape_.num_kv_heads;
  if (index[0] != kUnset)
    return absl::InvalidArgumentError(absl::StrCat("layer ", layer, " appears twice"));
  for (int h = 0; h < heads; ++h) {
    const std::string where =
        heads == 1 ? absl::StrCat("layer ", layer) : absl::StrCat("layer ", layer, ", kv head ", h);
    RETURN_IF_ERROR(Annotate(CheckMatrix(matrices.data() + h * Square(d), d, tolerance), where));
  }
  for (int h = 0; h < shape_.num_kv_heads; ++h)
    index[h] = matrices_.size() + (heads == 1 ? 0 : h * Square(d));
  matrices_.insert(matrices_.end(), matrices.begin(), matrices.end());
  return absl::OkStatus();
}

absl::Status RotationSet::CheckComplete() const {
  for (int l = 0; l < shape_.num_layers; ++l) {
    if (index_[size_t{1} * l * shape_.num_kv_heads] == kUnset) {
      return absl::InvalidArgumentError(absl::StrCat(
          "layer ", l, " is missing, the model has layers 0 to ", shape_.num_layers - 1));
    }
  }
  return absl::OkStatus();
}

absl::Status SetRotation(int layer, const RotationTensor& t, RotationSet* set) {
  const kernels::KvShape& s = set->shape();
  if (layer < 0 || layer >= s.num_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("has layer ", layer, ", the model has layers 0 to ", s.num_layers - 1));
  }
  const int64_t d = s.head_dim, heads = t.shape.size() == 3 ? t.shape[0] : 1;
  const bool per_head = t.shape == std::vector<int64_t>{s.num_kv_heads, d, d};
  if (!per_head && t.shape != std::vector<int64_t>{d, d}) {
    return absl::InvalidArgumentError(absl::StrCat(
        "layer ", layer, ": rotation has shape [", absl::StrJoin(t.shape, ", "),
        "], the model needs [", d, ", ", d, "] or [", s.num_kv_heads, ", ", d, ", ", d, "]"));
  }
  const int64_t head_stride = per_head ? t.strides[0] : 0;
  const int64_t row_stride = t.strides[t.strides.size() - 2], column_stride = t.strides.back();
  const size_t element_bytes = StorageElementBytes(t.type);
  std::vector<float> matrices;
  matrices.reserve(heads * Square(s.head_dim));
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t r = 0; r < d; ++r) {
      const int64_t row = t.offset + h * head_stride + r * row_stride;
      for (int64_t c = 0; c < d; ++c) {
        matrices.push_back(static_cast<float>(
            StorageElement(t.type, t.bytes.data() + (row + c * column_stride) * element_bytes)));
      }
    }
  }
  return set->SetLayer(
      layer, static_cast<int>(heads), matrices,
      t.type == StorageType::kBf16 ? kOrthogonalToleranceBf16 : kOrthogonalTolerance);
}

absl::StatusOr<RotationSet> ParseRotations(absl::Span<const uint8_t> file,
                                           const kernels::KvShape& shape) {
  static constexpr uint8_t kZip[] = {'P', 'K', 3, 4}, kLegacy[] = {0x80, 0x02, 0x8a, 0x0a};
  const auto starts_with = [file](absl::Span<const uint8_t> magic) {
    return file.size() >= magic.size() && std::equal(magic.begin(), magic.end(), file.begin());
  };
  if (starts_with(kZip)) return ParseRotationZip(file, shape);
  if (starts_with(kLegacy)) {
    return absl::InvalidArgumentError(
        "written by torch.save before its zip format: load and save it with a newer torch");
  }
  return ParseRotationSafetensors(file, shape);
}

absl::StatusOr<RotationSet> ReadRotations(const std::string& path, const kernels::KvShape& shape) {
  auto file = ReadWholeFile(path, kMaxRotationFileBytes);
  if (!file.ok()) return Annotate(file.status(), path);
  auto set = ParseRotations(*file, shape);
  if (!set.ok()) return Annotate(set.status(), path);
  return set;
}

RotationSet HadamardRotations(const kernels::KvShape& shape) {
  const int d = shape.head_dim;
  const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(d)));
  std::vector<float> h(Square(d));
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < d; ++j) {
      h[size_t{1} * i * d + j] =
          std::popcount(static_cast<unsigned>(i & j)) % 2 == 0 ? scale : -scale;
    }
  }
  RotationSet set(shape);
  for (int l = 0; l < shape.num_layers; ++l)
    set.SetLayer(l, 1, h).IgnoreError();  // orthogonal, each layer once
  return set;
}

}  // namespace oscarkv
