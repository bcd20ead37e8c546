// What calibration keeps of a model's activations: sums of outer products per layer and kv head in
// float64, and a bounded sample of rows. Activations themselves are gone when a layer's call
// returns: memory does not depend on the number of tokens (MemoryBytes()).
//
// The first kSinkTokens positions of a prompt are left out: their blocks are never quantised, and
// the norms of their keys would distort everything.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "codec/tensor_file.h"
#include "kernels/layout.h"
#include "kernels/types.h"
#include "model/transformer.h"

namespace oscarkv {

inline constexpr int kSinkTokens = kSinkBlocks * kBlockTokens;

// Not thread-safe. The result does not depend on the number of threads of an executor.
class ActivationStats {
 public:
  // Keeps at most `sample_rows` rows of K and of V per layer and kv head, every n-th of
  // `expected_tokens`.
  ActivationStats(const kernels::KvShape& shape, int num_heads, int sample_rows,
                  int64_t expected_tokens);

  // One layer of a prompt, unrotated.
  void Add(int layer, const Transformer::LayerActivations& a, kernels::Executor* executor);
  // A second pass over the same prompts, when the first is complete: values weighted by what
  // queries see of their keys, k^T S_q k (OSCAR's "sst").
  void AddWeighted(int layer, const Transformer::LayerActivations& a, kernels::Executor* executor);

  // Rows and queries of the same prompt again, each counted by how much it matters
  // (importance.h). `output_gram`: [layer * kv_heads + head], as Collected::output_gram.
  void AddImportance(int layer, const Transformer::LayerActivations& a,
                     const std::vector<std::vector<double>>& output_gram,
                     kernels::Executor* executor);

  // Prompts are shorter than what is served, and keys and queries turn with their positions: those
  // of a later position are the same, turned further. With this, ImportantQueries and the Important
  // figures of keys count half as they are, and half as means over prompts that start at positions
  // 0, step, 2 step, ... below `context`. `inv_freq`: the rotary angles' speeds
  // (RopeInverseFrequencies), channel i with channel inv_freq.size() + i. What Save writes does not
  // change.
  void SpreadOverPositions(std::vector<float> inv_freq, int step, int context);

  const kernels::KvShape& shape() const { return shape_; }
  // Of layers that all prompts went through: tokens that were counted.
  int64_t tokens(int layer) const { return tokens_[layer]; }

  // [d, d] per layer and kv head. Second moments are means over rows; queries over the rows of all
  // heads of the group.
  std::vector<double> QuerySecondMoment(int layer, int head) const;
  std::vector<double> Covariance(int layer, int head, kernels::Side side) const;  // centred
  std::vector<double> Mean(int layer, int head, kernels::Side side) const;        // [d]
  std::vector<double> WeightedValues(int layer, int head) const;  // weights of mean 1
  // The same with rows weighted by importance, and the second moment of queries half so, half as
  // QuerySecondMoment, of equal traces; the plain ones where nothing was weighted.
  std::vector<double> ImportantQueries(int layer, int head) const;
  std::vector<double> ImportantCovariance(int layer, int head, kernels::Side side) const;
  std::vector<double> ImportantMean(int layer, int head, kernels::Side side) const;
  // [rows][d] of the sample.
  const std::vector<float>& Sample(int layer, int head, kernels::Side side) const {
    return At(layer, head).sample[static_cast<int>(side)];
  }

  // All of it, and back into an object made with the same arguments. kInvalidArgument: another
  // shape.
  void Save(TensorFileWriter* to) const;
  absl::Status Restore(const TensorFile& from);
  size_t MemoryBytes() const;

 private:
  struct Head {
    std::vector<double> qq, rows[2];  // [d, d], lower triangles: sums of outer products; K, V
    std::vector<double> sum[2];       // [d]
    std::vector<double> weighted;     // [d, d]
    double weight = 0;
    // By importance.
    std::vector<double> important_qq, important_rows[2];  // [d, d]
    std::vector<double> important_sum[2];                 // [d]
    double importance[2] = {0, 0};
    std::vector<float> sample[2];
  };
  void AddImportantHead(const Transformer::LayerActivations& a, int head,
                        const std::vector<double>& output_gram, Head* to) const;
  // The means over starting positions of a vector [d], and of a second moment [d, d].
  std::vector<double> Spread(const std::vector<double>& v) const;
  std::vector<double> SpreadMoment(const std::vector<double>& s) const;
  const Head& At(int layer, int head) const { return heads_[layer * shape_.num_kv_heads + head]; }
  Head& At(int layer, int head) { return heads_[layer * shape_.num_kv_heads + head]; }
  void AddQueries(const Transformer::LayerActivations& a, int head, Head* to) const;
  void AddRows(const Transformer::LayerActivations& a, int head, kernels::Side side, int64_t before,
               Head* to) const;

  const kernels::KvShape shape_;
  const int num_heads_, sample_rows_;
  const int64_t sample_stride_;
  std::vector<int64_t> tokens_;           // per layer, first pass
  std::vector<int64_t> weighted_tokens_;  // per layer, second pass
  std::vector<Head> heads_;
  std::vector<float> inv_freq_;
  int step_ = 0, starts_ = 1;  // SpreadOverPositions
  double Weight(int start) const { return 0.5 / starts_ + (start == 0 ? 0.5 : 0); }
};

}  // namespace oscarkv
