// oscarkv trace: where a request's time went, as the gateway that ran it tells.
#include <algorithm>
#include <cstdio>
#include <ctime>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/command.h"
#include "cli/gateway_client.h"
#include "cli/terminal.h"
#include "cli/usage.h"
#include "common/status_macros.h"

namespace oscarkv::cli {
namespace {

constexpr size_t kBarWidth = 40;

std::string Utc(int64_t unix_ms) {
  const std::time_t seconds = unix_ms / 1000;
  std::tm tm{};
  gmtime_r(&seconds, &tm);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm);
  return absl::StrFormat("%s.%03dZ", text, unix_ms % 1000);
}

// Where in the request's time: "...###......".
std::string Bar(uint64_t begin, uint64_t lasted, uint64_t whole) {
  const auto column = [whole](uint64_t at) {
    return whole == 0 ? size_t{0} : static_cast<size_t>(std::min(at, whole) * kBarWidth / whole);
  };
  const size_t from = std::min(column(begin), kBarWidth - 1);
  const size_t to = std::max(column(begin + lasted), from + 1);
  return std::string(from, '.') + std::string(to - from, '#') + std::string(kBarWidth - to, '.');
}

std::string State(const v1::GetTraceResponse& t) {
  if (!t.ended()) return "running";
  const auto code = static_cast<absl::StatusCode>(t.code());
  return absl::StrCat(absl::StatusCodeToString(code), t.error().empty() ? "" : ": ", t.error());
}

std::string Timeline(const v1::GetTraceResponse& t) {
  std::vector<std::vector<std::string>> rows = {{"BEGAN", "LASTED", "PHASE", "", "WORKER"}};
  const auto add = [&](uint64_t begin, uint64_t lasted, const std::string& name,
                       const std::string& worker) {
    rows.push_back({FormatMicros(begin), FormatMicros(lasted), name,
                    Bar(begin, lasted, t.lasted_us()), worker});
  };
  for (const v1::TracePhase& phase : t.phases()) {
    add(phase.begin_us(), phase.lasted_us(), phase.name(), phase.worker());
    // The worker's clock knows how long its parts were, not where in our time they began: half of
    // what they leave is taken for the way to it.
    uint64_t sum = 0;
    for (const v1::TracePart& part : phase.parts()) sum += part.lasted_us();
    uint64_t at = phase.begin_us() + (phase.lasted_us() - std::min(sum, phase.lasted_us())) / 2;
    for (const v1::TracePart& part : phase.parts()) {
      add(at, part.lasted_us(), absl::StrCat("  ", part.name()), "");
      at += part.lasted_us();
    }
  }
  return FormatTable(rows);
}

class TraceCommand final : public Command {
 public:
  std::string name() const override { return "trace"; }
  std::string summary() const override {
    return "Show where a request's time went, by its id or its trace's";
  }
  void AddOptions(OptionTable* table) override {
    table->AddPositional("id", &id_, "ID",
                         "Of the request (`generate --usage` and the logs tell it), or of the "
                         "trace; `trace ID` says the same");
    AddGatewayOptions(table, &gateway_);
  }
  absl::Status Run() override {
    if (id_.empty()) return absl::InvalidArgumentError("no id given: oscarkv trace ID");
    ASSIGN_OR_RETURN(std::unique_ptr<GatewayClient> client,
                     GatewayClient::Connect(gateway_, std::chrono::seconds(5)));
    ASSIGN_OR_RETURN(const v1::GetTraceResponse t, client->GetTrace(id_));
    std::printf("request %s   trace %s   tenant %s\narrived %s   %s %s   %s\n\n%s\n",
                t.request_id().c_str(), t.trace_id().c_str(),
                t.tenant().empty() ? "(default)" : t.tenant().c_str(),
                Utc(t.arrived_unix_ms()).c_str(), t.ended() ? "lasted" : "so far",
                FormatMicros(t.lasted_us()).c_str(), State(t).c_str(), Timeline(t).c_str());
    if (t.usage().ttft_us() > 0) {
      std::printf("first token after %s\n", FormatMicros(t.usage().ttft_us()).c_str());
    }
    std::printf("%s\n", FormatUsage(t.usage()).c_str());
    return absl::OkStatus();
  }

 private:
  GatewayAddress gateway_;
  std::string id_;
};

}  // namespace

std::unique_ptr<Command> NewTraceCommand() {
  return std::make_unique<TraceCommand>();
}

}  // namespace oscarkv::cli
