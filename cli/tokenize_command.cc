// oscarkv tokenize: a text's token ids by a model's tokenizer, as a JSON array.
#include <cstdio>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/command.h"
#include "cli/read_file.h"
#include "common/status_macros.h"
#include "model/tokenizer.h"

namespace oscarkv::cli {
namespace {

class TokenizeCommand final : public Command {
 public:
  std::string name() const override { return "tokenize"; }
  std::string summary() const override { return "Print a text's token ids as a JSON array"; }
  void AddOptions(OptionTable* table) override {
    table->AddString("model", &model_, "DIR", "Hugging Face folder with tokenizer.json");
    table->AddString("prompt", &prompt_, "TEXT", "The text");
    table->AddString("prompt-file", &prompt_file_, "FILE",
                     "Read the text from a file; - reads standard input");
  }
  absl::Status Run() override {
    if (!prompt_file_.empty()) {
      ASSIGN_OR_RETURN(prompt_, ReadFileOrStdin(prompt_file_));
    }
    ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(model_));
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer->Encode(prompt_));
    std::printf("[%s]\n", absl::StrJoin(ids, ",").c_str());
    return absl::OkStatus();
  }

 private:
  std::string model_ = "models/reference", prompt_, prompt_file_;
};

}  // namespace

std::unique_ptr<Command> NewTokenizeCommand() {
  return std::make_unique<TokenizeCommand>();
}

}  // namespace oscarkv::cli
