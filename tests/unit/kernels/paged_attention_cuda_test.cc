// Paged attention on a GPU against the float64 reference on the same stored codes.
#include <gtest/gtest.h>

#include "kernels/cuda_device.h"
#include "kernels/paged_attention/op_cuda.h"
#include "tests/unit/kernels/device_buffer.h"
#include "tests/unit/kernels/paged_attention_cache.h"

namespace oscarkv::kernels {
namespace {

#define OSCARKV_SKIP_WITHOUT_GPU() \
  if (cuda::DeviceCount() == 0)    \
  GTEST_SKIP() << "no GPU that this build has code for: " << cuda::LastError()

template <class T>
std::vector<T> Copy(const T* p, size_t n) {
  return std::vector<T>(p, p + n);
}

// A cache's arguments in device memory, with a workspace. Outputs start as NaN.
class OnDevice {
 public:
  explicit OnDevice(const Cache& cache)
      : host_(cache.Args(&expected, &expected_lse)),
        args(host_),
        q_(Copy(host_.q, expected.size())),
        out_(Poisoned(expected.size())),
        lse_(Poisoned(expected_lse.size())),
        page_pool_(cache.page_pool()),
        bf16_pool_(cache.bf16_pool()),
        workspace_(cuda::PagedAttentionWorkspaceBytes(host_.num_seqs, host_.num_kv_heads,
                                                      host_.group, host_.head_dim)),
        page_ids_(Copy(host_.page_ids, host_.page_begin[host_.num_seqs])),
        page_begin_(Copy(host_.page_begin, host_.num_seqs + 1)),
        bf16_ids_(Copy(host_.bf16_ids, host_.bf16_begin[host_.num_seqs])),
        bf16_begin_(Copy(host_.bf16_begin, host_.num_seqs + 1)),
        last_tokens_(Copy(host_.last_tokens, host_.num_seqs)) {
    EXPECT_EQ(PagedAttention(Backend::kRef, host_, nullptr), KernelStatus::kOk);
    // What a workspace holds before its first use must not matter.
    CheckCuda(cudaMemset(workspace_.get(), 0xff, workspace_.size()), "cudaMemset");
    args.q = q_.get();
    args.out = out_.get();
    args.lse = lse_.get();
    args.page_pool = page_pool_.get();
    args.bf16_pool = bf16_pool_.get();
    args.page_ids = page_ids_.get();
    args.page_begin = page_begin_.get();
    args.bf16_ids = bf16_ids_.get();
    args.bf16_begin = bf16_begin_.get();
    args.last_tokens = last_tokens_.get();
  }
  void* workspace() const { return workspace_.get(); }
  std::vector<float> Out() const { return out_.Download(); }
  std::vector<float> Lse() const { return lse_.Download(); }

  std::vector<float> expected, expected_lse;

 private:
  PagedAttentionArgs host_;

 public:
  PagedAttentionArgs args;

 private:
  DeviceBuffer<float> q_, out_, lse_;
  DeviceBuffer<uint8_t> page_pool_, bf16_pool_, workspace_;
  DeviceBuffer<int32_t> page_ids_, page_begin_, bf16_ids_, bf16_begin_, last_tokens_;
};

// Errors are relative to a row of the result, or to one of V where that is larger: rows of one
// value may cancel to nearly nothing in all channels at once.
void ExpectClose(const OnDevice& d, double bound, double v_norm = 0) {
  const std::vector<float> out = d.Out(), lse = d.Lse();
  const int head_dim = d.args.head_dim;
  double error = WorstRowError(out, d.expected, head_dim);
  if (v_norm > 0) {
    error = 0;
    for (size_t row = 0; row < out.size(); row += head_dim) {
      double difference = 0, norm = 0;
      for (size_t i = row; i < row + head_dim; ++i) {
        difference += (double{out[i]} - d.expected[i]) * (double{out[i]} - d.expected[i]);
        norm += double{d.expected[i]} * d.expected[i];
      }
      const double relative = std::sqrt(difference) / std::max(std::sqrt(norm), v_norm);
      error = std::isfinite(relative) ? std::max(error, relative) : INFINITY;
    }
  }
  EXPECT_LT(error, bound);
  for (size_t i = 0; i < lse.size(); ++i)
    EXPECT_NEAR(lse[i], d.expected_lse[i], 5e-4 * (1 + std::abs(d.expected_lse[i]))) << i;
}

void PlanAndRun(const OnDevice& d) {
  ASSERT_EQ(cuda::PlanPagedAttention(d.args, d.workspace(), {}), KernelStatus::kOk)
      << cuda::LastError();
  ASSERT_EQ(cuda::RunPagedAttention(d.args, d.workspace(), {}), KernelStatus::kOk)
      << cuda::LastError();
}

// Beyond 4 heads weights are rounded to 11 bits. Errors are relative to the result, which is small
// where V's values cancel.
double Bound(const Case& c) {
  return c.group <= 4 ? 5e-4 : 2e-3;
}

TEST(PagedAttentionCudaTest, MatchesRef) {
  OSCARKV_SKIP_WITHOUT_GPU();
  for (const Case& c : Cases()) {
    SCOPED_TRACE(testing::Message() << c.name << " group " << c.group);
    const Cache cache(c, 6);
    const OnDevice d(cache);
    PlanAndRun(d);
    ExpectClose(d, Bound(c));
  }
}

// Several plans in one workspace, several layers to a plan, and a captured graph give the same
// bits.
TEST(PagedAttentionCudaTest, SameBitsAgainAndInGraph) {
  OSCARKV_SKIP_WITHOUT_GPU();
  for (const Case& c : {Case{"long", 128, 1, 4, {{333, 5, 7}}},
                        Case{"ragged", 64, 2, 8, {{70, 70, 64}, {1, 1, 1}, {40, 0, 64}}}}) {
    SCOPED_TRACE(c.name);
    const Cache cache(c, 7);
    const OnDevice d(cache);
    PlanAndRun(d);
    ExpectClose(d, Bound(c));
    const std::vector<float> once = d.Out();
    ASSERT_EQ(cuda::RunPagedAttention(d.args, d.workspace(), {}), KernelStatus::kOk);
    EXPECT_EQ(d.Out(), once);

    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    ASSERT_EQ(cuda::PlanPagedAttention(d.args, d.workspace(), {stream}), KernelStatus::kOk);
    for (int layer = 0; layer < 3; ++layer)
      ASSERT_EQ(cuda::RunPagedAttention(d.args, d.workspace(), {stream}), KernelStatus::kOk);
    ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    const std::vector<float> poison = Poisoned(once.size());
    ASSERT_EQ(cudaMemcpy(d.args.out, poison.data(), 4 * poison.size(), cudaMemcpyHostToDevice),
              cudaSuccess);
    for (int replay = 0; replay < 3; ++replay)
      ASSERT_EQ(cudaGraphLaunch(exec, stream), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    EXPECT_EQ(d.Out(), once);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  }
}

// Sequences without a token (the padding of a captured batch) are left alone, the others are right.
TEST(PagedAttentionCudaTest, EmptySequences) {
  OSCARKV_SKIP_WITHOUT_GPU();
  const Case c{
      "empty", 128, 2, 4, {{0, 0, 64}, {5, 1, 3}, {0, 0, 64}, {0, 0, 64}, {0, 2, 9}, {0, 0, 64}}};
  const Cache cache(c, 8);
  const OnDevice d(cache);
  PlanAndRun(d);
  const std::vector<float> out = d.Out();
  const size_t width = 8 * 128;
  for (size_t s = 0; s < c.sequences.size(); ++s) {
    const std::vector<float> row(out.begin() + s * width, out.begin() + (s + 1) * width);
    if (c.sequences[s].bf16_blocks == 0) {
      for (float v : row) ASSERT_TRUE(std::isnan(v)) << "sequence " << s << " was written";
    } else {
      const std::vector<float> expected(d.expected.begin() + s * width,
                                        d.expected.begin() + (s + 1) * width);
      EXPECT_LT(WorstRowError(row, expected, 128), Bound(c)) << s;
    }
  }
}

// As bf16, alone and beside fp32; lines of one part and of several.
TEST(PagedAttentionCudaTest, RoundedOutput) {
  OSCARKV_SKIP_WITHOUT_GPU();
  for (const Case& c :
       {Case{"split", 128, 1, 4, {{333, 5, 7}, {1, 1, 1}}}, Case{"whole", 64, 2, 8, {{2, 1, 64}}},
        Case{"wide", 128, 2, 16, {{200, 0, 64}, {3, 2, 9}}}}) {
    SCOPED_TRACE(c.name);
    const Cache cache(c, 9);
    OnDevice d(cache);
    DeviceBuffer<Bf16> rounded(std::vector<Bf16>(d.expected.size(), 0x7fc0));
    d.args.rounded = rounded.get();
    PlanAndRun(d);
    ExpectClose(d, Bound(c));
    std::vector<Bf16> expected;
    for (const float v : d.Out()) expected.push_back(ToBf16(v));
    EXPECT_EQ(rounded.Download(), expected);
    rounded.Upload(std::vector<Bf16>(expected.size(), 0x7fc0));
    d.args.out = nullptr;
    PlanAndRun(d);
    EXPECT_EQ(rounded.Download(), expected);
  }
}

TEST(PagedAttentionCudaTest, EveryLastTokenCount) {
  OSCARKV_SKIP_WITHOUT_GPU();
  for (int tokens = 1; tokens <= 64; ++tokens) {
    const Case c{"last", 128, 1, tokens % 16 + 1, {{1, 2, tokens}}};
    SCOPED_TRACE(tokens);
    const Cache cache(c, tokens);
    const OnDevice d(cache);
    PlanAndRun(d);
    ExpectClose(d, Bound(c));
  }
}

// Random shapes; --gtest_random_seed=N draws others.
TEST(PagedAttentionCudaTest, RandomShapes) {
  OSCARKV_SKIP_WITHOUT_GPU();
  const uint32_t seed = GTEST_FLAG_GET(random_seed);
  RandomData random(seed + 1);
  for (int round = 0; round < 60; ++round) {
    Case c{"random", random.Int(0, 1) ? 128 : 64, random.Int(1, 4), random.Int(1, 16), {}};
    c.q_sigma = std::pow(10.0f, static_cast<float>(random.Int(-10, 10)) / 10);
    c.content = static_cast<Content>(random.Int(0, 3));
    c.offsets = random.Int(0, 2) > 0;
    const int sequences = random.Int(1, random.Int(1, 12));
    for (int s = 0; s < sequences; ++s) {
      const int pages = random.Int(0, random.Int(0, 60));
      const int blocks = random.Int(pages == 0 ? 1 : 0, 7);
      c.sequences.push_back({pages, blocks, blocks == 0 ? 64 : random.Int(1, 64)});
    }
    SCOPED_TRACE(testing::Message()
                 << "seed " << seed << " round " << round << " head_dim " << c.head_dim << " heads "
                 << c.num_kv_heads << " group " << c.group << " sequences " << sequences
                 << " content " << static_cast<int>(c.content) << " sigma " << c.q_sigma
                 << (c.offsets ? "" : " no offsets"));
    const Cache cache(c, seed + 100 + round);
    const OnDevice d(cache);
    PlanAndRun(d);
    // Some rows of one value are 60 (an outlier), so V is larger than the norm given.
    const bool constant = c.content == Content::kConstant;
    ExpectClose(d, constant ? 5e-3 : Bound(c), constant ? std::sqrt(c.head_dim) : 0);
  }
}

TEST(PagedAttentionCudaTest, UnsupportedShapes) {
  EXPECT_EQ(cuda::PagedAttentionWorkspaceBytes(1, 1, 17, 128), 0u);
  EXPECT_EQ(cuda::PagedAttentionWorkspaceBytes(1, 1, 1, 96), 0u);
  PagedAttentionArgs args;
  args.head_dim = 128;
  args.num_kv_heads = 1;
  args.group = 17;
  EXPECT_EQ(cuda::RunPagedAttention(args, nullptr, {}), KernelStatus::kUnsupported);
  if (cuda::DeviceCount() == 0) {
    args.group = 1;
    EXPECT_EQ(cuda::RunPagedAttention(args, nullptr, {}), KernelStatus::kDevice);
    EXPECT_STRNE(cuda::LastError(), "");
  }
}

}  // namespace
}  // namespace oscarkv::kernels
