// Profiles shaped and shaped-sym: rows in a space between whitened and error-balanced, without
// their means; codes with error feedback (kernels/q2_encode/shaped.h). The page of shaped is that
// of profile oscar; that of shaped-sym has levels about zero and no offset planes.
//
// Keys are stored as y = (k - mean) M, and queries become q M^-T: the scores change by q . mean,
// the same for all keys of a query, which softmax does not see. Values are stored as y = (v - mean)
// M; M^-T goes into the output projection, and what the means add up to into its bias.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "codec/codec.h"
#include "codec/shaped_file.h"
#include "codec/shaped_metric.h"

namespace oscarkv {

struct ShapedOptions {
  int sweeps = 2;          // of coordinate descent behind the feedback
  bool symmetric = false;  // profile shaped-sym
};

// Encoding from several threads at once is safe.
class ShapedCodec final : public KvCodec {
 public:
  // kInvalidArgument names layer, side and head whose transform cannot be inverted or whose metric
  // is not positive definite.
  static absl::StatusOr<std::shared_ptr<const ShapedCodec>> Create(
      const ShapedParameters& parameters, const ShapedOptions& options, std::string origin);

  Profile profile() const override {
    return options_.symmetric ? Profile::kShapedSym : Profile::kShaped;
  }
  const kernels::KvShape& shape() const override { return shape_; }
  const Sha256Digest& fingerprint() const override { return fingerprint_; }
  std::string Describe() const override;
  bool data_free() const override { return false; }
  const float* KeyRotation(int layer, int head) const override {
    return At(layer, head, kernels::Side::kKey).transform.data();
  }
  const float* ValueRotation(int layer, int head) const override {
    return At(layer, head, kernels::Side::kValue).transform.data();
  }
  const float* QueryTransform(int layer, int head) const override {
    return At(layer, head, kernels::Side::kKey).inverse_transposed.data();
  }
  const float* OutputTransform(int layer, int head) const override {
    return At(layer, head, kernels::Side::kValue).inverse_transposed.data();
  }
  const float* KeyMean(int layer, int head) const override {
    return At(layer, head, kernels::Side::kKey).mean.data();
  }
  const float* ValueMean(int layer, int head) const override {
    return At(layer, head, kernels::Side::kValue).mean.data();
  }
  std::optional<kernels::ShapedArgs> ShapedEncoding(int layer, int kv_head,
                                                    kernels::Side side) const override;
  absl::Status EncodeLayer(int layer, const kernels::Bf16* block_layer,
                           uint8_t* page_layer) const override;
  absl::Status DecodeLayer(int layer, const uint8_t* page_layer,
                           kernels::Bf16* block_layer) const override;
  uint64_t clamped_rows() const override { return clamped_rows_.load(std::memory_order_relaxed); }

 private:
  struct HeadSide {
    std::vector<float> transform, inverse_transposed;  // [d, d]
    std::vector<float> mean;                           // [d]
    ShapedTables tables;
    float widen, gain;
  };
  ShapedCodec(const kernels::KvShape& shape, const ShapedOptions& options, std::string origin)
      : shape_{shape.num_layers, shape.num_kv_heads, shape.head_dim, !options.symmetric},
        options_(options),
        origin_(std::move(origin)) {}
  const HeadSide& At(int layer, int head, kernels::Side side) const {
    return heads_[(layer * shape_.num_kv_heads + head) * 2 + static_cast<int>(side)];
  }

  const kernels::KvShape shape_;
  const ShapedOptions options_;
  const std::string origin_;
  Sha256Digest fingerprint_{};
  std::vector<HeadSide> heads_;  // [layer][kv_head][K, V]
  mutable std::atomic<uint64_t> clamped_rows_{0};
};

// M^-T of a row-major [d, d] matrix, in float64 by elimination with pivots in a fixed order.
// kInvalidArgument: singular, or so ill-conditioned that M M^-1 misses I by more than 1e-6.
absl::StatusOr<std::vector<float>> InverseTransposed(const float* m, int d);

}  // namespace oscarkv
