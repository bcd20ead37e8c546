// oscarkv demo: numbers hidden in a long text, asked for one after the other; the second question
// finds the text in the cache.
#include <cstdio>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/command.h"
#include "cli/gateway_client.h"
#include "cli/read_file.h"
#include "cli/terminal.h"
#include "common/status_macros.h"
#include "eval/needle.h"

namespace oscarkv::cli {
namespace {

struct Outcome {
  Needle needle;
  bool right = false;
  v1::Usage usage;
};

class DemoCommand final : public Command {
 public:
  std::string name() const override { return "demo"; }
  std::string summary() const override {
    return "Hide numbers in a long text, ask for two of them, stream the answers, print a report";
  }
  void AddOptions(OptionTable* table) override {
    AddGatewayOptions(table, &gateway_);
    table->AddString("text", &text_file_, "FILE", "The book to hide the numbers in");
    table->AddInt("tokens", &tokens_, 256, 1 << 20, "Length of the prompt");
    table->AddInt("questions", &questions_, 1, 20, "How many of the hidden numbers to ask for");
    table->AddInt("needles", &needles_, 1, 20, "How many numbers to hide");
    table->AddInt("max-tokens", &max_tokens_, 1, 1024, "Longest answer, in tokens");
    table->AddUint64("seed", &seed_, 0, UINT64_MAX, "Of the places and numbers");
    table->AddString("require-profile", &require_profile_, "NAME",
                     "Fail unless the workers hold the KV cache in this profile");
    table->AddBool("require-shm", &require_shm_, "Fail unless blocks travelled over shared memory");
  }

  absl::Status Run() override {
    ASSIGN_OR_RETURN(const std::string book, ReadFileOrStdin(text_file_));
    ASSIGN_OR_RETURN(std::unique_ptr<GatewayClient> client,
                     GatewayClient::Connect(gateway_, std::chrono::seconds(30)));
    ASSIGN_OR_RETURN(const v1::GetModelResponse model, client->GetModel());
    if (model.data_free()) {
      return absl::FailedPreconditionError(
          absl::StrCat("the workers run the data-free Hadamard fallback (", model.codec(),
                       "): the rotation files beside the model were not found"));
    }
    if (!require_profile_.empty() && model.profile() != require_profile_) {
      return absl::FailedPreconditionError(absl::StrCat("the workers hold the KV cache in profile ",
                                                        model.profile(), ", expected ",
                                                        require_profile_));
    }
    std::printf("model %s, KV profile %s\n  %s\n", model.name().c_str(), model.profile().c_str(),
                model.codec().c_str());
    const auto count = [&](const std::string& text) -> absl::StatusOr<size_t> {
      ASSIGN_OR_RETURN(const v1::TokenizeResponse r, client->Tokenize(text));
      return static_cast<size_t>(r.tokens_size());
    };
    ASSIGN_OR_RETURN(const NeedleText text, BuildNeedleText(book, tokens_, needles_, seed_, count));
    std::printf("prompt: %zu bytes of %s with %d hidden numbers\n\n", text.text.size(),
                text_file_.c_str(), needles_);
    std::vector<Outcome> outcomes;
    for (int i = 0; i < std::min(questions_, needles_); ++i) {
      // Middle first, then the first, then onwards: not the easiest places.
      const Needle& needle = text.needles[(i + needles_ / 2) % needles_];
      ASSIGN_OR_RETURN(Outcome outcome, Ask(*client, text, needle));
      outcomes.push_back(std::move(outcome));
    }
    return Report(outcomes);
  }

 private:
  absl::StatusOr<Outcome> Ask(GatewayClient& client, const NeedleText& text, const Needle& needle) {
    v1::GenerateRequest request;
    request.set_prompt(NeedlePrompt(text, needle));
    request.set_max_tokens(max_tokens_);
    request.add_stop(".");
    Outcome outcome;
    outcome.needle = needle;
    std::string answer;
    std::printf("Q: What is the special magic number for %s?\nA:", needle.word.c_str());
    std::fflush(stdout);
    RETURN_IF_ERROR(
        client.Generate(request, std::chrono::minutes(5), [&](const v1::GenerateResponse& r) {
          answer += r.text();
          std::printf("%s", r.text().c_str());
          std::fflush(stdout);
          if (r.has_usage()) outcome.usage = r.usage();
        }));
    outcome.right = NeedleAnswered(needle, answer);
    std::printf("   [%s: %s]\n\n", outcome.right ? "right" : "WRONG", needle.number.c_str());
    return outcome;
  }

  absl::Status Report(const std::vector<Outcome>& outcomes) {
    std::vector<std::vector<std::string>> rows = {{"QUESTION", "ANSWER", "PROMPT", "CACHED", "TTFT",
                                                   "TOKENS/S", "KV IN BF16", "KV AS HELD", "RATIO",
                                                   "SHIPPED", "LANES"}};
    int wrong = 0;
    bool shm = true;
    for (const Outcome& o : outcomes) {
      const v1::Usage& u = o.usage;
      wrong += o.right ? 0 : 1;
      bool this_shm = false;
      for (const std::string& lane : u.lanes())
        this_shm |= lane == "posix" || lane == "sysv" || lane == "cma";
      shm &= this_shm;
      rows.push_back(
          {o.needle.word, o.right ? "right" : "WRONG", absl::StrCat(u.prompt_tokens()),
           absl::StrCat(u.cached_tokens()), FormatMicros(u.ttft_us()),
           u.tpot_us() == 0 ? "-" : absl::StrFormat("%.1f", 1e6 / static_cast<double>(u.tpot_us())),
           FormatBytes(u.kv_bytes_bf16()), FormatBytes(u.kv_bytes_stored()),
           u.kv_bytes_stored() == 0
               ? "-"
               : absl::StrFormat("%.2fx", static_cast<double>(u.kv_bytes_bf16()) /
                                              static_cast<double>(u.kv_bytes_stored())),
           FormatBytes(u.bytes_put() + u.bytes_got()), absl::StrJoin(u.lanes(), ",")});
    }
    std::printf("%s", FormatTable(rows).c_str());
    if (wrong > 0)
      return absl::InternalError(
          absl::StrCat(wrong, " of ", outcomes.size(), " answers are wrong"));
    if (require_shm_ && !shm) {
      return absl::FailedPreconditionError(
          "the blocks did not travel over shared memory: see the LANES column");
    }
    std::printf("\nall %zu answers right\n", outcomes.size());
    return absl::OkStatus();
  }

  GatewayAddress gateway_;
  std::string text_file_ = "tests/data/wendigo.txt", require_profile_;
  int tokens_ = 8000, questions_ = 2, needles_ = 5, max_tokens_ = 16;
  uint64_t seed_ = 1;
  bool require_shm_ = false;
};

}  // namespace

std::unique_ptr<Command> NewDemoCommand() {
  return std::make_unique<DemoCommand>();
}

}  // namespace oscarkv::cli
