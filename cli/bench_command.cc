// oscarkv bench: closed-loop load on a gateway: each client sends its next request when the last
// one ended.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <map>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/command.h"
#include "cli/gateway_client.h"
#include "cli/read_file.h"
#include "cli/terminal.h"
#include "common/mutex.h"
#include "common/status_macros.h"

namespace oscarkv::cli {
namespace {

constexpr std::chrono::milliseconds kPauseAfterRefusal(200);

struct Sample {
  absl::Status status;
  uint64_t total_us = 0;
  v1::Usage usage;
};

// The value below which a share q of the sorted values lies.
uint64_t Quantile(const std::vector<uint64_t>& sorted, double q) {
  if (sorted.empty()) return 0;
  return sorted[std::min(sorted.size() - 1,
                         static_cast<size_t>(q * static_cast<double>(sorted.size())))];
}

class BenchCommand final : public Command {
 public:
  std::string name() const override { return "bench"; }
  std::string summary() const override {
    return "Load a gateway with prompts and report throughput and latencies";
  }
  void AddOptions(OptionTable* table) override {
    AddGatewayOptions(table, &gateway_);
    table->AddString("text", &text_file_, "FILE", "The prompts are excerpts of this text");
    table->AddInt("clients", &clients_, 1, 1024, "Requests under way at once");
    table->AddInt("requests", &requests_, 1, 1 << 20, "Requests in all");
    table->AddInt("seconds", &seconds_, 0, 86400,
                  "Go on for so long instead of for a number of requests; 0: --requests counts");
    table->AddInt("prompt-bytes", &prompt_bytes_, 1, 1 << 24, "Length of each prompt");
    table->AddInt("prefixes", &prefixes_, 1, 1 << 20,
                  "Distinct prompts: fewer than requests means cache hits");
    table->AddInt("max-tokens", &max_tokens_, 1, 1 << 20, "Length of each answer");
  }

  absl::Status Run() override {
    ASSIGN_OR_RETURN(text_, ReadFileOrStdin(text_file_));
    if (text_.size() < static_cast<size_t>(prompt_bytes_) + 1) {
      return absl::InvalidArgumentError(absl::StrCat("--prompt-bytes=", prompt_bytes_,
                                                     ": expected fewer than the ", text_.size(),
                                                     " bytes of ", text_file_));
    }
    RETURN_IF_ERROR(GatewayClient::Connect(gateway_, std::chrono::seconds(5)).status());
    const Time start = SteadyClock::Get()->Now();
    std::atomic<int> next = 0;
    std::vector<std::thread> threads;
    for (int i = 0; i < clients_; ++i) threads.emplace_back([&] { Client(&next); });
    for (std::thread& t : threads) t.join();
    Report(std::chrono::duration<double>(SteadyClock::Get()->Now() - start).count());
    MutexLock lock(mu_);
    const bool all_failed = std::none_of(samples_.begin(), samples_.end(),
                                         [](const Sample& s) { return s.status.ok(); });
    return all_failed ? samples_.front().status : absl::OkStatus();
  }

 private:
  void Client(std::atomic<int>* next) {
    const auto client = GatewayClient::Connect(gateway_, std::chrono::seconds(5));
    const Time end = SteadyClock::Get()->Now() + std::chrono::seconds(seconds_);
    const auto go_on = [&](int i) {
      return seconds_ > 0 ? SteadyClock::Get()->Now() < end : i < requests_;
    };
    for (int i; go_on(i = next->fetch_add(1));) {
      Sample sample;
      sample.status = client.status();
      if (client.ok()) sample = Send(**client, i % prefixes_);
      const bool refused = !sample.status.ok();
      {
        MutexLock lock(mu_);
        samples_.push_back(std::move(sample));
      }
      // Who is told no comes back a little later, as a client should.
      if (refused) std::this_thread::sleep_for(kPauseAfterRefusal);
    }
  }

  Sample Send(GatewayClient& client, int prefix) {
    v1::GenerateRequest request;
    const size_t room = text_.size() - prompt_bytes_;
    size_t at = room * static_cast<size_t>(prefix) / static_cast<size_t>(prefixes_);
    while (at > 0 && (static_cast<unsigned char>(text_[at]) & 0xc0) == 0x80) --at;
    size_t end = at + prompt_bytes_;
    while (end < text_.size() && (static_cast<unsigned char>(text_[end]) & 0xc0) == 0x80) ++end;
    request.set_prompt(text_.substr(at, end - at));
    request.set_max_tokens(max_tokens_);
    request.set_ignore_eos(true);
    Sample sample;
    const Time start = SteadyClock::Get()->Now();
    sample.status =
        client.Generate(request, std::chrono::minutes(10), [&](const v1::GenerateResponse& r) {
          if (r.has_usage()) sample.usage = r.usage();
        });
    sample.total_us = (SteadyClock::Get()->Now() - start).count() / 1000;
    return sample;
  }

  void Report(double seconds) {
    MutexLock lock(mu_);
    std::vector<uint64_t> ttft, tpot, total;
    uint64_t prompt = 0, cached = 0, generated = 0, shipped = 0;
    std::map<std::string, int> errors;
    for (const Sample& s : samples_) {
      if (!s.status.ok()) {
        ++errors[absl::StatusCodeToString(s.status.code())];
        continue;
      }
      ttft.push_back(s.usage.ttft_us());
      tpot.push_back(s.usage.tpot_us());
      total.push_back(s.total_us);
      prompt += s.usage.prompt_tokens();
      cached += s.usage.cached_tokens();
      generated += s.usage.generated_tokens();
      shipped += s.usage.bytes_put() + s.usage.bytes_got();
    }
    std::vector<std::vector<std::string>> rows = {{"", "p50", "p90", "p99", "max"}};
    for (auto [label, values] : {std::pair<const char*, std::vector<uint64_t>*>{"TTFT", &ttft},
                                 {"TPOT", &tpot},
                                 {"request", &total}}) {
      std::sort(values->begin(), values->end());
      rows.push_back({label, FormatMicros(Quantile(*values, 0.5)),
                      FormatMicros(Quantile(*values, 0.9)), FormatMicros(Quantile(*values, 0.99)),
                      FormatMicros(Quantile(*values, 1))});
    }
    std::printf(
        "%zu requests in %.2f s by %d clients: %.2f requests/s, %.1f generated tokens/s, %.0f "
        "prompt tokens/s "
        "(%.1f %% from the cache), %s shipped\n",
        total.size(), seconds, clients_, static_cast<double>(total.size()) / seconds,
        static_cast<double>(generated) / seconds, static_cast<double>(prompt) / seconds,
        prompt == 0 ? 0.0 : 100.0 * static_cast<double>(cached) / static_cast<double>(prompt),
        FormatBytes(shipped).c_str());
    for (const auto& [code, n] : errors) std::printf("%d failed with %s\n", n, code.c_str());
    std::printf("%s", FormatTable(rows).c_str());
  }

  GatewayAddress gateway_;
  std::string text_file_ = "tests/data/styles.txt", text_;
  int clients_ = 4, requests_ = 32, seconds_ = 0, prompt_bytes_ = 4000, prefixes_ = 16,
      max_tokens_ = 32;
  Mutex mu_;
  std::vector<Sample> samples_ GUARDED_BY(mu_);
};

}  // namespace

std::unique_ptr<Command> NewBenchCommand() {
  return std::make_unique<BenchCommand>();
}

}  // namespace oscarkv::cli
