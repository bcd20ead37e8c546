// oscarkv calibrate: fits a codec's transforms to a model and texts.
#include <malloc.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <thread>

#include "absl/strings/str_cat.h"
#include "cli/command.h"
#include "cli/report_files.h"
#include "cli/terminal.h"
#include "codec/codec.h"
#include "codec/rotation_writer.h"
#include "common/status_macros.h"
#include "eval/calibrate.h"
#include "eval/fit_shaped.h"
#include "kernels/thread_pool.h"
#include "worker/device_placement.h"

namespace oscarkv::cli {
namespace {

class CalibrateCommand final : public Command {
 public:
  std::string name() const override { return "calibrate"; }
  std::string summary() const override {
    return "Fit a 2-bit codec to a model: prompts through its prefill, covariances, transforms";
  }
  void AddOptions(OptionTable* table) override {
    collect_.model_dir = "models/reference";
    table->AddString("model", &collect_.model_dir, "DIR", "Hugging Face folder of the model");
    table->AddRepeated("text", &collect_.text_files, "FILE",
                       "A text to calibrate on; may be given several times");
    table->AddChoice("profile", &profile_, {"oscar", "shaped", "shaped-sym"}, "What to fit");
    table->AddString("out", &out_, "DIR",
                     "Folder of the fitted files; in a model's folder they become its default");
    table->AddChoice("format", &format_, {"pt", "safetensors"},
                     "Of rotations: RotationZoo's .pt, or safetensors with metadata");
    table->AddBool("per-head", &per_head_, "A rotation for each kv head instead of each layer");
    table->AddFloat(
        "t", &t_, 0, 1,
        "Fits of shaped, shaped-sym: from whitened keys (0) to error-balanced ones (0.5)");
    table->AddFloat(
        "widen", &widen_, 0.5, 4,
        "Fits of shaped, shaped-sym: how much wider steps are than least squares would have them");
    table->AddBool(
        "search", &search_,
        "Fits of shaped, shaped-sym: each layer takes the t and the step of least damage instead");
    table->AddFloat("key-gain", &key_gain_, 0, 2,
                    "Fits of shaped, shaped-sym: how much of the shrinkage of keys is undone");
    table->AddFloat("value-gain", &value_gain_, 0, 2,
                    "Fits of shaped, shaped-sym: how much of the shrinkage of values is undone");
    table->AddChoice(
        "weights", &weights_, {"importance", "none"},
        "Fits of shaped, shaped-sym: count rows and queries by what an error of them does to the "
        "outputs of attention, or all alike");
    collect_.plan.tokens = 49152;
    collect_.plan.prompt_tokens = 4096;
    table->AddInt("tokens", &collect_.plan.tokens, 0, 1 << 30,
                  "Tokens to calibrate on, about; 0: all of the texts");
    table->AddInt("prompt-tokens", &collect_.plan.prompt_tokens, 128, 1 << 20,
                  "Tokens of one prompt: keys turn with their position, and those of positions "
                  "that no prompt has are never seen");
    table->AddInt("context", &collect_.context, 0, 1 << 20,
                  "Fits of shaped, shaped-sym: positions that will be served; those that no prompt "
                  "has count half, as keys and queries of earlier ones, turned on (0: not at all)");
    table->AddInt("needle-prompts", &collect_.plan.needle_prompts, 0, 1000,
                  "How many of the prompts hide numbers and ask for one");
    table->AddUint64("seed", &collect_.plan.seed, 0, UINT64_MAX, "Chooses pieces of the texts");
    table->AddChoice("compute", &compute_, {"auto", "fp32", "bf16"},
                     "Operand type of the matrix products");
    table->AddInt("threads", &collect_.threads, 1, 256, "Threads");
    table->AddChoice(
        "order", &order_, {"auto", "prompts", "layers"},
        "Prompt by prompt with the whole model in memory, or layer by layer with one layer and the "
        "hidden states of all prompts; the result is the same. auto: by layers where the whole "
        "model would take more than 3/4 of the memory that is available");
    table->AddString("report", &report_, "FILE.html",
                     "Write a report with figures of damage, spectra and rows here (drawn by "
                     "gnuplot, if it is installed)");
    table->AddString("checkpoint", &collect_.checkpoint_file, "FILE",
                     "Write the sums here every few prompts (by layers: after every layer, with "
                     "the hidden states in a file beside it), and go on from them if it exists");
  }

  absl::Status Run() override {
    RETURN_IF_ERROR(CheckReportPath(report_));
    collect_.compute = compute_ == "bf16" || (compute_ == "auto" && kernels::HasNativeBf16())
                           ? kernels::Compute::kBf16
                           : kernels::Compute::kFp32;
    collect_.weighted_values = profile_ == "oscar";
    collect_.importance = profile_ != "oscar" && weights_ == "importance";
    // Layers come and go between sums that stay: what is large goes back to the system at once, and
    // leaves no holes in the heap. (Measured: 16 MiB for each layer of Qwen3-8B without this.)
    mallopt(M_MMAP_THRESHOLD, 1 << 20);
    using Order = CollectOptions::Order;
    collect_.order = order_ == "auto"      ? Order::kAuto
                     : order_ == "prompts" ? Order::kPrompts
                                           : Order::kLayers;
    collect_.available_bytes = worker::AvailableHostBytes();
    collect_.on_plan = [](const Collected& plan) {
      const CalibrationMemory& m = plan.memory;
      std::printf("%s: at most %s of memory (%s %s, ",
                  plan.by_layers ? "layer by layer" : "prompt by prompt",
                  FormatBytes(plan.by_layers ? m.ByLayers() : m.ByPrompts()).c_str(),
                  plan.by_layers ? "a layer" : "the model",
                  FormatBytes(plan.by_layers ? m.layer : m.model).c_str());
      if (plan.by_layers) std::printf("hidden states %s, ", FormatBytes(m.hidden).c_str());
      std::printf("a prompt %s, sums %s, the program %s)\n", FormatBytes(m.activations).c_str(),
                  FormatBytes(m.statistics).c_str(), FormatBytes(m.program).c_str());
      std::fflush(stdout);
    };
    Collected collected;
    {
      ProgressBar bar("calibrating");
      collect_.progress = [&bar](double share) { bar.Update(share); };
      ASSIGN_OR_RETURN(collected, CollectStats(collect_));
    }
    std::printf("%d prompts, %ld tokens behind the sinks; sums and samples take %s\n",
                collected.prompts, static_cast<long>(collected.tokens),
                FormatBytes(collected.stats->MemoryBytes()).c_str());
    std::error_code ec;
    std::filesystem::create_directories(out_, ec);
    if (ec) return absl::InvalidArgumentError(absl::StrCat("--out ", out_, ": ", ec.message()));
    return profile_ == "oscar" ? WriteOscar(collected) : WriteShaped(collected);
  }

 private:
  absl::Status WriteOscar(const Collected& collected) {
    const float clip[2] = {0.96f, 0.92f};
    ASSIGN_OR_RETURN(const OscarFiles fit, FitOscarProfile(collected, per_head_, clip));
    std::printf("%s", FormatSummary(fit.summary, collected.stats->shape().head_dim).c_str());
    CodecOptions codec_options;
    ASSIGN_OR_RETURN(
        codec_options.key_rotation_file,
        WriteRotation("k_rotation_", {"qqt_r_h_pbr", fit.key_eigenvalues, collected.provenance},
                      fit.keys));
    ASSIGN_OR_RETURN(
        codec_options.value_rotation_file,
        WriteRotation("v_rotation_", {"sst_r_h_pbr", fit.value_eigenvalues, collected.provenance},
                      fit.values));
    ASSIGN_OR_RETURN(const auto codec, CreateCodec(codec_options, collected.stats->shape()));
    return Report(collected, fit.summary, *codec);
  }

  absl::Status WriteShaped(const Collected& collected) {
    ShapedFitOptions options;
    options.t = {t_};
    options.widen = {widen_};
    if (search_) {
      options.t = {0.15, 0.25, 0.35, 0.45};
      options.widen = {1.05f, 1.15f, 1.25f};
    }
    options.key_gain = key_gain_;
    options.value_gain = value_gain_;
    options.symmetric = profile_ == "shaped-sym";
    kernels::ThreadPool pool(collect_.threads);
    options.executor = &pool;
    ASSIGN_OR_RETURN(const ShapedFitResult fit, FitShapedProfile(collected, options));
    std::printf("%s", FormatSummary(fit.summary, fit.parameters.shape.head_dim).c_str());
    const std::string bytes = WriteShapedFile(fit.parameters),
                      path = absl::StrCat(out_, "/codec_", profile_, ".safetensors");
    RETURN_IF_ERROR(WriteWholeFile(path, bytes));
    CodecOptions codec_options;
    ASSIGN_OR_RETURN(codec_options.profile, ParseProfile(profile_));
    codec_options.shaped_file = path;
    ASSIGN_OR_RETURN(const auto codec, CreateCodec(codec_options, fit.parameters.shape));
    std::printf("wrote %s, %s, fingerprint %s\n", path.c_str(), FormatBytes(bytes.size()).c_str(),
                ToHex(codec->fingerprint()).c_str());
    return Report(collected, fit.summary, *codec);
  }

  absl::Status Report(const Collected& collected, const std::vector<LayerSummary>& summary,
                      const KvCodec& codec) const {
    if (report_.empty()) return absl::OkStatus();
    return WriteReportFiles(
        report_, absl::StrCat("Calibration of profile ", profile_, ", ", collect_.model_dir),
        absl::StrCat(codec.Describe(), "\ncodec fingerprint ", ToHex(codec.fingerprint()), "\n",
                     collected.prompts, " prompts, ", collected.tokens,
                     " tokens behind the sinks\n\n",
                     FormatSummary(summary, collected.stats->shape().head_dim)),
        CalibrationFigures(summary, *collected.stats, codec));
  }

  // The file's name.
  absl::StatusOr<std::string> WriteRotation(const char* prefix, const RotationFile& file,
                                            const RotationSet& set) {
    const std::string path = absl::StrCat(out_, "/", prefix, file.objective, ".", format_);
    ASSIGN_OR_RETURN(const std::string bytes, format_ == "pt"
                                                  ? WriteRotationPt(set, file)
                                                  : WriteRotationSafetensors(set, file));
    RETURN_IF_ERROR(WriteWholeFile(path, bytes));
    std::printf("wrote %s, %s\n", path.c_str(), FormatBytes(bytes.size()).c_str());
    return path;
  }

  CollectOptions collect_;
  std::string profile_ = "oscar", out_ = "calibrated", format_ = "pt", compute_ = "auto",
              weights_ = "importance", order_ = "auto", report_;
  bool per_head_ = false, search_ = false;
  float t_ = 0.2f, widen_ = 1.15f, key_gain_ = 1, value_gain_ = 0.3f;
};

}  // namespace

std::unique_ptr<Command> NewCalibrateCommand() {
  return std::make_unique<CalibrateCommand>();
}

}  // namespace oscarkv::cli
