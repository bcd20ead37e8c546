// oscarkv generate: one prompt through a gateway, or (--model) in this process; the answer streamed
// to stdout.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>

#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cli/command.h"
#include "cli/gateway_client.h"
#include "cli/local_generate.h"
#include "cli/read_file.h"
#include "cli/terminal.h"
#include "cli/usage.h"
#include "common/status_macros.h"
#include "model/tokenizer.h"

namespace oscarkv::cli {
namespace {

class GenerateCommand final : public Command {
 public:
  std::string name() const override { return "generate"; }
  std::string summary() const override {
    return "Send a prompt to a gateway and stream the answer";
  }

  void AddOptions(OptionTable* table) override {
    AddGatewayOptions(table, &gateway_);
    table->AddString("model", &model_, "DIR",
                     "Answer in this process with this model instead of asking a gateway");
    table->AddChoice("profile", &profile_, {"oscar", "shaped", "shaped-sym", "bf16"},
                     "With --model: how the KV cache is held");
    table->AddChoice("prefill-history", &history_, {"exact", "canonical"},
                     "With --model: as the workers' option");
    table->AddString("device", &device_, "DEVICE", "With --model: cpu, or cuda:N");
    table->AddString("prompt", &prompt_, "TEXT", "The prompt");
    table->AddString("prompt-ids", &prompt_ids_, "ID,...", "The prompt as token ids");
    table->AddString("prompt-file", &prompt_file_, "FILE",
                     "Read the prompt from a file; - reads standard input");
    table->AddInt("max-tokens", &max_tokens_, 1, 1 << 20, "Longest answer, in tokens");
    table->AddFloat("temperature", &temperature_, 0, 100, "0 picks the most likely token");
    table->AddInt("top-k", &top_k_, 0, 1 << 20, "Choose among the K most likely tokens; 0: all");
    table->AddFloat("top-p", &top_p_, 1e-6, 1,
                    "Choose among the most likely tokens that hold this share");
    table->AddFloat("min-p", &min_p_, 0, 0.999,
                    "Leave out tokens less likely than this share of the best");
    table->AddFloat("repetition-penalty", &repetition_penalty_, 0.01, 100,
                    "Above 1 makes tokens seen before less likely");
    table->AddUint64("seed", &seed_, 0, UINT64_MAX,
                     "Of the random choices; the same seed gives the same answer");
    table->AddInt("logprobs", &logprobs_, 0, 20,
                  "With --json: report the log probabilities of this many tokens");
    table->AddRepeated("stop", &stop_, "TEXT",
                       "The answer ends before this text; may be given several times");
    table->AddBool("ignore-eos", &ignore_eos_, "Go on past the model's end-of-text token");
    table->AddString("tenant", &tenant_, "NAME", "Whose cache and quota to use");
    table->AddDuration("timeout", &timeout_, std::chrono::milliseconds(1), std::chrono::hours(24),
                       "Give up when the answer is not complete by then");
    table->AddBool("json", &json_,
                   "Print one JSON object with text, tokens and usage instead of streaming text");
    table->AddBool("jsonl", &jsonl_,
                   "Print a JSON object a line: text and tokens as they come, then the usage");
    table->AddInt("retries", &retries_, 0, 1000,
                  "When the connection breaks or the gateway goes: how often to ask again for the "
                  "rest of the answer");
    table->AddString("request-id", &request_id_, "ID",
                     "Name of the request in the gateway's and workers' logs; empty: any");
    table->AddBool("usage", &usage_, "Print a usage line on stderr behind the answer");
  }

  absl::Status Run() override {
    ASSIGN_OR_RETURN(const v1::GenerateRequest request, MakeRequest());
    if (!model_.empty()) return RunLocal(request);
    ASSIGN_OR_RETURN(std::unique_ptr<GatewayClient> client,
                     GatewayClient::Connect(gateway_, ConnectWait()));
    return Ask(*client, request);
  }

 private:
  // Who retries means to outlast a gateway that is just being restarted.
  Duration ConnectWait() const {
    const Duration shortest = std::chrono::seconds(5), longest = std::chrono::seconds(30);
    return retries_ > 0 ? std::clamp(timeout_, shortest, longest) : shortest;
  }
  absl::StatusOr<v1::GenerateRequest> MakeRequest() {
    v1::GenerateRequest r;
    for (absl::string_view id : absl::StrSplit(prompt_ids_, ',', absl::SkipEmpty())) {
      int32_t token = 0;
      if (!absl::SimpleAtoi(id, &token)) {
        return absl::InvalidArgumentError(
            absl::StrCat("--prompt-ids: '", id, "' is not a token id"));
      }
      r.add_prompt_tokens(token);
    }
    if (prompt_ids_.empty()) {
      r.set_prompt(prompt_);
      if (!prompt_file_.empty()) {
        ASSIGN_OR_RETURN(*r.mutable_prompt(), ReadFileOrStdin(prompt_file_));
      }
      if (r.prompt().empty()) {
        return absl::InvalidArgumentError(
            "the prompt is empty: give --prompt, --prompt-file or --prompt-ids");
      }
    }
    r.set_max_tokens(max_tokens_);
    v1::Sampling* s = r.mutable_sampling();
    s->set_temperature(temperature_);
    s->set_top_k(top_k_);
    s->set_top_p(top_p_);
    s->set_min_p(min_p_);
    s->set_repetition_penalty(repetition_penalty_);
    s->set_seed(seed_);
    s->set_logprobs(logprobs_);
    for (const std::string& stop : stop_) r.add_stop(stop);
    r.set_ignore_eos(ignore_eos_);
    r.set_tenant(tenant_);
    r.set_request_id(request_id_);
    return r;
  }

  absl::Status Ask(GatewayClient& client, const v1::GenerateRequest& request) {
    nlohmann::json tokens = nlohmann::json::array();
    std::string text;
    v1::GenerateResponse last;
    const absl::Status status = client.GenerateWithRetries(
        request, timeout_, retries_,
        [&](const v1::GenerateResponse& r) {
          text += r.text();
          nlohmann::json new_tokens = nlohmann::json::array();
          for (const v1::Token& t : r.tokens()) new_tokens.push_back(TokenJson(t));
          tokens.insert(tokens.end(), new_tokens.begin(), new_tokens.end());
          if (jsonl_) {
            PrintJson({{"text", r.text()}, {"tokens", new_tokens}});
          } else if (!json_) {
            std::fwrite(r.text().data(), 1, r.text().size(), stdout);
            std::fflush(stdout);
          }
          if (r.has_usage()) last = r;
        },
        [](const absl::Status& lost) {
          PrintError(absl::Status(lost.code(), absl::StrCat(lost.message(), "; trying again")));
        });
    const bool plain = !json_ && !jsonl_;
    if (plain && !text.empty() && text.back() != '\n') std::fputc('\n', stdout);
    RETURN_IF_ERROR(status);
    if (!plain) {
      nlohmann::json out = {{"request_id", last.request_id()},
                            {"finish_reason", FinishReasonName(last.finish_reason())},
                            {"usage", UsageJson(last.usage())}};
      if (json_) out.update({{"text", text}, {"tokens", tokens}});
      PrintJson(out);
    } else if (usage_) {
      std::cerr << FormatUsage(last.usage()) << "; request " << last.request_id() << std::endl;
    }
    return absl::OkStatus();
  }

  static void PrintJson(const nlohmann::json& json) {
    std::cout << json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << std::endl;
  }

  // Without servers; stop strings and tenants belong to the gateway.
  absl::Status RunLocal(const v1::GenerateRequest& request) {
    if (!stop_.empty()) return absl::InvalidArgumentError("--stop needs a gateway");
    ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(model_));
    LocalRequest local;
    local.tokens.assign(request.prompt_tokens().begin(), request.prompt_tokens().end());
    if (local.tokens.empty()) {
      ASSIGN_OR_RETURN(local.tokens, tokenizer->Encode(request.prompt()));
    }
    local.sampling = {temperature_, top_k_, top_p_, min_p_, repetition_penalty_, seed_, logprobs_};
    RETURN_IF_ERROR(ValidateSampling(local.sampling));
    local.max_tokens = max_tokens_;
    std::unique_ptr<ModelRunner> runner;
    {
      ProgressBar bar("loading");
      LocalModelOptions options;
      options.model_dir = model_;
      options.profile = profile_;
      options.history = history_;
      options.device = device_;
      options.progress = [&bar](double share) { bar.Update(share); };
      ASSIGN_OR_RETURN(runner, LoadLocalRunner(options));
    }
    if (!ignore_eos_) local.stop_tokens = runner->config().eos_token_ids;
    nlohmann::json tokens = nlohmann::json::array();
    std::vector<int32_t> ids;
    StreamDecoder decoder(tokenizer.get());
    RETURN_IF_ERROR(LocalGenerate(*runner, local, [&](const SampledToken& t) {
      tokens.push_back({{"id", t.token}, {"logprob", t.logprob}});
      ids.push_back(t.token);
      if (json_) return;
      std::fputs(decoder.Push(t.token).c_str(), stdout);
      std::fflush(stdout);
    }));
    if (json_) {
      const nlohmann::json out = {{"text", tokenizer->Decode(ids)}, {"tokens", tokens}};
      PrintJson(out);
    } else {
      std::printf("%s\n", decoder.Finish().c_str());
    }
    return absl::OkStatus();
  }

  static nlohmann::json TokenJson(const v1::Token& t) {
    nlohmann::json j = {{"id", t.id()}, {"logprob", t.logprob()}};
    for (const v1::TokenLogprob& top : t.top())
      j["top"].push_back({{"id", top.token()}, {"logprob", top.logprob()}});
    return j;
  }

  GatewayAddress gateway_;
  std::string prompt_, prompt_file_, prompt_ids_, tenant_;
  std::string model_, profile_ = "oscar", history_ = "exact", device_ = "cpu";
  int max_tokens_ = 256, top_k_ = 0, logprobs_ = 0;
  float temperature_ = 0, top_p_ = 1, min_p_ = 0, repetition_penalty_ = 1;
  uint64_t seed_ = 0;
  std::vector<std::string> stop_;
  std::string request_id_;
  int retries_ = 0;
  bool ignore_eos_ = false, json_ = false, jsonl_ = false, usage_ = false;
  Duration timeout_ = std::chrono::minutes(10);
};

}  // namespace

std::unique_ptr<Command> NewGenerateCommand() {
  return std::make_unique<GenerateCommand>();
}

}  // namespace oscarkv::cli
