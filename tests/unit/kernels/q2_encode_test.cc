#include "kernels/q2_encode/op.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "tests/unit/kernels/random_data.h"
#include "tests/unit/kernels/simd_targets.h"

namespace oscarkv::kernels {
namespace {

constexpr float kClips[] = {0, 0.01f, 0.05f, 0.5f, 0.92f, 0.96f, 0.999f, 1, -1};
constexpr uint8_t kPoison = 0xcd;

struct RowKind {
  const char* name;
  std::function<std::vector<float>(RandomData&, int d)> make;  // 64 rows
};

const std::vector<RowKind>& RowKinds() {
  static const auto* kinds = new std::vector<RowKind>{
      {"normal", [](RandomData& r, int d) { return r.Floats(64 * d); }},
      {"all equal", [](RandomData&, int d) { return std::vector<float>(64 * d, -0.7f); }},
      {"zeros of both signs",
       [](RandomData& r, int d) {
         std::vector<float> x(64 * d);
         for (float& v : x) v = r.Int(0, 1) ? 0.0f : -0.0f;
         return x;
       }},
      {"huge outliers",
       [](RandomData& r, int d) {
         std::vector<float> x = r.Floats(64 * d);
         for (int t = 0; t < 64; ++t) x[t * d + r.Int(0, d - 1)] *= 1e4f;
         return x;
       }},
      {"beyond fp16", [](RandomData& r, int d) { return r.Floats(64 * d, 1e6f); }},
      {"near the end of bf16", [](RandomData& r, int d) { return r.Floats(64 * d, 8e37f); }},
      {"subnormal scales", [](RandomData& r, int d) { return r.Floats(64 * d, 1e-6f); }},
      {"bf16 subnormals", [](RandomData& r, int d) { return r.Floats(64 * d, 1e-39f); }},
      {"all positive",
       [](RandomData& r, int d) {
         std::vector<float> x = r.Floats(64 * d);
         for (float& v : x) v = std::abs(v) + 3;
         return x;
       }},
      {"few levels",  // many ties of the order statistic and of the rounding
       [](RandomData& r, int d) {
         std::vector<float> x(64 * d);
         for (float& v : x) v = 0.5f * r.Int(-6, 6);
         return x;
       }},
  };
  return *kinds;
}

std::vector<Bf16> ToBf16s(const std::vector<float>& x) {
  std::vector<Bf16> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = ToBf16(x[i]);
  return y;
}

EncodeArgs MakeArgs(int d, Side side, const std::vector<Bf16>& rows, float clip,
                    std::vector<uint8_t>* page) {
  page->assign(PageHeadBytes(d), kPoison);
  EncodeArgs args;
  args.head_dim = d;
  args.side = side;
  args.rows = rows.data();
  args.row_stride = d;
  args.clip_ratio = clip;
  args.page_head = page->data();
  return args;
}

// The layout as its text says, slot by slot, and nothing of layout.h's functions.
struct NaivePage {
  int code[2][64][128];
  uint16_t scale[2][64], offset[2][64];
};
std::vector<uint8_t> PackNaively(const NaivePage& page, int d) {
  std::vector<uint8_t> bytes;
  for (int side = 0; side < 2; ++side) {
    for (int tb = 0; tb < 4; ++tb) {
      for (int slot = 0; slot < 32; ++slot) {
        const int j = slot / 8, g = (slot % 8) ^ (2 * j);
        for (int ch = 0; ch < d / 64; ++ch) {
          for (int r = 0; r < 2; ++r) {
            uint32_t word = 0;
            for (int i = 0; i < 16; ++i) {
              const int e = i & 1, u = i >> 1 & 1, p = i >> 2;
              const int token = side == 0 ? 16 * tb + g + 8 * r : 16 * tb + 8 * u + 2 * j + e;
              const int channel =
                  side == 0 ? 64 * ch + 16 * p + 8 * u + 2 * j + e : 64 * ch + 16 * p + 8 * r + g;
              word |= static_cast<uint32_t>(page.code[side][token][channel])
                      << (16 * e + 8 * u + 2 * p);
            }
            for (int b = 0; b < 4; ++b) bytes.push_back(word >> (8 * b) & 0xff);
          }
        }
      }
    }
  }
  for (int side = 0; side < 2; ++side) {
    for (const auto* plane : {page.scale[side], page.offset[side]}) {
      for (int i = 0; i < 64; ++i) {
        const int token = 16 * (i >> 1 & 3) + (i >> 3) + 8 * (i & 1);
        bytes.push_back(plane[token] & 0xff);
        bytes.push_back(plane[token] >> 8);
      }
    }
  }
  return bytes;
}

uint64_t Fnv1a(const std::vector<uint8_t>& bytes) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const uint8_t b : bytes) hash = (hash ^ b) * 0x100000001b3;
  return hash;
}

// Rows that hold exactly the levels 0..3 of a power-of-two scale, so that codes, scale and offset
// are known beforehand.
TEST(Q2EncodeTest, GoldenBytes) {
  for (const int d : {64, 128}) {
    NaivePage expected;
    std::vector<uint8_t> page(PageHeadBytes(d), kPoison);
    uint32_t state = 12345;
    for (const Backend backend : {Backend::kRef, Backend::kCpu}) {
      state = 12345;
      for (int side = 0; side < 2; ++side) {
        std::vector<Bf16> rows(64 * d);
        for (int t = 0; t < 64; ++t) {
          const float scale = std::ldexp(1.0f, t % 7 - 3),
                      offset = -0.5f * static_cast<float>(t % 5) + side;
          expected.scale[side][t] = FloatToFp16(scale);
          expected.offset[side][t] = FloatToFp16(offset);
          for (int c = 0; c < d; ++c) {
            state = state * 1664525 + 1013904223;
            const int code = c == 3 ? 0 : c == 4 ? 3 : state >> 30;  // both ends occur
            expected.code[side][t][c] = code;
            rows[t * d + c] = ToBf16(static_cast<float>(code) * scale + offset);
          }
        }
        EncodeArgs args;
        args.head_dim = d;
        args.side = static_cast<Side>(side);
        args.rows = rows.data();
        args.row_stride = d;
        args.page_head = page.data();
        ASSERT_EQ(EncodePageHead(backend, args, nullptr), KernelStatus::kOk);
      }
      EXPECT_EQ(page, PackNaively(expected, d));
      EXPECT_EQ(Fnv1a(page), d == 64 ? 12265611784699150408u : 10069824261275738719u)
          << "the block format has changed";
    }
  }
}

// OSCAR's writer in float64, as the numpy oracle has it: codes, scale and offset of one row. `tie`:
// how near the code's rounding came to a tie, in steps.
struct OracleRow {
  double scale, offset;
  std::vector<int> codes;
  std::vector<double> tie;
};
OracleRow EncodeOscar(const Bf16* row, int d, double ratio) {
  std::vector<double> y(d), sorted(d);
  for (int c = 0; c < d; ++c) sorted[c] = std::abs(y[c] = ToFloat(row[c]));
  std::sort(sorted.begin(), sorted.end());
  if (ratio > 0 && ratio < 1) {
    const double t = sorted[static_cast<int>(ratio * d)];
    for (double& v : y) v = std::min(std::max(v, -t), t);
  }
  const double lo = *std::min_element(y.begin(), y.end()),
               hi = *std::max_element(y.begin(), y.end());
  OracleRow out;
  out.scale = Fp16ToFloat(FloatToFp16(static_cast<float>(std::max(hi - lo, 1e-8) / 3)));
  out.offset = Fp16ToFloat(FloatToFp16(static_cast<float>(lo)));
  for (const double v : y) {
    const double level = (v - out.offset) / (out.scale > 0 ? out.scale : 1) + 0.5;
    out.codes.push_back(static_cast<int>(std::clamp(std::floor(level), 0.0, 3.0)));
    out.tie.push_back(std::abs(level - std::round(level)));
  }
  return out;
}

TEST(Q2EncodeTest, MatchesOscarsWriter) {
  RandomData random(21);
  for (const int d : {64, 128}) {
    for (const double ratio : {0.96, 0.92, 0.0}) {
      for (const char* kind : {"normal", "huge outliers", "all positive", "all equal"}) {
        const auto& kinds = RowKinds();
        const auto found = std::find_if(kinds.begin(), kinds.end(), [&](const RowKind& k) {
          return k.name == std::string(kind);
        });
        const std::vector<Bf16> rows = ToBf16s(found->make(random, d));
        std::vector<uint8_t> page;
        const EncodeArgs args = MakeArgs(d, Side::kKey, rows, static_cast<float>(ratio), &page);
        ASSERT_EQ(EncodePageHead(Backend::kRef, args, nullptr), KernelStatus::kOk);
        std::vector<float> decoded = Poisoned(64 * d);
        DecodePageHead(Backend::kRef, d, Side::kKey, page.data(), decoded.data());
        for (int t = 0; t < 64; ++t) {
          const OracleRow row = EncodeOscar(rows.data() + t * d, d, ratio);
          for (int c = 0; c < d; ++c) {
            if (row.tie[c] < 1e-5) continue;  // fp32 and float64 may part here
            ASSERT_EQ(decoded[t * d + c], static_cast<float>(row.codes[c] * row.scale + row.offset))
                << kind << " " << t << " " << c;
          }
        }
      }
    }
  }
}

class Q2EncodeShapes : public testing::TestWithParam<std::tuple<int, Side>> {};
INSTANTIATE_TEST_SUITE_P(Sides, Q2EncodeShapes,
                         testing::Combine(testing::Values(64, 128),
                                          testing::Values(Side::kKey, Side::kValue)));

TEST_P(Q2EncodeShapes, CpuGivesTheBytesOfRef) {
  const int d = std::get<0>(GetParam());
  const Side side = std::get<1>(GetParam());
  ForEachSimdTarget([&] {
    RandomData random(9);
    for (const RowKind& kind : RowKinds()) {
      const std::vector<Bf16> rows = ToBf16s(kind.make(random, d));
      for (const float clip : kClips) {
        SCOPED_TRACE(testing::Message() << kind.name << ", clip " << clip);
        std::vector<uint8_t> expected, page;
        std::vector<Bf16> rotated(64 * d, 0xcdcd);
        EncodeStats expected_stats, stats;
        ASSERT_EQ(EncodePageHead(Backend::kRef, MakeArgs(d, side, rows, clip, &expected),
                                 &expected_stats),
                  KernelStatus::kOk);
        EncodeArgs args = MakeArgs(d, side, rows, clip, &page);
        args.rotated = rotated.data();
        ASSERT_EQ(EncodePageHead(Backend::kCpu, args, &stats), KernelStatus::kOk);
        ASSERT_EQ(page, expected);
        EXPECT_EQ(rotated, rows);
        EXPECT_EQ(stats.rows, 64u);
        EXPECT_EQ(stats.rows, expected_stats.rows);
        EXPECT_EQ(stats.clamped_fp16, expected_stats.clamped_fp16);
        // The other side stays.
        const size_t other = side == Side::kKey ? CodesBytes(d) : 0;
        const size_t other_planes = MetaOffset(d) + (side == Side::kKey ? 256 : 0);
        for (size_t i = 0; i < CodesBytes(d); ++i) ASSERT_EQ(page[other + i], kPoison);
        for (size_t i = 0; i < 256; ++i) ASSERT_EQ(page[other_planes + i], kPoison);
      }
    }
  });
}

// Random orthogonal by Gram-Schmidt in float64.
std::vector<float> Orthogonal(RandomData& random, int d) {
  std::vector<std::vector<double>> rows(d, std::vector<double>(d));
  for (int i = 0; i < d; ++i) {
    const std::vector<float> start = random.Floats(d);
    rows[i].assign(start.begin(), start.end());
    for (int pass = 0; pass < 2; ++pass) {
      for (int k = 0; k < i; ++k) {
        double dot = 0;
        for (int c = 0; c < d; ++c) dot += rows[i][c] * rows[k][c];
        for (int c = 0; c < d; ++c) rows[i][c] -= dot * rows[k][c];
      }
    }
    double norm = 0;
    for (const double v : rows[i]) norm += v * v;
    for (double& v : rows[i]) v /= std::sqrt(norm);
  }
  std::vector<float> m;
  for (const auto& row : rows) m.insert(m.end(), row.begin(), row.end());
  return m;
}

TEST_P(Q2EncodeShapes, Transform) {
  const int d = std::get<0>(GetParam());
  const Side side = std::get<1>(GetParam());
  ForEachSimdTarget([&] {
    RandomData random(33);
    const std::vector<float> matrix = Orthogonal(random, d);
    const int stride = d + 24;
    const std::vector<Bf16> rows = random.Bf16s(64 * stride, 3);
    std::vector<uint8_t> page, expected, again;
    std::vector<Bf16> rotated(64 * d, 0xcdcd), expected_rotated(64 * d, 0xcdcd);
    EncodeArgs args = MakeArgs(d, side, rows, 0.96f, &expected);
    args.row_stride = stride;
    args.transform = matrix.data();
    args.rotated = expected_rotated.data();
    ASSERT_EQ(EncodePageHead(Backend::kRef, args, nullptr), KernelStatus::kOk);
    page.assign(PageHeadBytes(d), kPoison);
    args.page_head = page.data();
    args.rotated = rotated.data();
    ASSERT_EQ(EncodePageHead(Backend::kCpu, args, nullptr), KernelStatus::kOk);
    // The rotated rows are float64's up to one unit of bf16 at a tie, seldom.
    int differing = 0;
    for (int i = 0; i < 64 * d; ++i) {
      differing += rotated[i] != expected_rotated[i];
      ASSERT_NEAR(ToFloat(rotated[i]), ToFloat(expected_rotated[i]),
                  0.008 * std::abs(ToFloat(expected_rotated[i])) + 1e-4)
          << i;
    }
    EXPECT_LT(differing, 64 * d / 200);
    // And row by row the product is x M, not x M^T.
    double sum = 0;
    for (int i = 0; i < d; ++i) sum += double{ToFloat(rows[5 * stride + i])} * matrix[i * d + 7];
    EXPECT_NEAR(ToFloat(rotated[5 * d + 7]), sum, 0.01 * std::abs(sum) + 1e-4);
    // The codes come from exactly those rows.
    ASSERT_EQ(EncodePageHead(Backend::kRef, MakeArgs(d, side, rotated, 0.96f, &again), nullptr),
              KernelStatus::kOk);
    EXPECT_EQ(page, again);
  });
}

TEST_P(Q2EncodeShapes, NonFiniteRowsAreRefused) {
  const int d = std::get<0>(GetParam());
  const Side side = std::get<1>(GetParam());
  ForEachSimdTarget([&] {
    RandomData random(1);
    const std::vector<float> matrix = Orthogonal(random, d);
    const std::vector<Bf16> good = random.Bf16s(64 * d);
    for (const Backend backend : {Backend::kRef, Backend::kCpu}) {
      for (const Bf16 bad : {Bf16{0x7f80}, Bf16{0xff80}, Bf16{0x7fc0}, Bf16{0xff81}}) {
        for (const int at : {0, d - 1, 31 * d + 17, 64 * d - 1}) {
          std::vector<Bf16> rows = good;
          rows[at] = bad;
          std::vector<uint8_t> page;
          EncodeArgs args = MakeArgs(d, side, rows, 0.96f, &page);
          EXPECT_EQ(EncodePageHead(backend, args, nullptr), KernelStatus::kNonFinite);
          args.transform = matrix.data();
          EXPECT_EQ(EncodePageHead(backend, args, nullptr), KernelStatus::kNonFinite);
        }
      }
    }
  });
}

TEST_P(Q2EncodeShapes, Decode) {
  const int d = std::get<0>(GetParam());
  const Side side = std::get<1>(GetParam());
  RandomData random(4);
  // Any bytes decode; fp16 Inf and NaN in the planes are left out, the encoder never writes them.
  std::vector<uint8_t> page(PageHeadBytes(d));
  for (uint8_t& b : page) b = static_cast<uint8_t>(random.Int(0, 255));
  for (size_t i = MetaOffset(d) + 1; i < page.size(); i += 2) page[i] &= 0xbf;
  const int s = static_cast<int>(side);
  std::vector<float> expected = Poisoned(64 * d);
  DecodePageHead(Backend::kRef, d, side, page.data(), expected.data());
  const auto plane = [&](int which, int token) {
    const uint8_t* p = page.data() + MetaOffset(d) + 128 * (2 * s + which) + 2 * MetaIndex(token);
    return Fp16ToFloat(static_cast<Fp16>(p[0] | p[1] << 8));
  };
  for (int t = 0; t < 64; ++t) {
    for (int c = 0; c < d; ++c) {
      const CodePosition at = side == Side::kKey ? KeyPosition(d, t, c) : ValuePosition(d, t, c);
      const int code = page[s * CodesBytes(d) + 4 * at.word + at.bit / 8] >> at.bit % 8 & 3;
      ASSERT_EQ(expected[t * d + c], static_cast<float>(double{plane(0, t)} * code + plane(1, t)));
    }
  }
  ForEachSimdTarget([&] {
    std::vector<float> rows = Poisoned(64 * d);
    DecodePageHead(Backend::kCpu, d, side, page.data(), rows.data());
    EXPECT_EQ(rows, expected);
    const int stride = d + 5;
    for (const Backend backend : {Backend::kRef, Backend::kCpu}) {
      std::vector<Bf16> bf16(64 * stride, 0xcdcd);
      DecodePageHeadBf16(backend, d, side, page.data(), bf16.data(), stride);
      for (int i = 0; i < 64 * stride; ++i) {
        const int t = i / stride, c = i % stride;
        ASSERT_EQ(bf16[i], c < d ? ToBf16(expected[t * d + c]) : 0xcdcd) << i;
      }
    }
  });
}

// Constant rows and rows on the grid come back exactly; others within half a step of the clipped
// row.
TEST(Q2EncodeTest, RoundTrip) {
  RandomData random(8);
  const int d = 128;
  const std::vector<Bf16> rows = random.Bf16s(64 * d);
  std::vector<uint8_t> page;
  ASSERT_EQ(EncodePageHead(Backend::kCpu, MakeArgs(d, Side::kValue, rows, 0, &page), nullptr),
            KernelStatus::kOk);
  std::vector<float> decoded = Poisoned(64 * d);
  DecodePageHead(Backend::kCpu, d, Side::kValue, page.data(), decoded.data());
  for (int t = 0; t < 64; ++t) {
    float lo = 1e30f, hi = -1e30f;
    for (int c = 0; c < d; ++c) {
      lo = std::min(lo, ToFloat(rows[t * d + c]));
      hi = std::max(hi, ToFloat(rows[t * d + c]));
    }
    for (int c = 0; c < d; ++c)
      ASSERT_NEAR(decoded[t * d + c], ToFloat(rows[t * d + c]), (hi - lo) / 6 * 1.01f);
  }
  const std::vector<Bf16> constant(64 * d, ToBf16(0.75f));
  ASSERT_EQ(EncodePageHead(Backend::kCpu, MakeArgs(d, Side::kKey, constant, 0.96f, &page), nullptr),
            KernelStatus::kOk);
  DecodePageHead(Backend::kCpu, d, Side::kKey, page.data(), decoded.data());
  for (const float v : decoded) ASSERT_EQ(v, 0.75f);
}

TEST(Q2EncodeTest, ClampedRowsAreCounted) {
  const int d = 128;
  std::vector<Bf16> rows(64 * d, ToBf16(1.0f));
  for (int c = 0; c < d; ++c) rows[3 * d + c] = ToBf16(c % 2 ? 1e6f : 0.0f);  // scale too large
  for (int c = 0; c < d; ++c) rows[9 * d + c] = ToBf16(-1e6f);                // offset too small
  for (int c = 0; c < d; ++c) rows[10 * d + c] = ToBf16(c % 2 ? 60000.f : -60000.f);  // both fit
  for (const Backend backend : {Backend::kRef, Backend::kCpu}) {
    EncodeStats stats;
    std::vector<uint8_t> page;
    ASSERT_EQ(EncodePageHead(backend, MakeArgs(d, Side::kKey, rows, 0, &page), &stats),
              KernelStatus::kOk);
    EXPECT_EQ(stats.clamped_fp16, 2u);
    ASSERT_EQ(EncodePageHead(backend, MakeArgs(d, Side::kKey, rows, 0, &page), &stats),
              KernelStatus::kOk);
    EXPECT_EQ(stats.rows, 128u);
    EXPECT_EQ(stats.clamped_fp16, 4u);
    std::vector<float> decoded = Poisoned(64 * d);
    DecodePageHead(backend, d, Side::kKey, page.data(), decoded.data());
    for (const float v : decoded) ASSERT_TRUE(std::isfinite(v));
    EXPECT_EQ(decoded[9 * d], -65504.0f);
  }
}

TEST(Q2EncodeTest, BlockLayer) {
  for (const int d : {64, 128}) {
    const KvShape shape{1, 3, d};
    RandomData random(2);
    std::vector<Bf16> block = random.Bf16s(2 * shape.Bf16SideElements());
    const float clips[2] = {0.96f, 0.92f};
    for (const Backend backend : {Backend::kRef, Backend::kCpu}) {
      std::vector<uint8_t> layer(shape.PageLayerBytes(), kPoison),
          expected(shape.PageLayerBytes(), 0);
      EncodeStats stats;
      ASSERT_EQ(EncodeBlockLayer(backend, shape, block.data(), clips, layer.data(), &stats),
                KernelStatus::kOk);
      EXPECT_EQ(stats.rows, 2u * 3 * 64);
      for (int side = 0; side < 2; ++side) {
        for (int head = 0; head < 3; ++head) {
          EncodeArgs args;
          args.head_dim = d;
          args.side = static_cast<Side>(side);
          args.rows = block.data() + (side * 3 + head) * 64 * d;
          args.row_stride = d;
          args.clip_ratio = clips[side];
          args.page_head = expected.data() + head * PageHeadBytes(d);
          ASSERT_EQ(EncodePageHead(Backend::kRef, args, nullptr), KernelStatus::kOk);
        }
      }
      EXPECT_EQ(layer, expected);
    }
    block[5 * 64 * d + 1] = 0x7f80;
    std::vector<uint8_t> layer(shape.PageLayerBytes());
    EXPECT_EQ(EncodeBlockLayer(Backend::kCpu, shape, block.data(), clips, layer.data(), nullptr),
              KernelStatus::kNonFinite);
  }
}

TEST(Q2EncodeTest, UnsupportedShapes) {
  std::vector<Bf16> rows(64 * 128);
  std::vector<uint8_t> page;
  EncodeArgs args = MakeArgs(128, Side::kKey, rows, 0, &page);
  EXPECT_EQ(EncodePageHead(Backend::kCuda, args, nullptr), KernelStatus::kUnsupported);
  args.head_dim = 96;
  EXPECT_EQ(EncodePageHead(Backend::kCpu, args, nullptr), KernelStatus::kUnsupported);
}

}  // namespace
}  // namespace oscarkv::kernels
