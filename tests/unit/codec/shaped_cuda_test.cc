// The shaped encoder on a GPU: the reference's bytes. Skips where there is no GPU.
#include "kernels/q2_encode/shaped_cuda.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>

#include "codec/shaped_metric.h"
#include "kernels/cuda_device.h"
#include "tests/unit/codec/shaped_data.h"
#include "tests/unit/kernels/device_buffer.h"

namespace oscarkv::kernels {
namespace {

constexpr uint8_t kPoison = 0xcd;

// A launch: blocks of several layers and heads with gaps between their rows, pages in any order.
struct Case {
  int d, layers, heads, blocks;  // blocks of each layer
  Side side;
  int sweeps;
  bool symmetric;
};

class ShapedCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::DeviceCount() == 0) GTEST_SKIP() << "no usable GPU: " << cuda::LastError();
  }

  struct Batch {
    explicit Batch(const Case& c)
        : stride(c.d + 8),
          head_stride(kRows * stride),
          page_bytes(PageHeadBytes(c.d, !c.symmetric)),
          rows(size_t{1} * c.layers * c.blocks * c.heads * head_stride, ToBf16(1e4f)) {
      const int n = c.layers * c.blocks;
      RandomData random(c.d + n);
      for (int b = 0; b < n; ++b) {
        row_begin.push_back(int64_t{b} * c.heads * head_stride);
        page_begin.push_back(int64_t{(b * 7 + 3) % n} * c.heads * page_bytes);
        for (int h = 0; h < c.heads; ++h) {
          const std::vector<Bf16> block =
              (b + h) % 3 == 0 ? HardRows(c.d, b + 5) : random.Bf16s(size_t{kRows} * c.d);
          for (int t = 0; t < kRows; ++t) {
            std::copy_n(block.begin() + t * c.d, c.d,
                        rows.begin() + row_begin[b] + h * head_stride + t * stride);
          }
        }
      }
      for (int i = 0; i < c.layers * c.heads; ++i) {
        const std::vector<float> w = Metric(c.d, 7 + i);
        metrics.push_back(*ShapedTables::Create(w.data(), c.d));
      }
    }
    ShapedArgs How(const Case& c, int layer, int head) const {
      ShapedArgs args;
      args.head_dim = c.d;
      args.side = c.side;
      args.metric = metrics[layer * c.heads + head].view();
      args.widen = 1.15f + 0.05f * head;
      args.gain = head % 2 == 0 ? 1 : 0.3f;
      args.sweeps = c.sweeps;
      args.symmetric = c.symmetric;
      return args;
    }
    int64_t stride, head_stride;
    size_t page_bytes;
    std::vector<Bf16> rows;
    std::vector<int64_t> row_begin, page_begin;
    std::vector<ShapedTables> metrics;
  };

  struct Result {
    std::vector<uint8_t> pool;
    cuda::EncodeCounters counters;
    std::vector<uint32_t> nonfinite;
  };
  static Result Encode(const Case& c, const Batch& batch) {
    const size_t floats = cuda::ShapedTableFloats(c.d), n = batch.row_begin.size();
    std::vector<float> tables(batch.metrics.size() * floats);
    for (size_t i = 0; i < batch.metrics.size(); ++i) {
      cuda::FillShapedTable(
          batch.How(c, static_cast<int>(i) / c.heads, static_cast<int>(i) % c.heads),
          tables.data() + i * floats);
    }
    DeviceBuffer<Bf16> rows(batch.rows);
    DeviceBuffer<float> on_device(tables);
    DeviceBuffer<int64_t> row_begin(batch.row_begin), page_begin(batch.page_begin);
    DeviceBuffer<uint8_t> pool(std::vector<uint8_t>(n * c.heads * batch.page_bytes, kPoison));
    DeviceBuffer<cuda::EncodeCounters> counters(std::vector<cuda::EncodeCounters>(1));
    DeviceBuffer<uint32_t> nonfinite(std::vector<uint32_t>(n, 0));
    cuda::ShapedBatchArgs args;
    args.head_dim = c.d;
    args.side = c.side;
    args.num_kv_heads = c.heads;
    args.num_layers = c.layers;
    args.num_blocks = static_cast<int>(n);
    args.rows = rows.get();
    args.row_stride = batch.stride;
    args.head_stride = batch.head_stride;
    args.row_begin = row_begin.get();
    args.tables = on_device.get();
    args.sweeps = c.sweeps;
    args.symmetric = c.symmetric;
    args.pages = pool.get();
    args.page_begin = page_begin.get();
    args.counters = counters.get();
    args.block_nonfinite = nonfinite.get();
    EXPECT_EQ(cuda::EncodeShapedBlocks(args, {}), KernelStatus::kOk) << cuda::LastError();
    return {pool.Download(), counters.Download()[0], nonfinite.Download()};
  }

  static std::vector<uint8_t> Reference(const Case& c, const Batch& batch, EncodeStats* stats) {
    std::vector<uint8_t> pool(batch.row_begin.size() * c.heads * batch.page_bytes, kPoison);
    for (size_t b = 0; b < batch.row_begin.size(); ++b) {
      if (batch.row_begin[b] < 0) continue;
      for (int h = 0; h < c.heads; ++h) {
        ShapedArgs args = batch.How(c, static_cast<int>(b) % c.layers, h);
        args.rows = batch.rows.data() + batch.row_begin[b] + h * batch.head_stride;
        args.row_stride = batch.stride;
        args.page_head = pool.data() + batch.page_begin[b] + h * batch.page_bytes;
        EXPECT_EQ(EncodePageHeadShaped(Backend::kRef, args, stats), KernelStatus::kOk);
      }
    }
    return pool;
  }

  static std::string Name(const Case& c) {
    char name[100];
    std::snprintf(name, sizeof name, "d %d, %d layers, %d heads, %d blocks, side %d, %d sweeps%s",
                  c.d, c.layers, c.heads, c.blocks, static_cast<int>(c.side), c.sweeps,
                  c.symmetric ? ", symmetric" : "");
    return name;
  }
};

TEST_F(ShapedCudaTest, TheBytesOfTheReference) {
  int number = 0;
  for (const int d : {64, 128}) {
    for (const Side side : {Side::kKey, Side::kValue}) {
      for (const bool symmetric : {false, true}) {
        for (const int sweeps : {0, 1, 2, 4}) {
          // From one page-head on the whole GPU to several in a thread block, with a rest.
          const int blocks = number % 3 == 2 ? 131 : 1 + number % 3;
          const Case c = {d, 1 + number % 2, 3, blocks, side, sweeps, symmetric};
          ++number;
          Batch batch(c);
          if (blocks > 1) batch.row_begin[1] = -1;
          EncodeStats stats;
          const std::vector<uint8_t> want = Reference(c, batch, &stats);
          const Result got = Encode(c, batch);
          int64_t different = 0;
          for (size_t i = 0; i < want.size(); ++i) different += want[i] != got.pool[i];
          EXPECT_EQ(different, 0) << Name(c) << ": of " << want.size() << " bytes";
          EXPECT_EQ(got.counters.clamped_fp16, stats.clamped_fp16) << Name(c);
          EXPECT_EQ(got.counters.nonfinite_rows, 0u);
        }
      }
    }
  }
}

TEST_F(ShapedCudaTest, RowsWithInfOrNanAreReportedAndHarmNoOther) {
  const Case c = {128, 1, 2, 3, Side::kValue, 2, false};
  Batch batch(c);
  EncodeStats stats;
  const std::vector<uint8_t> want = Reference(c, batch, &stats);
  // Block 2, head 1: all of its tokens 5 to 7.
  for (int t = 5; t < 8; ++t) {
    batch.rows[batch.row_begin[2] + batch.head_stride + t * batch.stride + 9 * t] =
        ToBf16(t == 6 ? NAN : INFINITY);
  }
  const Result got = Encode(c, batch);
  EXPECT_EQ(got.counters.nonfinite_rows, 3u);
  EXPECT_EQ(got.nonfinite, (std::vector<uint32_t>{0, 0, 1}));
  const size_t bad = batch.page_begin[2] + batch.page_bytes;
  for (size_t i = 0; i < want.size(); ++i) {
    if (i < bad || i >= bad + batch.page_bytes) {
      ASSERT_EQ(got.pool[i], want[i]) << i;
    }
  }
  std::vector<float> ours(kRows * 128), theirs(kRows * 128);
  DecodePageHead(Backend::kRef, 128, c.side, got.pool.data() + bad, ours.data());
  DecodePageHead(Backend::kRef, 128, c.side, want.data() + bad, theirs.data());
  for (int i = 0; i < kRows * 128; ++i) {
    if (i / 128 < 5 || i / 128 > 7) {
      ASSERT_EQ(ours[i], theirs[i]) << "token " << i / 128;
    }
  }
}

TEST_F(ShapedCudaTest, BadArguments) {
  cuda::ShapedBatchArgs args;
  args.num_kv_heads = 1;
  args.num_blocks = 3;
  args.head_dim = 96;
  EXPECT_EQ(cuda::EncodeShapedBlocks(args, {}), KernelStatus::kUnsupported);
  args.head_dim = 128;
  args.num_layers = 2;
  EXPECT_EQ(cuda::EncodeShapedBlocks(args, {}), KernelStatus::kUnsupported);
  args.num_layers = 3;
  args.sweeps = kMaxSweeps + 1;
  EXPECT_EQ(cuda::EncodeShapedBlocks(args, {}), KernelStatus::kUnsupported);
  args.sweeps = 2;
  args.num_blocks = 0;
  EXPECT_EQ(cuda::EncodeShapedBlocks(args, {}), KernelStatus::kOk);
}

}  // namespace
}  // namespace oscarkv::kernels
