#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>
#include <tuple>

#include "kernels/cuda_device.h"
#include "kernels/q2_encode/op_backends.h"
#include "kernels/q2_encode/op_cuda.h"
#include "tests/unit/kernels/cuda_checks.h"
#include "tests/unit/kernels/device_buffer.h"
#include "tests/unit/kernels/random_data.h"

namespace oscarkv::kernels {
namespace {

using cuda::EncodeBatchArgs;
using cuda::EncodeBlocks;
using cuda::EncodeCounters;
using cuda::RowType;

constexpr uint8_t kPoison = 0xcd;
constexpr Bf16 kPoison16 = 0xcdcd;
const std::vector<float> kClips = {0, 0.01f, 0.05f, 0.5f, 0.92f, 0.96f, 0.999f, 1, -1};

// One row of a random kind, from ordinary to adversarial; all finite.
void FillRow(RandomData& random, int d, float* row) {
  const std::vector<float> normal = random.Floats(d);
  const int kind = random.Int(0, 14);
  static constexpr float kSigmas[] = {1e6f, 8e37f, 1e-6f, 1e-39f, 3e-8f};
  for (int c = 0; c < d; ++c) {
    float v = normal[c];
    switch (kind) {
      case 0:
        v = -0.7f;
        break;
      case 1:
        v = random.Int(0, 1) ? 0.0f : -0.0f;
        break;
      case 2:
        v *= random.Int(0, 60) == 0 ? 1e4f : 1;
        break;
      case 3:
        v = std::abs(v) + 3;
        break;
      case 4:
        v = -std::abs(v) - 3;
        break;
      case 5:  // many ties of the order statistic and of the rounding
        v = 0.5f * random.Int(-6, 6);
        break;
      case 6:  // an offset that fp16 cannot hold to a step
        v = 5000 + 0.3f * v;
        break;
      case 7:
        v = c == 5 ? 100.0f : 0.0f;
        break;
      case 8:
      case 9:
      case 10:
      case 11:
      case 12:
        v *= kSigmas[kind - 8];
        break;
      case 13:  // the largest in few channels, which one list of the kernel's gets
        v *= c % 8 == 3 ? 50 : 1;
        break;
      default:
        break;
    }
    row[c] = std::clamp(v, -3.3e38f, 3.3e38f);
  }
}

std::vector<Bf16> AdversarialRows(RandomData& random, int64_t n, int d, int64_t stride) {
  std::vector<Bf16> rows(n * stride, 0x7fc0);  // NaN between the rows: must not be read
  std::vector<float> row(d);
  for (int64_t i = 0; i < n; ++i) {
    FillRow(random, d, row.data());
    for (int c = 0; c < d; ++c) rows[i * stride + c] = ToBf16(row[c]);
  }
  return rows;
}

std::vector<float> Orthogonal(RandomData& random, int d) {
  std::vector<double> m(d * d);
  const std::vector<float> start = random.Floats(d * d);
  std::copy(start.begin(), start.end(), m.begin());
  for (int i = 0; i < d; ++i) {
    for (int pass = 0; pass < 2; ++pass) {
      for (int k = 0; k < i; ++k) {
        double dot = 0;
        for (int c = 0; c < d; ++c) dot += m[i * d + c] * m[k * d + c];
        for (int c = 0; c < d; ++c) m[i * d + c] -= dot * m[k * d + c];
      }
    }
    double norm = 0;
    for (int c = 0; c < d; ++c) norm += m[i * d + c] * m[i * d + c];
    for (int c = 0; c < d; ++c) m[i * d + c] /= std::sqrt(norm);
  }
  return {m.begin(), m.end()};
}

// A launch and all it touches. Rows are [token][head][d] with padding, in bf16 unless `fp16`.
struct Case {
  int d = 128;
  Side side = Side::kKey;
  int heads = 1;
  int64_t tokens = 64;
  int64_t head_stride = 0, row_stride = 0;  // 0: dense
  float clip = 0;
  bool fp16 = false;
  bool in_place = false;
  bool want_rotated = false;
  std::vector<std::vector<float>> matrices;  // none, one, or one per head
  std::vector<int64_t> row_begin, page_begin;
  int64_t page_slots = 0;  // pages in the pool; 0: one per block

  std::vector<uint16_t> rows;

  int num_blocks() const {
    return row_begin.empty() ? static_cast<int>((tokens + 63) / 64)
                             : static_cast<int>(row_begin.size());
  }
  void SetDense() {
    if (head_stride == 0) head_stride = d;
    if (row_stride == 0) row_stride = heads * head_stride;
  }
  int64_t RowAt(int block, int head, int token) const {
    const int64_t begin = row_begin.empty() ? int64_t{64} * block * row_stride : row_begin[block];
    return begin + token * row_stride + head * head_stride;
  }
  int64_t PageAt(int block, int head) const {
    const int64_t stride = heads * static_cast<int64_t>(PageHeadBytes(d));
    return (page_begin.empty() ? block * stride : page_begin[block]) +
           head * static_cast<int64_t>(PageHeadBytes(d));
  }
  std::string Name() const {
    std::ostringstream s;
    s << "d " << d << (side == Side::kKey ? " K" : " V") << " heads " << heads << " tokens "
      << tokens << " clip " << clip << (fp16 ? " fp16" : "") << " matrices " << matrices.size()
      << (in_place ? " in place" : "") << (row_begin.empty() ? "" : " row_begin");
    return s.str();
  }
};

struct Result {
  std::vector<uint8_t> pool;
  std::vector<Bf16> rotated;
  EncodeCounters counters;
  std::vector<uint32_t> block_nonfinite;
  std::string error;
};

Result Run(Case& c) {
  c.SetDense();
  Result result;
  const int64_t pages = c.page_slots > 0 ? c.page_slots : c.num_blocks();
  DeviceBuffer<uint16_t> rows(c.rows);
  DeviceBuffer<uint8_t> pool(std::vector<uint8_t>(pages * c.heads * PageHeadBytes(c.d), kPoison));
  DeviceBuffer<Bf16> rotated(std::vector<Bf16>(c.rows.size(), kPoison16));
  DeviceBuffer<EncodeCounters> counters(std::vector<EncodeCounters>(1));
  DeviceBuffer<uint32_t> flags(std::vector<uint32_t>(c.num_blocks(), 0));
  DeviceBuffer<int64_t> row_begin(c.row_begin), page_begin(c.page_begin);
  std::vector<float> all;
  for (const auto& m : c.matrices) all.insert(all.end(), m.begin(), m.end());
  DeviceBuffer<float> matrices(all);
  DeviceBuffer<uint8_t> prepared(c.matrices.size() * cuda::PreparedTransformBytes(c.d));
  EncodeBatchArgs args;
  args.head_dim = c.d;
  args.side = c.side;
  args.num_kv_heads = c.heads;
  args.num_blocks = c.num_blocks();
  args.num_tokens = c.tokens;
  args.rows = rows.get();
  args.row_type = c.fp16 ? RowType::kFp16 : RowType::kBf16;
  args.row_stride = c.row_stride;
  args.head_stride = c.head_stride;
  if (!c.row_begin.empty()) args.row_begin = row_begin.get();
  if (!c.matrices.empty()) {
    if (cuda::PrepareTransforms(c.d, args.row_type, matrices.get(),
                                static_cast<int>(c.matrices.size()), prepared.get(),
                                {}) != KernelStatus::kOk) {
      result.error = std::string("PrepareTransforms: ") + cuda::LastError();
      return result;
    }
    args.transform = prepared.get();
    if (c.matrices.size() > 1)
      args.transform_head_stride = static_cast<int64_t>(cuda::PreparedTransformBytes(c.d));
  }
  args.clip_ratio = c.clip;
  if (c.in_place) args.rotated = rows.get();
  if (!c.in_place && c.want_rotated) args.rotated = rotated.get();
  args.pages = pool.get();
  args.page_stride = c.heads * static_cast<int64_t>(PageHeadBytes(c.d));
  if (!c.page_begin.empty()) args.page_begin = page_begin.get();
  args.counters = counters.get();
  args.block_nonfinite = flags.get();
  if (EncodeBlocks(args, {}) != KernelStatus::kOk) {
    result.error = std::string("EncodeBlocks: ") + cuda::LastError();
    return result;
  }
  result.pool = pool.Download();
  result.rotated = c.in_place ? rows.Download() : rotated.Download();
  result.counters = counters.Download()[0];
  result.block_nonfinite = flags.Download();
  return result;
}

// The reference of full blocks from rows that are already rotated (bf16, at the case's places).
struct Expected {
  std::vector<uint8_t> pool;
  EncodeCounters counters;
};
Expected Reference(const Case& c, const std::vector<Bf16>& rotated) {
  Expected expected;
  const int64_t pages = c.page_slots > 0 ? c.page_slots : c.num_blocks();
  expected.pool.assign(pages * c.heads * PageHeadBytes(c.d), kPoison);
  EncodeStats stats;
  for (int b = 0; b < c.num_blocks(); ++b) {
    if (c.row_begin.empty() ? 64 * (b + 1) > c.tokens : c.row_begin[b] < 0) continue;
    for (int h = 0; h < c.heads; ++h) {
      EncodeArgs args;
      args.head_dim = c.d;
      args.side = c.side;
      args.rows = rotated.data() + c.RowAt(b, h, 0);
      args.row_stride = c.row_stride;
      args.clip_ratio = c.clip;
      args.page_head = expected.pool.data() + c.PageAt(b, h);
      if (ref::EncodePageHead(args, &stats) != KernelStatus::kOk)
        ++expected.counters.nonfinite_rows;
    }
  }
  expected.counters.clamped_fp16 = stats.clamped_fp16;
  return expected;
}

std::string Difference(const Case& c, const std::vector<uint8_t>& got,
                       const std::vector<uint8_t>& want) {
  int64_t differing = 0, first = -1;
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i] == want[i]) continue;
    if (first < 0) first = static_cast<int64_t>(i);
    ++differing;
  }
  if (differing == 0) return "";
  std::ostringstream s;
  s << c.Name() << ": " << differing << " of " << got.size() << " bytes differ, first at page-head "
    << first / static_cast<int64_t>(PageHeadBytes(c.d)) << " byte "
    << first % static_cast<int64_t>(PageHeadBytes(c.d));
  return s.str();
}

std::string CompareCounters(const Case& c, const EncodeCounters& got, const EncodeCounters& want) {
  if (got.nonfinite_rows == want.nonfinite_rows && got.clamped_fp16 == want.clamped_fp16) return "";
  std::ostringstream s;
  s << c.Name() << ": nonfinite " << got.nonfinite_rows << " for " << want.nonfinite_rows
    << ", clamped " << got.clamped_fp16 << " for " << want.clamped_fp16;
  return s.str();
}

// Runs a case of bf16 rows without a transform and compares every byte.
std::string RunExact(Case& c) {
  const Result got = Run(c);
  if (!got.error.empty()) return got.error;
  const Expected want = Reference(c, c.rows);
  if (const std::string d = Difference(c, got.pool, want.pool); !d.empty()) return d;
  return CompareCounters(c, got.counters, want.counters);
}

std::string WithoutTransformTheBytesOfRef() {
  RandomData random(1);
  for (const int d : {64, 128}) {
    for (const Side side : {Side::kKey, Side::kValue}) {
      for (const float clip : kClips) {
        for (const int heads : {1, 3}) {
          Case c;
          c.d = d;
          c.side = side;
          c.heads = heads;
          c.clip = clip;
          c.tokens = heads == 1 ? 64 : 64 * 5;
          c.head_stride = d + 8;
          c.row_stride = heads * c.head_stride + 16;
          c.rows = AdversarialRows(random, c.tokens * c.row_stride / c.head_stride + 1, d,
                                   c.head_stride);
          // The rows of the case start anywhere in that array: make all of it finite.
          for (uint16_t& v : c.rows) v = v == 0x7fc0 ? uint16_t{0x3f80} : v;
          if (const std::string e = RunExact(c); !e.empty()) return e;
        }
      }
    }
  }
  return "";
}

// More units than a GPU has warps, by far: the same blocks again and again.
std::string LargeBatches() {
  RandomData random(2);
  for (const Side side : {Side::kKey, Side::kValue}) {
    Case base;
    base.side = side;
    base.heads = 8;
    base.tokens = 64 * 20;
    base.clip = side == Side::kKey ? 0.96f : 0.92f;
    base.rows = AdversarialRows(random, base.tokens * base.heads, base.d, base.d);
    base.SetDense();
    const Expected once = Reference(base, base.rows);
    Case c = base;
    Expected want;
    constexpr int kTimes = 53;
    c.tokens *= kTimes;
    c.rows.clear();
    for (int i = 0; i < kTimes; ++i) {
      c.rows.insert(c.rows.end(), base.rows.begin(), base.rows.end());
      want.pool.insert(want.pool.end(), once.pool.begin(), once.pool.end());
    }
    want.counters.clamped_fp16 = kTimes * once.counters.clamped_fp16;
    const Result got = Run(c);
    if (!got.error.empty()) return got.error;
    if (const std::string e = Difference(c, got.pool, want.pool); !e.empty()) return e;
    if (const std::string e = CompareCounters(c, got.counters, want.counters); !e.empty()) return e;
  }
  return "";
}

// Blocks anywhere, pages anywhere, some left out.
std::string ScatteredBlocks() {
  RandomData random(3);
  for (const int d : {64, 128}) {
    for (const Side side : {Side::kKey, Side::kValue}) {
      Case c;
      c.d = d;
      c.side = side;
      c.heads = 2;
      c.clip = 0.96f;
      // Windows as the bf16 blocks of block_format.md: [kv_head][64][d].
      c.row_stride = d;
      c.head_stride = 64 * d;
      constexpr int kBlocks = 37;
      c.rows = AdversarialRows(random, kBlocks * 2 * 64, d, d);
      std::vector<int> order(kBlocks);
      for (int i = 0; i < kBlocks; ++i) order[i] = i;
      std::shuffle(order.begin(), order.end(), random.rng());
      c.page_slots = kBlocks;
      for (int i = 0; i < kBlocks; ++i) {
        c.row_begin.push_back(i % 5 == 2 ? -1 : order[i] * 2 * 64 * d);
        c.page_begin.push_back(order[(i + 11) % kBlocks] * 2 *
                               static_cast<int64_t>(PageHeadBytes(d)));
      }
      c.want_rotated = true;
      const Result got = Run(c);
      if (!got.error.empty()) return got.error;
      const Expected want = Reference(c, c.rows);
      if (const std::string e = Difference(c, got.pool, want.pool); !e.empty()) return e;
      std::vector<Bf16> rotated(c.rows.size(), kPoison16);
      for (int i = 0; i < kBlocks; ++i) {
        if (c.row_begin[i] < 0) continue;
        std::copy_n(c.rows.begin() + c.row_begin[i], 2 * 64 * d, rotated.begin() + c.row_begin[i]);
      }
      if (got.rotated != rotated) return c.Name() + ": rotated differs from the rows";
    }
  }
  return "";
}

std::string HalfPrecisionRows() {
  RandomData random(4);
  for (const int d : {64, 128}) {
    for (const Side side : {Side::kKey, Side::kValue}) {
      Case c;
      c.d = d;
      c.side = side;
      c.heads = 2;
      c.tokens = 64 * 3;
      c.clip = 0.92f;
      c.fp16 = c.want_rotated = true;
      std::vector<Bf16> rounded;
      for (const float v : random.Floats(c.tokens * c.heads * d, 30)) {
        c.rows.push_back(FloatToFp16(v));
        rounded.push_back(ToBf16(Fp16ToFloat(c.rows.back())));
      }
      const Result got = Run(c);
      if (!got.error.empty()) return got.error;
      if (got.rotated != rounded) return c.Name() + ": rows not rounded to bf16 once";
      const Expected want = Reference(c, rounded);
      if (const std::string e = Difference(c, got.pool, want.pool); !e.empty()) return e;
    }
  }
  return "";
}

// y of one row in float64, rounded once.
Bf16 TransformedValue(const Case& c, int head, const uint16_t* row, int channel) {
  const std::vector<float>& m = c.matrices[c.matrices.size() > 1 ? head : 0];
  double sum = 0;
  for (int i = 0; i < c.d; ++i) {
    sum += double{c.fp16 ? Fp16ToFloat(row[i]) : ToFloat(row[i])} * m[i * c.d + channel];
  }
  return ToBf16(static_cast<float>(sum));
}

// Runs a case with a transform: rows near float64's, pages exactly those of these rows. At most
// `max_share` of the values of rows may differ from float64's, by one unit of bf16.
std::string RunTransformed(Case& c, double max_share) {
  c.want_rotated = true;
  const Result got = Run(c);
  if (!got.error.empty()) return got.error;
  int64_t differing = 0, values = 0;
  std::vector<char> written(c.rows.size(), 0);
  for (int b = 0; b < c.num_blocks(); ++b) {
    for (int h = 0; h < c.heads; ++h) {
      for (int t = 0; t < 64 && 64 * b + t < c.tokens; ++t) {
        const int64_t at = c.RowAt(b, h, t);
        double norm = 0;
        for (int i = 0; i < c.d; ++i) {
          const double x = c.fp16 ? Fp16ToFloat(c.rows[at + i]) : ToFloat(c.rows[at + i]);
          norm += x * x;
        }
        for (int i = 0; i < c.d; ++i) {
          written[at + i] = 1;
          const float y = ToFloat(got.rotated[at + i]);
          const float want = ToFloat(TransformedValue(c, h, c.rows.data() + at, i));
          ++values;
          differing += y != want;
          if (!(std::abs(y - want) <= std::abs(want) * 0.0079 + 1e-5 * std::sqrt(norm))) {
            std::ostringstream s;
            s << c.Name() << ": block " << b << " head " << h << " token " << t << " channel " << i
              << ": " << y << " for " << want;
            return s.str();
          }
        }
      }
    }
  }
  if (static_cast<double>(differing) > max_share * static_cast<double>(values)) {
    std::ostringstream s;
    s << c.Name() << ": " << differing << " of " << values << " values differ from float64's";
    return s.str();
  }
  for (size_t i = 0; i < c.rows.size(); ++i) {
    const Bf16 untouched = c.in_place ? c.rows[i] : kPoison16;
    if (!written[i] && got.rotated[i] != untouched) return c.Name() + ": wrote between the rows";
  }
  const Expected want = Reference(c, got.rotated);
  if (const std::string e = Difference(c, got.pool, want.pool); !e.empty()) return e;
  return CompareCounters(c, got.counters, want.counters);
}

std::string Transforms() {
  RandomData random(5);
  for (const int d : {64, 128}) {
    for (const Side side : {Side::kKey, Side::kValue}) {
      for (const bool fp16 : {false, true}) {
        for (const bool per_head : {false, true}) {
          Case c;
          c.d = d;
          c.side = side;
          c.heads = 3;
          c.tokens = 64 * 4 + (per_head ? 1 : 0);
          c.clip = side == Side::kKey ? 0.96f : 0.92f;
          c.fp16 = fp16;
          c.head_stride = d + 16;
          c.in_place = !fp16 && !per_head;
          for (int i = 0; i < (per_head ? 3 : 1); ++i) c.matrices.push_back(Orthogonal(random, d));
          c.rows.assign(c.tokens * c.heads * c.head_stride, 0x7e00);
          c.SetDense();
          for (int64_t i = 0; i < c.tokens * c.heads; ++i) {
            const std::vector<float> row = random.Floats(d, 3);
            for (int k = 0; k < d; ++k)
              c.rows[i * c.head_stride + k] = fp16 ? FloatToFp16(row[k]) : ToBf16(row[k]);
          }
          // The accumulators of tensor cores truncate: some values next to a tie move. A matrix of
          // 8 bits would move one in ten.
          if (const std::string e = RunTransformed(c, 0.01); !e.empty()) return e;
        }
      }
    }
  }
  return "";
}

// Where every sum is exact, rows and bytes are the reference's: +-1 matrices over small integers,
// and the identity over anything.
std::string ExactTransforms() {
  RandomData random(6);
  for (const int d : {64, 128}) {
    for (const Side side : {Side::kKey, Side::kValue}) {
      for (const bool identity : {false, true}) {
        Case c;
        c.d = d;
        c.side = side;
        c.heads = 2;
        c.tokens = 64 * 3;
        c.clip = 0.96f;
        std::vector<float> m(d * d);
        for (int i = 0; i < d; ++i) {
          for (int k = 0; k < d; ++k) {
            m[i * d + k] =
                identity ? (i == k) : (__builtin_popcount(i & k & 0xff) % 2 == 0 ? 1.0f : -1.0f);
          }
        }
        if (!identity) m[3 * d + 7] = 5 + 1.0f / 4096;  // not symmetric, and needs the low term
        c.matrices.push_back(m);
        if (identity) {
          c.rows = AdversarialRows(random, c.tokens * c.heads, d, d);
        } else {
          for (int64_t i = 0; i < c.tokens * c.heads * d; ++i)
            c.rows.push_back(ToBf16(static_cast<float>(random.Int(-8, 8))));
        }
        if (const std::string e = RunTransformed(c, 0); !e.empty()) return e;
      }
    }
  }
  return "";
}

// A prompt's tail: rows are transformed, its page is left.
std::string Tails() {
  RandomData random(7);
  for (const int64_t tokens : {1, 15, 16, 17, 63, 64, 65, 129, 191}) {
    for (const bool transform : {false, true}) {
      Case c;
      c.side = tokens % 2 ? Side::kKey : Side::kValue;
      c.heads = 3;
      c.tokens = tokens;
      c.clip = 0.96f;
      std::vector<float> identity(c.d * c.d);
      for (int i = 0; i < c.d; ++i) identity[i * c.d + i] = 1;
      if (transform) {
        c.matrices.push_back(identity);
        c.rows = random.Bf16s(tokens * c.heads * c.d);
        if (const std::string e = RunTransformed(c, 0); !e.empty()) return e;
      } else {
        c.rows = AdversarialRows(random, tokens * c.heads, c.d, c.d);
        if (const std::string e = RunExact(c); !e.empty()) return e;
      }
    }
  }
  return "";
}

// Codes and metadata of every row but `skip` (bit per token) of a page-head are the same.
bool OtherRowsEqual(const Case& c, const uint8_t* got, const uint8_t* want, uint64_t skip) {
  const uint8_t* codes[2] = {got, want};
  for (int t = 0; t < 64; ++t) {
    if (skip >> t & 1) continue;
    for (int i = 0; i < c.d; ++i) {
      const CodePosition at =
          c.side == Side::kKey ? KeyPosition(c.d, t, i) : ValuePosition(c.d, t, i);
      int code[2];
      for (int k = 0; k < 2; ++k) {
        code[k] = codes[k][static_cast<int>(c.side) * CodesBytes(c.d) + 4 * at.word + at.bit / 8] >>
                      at.bit % 8 &
                  3;
      }
      if (code[0] != code[1]) return false;
    }
    for (int plane = 0; plane < 2; ++plane) {
      const size_t at =
          MetaOffset(c.d) + (2 * static_cast<int>(c.side) + plane) * 128 + 2 * MetaIndex(t);
      if (std::memcmp(got + at, want + at, 2) != 0) return false;
    }
  }
  return true;
}

std::string NonFiniteRows() {
  RandomData random(8);
  for (const int d : {64, 128}) {
    for (const Side side : {Side::kKey, Side::kValue}) {
      for (const bool transform : {false, true}) {
        for (const float clip : {0.0f, 0.3f, 0.92f, 0.96f}) {
          Case c;
          c.d = d;
          c.side = side;
          c.heads = 2;
          c.tokens = 64 * 6;
          c.clip = clip;
          c.rows = random.Bf16s(c.tokens * c.heads * d);
          if (transform) {
            std::vector<float> identity(d * d);
            for (int i = 0; i < d; ++i) identity[i * d + i] = 1;
            c.matrices.push_back(identity);
          }
          c.SetDense();
          const Expected want = Reference(c, c.rows);  // of the rows before they break
          std::vector<uint64_t> bad(c.num_blocks() * c.heads, 0);
          std::vector<uint32_t> flags(c.num_blocks(), 0);
          for (const auto& [block, head, token, channel, bits] :
               std::vector<std::tuple<int, int, int, int, Bf16>>{{0, 1, 0, 0, 0x7f80},
                                                                 {0, 1, 9, 3, 0xff80},
                                                                 {2, 0, 31, d - 1, 0x7fc0},
                                                                 {2, 1, 63, 17, 0xff81},
                                                                 {2, 1, 40, 17, 0x7f81},
                                                                 {5, 0, 16, 40, 0xffff}}) {
            c.rows[c.RowAt(block, head, token) + channel] = bits;
            bad[block * c.heads + head] |= uint64_t{1} << token;
            flags[block] = 1;
          }
          const Result got = Run(c);
          if (!got.error.empty()) return got.error;
          EncodeCounters counters = want.counters;
          counters.nonfinite_rows = 6;
          if (const std::string e = CompareCounters(c, got.counters, counters); !e.empty())
            return e;
          if (got.block_nonfinite != flags) return c.Name() + ": flags of blocks differ";
          for (int b = 0; b < c.num_blocks(); ++b) {
            for (int h = 0; h < c.heads; ++h) {
              if (!OtherRowsEqual(c, got.pool.data() + c.PageAt(b, h),
                                  want.pool.data() + c.PageAt(b, h), bad[b * c.heads + h]))
                return c.Name() + ": a row beside one with Inf or NaN changed";
            }
          }
        }
      }
    }
  }
  return "";
}

std::string RandomShapes() {
  RandomData random(9);
  for (int i = 0; i < 60; ++i) {
    Case c;
    c.d = random.Int(0, 1) ? 128 : 64;
    c.side = random.Int(0, 1) ? Side::kKey : Side::kValue;
    c.heads = random.Int(1, 9);
    c.tokens = random.Int(1, 400);
    c.clip = random.Int(0, 2) == 0 ? kClips[random.Int(0, 8)] : 0.005f * random.Int(0, 200);
    c.head_stride = c.d + 8 * random.Int(0, 3);
    c.row_stride = c.heads * c.head_stride + 8 * random.Int(0, 3);
    const int64_t last = c.tokens * c.row_stride;
    if (random.Int(0, 1)) {
      for (int m = random.Int(0, 1) ? c.heads : 1; m > 0; --m)
        c.matrices.push_back(Orthogonal(random, c.d));
      c.rows = random.Bf16s(last);
      if (const std::string e = RunTransformed(c, 0.02); !e.empty()) return e;
    } else {
      c.rows = AdversarialRows(random, last / c.d + 1, c.d, c.d);
      if (const std::string e = RunExact(c); !e.empty()) return e;
    }
  }
  return "";
}

std::string BadArguments() {
  EncodeBatchArgs args;
  args.head_dim = 96;
  args.num_blocks = args.num_kv_heads = 1;
  if (EncodeBlocks(args, {}) != KernelStatus::kUnsupported) return "head_dim 96 was not refused";
  DeviceBuffer<uint16_t> rows(64 * 64);
  args.head_dim = 64;
  args.row_type = RowType::kFp16;
  args.rows = args.rotated = rows.get();
  if (EncodeBlocks(args, {}) != KernelStatus::kUnsupported) return "fp16 in place was not refused";
  args.num_blocks = 0;
  args.rotated = nullptr;
  if (EncodeBlocks(args, {}) != KernelStatus::kOk) return "no blocks is not an error";
  if (cuda::PrepareTransforms(96, RowType::kBf16, nullptr, 1, nullptr, {}) !=
      KernelStatus::kUnsupported)
    return "a transform of head_dim 96 was not refused";
  return "";
}

}  // namespace

const std::vector<CudaCheck>& Q2EncodeCudaChecks() {
  static const auto* checks = new std::vector<CudaCheck>{
      {"WithoutTransformTheBytesOfRef", WithoutTransformTheBytesOfRef},
      {"LargeBatches", LargeBatches},
      {"ScatteredBlocks", ScatteredBlocks},
      {"HalfPrecisionRows", HalfPrecisionRows},
      {"Transforms", Transforms},
      {"ExactTransforms", ExactTransforms},
      {"Tails", Tails},
      {"NonFiniteRows", NonFiniteRows},
      {"RandomShapes", RandomShapes},
      {"BadArguments", BadArguments},
  };
  return *checks;
}

}  // namespace oscarkv::kernels
