#include "codec/shaped_codec.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "codec/block_format.h"
#include "codec/page_layer.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

constexpr double kInverseTolerance = 1e-6;

Sha256Digest Fingerprint(const ShapedParameters& p, const ShapedOptions& options) {
  Sha256 sha;
  sha.UpdateField("oscarkv.codec").UpdateU64(kBlockFormatVersion);
  sha.UpdateField(ProfileName(options.symmetric ? Profile::kShapedSym : Profile::kShaped));
  sha.UpdateU64(p.shape.num_layers).UpdateU64(p.shape.num_kv_heads).UpdateU64(p.shape.head_dim);
  sha.UpdateU64(options.sweeps).UpdateU64(options.symmetric);
  for (const ShapedSide& s : p.sides) {
    sha.UpdateU64(std::bit_cast<uint32_t>(s.widen)).UpdateU64(std::bit_cast<uint32_t>(s.gain));
    for (const std::vector<float>* v : {&s.transform, &s.mean, &s.metric})
      sha.Update(v->data(), v->size() * sizeof(float));
  }
  return sha.Finish();
}

}  // namespace

absl::StatusOr<std::vector<float>> InverseTransposed(const float* m, int d) {
  // [M | I] to [I | M^-1].
  const int width = 2 * d;
  std::vector<double> a(static_cast<size_t>(d) * width);
  for (int i = 0; i < d; ++i) {
    std::copy_n(m + i * d, d, a.begin() + i * width);
    a[i * width + d + i] = 1;
  }
  for (int c = 0; c < d; ++c) {
    int pivot = c;
    for (int r = c + 1; r < d; ++r) {
      if (std::abs(a[r * width + c]) > std::abs(a[pivot * width + c])) pivot = r;
    }
    if (!(std::abs(a[pivot * width + c]) > 0))
      return absl::InvalidArgumentError("the transform is singular");
    if (pivot != c) {
      std::swap_ranges(a.begin() + c * width, a.begin() + (c + 1) * width,
                       a.begin() + pivot * width);
    }
    const double scale = 1 / a[c * width + c];
    for (int j = c; j < width; ++j) a[c * width + j] *= scale;
    for (int r = 0; r < d; ++r) {
      const double factor = a[r * width + c];
      if (r == c || factor == 0) continue;
      for (int j = c; j < width; ++j) a[r * width + j] -= factor * a[c * width + j];
    }
  }
  std::vector<float> out(static_cast<size_t>(d) * d);
  double worst = 0;
  for (int i = 0; i < d; ++i) {
    std::vector<double> row(d);  // of M M^-1
    for (int k = 0; k < d; ++k) {
      for (int j = 0; j < d; ++j) row[j] += double{m[i * d + k]} * a[k * width + d + j];
    }
    for (int j = 0; j < d; ++j) worst = std::max(worst, std::abs(row[j] - (i == j ? 1 : 0)));
    for (int j = 0; j < d; ++j) out[j * d + i] = static_cast<float>(a[i * width + d + j]);
  }
  if (!(worst <= kInverseTolerance)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("the transform is ill-conditioned: M M^-1 misses I by %.2g", worst));
  }
  return out;
}

absl::StatusOr<std::shared_ptr<const ShapedCodec>> ShapedCodec::Create(const ShapedParameters& p,
                                                                       const ShapedOptions& options,
                                                                       std::string origin) {
  RETURN_IF_ERROR(ValidateShape(p.shape));
  if (options.sweeps < 0 || options.sweeps > kernels::kMaxSweeps) {
    return absl::InvalidArgumentError(
        absl::StrCat("sweeps is ", options.sweeps, ", allowed are 0 to ", kernels::kMaxSweeps));
  }
  const int d = p.shape.head_dim, square = d * d;
  std::shared_ptr<ShapedCodec> codec(new ShapedCodec(p.shape, options, std::move(origin)));
  codec->fingerprint_ = Fingerprint(p, options);
  for (int layer = 0; layer < p.shape.num_layers; ++layer) {
    for (int h = 0; h < p.shape.num_kv_heads; ++h) {
      for (const kernels::Side side : {kernels::Side::kKey, kernels::Side::kValue}) {
        const ShapedSide& from = p.at(layer, side);
        const auto annotate = [&](const absl::Status& s) {
          return absl::Status(s.code(), absl::StrCat("layer ", layer, ", ",
                                                     side == kernels::Side::kKey ? "key" : "value",
                                                     ", kv head ", h, ": ", s.message()));
        };
        HeadSide head;
        const float* m = from.transform.data() + h * square;
        head.transform.assign(m, m + square);
        auto inverse = InverseTransposed(m, d);
        if (!inverse.ok()) return annotate(inverse.status());
        head.inverse_transposed = *std::move(inverse);
        head.mean.assign(from.mean.begin() + h * d, from.mean.begin() + (h + 1) * d);
        auto tables = ShapedTables::Create(from.metric.data() + h * square, d);
        if (!tables.ok()) return annotate(tables.status());
        head.tables = *std::move(tables);
        head.widen = from.widen;
        head.gain = from.gain;
        codec->heads_.push_back(std::move(head));
      }
    }
  }
  return codec;
}

std::string ShapedCodec::Describe() const {
  return absl::StrCat(ProfileName(profile()), ", ", origin_, ", ", options_.sweeps, " sweeps");
}

std::optional<kernels::ShapedArgs> ShapedCodec::ShapedEncoding(int layer, int kv_head,
                                                               kernels::Side side) const {
  const HeadSide& head = At(layer, kv_head, side);
  kernels::ShapedArgs args;
  args.head_dim = shape_.head_dim;
  args.side = side;
  args.metric = head.tables.view();
  args.widen = head.widen;
  args.gain = head.gain;
  args.sweeps = options_.sweeps;
  args.symmetric = options_.symmetric;
  return args;
}

absl::Status ShapedCodec::EncodeLayer(int layer, const kernels::Bf16* block_layer,
                                      uint8_t* page_layer) const {
  const int d = shape_.head_dim;
  kernels::EncodeStats stats;
  for (const kernels::Side side : {kernels::Side::kKey, kernels::Side::kValue}) {
    for (int h = 0; h < shape_.num_kv_heads; ++h) {
      kernels::ShapedArgs args = *ShapedEncoding(layer, h, side);
      args.rows = block_layer + static_cast<int>(side) * shape_.Bf16SideElements() +
                  size_t{1} * h * kernels::kPageTokens * d;
      args.row_stride = d;
      args.page_head = page_layer + h * kernels::PageHeadBytes(d, shape_.offsets);
      RETURN_IF_ERROR(EncodeStatus(
          kernels::EncodePageHeadShaped(kernels::Backend::kCpu, args, &stats), layer, d));
    }
  }
  if (stats.clamped_fp16 > 0)
    clamped_rows_.fetch_add(stats.clamped_fp16, std::memory_order_relaxed);
  return absl::OkStatus();
}

absl::Status ShapedCodec::DecodeLayer(int, const uint8_t* page_layer,
                                      kernels::Bf16* block_layer) const {
  DecodePageLayer(shape_, page_layer, block_layer);
  return absl::OkStatus();
}

}  // namespace oscarkv
