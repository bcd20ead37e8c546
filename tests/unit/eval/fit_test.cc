// Fits against numpy's (tests/golden/codec/make_fit.py): the same activations through our own sums.
#include "codec/fit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <sstream>
#include <string>

#include "eval/activation_stats.h"
#include "eval/importance.h"

namespace oscarkv {
namespace {

using ::testing::HasSubstr;

constexpr int kD = 16, kHeads = 2, kGroup = 2, kTokens = 96;

// rows() of make_fit.py.
std::vector<float> Rows(uint64_t state, int n) {
  std::vector<float> out(static_cast<size_t>(n) * kD);
  for (int i = 0; i < n; ++i) {
    float* row = out.data() + i * kD;
    for (int c = 0; c < kD; ++c) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      row[c] = static_cast<float>((static_cast<double>((state >> 33) % 2001) - 1000) / 1024 *
                                  std::exp2(-(c % 5)));
    }
    for (int c = 1; c < kD; ++c) row[c] += 0.5f * row[c - 1];
  }
  return out;
}

std::map<std::string, std::vector<double>> Golden() {
  std::map<std::string, std::vector<double>> golden;
  std::ifstream file("tests/golden/codec/fit.txt");
  for (std::string line; std::getline(file, line);) {
    std::istringstream in(line);
    std::string name;
    in >> name;
    for (double v; in >> v;) golden[name].push_back(v);
  }
  return golden;
}

// The activations as a model's layer gives them, behind kSinkTokens rows that must not count.
struct Activations {
  Activations() {
    const int tokens = kSinkTokens + kTokens;
    q.assign(static_cast<size_t>(tokens) * kHeads * kGroup * kD, 1e3f);
    k.assign(static_cast<size_t>(kHeads) * tokens * kD, 1e3f);
    v = k;
    for (int h = 0; h < kHeads; ++h) {
      const std::vector<float> queries = Rows(11 + h, kTokens * kGroup);
      for (int g = 0; g < kGroup; ++g) {
        for (int t = 0; t < kTokens; ++t) {
          std::copy_n(queries.begin() + (g * kTokens + t) * kD, kD,
                      q.begin() + ((kSinkTokens + t) * kHeads * kGroup + h * kGroup + g) * kD);
        }
      }
      const std::vector<float> keys = Rows(31 + h, kTokens), values = Rows(51 + h, kTokens);
      const size_t at = (static_cast<size_t>(h) * tokens + kSinkTokens) * kD;
      std::copy(keys.begin(), keys.end(), k.begin() + at);
      std::copy(values.begin(), values.end(), v.begin() + at);
    }
    view = {tokens, q.data(), k.data(), v.data(), static_cast<int64_t>(tokens) * kD};
  }
  std::vector<float> q, k, v;
  Transformer::LayerActivations view;
};

ActivationStats Stats(kernels::Executor* executor = nullptr) {
  const Activations a;
  ActivationStats stats({1, kHeads, kD}, kHeads * kGroup, 32, kTokens);
  stats.Add(0, a.view, executor);
  stats.AddWeighted(0, a.view, executor);
  return stats;
}

std::vector<double> Mean(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> mean(a.size());
  for (size_t i = 0; i < a.size(); ++i) mean[i] = (a[i] + b[i]) / 2;
  return mean;
}

double Hadamard(int i, int j) {
  return (__builtin_popcount(i & j) % 2 == 0 ? 1 : -1) / std::sqrt(double{kD});
}

// M = R H P back to R: the columns of M are those of R H in another order.
std::vector<double> Eigenvectors(const std::vector<double>& m) {
  std::vector<double> r(m.size());
  for (int j = 0; j < kD; ++j) {
    int reversed = 0;
    for (int bit = 1, i = kD - 1 - j; bit < kD; bit <<= 1, i >>= 1)
      reversed = reversed << 1 | (i & 1);
    for (int i = 0; i < kD; ++i) {
      for (int c = 0; c < kD; ++c) r[i * kD + c] += m[i * kD + j] * Hadamard(reversed, c);
    }
  }
  return r;
}

TEST(FitTest, OscarEqualsNumpy) {
  const ActivationStats stats = Stats();
  auto golden = Golden();
  const std::vector<double> keys =
      Mean(stats.QuerySecondMoment(0, 0), stats.QuerySecondMoment(0, 1));
  const std::vector<double> values = Mean(stats.WeightedValues(0, 0), stats.WeightedValues(0, 1));
  for (const auto& [name, target] : {std::pair{"qqt", keys}, std::pair{"sst", values}}) {
    SCOPED_TRACE(name);
    const auto fit = FitOscar(target, kD);
    ASSERT_TRUE(fit.ok()) << fit.status();
    const std::vector<double>& eigenvalues = golden[std::string(name) + ".eigenvalues"];
    const std::vector<double>& vectors = golden[std::string(name) + ".eigenvectors"];
    ASSERT_EQ(eigenvalues.size(), kD);
    const std::vector<double> ours = Eigenvectors(fit->rotation);
    for (int c = 0; c < kD; ++c) {
      EXPECT_NEAR(fit->spectrum.eigenvalues[c], eigenvalues[c], 1e-8 * eigenvalues[kD - 1]);
      double dot = 0;
      for (int i = 0; i < kD; ++i) dot += ours[i * kD + c] * vectors[i * kD + c];
      EXPECT_NEAR(std::abs(dot), 1, 1e-6) << "eigenvector " << c;
    }
    EXPECT_EQ(fit->spectrum.rank, kD);
  }
}

TEST(FitTest, ShapedEqualsNumpy) {
  const ActivationStats stats = Stats();
  auto golden = Golden();
  const auto fit = FitShaped(stats.Covariance(0, 0, kernels::Side::kKey),
                             stats.QuerySecondMoment(0, 0), kD, 0.3);
  ASSERT_TRUE(fit.ok()) << fit.status();
  std::vector<double> rows(kD * kD), gram(kD * kD);
  for (int i = 0; i < kD; ++i) {
    for (int j = 0; j < kD; ++j) {
      for (int x = 0; x < kD; ++x) {
        rows[i * kD + j] += Hadamard(i, x) * fit->transform[x * kD + j];
        gram[i * kD + j] += fit->transform[x * kD + i] * fit->transform[x * kD + j];
      }
    }
  }
  const std::vector<double>&expected = golden["shaped.rows"], &product = golden["shaped.gram"];
  ASSERT_EQ(expected.size(), rows.size());
  for (int i = 0; i < kD; ++i) {
    double dot = 0, norm = 0;
    for (int j = 0; j < kD; ++j) {
      dot += rows[i * kD + j] * expected[i * kD + j];
      norm += expected[i * kD + j] * expected[i * kD + j];
      EXPECT_NEAR(gram[i * kD + j], product[i * kD + j], 1e-6 * std::abs(product[0]));
    }
    EXPECT_NEAR(std::abs(dot), norm, 1e-6 * norm) << "row " << i;
  }
  // det W = prod D_j of its factor; the trace is d.
  double trace = 0;
  for (int i = 0; i < kD; ++i) trace += fit->metric[i * kD + i];
  EXPECT_NEAR(trace, kD, 1e-9);
  const auto spectrum = SpectrumOf(fit->metric, kD);
  ASSERT_TRUE(spectrum.ok());
  double log_det = 0;
  for (const double v : spectrum->eigenvalues) log_det += std::log(v);
  EXPECT_NEAR(log_det, golden["shaped.log_det"][0], 1e-6);
  EXPECT_LT(fit->inverse_error, 1e-10);
}

TEST(FitTest, RankDeficient) {
  std::vector<double> s(kD * kD), full(kD * kD);
  for (int i = 0; i < kD; ++i) full[i * kD + i] = 1;
  for (int i = 0; i < 3; ++i) s[i * kD + i] = i + 1;
  const auto oscar = FitOscar(s, kD);
  ASSERT_TRUE(oscar.ok());
  EXPECT_EQ(oscar->spectrum.rank, 3);
  EXPECT_TRUE(std::isinf(oscar->spectrum.condition));
  for (const auto& [k, q] : {std::pair{s, full}, std::pair{full, s}, std::pair{s, s}}) {
    const auto shaped = FitShaped(k, q, kD, 0.3);
    ASSERT_TRUE(shaped.ok());
    EXPECT_EQ(std::min(shaped->keys.rank, shaped->queries.rank), 3);
    EXPECT_LT(shaped->inverse_error, 1e-8);
    EXPECT_LT(shaped->condition, 1e5);
  }
}

TEST(FitTest, Refused) {
  std::vector<double> s(kD * kD);
  EXPECT_THAT(std::string(FitOscar(s, kD).status().message()), HasSubstr("all zero"));
  s[0] = NAN;
  EXPECT_THAT(std::string(FitOscar(s, kD).status().message()), HasSubstr("not finite"));
  s[0] = 1;
  EXPECT_THAT(std::string(FitOscar(s, 8).status().message()), HasSubstr("expected 8 x 8"));
  EXPECT_THAT(std::string(FitShaped(s, std::vector<double>(kD * kD), kD, 0.3).status().message()),
              HasSubstr("queries"));
}

TEST(ActivationStatsTest, ThreadsDoNotMatterAndStateGoesThroughAFile) {
  kernels::ThreadPool pool(3);
  const ActivationStats one = Stats();
  const ActivationStats three = Stats(&pool);
  TensorFileWriter a, b, c;
  one.Save(&a);
  three.Save(&b);
  EXPECT_EQ(a.Finish(), b.Finish());
  EXPECT_EQ(one.tokens(0), kTokens);
  EXPECT_EQ(one.Sample(0, 1, kernels::Side::kKey).size(), 32 * kD);

  ActivationStats restored({1, kHeads, kD}, kHeads * kGroup, 32, kTokens);
  const std::string bytes = a.Finish();
  const auto file = TensorFile::Open(
      absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()));
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE(restored.Restore(*file).ok());
  restored.Save(&c);
  EXPECT_EQ(bytes, c.Finish());
  ActivationStats other({1, kHeads, 2 * kD}, kHeads * kGroup, 32, kTokens);
  EXPECT_THAT(std::string(other.Restore(*file).message()), HasSubstr("shape [16, 16]"));
}

// Sums that are turned equal sums of turned rows.
TEST(ActivationStatsTest, SpreadOverPositions) {
  std::vector<float> inv_freq;  // of 12 of the 16 channels
  for (int i = 0; i < 6; ++i) inv_freq.push_back(std::pow(1000.0f, static_cast<float>(-i) / 6));
  ActivationStats turned({1, kHeads, kD}, kHeads * kGroup, 32, kTokens);
  for (const int start : {0, 0, 0, 0, 0, 100, 200, 300}) {  // half at 0, half anywhere
    Activations a;
    for (std::vector<float>* rows : {&a.q, &a.k}) {
      for (size_t row = 0; row < rows->size(); row += kD) {
        for (int i = 0; i < 6; ++i) {
          const double angle = start * inv_freq[i], c = std::cos(angle), s = std::sin(angle);
          float &low = (*rows)[row + i], &high = (*rows)[row + i + 6];
          const double x = low, y = high;
          low = static_cast<float>(x * c - y * s);
          high = static_cast<float>(x * s + y * c);
        }
      }
    }
    turned.Add(0, a.view, nullptr);
  }
  ActivationStats spread = Stats();
  const auto expect_near = [](const std::vector<double>& got, const std::vector<double>& want) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-6) << i;
  };
  const std::vector<double> values = spread.ImportantCovariance(0, 1, kernels::Side::kValue),
                            keys = spread.ImportantCovariance(0, 1, kernels::Side::kKey);
  expect_near(keys, spread.Covariance(0, 1, kernels::Side::kKey));
  spread.SpreadOverPositions(inv_freq, 100, 350);
  for (int h = 0; h < kHeads; ++h) {
    expect_near(spread.ImportantQueries(0, h), turned.QuerySecondMoment(0, h));
    expect_near(spread.ImportantMean(0, h, kernels::Side::kKey),
                turned.Mean(0, h, kernels::Side::kKey));
    expect_near(spread.ImportantCovariance(0, h, kernels::Side::kKey),
                turned.Covariance(0, h, kernels::Side::kKey));
  }
  EXPECT_NE(spread.ImportantCovariance(0, 1, kernels::Side::kKey), keys);
  EXPECT_EQ(spread.ImportantCovariance(0, 1, kernels::Side::kValue), values);
}

// Against sums written down as the header says, in float64.
TEST(ImportanceTest, EqualsItsDefinition) {
  constexpr int kLong = 448, kFirst = 6 * 64;  // queries from there on read rows 64.. as codes
  const std::vector<float> q = Rows(5, kLong * kHeads * kGroup), k = Rows(6, kLong * kHeads),
                           v = Rows(7, kLong * kHeads), w = Rows(8, kD);
  std::vector<double> gram(kD * kD);
  for (int i = 0; i < kD; ++i) {
    for (int j = 0; j < kD; ++j) {
      for (int c = 0; c < kD; ++c) gram[i * kD + j] += double{w[c * kD + i]} * w[c * kD + j];
    }
  }
  const int head = 1;
  const Transformer::LayerActivations a = {kLong, q.data(), k.data(), v.data(), kLong * kD};
  const RowImportance found = ImportanceOf(a, kHeads * kGroup, kHeads, kD, head, gram);
  std::vector<double> key(kLong), value(kLong);
  const float *kh = k.data() + head * kLong * kD, *vh = v.data() + head * kLong * kD;
  for (int g = 0; g < kGroup; ++g) {
    for (int t = kFirst; t < kLong; t += 4) {
      const float* qt = q.data() + (t * kHeads * kGroup + head * kGroup + g) * kD;
      std::vector<double> p(t + 1), o(kD);
      double sum = 0, of_query = 0;
      for (int i = 0; i <= t; ++i) {
        double dot = 0;
        for (int c = 0; c < kD; ++c) dot += double{qt[c]} * kh[i * kD + c];
        sum += p[i] = std::exp(dot / std::sqrt(double{kD}));
      }
      for (int i = 0; i <= t; ++i) {
        p[i] /= sum;
        for (int c = 0; c < kD; ++c) o[c] += p[i] * vh[i * kD + c];
      }
      for (int i = 64; i < (t / 64 - 4) * 64; ++i) {
        double square = 0;
        for (int x = 0; x < kD; ++x) {
          for (int y = 0; y < kD; ++y)
            square += (vh[i * kD + x] - o[x]) * gram[x * kD + y] * (vh[i * kD + y] - o[y]);
        }
        key[i] += p[i] * p[i] * square;
        value[i] += p[i] * p[i];
        of_query += p[i] * p[i] * square;
      }
      EXPECT_NEAR(found.query[g * kLong + t], of_query, 1e-3 * of_query);
    }
  }
  double total = 0;
  for (int i = 0; i < kLong; ++i) {
    EXPECT_NEAR(found.key[i], std::sqrt(key[i]), 1e-3 * std::sqrt(key[i]) + 1e-9) << i;
    EXPECT_NEAR(found.value[i], std::sqrt(value[i]), 1e-3 * std::sqrt(value[i]) + 1e-9) << i;
    total += found.value[i];
  }
  EXPECT_GT(total, 0);
  EXPECT_EQ(found.key[63], 0);   // sink
  EXPECT_EQ(found.key[192], 0);  // in every query's window
  EXPECT_EQ(found.query[383], 0);
}

}  // namespace
}  // namespace oscarkv
