// Shaped codes: the reference against numpy's (tests/golden/codec/make_shaped.py), the CPU's bytes
// against the reference's on every instruction set.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "codec/shaped_metric.h"
#include "common/crc32c.h"
#include "kernels/q2_encode/shaped.h"
#include "tests/unit/codec/shaped_data.h"
#include "tests/unit/kernels/random_data.h"
#include "tests/unit/kernels/simd_targets.h"

namespace oscarkv::kernels {
namespace {

std::vector<Bf16> GoldenRows() {
  Numbers numbers{3};
  std::vector<Bf16> rows;
  for (int t = 0; t < kRows; ++t) {
    for (int j = 0; j < 128; ++j)
      rows.push_back(ToBf16(static_cast<float>(numbers.Next() * std::exp2(t % 5 - 2))));
  }
  return rows;
}

struct Page {
  explicit Page(int head_dim, bool with_offsets = true)
      : d(head_dim), offsets(with_offsets), bytes(PageHeadBytes(head_dim, with_offsets)) {}
  int Code(Side side, int token, int channel) const {
    const CodePosition at =
        side == Side::kKey ? KeyPosition(d, token, channel) : ValuePosition(d, token, channel);
    const uint8_t* codes = bytes.data() + static_cast<int>(side) * CodesBytes(d);
    return codes[4 * at.word + at.bit / 8] >> at.bit % 8 & 3;
  }
  float Scale(Side side, int token, bool offset = false) const {
    Fp16 bits;
    std::memcpy(&bits,
                bytes.data() + ScaleOffset(d, side, offsets) +
                    2 * (MetaIndex(token) + (offset ? kPageTokens : 0)),
                2);
    return Fp16ToFloat(bits);
  }
  float Offset(Side side, int token) const {
    return offsets ? Scale(side, token, true) : -1.5f * Scale(side, token);
  }
  int d;
  bool offsets;
  std::vector<uint8_t> bytes;
};

ShapedArgs Args(int d, Side side, const std::vector<Bf16>& rows, const ShapedTables& tables,
                Page* page) {
  ShapedArgs args;
  args.head_dim = d;
  args.side = side;
  args.rows = rows.data();
  args.row_stride = d;
  args.metric = tables.view();
  args.page_head = page->bytes.data();
  return args;
}

// sum of e W e^T over sum of y W y^T.
double Damage(const std::vector<Bf16>& rows, const std::vector<float>& decoded,
              const std::vector<float>& w, int d) {
  double damage = 0, energy = 0;
  for (int t = 0; t < kRows; ++t) {
    for (int i = 0; i < d; ++i) {
      const double yi = ToFloat(rows[t * d + i]), ei = decoded[t * d + i] - yi;
      for (int j = 0; j < d; ++j) {
        const double yj = ToFloat(rows[t * d + j]), ej = decoded[t * d + j] - yj;
        damage += ei * w[i * d + j] * ej;
        energy += yi * w[i * d + j] * yj;
      }
    }
  }
  return damage / energy;
}

TEST(ShapedEncodeTest, AgreesWithNumpy) {
  const std::vector<float> w = Metric(128);
  const auto tables = ShapedTables::Create(w.data(), 128);
  ASSERT_TRUE(tables.ok()) << tables.status();
  const std::vector<Bf16> rows = GoldenRows();
  std::ifstream file("tests/golden/codec/shaped.txt");
  int cases = 0;
  for (std::string line; std::getline(file, line); ++cases) {
    std::istringstream in(line);
    std::string name;
    double gain, damage;
    int sweeps, symmetric;
    in >> name >> gain >> sweeps >> symmetric >> damage;
    SCOPED_TRACE(name);
    Page page(128, symmetric == 0);
    ShapedArgs args = Args(128, Side::kKey, rows, *tables, &page);
    args.gain = static_cast<float>(gain);
    args.sweeps = sweeps;
    args.symmetric = symmetric != 0;
    ASSERT_EQ(EncodePageHeadShaped(Backend::kRef, args, nullptr), KernelStatus::kOk);
    std::vector<float> decoded(kRows * 128);
    DecodePageHead(Backend::kRef, 128, Side::kKey, page.bytes.data(), decoded.data(), page.offsets);
    // fp32 against float64: where a level falls on a tie a row may part ways; nearly all do not.
    int equal_rows = 0;
    for (int t = 0; t < kRows; ++t) {
      ASSERT_TRUE(std::getline(file, line));
      std::istringstream row(line);
      std::string codes;
      double scale, offset;
      row >> codes >> scale >> offset;
      ASSERT_EQ(codes.size(), 128u);
      bool equal = true;
      for (int c = 0; c < 128; ++c) equal &= page.Code(Side::kKey, t, c) == codes[c] - '0';
      equal_rows += equal;
      if (!equal) continue;
      EXPECT_NEAR(page.Scale(Side::kKey, t), scale, 1.1e-3 * scale) << "row " << t;
      EXPECT_NEAR(page.Offset(Side::kKey, t), offset, 1.1e-3 * std::abs(offset)) << "row " << t;
    }
    EXPECT_GE(equal_rows, 60);
    EXPECT_NEAR(Damage(rows, decoded, w, 128), damage, 0.02 * damage);
  }
  EXPECT_EQ(cases, 3);
}

TEST(ShapedEncodeTest, EveryBackendGivesTheSameBytes) {
  for (const int d : {64, 128}) {
    const std::vector<float> w = Metric(d, 9);
    const auto tables = ShapedTables::Create(w.data(), d);
    ASSERT_TRUE(tables.ok());
    for (const auto& [sweeps, symmetric, gain] :
         {std::tuple{2, false, 1.0f}, {0, false, 0.3f}, {1, true, 0.6f}, {4, true, 0.0f}}) {
      for (const Side side : {Side::kKey, Side::kValue}) {
        const std::vector<Bf16> rows = HardRows(d, 5 + sweeps);
        Page expected(d, !symmetric), page(d, !symmetric);
        ShapedArgs args = Args(d, side, rows, *tables, &expected);
        args.sweeps = sweeps;
        args.symmetric = symmetric;
        args.gain = gain;
        EncodeStats reference;
        ASSERT_EQ(EncodePageHeadShaped(Backend::kRef, args, &reference), KernelStatus::kOk);
        EXPECT_EQ(reference.rows, 64u);
        EXPECT_GE(reference.clamped_fp16, 1u);  // the huge row
        ForEachSimdTarget([&, sweeps = sweeps] {
          args.page_head = page.bytes.data();
          EncodeStats stats;
          ASSERT_EQ(EncodePageHeadShaped(Backend::kCpu, args, &stats), KernelStatus::kOk);
          EXPECT_EQ(page.bytes, expected.bytes)
              << "d " << d << " side " << static_cast<int>(side) << " sweeps " << sweeps;
          EXPECT_EQ(stats.clamped_fp16, reference.clamped_fp16);
        });
      }
    }
  }
}

// The bytes of pages in other people's memory: a digest of both sides, levels about zero or not.
// They may change in a few low bits with the order of the encoder's sums, never in what they mean.
TEST(ShapedEncodeTest, GoldenBytes) {
  const std::vector<float> w = Metric(128);
  const auto tables = ShapedTables::Create(w.data(), 128);
  ASSERT_TRUE(tables.ok());
  const std::vector<Bf16> rows = GoldenRows();
  for (const bool symmetric : {false, true}) {
    Page page(128, !symmetric);
    EXPECT_EQ(page.bytes.size(), symmetric ? 4352u : 4608u);
    for (const Side side : {Side::kKey, Side::kValue}) {
      ShapedArgs args = Args(128, side, rows, *tables, &page);
      args.symmetric = symmetric;
      ASSERT_EQ(EncodePageHeadShaped(Backend::kRef, args, nullptr), KernelStatus::kOk);
    }
    EXPECT_EQ(Crc32c(page.bytes.data(), page.bytes.size()), symmetric ? 0xc0e24c3bu : 0x57942bc6u);
    // What the digest stands for: codes and planes at their places, decoded by every backend.
    for (const Side side : {Side::kKey, Side::kValue}) {
      for (const Backend backend : {Backend::kRef, Backend::kCpu}) {
        std::vector<float> decoded(kRows * 128);
        DecodePageHead(backend, 128, side, page.bytes.data(), decoded.data(), !symmetric);
        for (int t = 0; t < kRows; ++t) {
          const float scale = page.Scale(side, t), offset = page.Offset(side, t);
          for (int c = 0; c < 128; ++c) {
            const float code = static_cast<float>(page.Code(side, t, c));
            ASSERT_EQ(decoded[t * 128 + c],
                      symmetric ? (code - 1.5f) * scale : std::fma(code, scale, offset));
          }
        }
      }
    }
  }
}

TEST(ShapedEncodeTest, HardRowsDecodeToFiniteValuesNearThem) {
  const int d = 128;
  const std::vector<float> w = Metric(d);
  const auto tables = ShapedTables::Create(w.data(), d);
  const std::vector<Bf16> rows = HardRows(d, 5);
  Page page(d);
  ASSERT_EQ(
      EncodePageHeadShaped(Backend::kCpu, Args(d, Side::kValue, rows, *tables, &page), nullptr),
      KernelStatus::kOk);
  std::vector<float> decoded(kRows * d);
  DecodePageHead(Backend::kCpu, d, Side::kValue, page.bytes.data(), decoded.data());
  for (const float v : decoded) ASSERT_TRUE(std::isfinite(v));
  for (int c = 0; c < d; ++c) {
    EXPECT_NEAR(decoded[3 * d + c], 1.25f, 2e-3f);
    EXPECT_NEAR(decoded[4 * d + c], 0, 1e-6f);
    EXPECT_NEAR(decoded[7 * d + c], 400, 1);
  }
}

TEST(ShapedEncodeTest, SweepsAndFeedbackReduceDamage) {
  const int d = 128;
  const std::vector<float> w = Metric(d);
  std::vector<float> identity(d * d);
  for (int i = 0; i < d; ++i) identity[i * d + i] = 1;
  const auto tables = ShapedTables::Create(w.data(), d);
  const auto none = ShapedTables::Create(identity.data(), d);
  RandomData random(1);
  const std::vector<Bf16> rows = random.Bf16s(size_t{kRows} * d);
  const auto damage = [&](const ShapedTables& t, int sweeps) {
    Page page(d);
    ShapedArgs args = Args(d, Side::kKey, rows, t, &page);
    args.sweeps = sweeps;
    args.gain = 0;
    EXPECT_EQ(EncodePageHeadShaped(Backend::kCpu, args, nullptr), KernelStatus::kOk);
    std::vector<float> decoded(kRows * d);
    DecodePageHead(Backend::kCpu, d, Side::kKey, page.bytes.data(), decoded.data());
    return Damage(rows, decoded, w, d);
  };
  const double nearest = damage(*none, 0), feedback = damage(*tables, 0),
               swept = damage(*tables, 2);
  EXPECT_LT(feedback, 0.6 * nearest);
  EXPECT_LT(swept, feedback);
}

TEST(ShapedEncodeTest, Refused) {
  const int d = 64;
  std::vector<float> w = Metric(d);
  const auto tables = ShapedTables::Create(w.data(), d);
  for (const float bad : {std::numeric_limits<float>::infinity(), NAN}) {
    std::vector<Bf16> rows(kRows * d);
    rows[70] = ToBf16(bad);
    Page page(d);
    for (const Backend backend : {Backend::kRef, Backend::kCpu}) {
      EXPECT_EQ(EncodePageHeadShaped(backend, Args(d, Side::kKey, rows, *tables, &page), nullptr),
                KernelStatus::kNonFinite);
    }
  }
  const auto error = [&] {
    return std::string(ShapedTables::Create(w.data(), d).status().message());
  };
  const std::vector<float> good = w;
  w[5] = NAN;
  EXPECT_THAT(error(), testing::HasSubstr("metric[0][5] is nan"));
  w = good;
  w[5] += 1;
  EXPECT_THAT(error(), testing::HasSubstr("not symmetric"));
  w = good;
  w[6 * d + 6] = -1;
  EXPECT_THAT(error(), testing::HasSubstr("not positive definite: pivot 6"));
}

}  // namespace
}  // namespace oscarkv::kernels
