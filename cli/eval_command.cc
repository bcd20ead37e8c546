// oscarkv eval: what codecs cost on a model and texts, side by side.
#include <cstdio>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cli/command.h"
#include "cli/report_files.h"
#include "cli/terminal.h"
#include "codec/tensor_file.h"
#include "common/status_macros.h"
#include "eval/evaluate.h"

namespace oscarkv::cli {
namespace {

constexpr uint64_t kMaxReportBytes = 64 << 20;

class EvalCommand final : public Command {
 public:
  std::string name() const override { return "eval"; }
  std::string summary() const override {
    return "Compare codecs with bf16: perplexity, divergence, retrieval, errors per layer";
  }
  void AddOptions(OptionTable* table) override {
    options_.model_dir = "models/reference";
    options_.treatments = {"hadamard", "oscar"};
    table->AddString("model", &options_.model_dir, "DIR", "Hugging Face folder of the model");
    table->AddRepeated("text", &options_.text_files, "FILE",
                       "A text to evaluate on; may be given several times");
    table->AddStrings(
        "treatments", &options_.treatments, "NAME,...",
        "Of naive, hadamard, oscar, shaped, shaped-0 and shaped-sym; bf16 always runs. -nowin "
        "behind a name leaves out sink and window, -fake quantises without codes, as a "
        "cross-check");
    table->AddString("fitted", &options_.fitted_dir, "DIR",
                     "Folder of fitted files; empty: the model's");
    table->AddInt("windows", &options_.windows, -1, 1 << 20,
                  "Windows of text, chosen by the seed; 0: all there are, -1: none");
    table->AddInt("window-tokens", &options_.window_tokens, 512, 1 << 20, "Tokens of a window");
    table->AddInt("first-position", &options_.first_position, 0, 1 << 20,
                  "Positions of a window before it are not counted");
    table->AddStrings("needle-lengths", &lengths_, "TOKENS,...", "Lengths of retrieval prompts");
    table->AddInt("needles", &options_.needles, 0, 1 << 20,
                  "Retrieval prompts of each task and length");
    table->AddStrings("needle-tasks", &options_.needle_tasks, "NAME,...",
                      "Of multi (five numbers hidden in a text, each asked for), single (one "
                      "number) and copy (a list of eight words with numbers, repeated)");
    table->AddInt("greedy", &options_.greedy_tokens, 0, 1 << 16,
                  "Tokens by which bf16 continues each window; counted is where the others would "
                  "leave its path (0: not measured)");
    table->AddUint64("seed", &options_.seed, 0, UINT64_MAX, "Chooses windows, places and numbers");
    table->AddChoice("compute", &compute_, {"auto", "fp32", "bf16"},
                     "Operand type of the matrix products");
    table->AddInt("threads", &options_.threads, 1, 256, "Threads");
    table->AddString("json", &json_, "FILE", "Write all figures here, too");
    table->AddString("report", &report_, "FILE.html",
                     "Write tables and figures here, too (drawn by gnuplot, if it is installed)");
    table->AddStrings("pool", &pool_, "FILE,...",
                      "Add up with the --json of earlier runs of the same treatments; without "
                      "--text nothing else is run");
  }

  absl::Status Run() override {
    options_.compute = compute_ == "bf16" || (compute_ == "auto" && kernels::HasNativeBf16())
                           ? kernels::Compute::kBf16
                           : kernels::Compute::kFp32;
    RETURN_IF_ERROR(CheckReportPath(report_));
    for (const std::string& text : lengths_) {
      int length = 0;
      if (!absl::SimpleAtoi(text, &length) || length < 256) {
        return absl::InvalidArgumentError(
            absl::StrCat("--needle-lengths: \"", text, "\" is no number of at least 256 tokens"));
      }
      options_.needle_lengths.push_back(length);
    }
    EvalReport report;
    if (!options_.text_files.empty() || pool_.empty()) {
      ProgressBar bar("evaluating");
      options_.progress = [&bar](double share) { bar.Update(share); };
      ASSIGN_OR_RETURN(report, Evaluate(options_));
    }
    for (const std::string& file : pool_) {
      const absl::Status status = AddFile(file, &report);
      if (!status.ok())
        return absl::Status(status.code(), absl::StrCat(file, ": ", status.message()));
    }
    std::string tables;
    for (const TreatmentResult& t : report.treatments)
      absl::StrAppend(&tables, t.name, ": ", t.codec, "\n");
    absl::StrAppend(&tables, report.ToTable());
    std::printf("%s", tables.c_str());
    if (!json_.empty()) RETURN_IF_ERROR(WriteWholeFile(json_, report.ToJson()));
    if (report_.empty()) return absl::OkStatus();
    return WriteReportFiles(report_, absl::StrCat("What 2 bits cost ", options_.model_dir), tables,
                            EvalFigures(report));
  }

 private:
  static absl::Status AddFile(const std::string& file, EvalReport* report) {
    ASSIGN_OR_RETURN(const std::vector<uint8_t> bytes, ReadWholeFile(file, kMaxReportBytes));
    ASSIGN_OR_RETURN(EvalReport more,
                     EvalReport::FromJson(absl::string_view(
                         reinterpret_cast<const char*>(bytes.data()), bytes.size())));
    if (!report->treatments.empty()) return report->Add(more);
    *report = std::move(more);
    return absl::OkStatus();
  }

  EvalOptions options_;
  std::vector<std::string> lengths_, pool_;
  std::string compute_ = "auto", json_, report_;
};

}  // namespace

std::unique_ptr<Command> NewEvalCommand() {
  return std::make_unique<EvalCommand>();
}

}  // namespace oscarkv::cli
