// Calibration of the reference model on a part of a book.
#include "eval/calibrate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "codec/rotation_writer.h"
#include "eval/damage.h"
#include "kernels/q2_encode/op.h"

namespace oscarkv {
namespace {

using ::testing::HasSubstr;

constexpr kernels::KvShape kShape = {8, 2, 128};
constexpr float kClip[2] = {0.96f, 0.92f};

CollectOptions Options(int tokens, int prompt_tokens) {
  CollectOptions options;
  options.model_dir = "models/reference";
  options.text_files = {"tests/data/wendigo.txt"};
  options.plan.tokens = tokens;
  options.plan.prompt_tokens = prompt_tokens;
  options.compute = kernels::Compute::kFp32;
  options.weighted_values = true;
  return options;
}

std::string SavedStats(const Collected& c) {
  TensorFileWriter w;
  c.stats->Save(&w);
  return w.Finish();
}

// Share of the trace of S that the leading `n` of a rotation's eigenvectors hold. M = R H P.
double LeadingShare(const std::vector<double>& s, const float* m, int n) {
  const int d = kShape.head_dim;
  double trace = 0, share = 0;
  for (int i = 0; i < d; ++i) trace += s[i * d + i];
  for (int c = d - n; c < d; ++c) {
    std::vector<double> v(d);
    for (int j = 0; j < d; ++j) {
      int reversed = 0;
      for (int bit = 1, i = d - 1 - j; bit < d; bit <<= 1, i >>= 1)
        reversed = reversed << 1 | (i & 1);
      const double h = __builtin_popcount(reversed & c) % 2 == 0 ? 1 : -1;
      for (int i = 0; i < d; ++i) v[i] += m[i * d + j] * h / std::sqrt(double(d));
    }
    for (int i = 0; i < d; ++i) {
      for (int j = 0; j < d; ++j) share += v[i] * s[i * d + j] * v[j];
    }
  }
  return share / trace;
}

// The committed rotations were fitted on other text, whose activations are not at hand: what the
// fit must share with them is the subspace that holds the energy, and the damage.
TEST(CalibrateTest, AgreesWithCommittedRotations) {
  auto collected = CollectStats(Options(4096, 1024));
  ASSERT_TRUE(collected.ok()) << collected.status();
  EXPECT_EQ(collected->prompts, 4);
  EXPECT_EQ(collected->tokens, 4 * (1024 - 64));
  const auto fit = FitOscarProfile(*collected, false, kClip);
  ASSERT_TRUE(fit.ok()) << fit.status();
  const auto committed = ReadRotations("models/reference/k_rotation_qqt_r_h_pbr.pt", kShape);
  ASSERT_TRUE(committed.ok());
  for (int layer = 0; layer < kShape.num_layers; ++layer) {
    SCOPED_TRACE(layer);
    std::vector<double> s = collected->stats->QuerySecondMoment(layer, 0);
    const std::vector<double> other = collected->stats->QuerySecondMoment(layer, 1);
    for (size_t i = 0; i < s.size(); ++i) s[i] = (s[i] + other[i]) / 2;
    const double ours = LeadingShare(s, fit->keys.At(layer, 0), 16);
    const double theirs = LeadingShare(s, committed->At(layer, 0), 16);
    EXPECT_GT(ours, 0.3);
    EXPECT_LE(theirs, ours + 1e-6);  // ours is the best possible for these activations
    EXPECT_GT(theirs, 0.75 * ours);  // chance would give an eighth of the trace
    for (int side : {0, 1}) {
      const SideSummary& summary = fit->summary[layer].sides[side];
      EXPECT_LT(summary.error, 1e-12);
      EXPECT_EQ(summary.spectrum.rank, 128);
      EXPECT_LT(summary.damage_after, summary.damage_before * 1.05);
    }
  }
  const std::string table = FormatSummary(fit->summary, kShape.head_dim);
  EXPECT_THAT(table, HasSubstr("damage, before->after"));

  // Both forms of file hold the same rotations, and read back as they are.
  const RotationFile info = {"qqt_r_h_pbr", fit->key_eigenvalues, collected->provenance};
  const auto pt = WriteRotationPt(fit->keys, info);
  const auto safetensors = WriteRotationSafetensors(fit->keys, info);
  ASSERT_TRUE(pt.ok() && safetensors.ok());
  for (const std::string& bytes : {*pt, *safetensors}) {
    const auto read = ParseRotations(
        absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()), kShape);
    ASSERT_TRUE(read.ok()) << read.status();
    for (int l = 0; l < kShape.num_layers; ++l) {
      EXPECT_TRUE(std::equal(read->At(l, 1), read->At(l, 1) + 128 * 128, fit->keys.At(l, 0)));
    }
  }
}

TEST(CalibrateTest, ResumesToTheBit) {
  CollectOptions options = Options(1024, 256);
  const std::string path = testing::TempDir() + "/calibrate_test.checkpoint";
  std::filesystem::remove(path);
  const auto whole = CollectStats(options);
  ASSERT_TRUE(whole.ok()) << whole.status();
  // Stopped after six of eight prompts by keeping the checkpoint of that moment.
  options.checkpoint_file = path;
  options.checkpoint_every = 3;
  options.threads = 2;
  const std::string kept = path + ".kept";
  options.progress = [&](double share) {
    if (share >= 7.0 / 8 && share < 1 && std::filesystem::exists(path)) {
      std::filesystem::copy_file(path, kept, std::filesystem::copy_options::overwrite_existing);
    }
  };
  const auto again = CollectStats(options);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(SavedStats(*whole), SavedStats(*again));  // whatever the number of threads
  EXPECT_FALSE(std::filesystem::exists(path));

  std::filesystem::rename(kept, path);
  double first_share = 1;
  options.progress = [&](double share) { first_share = std::min(first_share, share); };
  const auto resumed = CollectStats(options);
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  EXPECT_EQ(first_share, 6.0 / 8);
  EXPECT_EQ(SavedStats(*whole), SavedStats(*resumed));

  // Of another run: refused.
  options.progress = [&](double share) {
    if (share >= 7.0 / 8 && share < 1)
      std::filesystem::copy_file(path, kept, std::filesystem::copy_options::overwrite_existing);
  };
  ASSERT_TRUE(CollectStats(options).ok());
  std::filesystem::rename(kept, path);
  options.plan.seed = 7;
  options.plan.tokens = 768;
  EXPECT_THAT(std::string(CollectStats(options).status().message()),
              HasSubstr("checkpoint of another run"));
  std::filesystem::remove(path);
}

using Order = CollectOptions::Order;

// Both passes of oscar and the weights of shaped, in both orders.
TEST(CalibrateTest, LayerByLayerIsTheSameToTheBit) {
  for (const bool importance : {false, true}) {
    SCOPED_TRACE(importance);
    CollectOptions options = Options(1536, 512);
    options.weighted_values = !importance;
    options.importance = importance;
    options.compute = importance ? kernels::Compute::kBf16 : kernels::Compute::kFp32;
    options.order = Order::kPrompts;
    const auto whole = CollectStats(options);
    ASSERT_TRUE(whole.ok()) << whole.status();
    EXPECT_FALSE(whole->by_layers);
    options.order = Order::kLayers;
    options.threads = 2;
    double last = -1;
    options.progress = [&](double share) {
      EXPECT_GT(share, last);
      last = share;
    };
    const auto streamed = CollectStats(options);
    ASSERT_TRUE(streamed.ok()) << streamed.status();
    EXPECT_TRUE(streamed->by_layers);
    EXPECT_EQ(last, 1);
    EXPECT_EQ(SavedStats(*whole), SavedStats(*streamed));
    EXPECT_EQ(whole->provenance, streamed->provenance);
    EXPECT_EQ(whole->output_gram, streamed->output_gram);
  }
}

TEST(CalibrateTest, ResumesBehindALayer) {
  CollectOptions options = Options(512, 256);
  std::string folder = testing::TempDir() + "/calibrate_XXXXXX";
  ASSERT_NE(mkdtemp(folder.data()), nullptr);
  const std::string path = folder + "/checkpoint", kept = folder + "/kept";
  const auto hidden = [&](int layers) { return absl::StrCat(path, ".hidden-", layers); };
  options.checkpoint_file = path;
  options.order = Order::kLayers;
  // Of the moment when layer 5 has run for one of the two passes.
  options.progress = [&](double share) {
    if (share < 5.5 / 8 || std::filesystem::exists(kept)) return;
    EXPECT_FALSE(std::filesystem::exists(hidden(4)));
    std::filesystem::copy_file(path, kept);
    std::filesystem::copy_file(hidden(5), kept + ".hidden");
  };
  const auto whole = CollectStats(options);
  ASSERT_TRUE(whole.ok()) << whole.status();
  for (int layer = 0; layer < 8; ++layer) EXPECT_FALSE(std::filesystem::exists(hidden(layer)));
  EXPECT_FALSE(std::filesystem::exists(path));

  const auto put_back = [&] {
    const auto over = std::filesystem::copy_options::overwrite_existing;
    std::filesystem::copy_file(kept, path, over);
    std::filesystem::copy_file(kept + ".hidden", hidden(5), over);
  };
  put_back();
  double first_share = 1;
  options.progress = [&](double share) { first_share = std::min(first_share, share); };
  options.order = Order::kAuto;  // as it was begun, though memory is enough
  options.available_bytes = uint64_t{1} << 40;
  const auto resumed = CollectStats(options);
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  EXPECT_EQ(first_share, 5.0 / 8);
  EXPECT_TRUE(resumed->by_layers);
  EXPECT_EQ(SavedStats(*whole), SavedStats(*resumed));

  options.progress = nullptr;
  put_back();
  options.order = Order::kPrompts;
  EXPECT_THAT(std::string(CollectStats(options).status().message()),
              HasSubstr("was begun layer by layer"));
  options.order = Order::kAuto;
  std::filesystem::resize_file(hidden(5), std::filesystem::file_size(hidden(5)) - 4);
  EXPECT_EQ(CollectStats(options).status().code(), absl::StatusCode::kDataLoss);
  put_back();
  {
    std::fstream file(hidden(5), std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(1000).put(77).put(78);
  }
  EXPECT_EQ(CollectStats(options).status().code(), absl::StatusCode::kDataLoss);
  std::filesystem::remove(hidden(5));
  EXPECT_THAT(std::string(CollectStats(options).status().message()),
              HasSubstr("hidden-5: missing"));
  std::filesystem::remove_all(folder);
}

// The order is chosen before anything is run.
TEST(CalibrateTest, OrderByMemory) {
  CollectOptions options = Options(256, 256);
  CalibrationMemory memory;
  options.on_plan = [&](const Collected& plan) {
    memory = plan.memory;
    EXPECT_EQ(plan.prompts, 1);
    EXPECT_EQ(plan.stats->tokens(0), 0);
  };
  const auto by_layers = [&](uint64_t available) {
    options.available_bytes = available;
    const auto collected = CollectStats(options);
    EXPECT_TRUE(collected.ok()) << collected.status();
    return collected.ok() && collected->by_layers;
  };
  EXPECT_FALSE(by_layers(0));
  // 17 million weights and an embedding of 3 million.
  EXPECT_GT(memory.model, uint64_t{4} * 20'000'000);
  EXPECT_LT(memory.model, uint64_t{4} * 35'000'000);
  EXPECT_LT(memory.layer, memory.model / 4);
  EXPECT_EQ(memory.hidden, 256 * 384 * 4);
  EXPECT_LT(memory.ByLayers(), memory.ByPrompts());
  EXPECT_GT(memory.program, uint64_t{96} << 20);
  EXPECT_FALSE(by_layers(memory.ByPrompts() / 3 * 4 + 4));
  EXPECT_TRUE(by_layers(memory.ByPrompts() / 3 * 4 - 4));
}

TEST(CalibrateTest, Refused) {
  CollectOptions options = Options(1024, 256);
  options.text_files = {};
  EXPECT_THAT(std::string(CollectStats(options).status().message()), HasSubstr("--text"));
  options.text_files = {"absent.txt"};
  EXPECT_EQ(CollectStats(options).status().code(), absl::StatusCode::kNotFound);
  options = Options(1024, 64);
  EXPECT_THAT(std::string(CollectStats(options).status().message()), HasSubstr("left out"));
  options = Options(1024, 256);
  options.context = 32769;
  EXPECT_THAT(std::string(CollectStats(options).status().message()),
              HasSubstr("a context of 32769 positions: the model's has 32768"));
  options = Options(1 << 20, 1 << 20);
  EXPECT_THAT(std::string(CollectStats(options).status().message()),
              HasSubstr("no text has 1048576 tokens"));
}

}  // namespace
}  // namespace oscarkv
