// oscarkv status: the cluster as a table.
#include <cstdio>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/command.h"
#include "cli/gateway_client.h"
#include "cli/readiness.h"
#include "cli/terminal.h"
#include "common/status_macros.h"

namespace oscarkv::cli {
namespace {

// A gateway knows of its workers what it asked up to a second ago (--poll-interval).
constexpr Duration kHolds = std::chrono::seconds(2);
constexpr Duration kAskEvery = std::chrono::milliseconds(250);

std::string Percent(uint64_t part, uint64_t whole) {
  return whole == 0 ? "-"
                    : absl::StrFormat("%.1f %%", 100.0 * static_cast<double>(part) /
                                                     static_cast<double>(whole));
}

std::string Zone(const v1::StoreNodeStatus& n) {
  return n.zone().empty() ? "-" : n.zone();
}

// How the nodes make up the store.
std::string StoreLine(const v1::GetStatusResponse& s) {
  std::string line =
      absl::StrCat("store: ", s.nodes_size(), s.nodes_size() == 1 ? " node (" : " nodes (",
                   s.membership(), "), copies of each block: ", s.replicas());
  uint32_t take_puts = 0;
  for (const v1::StoreNodeStatus& n : s.nodes()) take_puts += n.reachable() && !n.draining();
  if (take_puts < s.replicas()) absl::StrAppend(&line, "   NEW BLOCKS GET ", take_puts);
  uint64_t under = 0, no_room = 0, restored = 0;
  bool known = false;
  for (const v1::StoreNodeStatus& n : s.nodes()) {
    known |= n.knows_peers();
    under += n.waiting_copies() + n.no_node_copies();
    no_room += n.no_room_copies();
    restored += n.restored_copies();
  }
  if (known) {
    absl::StrAppend(&line, "   under-replicated blocks: ", under, ", no room for a copy: ", no_room,
                    ", restored: ", restored);
  }
  if (!s.membership_error().empty())
    absl::StrAppend(&line, "   MEMBERSHIP NOT REACHABLE, last known list: ", s.membership_error());
  return line;
}

std::string NodeTable(const v1::GetStatusResponse& s) {
  std::vector<std::vector<std::string>> rows = {{"KV NODE", "ZONE", "STATE", "CAPACITY", "USED",
                                                 "2-BIT", "BF16", "HAND-OVER", "PINNED", "HIT RATE",
                                                 "EVICTIONS", "SESSIONS"}};
  for (const v1::StoreNodeStatus& n : s.nodes()) {
    if (!n.reachable()) {
      rows.push_back({n.endpoint(), Zone(n), "DOWN"});
      continue;
    }
    const auto kind = [](uint64_t bytes, uint64_t blocks) {
      return absl::StrCat(FormatBytes(bytes), " (", blocks, ")");
    };
    rows.push_back({n.endpoint(), Zone(n), n.draining() ? "draining" : "up",
                    FormatBytes(n.capacity_bytes()), FormatBytes(n.used_bytes()),
                    kind(n.page_bytes(), n.page_blocks()), kind(n.bf16_bytes(), n.bf16_blocks()),
                    kind(n.handover_bytes(), n.handover_blocks()), FormatBytes(n.pinned_bytes()),
                    Percent(n.hits(), n.hits() + n.misses()), absl::StrCat(n.evictions()),
                    absl::StrCat(n.sessions())});
  }
  return FormatTable(rows);
}

// The tiers on disk; empty when no node has one.
std::string TierTable(const v1::GetStatusResponse& s) {
  std::vector<std::vector<std::string>> rows = {
      {"SSD TIER", "STATE", "CAPACITY", "USED", "BLOCKS", "PROMOTED", "DROPPED"}};
  for (const v1::StoreNodeStatus& n : s.nodes()) {
    if (!n.reachable() || n.ssd_capacity_bytes() == 0) continue;
    rows.push_back({n.endpoint(), n.ssd_paused() ? "DISK ERROR" : "up",
                    FormatBytes(n.ssd_capacity_bytes()), FormatBytes(n.ssd_used_bytes()),
                    absl::StrCat(n.ssd_blocks()), absl::StrCat(n.ssd_promoted_blocks()),
                    absl::StrCat(n.ssd_dropped_blocks())});
  }
  return rows.size() == 1 ? "" : FormatTable(rows) + "\n";
}

std::string WorkerTable(const v1::GetStatusResponse& s) {
  std::vector<std::vector<std::string>> rows = {
      {"WORKER", "ROLE", "STATE", "PROFILE", "RUNNING", "WAITING", "PAGES FREE"}};
  for (const v1::WorkerStatus& w : s.workers()) {
    const v1::WorkerInfo& i = w.info();
    if (!w.reachable()) {
      rows.push_back({w.endpoint(), i.role(), "DOWN"});
      continue;
    }
    // Answers, and is left out of requests: it serves another model or profile than most.
    rows.push_back({w.endpoint(), i.role(), w.error().empty() ? "up" : "NOT USED",
                    absl::StrCat(i.profile(), i.data_free() ? " (data-free!)" : ""),
                    absl::StrCat(i.running()), absl::StrCat(i.waiting()),
                    absl::StrCat(i.pool_pages_free(), "/", i.pool_pages())});
  }
  return FormatTable(rows);
}

// Why nodes and workers are down or not used, a line each: too long for a table.
std::string Reasons(const v1::GetStatusResponse& s) {
  std::string lines;
  for (const v1::StoreNodeStatus& n : s.nodes()) {
    if (!n.reachable()) absl::StrAppend(&lines, n.endpoint(), ": ", n.error(), "\n");
  }
  for (const v1::WorkerStatus& w : s.workers()) {
    if (!w.error().empty()) absl::StrAppend(&lines, w.endpoint(), ": ", w.error(), "\n");
  }
  return lines.empty() ? lines : lines + "\n";
}

// Bytes of the stored 2-bit blocks against the same blocks in bf16.
std::string Compression(const v1::GetStatusResponse& s) {
  for (const v1::WorkerStatus& w : s.workers()) {
    const v1::WorkerInfo& i = w.info();
    if (i.kv_bytes_per_token_stored() == 0) continue;
    return absl::StrFormat("%.2fx", static_cast<double>(i.kv_bytes_per_token_bf16()) /
                                        static_cast<double>(i.kv_bytes_per_token_stored()));
  }
  return "-";
}

class StatusCommand final : public Command {
 public:
  std::string name() const override { return "status"; }
  std::string summary() const override {
    return "Show nodes, workers, KV bytes by kind, hit rate and compression";
  }
  void AddOptions(OptionTable* table) override {
    AddGatewayOptions(table, &gateway_);
    table->AddDuration("wait", &wait_, Duration(0), std::chrono::hours(24),
                       "First wait, so long at most, until the gateway answers, all nodes and "
                       "workers are up and no copy of a block is missing: before the next process "
                       "is restarted; exit status 1 when it does not come to that; 0: do not wait");
  }
  absl::Status Run() override {
    v1::GetStatusResponse status;
    absl::Status waited;
    if (wait_ > Duration(0)) {
      waited = Wait(&status);
    } else {
      ASSIGN_OR_RETURN(std::unique_ptr<GatewayClient> client,
                       GatewayClient::Connect(gateway_, std::chrono::seconds(5)));
      ASSIGN_OR_RETURN(status, client->GetStatus());
    }
    if (waited.ok() || status.workers_size() > 0) Print(status);
    return waited;
  }

 private:
  // Until the cluster is whole; `last`: the last status that was got.
  absl::Status Wait(v1::GetStatusResponse* last) {
    const Clock& clock = *SteadyClock::Get();
    const Time start = clock.Now();
    std::optional<Time> whole_since;
    std::string missing;
    while (true) {
      const Time now = clock.Now();
      const std::string was = std::exchange(missing, Ask(last, now - start));
      if (missing.empty()) {
        if (!whole_since) whole_since = now;
        if (clock.Now() - *whole_since >= kHolds) return absl::OkStatus();
      } else {
        whole_since.reset();
        if (missing != was) std::fprintf(stderr, "waiting: %s\n", missing.c_str());
      }
      if (clock.Now() - start >= wait_) {
        return absl::DeadlineExceededError(absl::StrCat(
            "after ", FormatDuration(wait_), ": ",
            missing.empty() ? "all is well, but not yet for long enough" : missing.c_str()));
      }
      std::this_thread::sleep_for(kAskEvery);
    }
  }

  // What is missing of a whole cluster. A gateway that does not answer may be the one that is
  // restarted.
  std::string Ask(v1::GetStatusResponse* last, Duration waited) {
    absl::StatusOr<std::unique_ptr<GatewayClient>> client =
        GatewayClient::Connect(gateway_, std::chrono::seconds(1));
    if (!client.ok()) return std::string(client.status().message());
    absl::StatusOr<v1::GetStatusResponse> status = (*client)->GetStatus();
    if (!status.ok()) return std::string(status.status().message());
    *last = *std::move(status);
    return MissingForWhole(*last, waited);
  }

  static void Print(const v1::GetStatusResponse& s) {
    std::printf("%s%s\n\n%s%s\n%s", NodeTable(s).c_str(), StoreLine(s).c_str(),
                TierTable(s).c_str(), WorkerTable(s).c_str(), Reasons(s).c_str());
    std::printf(
        "requests %llu (running %u, waiting %u)   prompt tokens %llu, from the cache %s   "
        "generated %llu   "
        "2-bit blocks against bf16: %s\n",
        static_cast<unsigned long long>(s.requests()), s.running(), s.waiting(),
        static_cast<unsigned long long>(s.prompt_tokens()),
        Percent(s.cached_tokens(), s.prompt_tokens()).c_str(),
        static_cast<unsigned long long>(s.generated_tokens()), Compression(s).c_str());
  }

  GatewayAddress gateway_;
  Duration wait_{0};
};

}  // namespace

std::unique_ptr<Command> NewStatusCommand() {
  return std::make_unique<StatusCommand>();
}

}  // namespace oscarkv::cli
