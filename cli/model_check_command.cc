// oscarkv model check: compares a model with golden tensors that another implementation computed.
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "cli/command.h"
#include "cli/terminal.h"
#include "common/status_macros.h"
#include "kernels/gemm/gemm.h"
#include "model/golden_check.h"

namespace oscarkv::cli {
namespace {

class ModelCheckCommand final : public Command {
 public:
  std::string name() const override { return "model check"; }
  std::string summary() const override {
    return "Compare a model's logits, K and V with golden tensors";
  }
  void AddOptions(OptionTable* table) override {
    table->AddString("model", &options_.model_dir, "DIR", "Hugging Face folder of the model");
    table->AddString("golden", &options_.golden_file, "FILE",
                     "safetensors file of prompts and expected tensors");
    table->AddString("device", &options_.device, "DEVICE", "cpu, or cuda:N with --compute bf16");
    table->AddChoice("compute", &compute_, {"fp32", "bf16"}, "Operand type of the matrix products");
    table->AddInt("threads", &options_.threads, 1, 256, "Threads of the products");
  }
  absl::Status Run() override {
    options_.compute = compute_ == "fp32" ? kernels::Compute::kFp32 : kernels::Compute::kBf16;
    ProgressBar bar("loading");
    options_.progress = [&bar](double share) { bar.Update(share); };
    ASSIGN_OR_RETURN(const GoldenReport report, RunGoldenCheck(options_));
    std::printf("%s", report.ToString().c_str());
    if (report.passed) return absl::OkStatus();
    return absl::InternalError(
        absl::StrCat("the model does not agree with ", options_.golden_file));
  }

 private:
  GoldenCheckOptions options_{"models/reference", "tests/golden/golden.safetensors"};
  std::string compute_ = "fp32";
};

}  // namespace

std::unique_ptr<Command> NewModelCheckCommand() {
  return std::make_unique<ModelCheckCommand>();
}

}  // namespace oscarkv::cli
