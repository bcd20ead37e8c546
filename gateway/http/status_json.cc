#include "gateway/http/status_json.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "kvstore/client/client.h"

namespace oscarkv::gateway {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxInFlight = 100, kMaxLatest = 20;

double Milliseconds(Duration d) {
  return std::chrono::duration<double, std::milli>(d).count();
}

// Null: the node has no disk.
Json TierJson(const TierStats& t) {
  if (t.capacity_bytes == 0) return nullptr;
  return {{"capacity_bytes", t.capacity_bytes},
          {"used_bytes", t.used_bytes},
          {"blocks", std::accumulate(t.kind_blocks, t.kind_blocks + kNumBlockKinds, uint64_t{0})},
          {"demoted_blocks", t.demoted_blocks},
          {"promoted_blocks", t.promoted_blocks},
          {"dropped_blocks", t.dropped_blocks},
          {"evicted_blocks", t.evicted_blocks},
          {"corrupt_blocks", t.corrupt_blocks},
          {"writable", t.writable}};
}

Json NodeJson(const KvNodeStats& n) {
  const auto bytes = [&](BlockKind k) { return n.kind_bytes[static_cast<size_t>(k) - 1]; };
  const auto blocks = [&](BlockKind k) { return n.kind_blocks[static_cast<size_t>(k) - 1]; };
  return {{"endpoint", n.node},
          {"zone", n.zone},
          {"reachable", n.reachable},
          {"draining", n.draining},
          {"error", n.error},
          {"capacity_bytes", n.capacity_bytes},
          {"used_bytes", n.used_bytes},
          {"pinned_bytes", n.pinned_bytes},
          {"page_bytes", bytes(BlockKind::kPage)},
          {"bf16_bytes", bytes(BlockKind::kBf16)},
          {"handover_bytes", bytes(BlockKind::kHandover)},
          {"page_blocks", blocks(BlockKind::kPage)},
          {"hits", n.hits},
          {"misses", n.misses},
          {"evictions", n.evictions},
          {"sessions", n.sessions},
          {"under_replicated_blocks", n.replicas.waiting_blocks + n.replicas.no_node_blocks},
          {"ssd", TierJson(n.tier)}};
}

// How many copies a new block gets now: the nodes that take puts, up to what puts aim at.
int CopiesNow(const std::vector<KvNodeStats>& nodes, int replicas) {
  const auto takes_puts = [](const KvNodeStats& n) { return n.reachable && !n.draining; };
  return std::min<int>(replicas, std::count_if(nodes.begin(), nodes.end(), takes_puts));
}

Json WorkerJson(const WorkerState& w) {
  return {{"endpoint", w.endpoint},          {"role", WorkerRoleName(w.role)},
          {"usable", w.status.ok()},         {"error", std::string(w.status.message())},
          {"profile", w.info.profile},       {"data_free", w.info.data_free},
          {"running", w.info.running},       {"waiting", w.info.waiting},
          {"pool_pages", w.info.pool_pages}, {"pool_pages_free", w.info.pool_pages_free}};
}

Json HistogramJson(const Histogram& h) {
  return {{"bounds", h.bounds()},
          {"counts", h.Counts()},
          {"p50", h.Quantile(0.5)},
          {"p95", h.Quantile(0.95)}};
}

}  // namespace

Json RecordJson(const RequestRecord& r) {
  Json phases = Json::array();
  for (size_t i = 0; i < r.phases.size(); ++i) {
    const RequestPhase& phase = r.phases[i];
    Json parts = Json::array();
    for (const CallPart& part : phase.parts) {
      parts.push_back({{"name", part.name}, {"ms", Milliseconds(part.lasted)}});
    }
    phases.push_back({{"name", phase.name},
                      {"begin_ms", Milliseconds(phase.begin)},
                      {"ms", Milliseconds(r.PhaseLasted(i))},
                      {"worker", phase.worker},
                      {"parts", std::move(parts)}});
  }
  return {{"request_id", r.request_id},
          {"trace_id", r.trace_id},
          {"tenant", r.tenant},
          {"arrived_unix_ms", r.arrived_unix_ms},
          {"ms", Milliseconds(r.lasted)},
          {"ended", r.ended},
          {"code", r.ended ? absl::StatusCodeToString(r.status.code()) : "RUNNING"},
          {"error", std::string(r.status.message())},
          {"phases", std::move(phases)},
          {"prompt_tokens", r.usage.prompt_tokens},
          {"cached_tokens", r.usage.cached_tokens},
          {"tokens", r.usage.generated_tokens},
          {"ttft_ms", Milliseconds(r.usage.ttft)},
          {"kv_bytes_bf16", r.usage.kv_bytes_bf16},
          {"kv_bytes_stored", r.usage.kv_bytes_stored},
          {"lanes", r.usage.lanes},
          {"resumes", r.usage.resumes},
          {"prefill_worker", r.usage.prefill_worker},
          {"attention_worker", r.usage.attention_worker}};
}

Json StatusJson(const HttpApiDeps& deps) {
  Json out;
  Json nodes = Json::array(), workers = Json::array(), in_flight = Json::array(),
       latest = Json::array();
  if (deps.store != nullptr) {
    const std::vector<KvNodeStats> stats =
        deps.store->Stats(SteadyClock::Get()->Now() + deps.status_timeout);
    for (const KvNodeStats& node : stats) nodes.push_back(NodeJson(node));
    const KvStoreView view = deps.store->View();
    out["store"] = {{"replicas", view.replicas},
                    {"copies_now", CopiesNow(stats, view.replicas)},
                    {"membership", view.membership},
                    {"membership_error", view.error}};
  }
  for (const WorkerState& worker : deps.workers->List()) workers.push_back(WorkerJson(worker));
  for (const RequestRecord& record : deps.pipeline->InFlight()) {
    if (in_flight.size() < kMaxInFlight) in_flight.push_back(RecordJson(record));
  }
  for (const RequestRecord& record : deps.pipeline->log().Latest(kMaxLatest)) {
    latest.push_back(RecordJson(record));
  }
  const std::shared_ptr<const WorkerInfo> model = deps.workers->model();
  out["model"] = {{"name", deps.model},
                  {"max_context", deps.max_context},
                  {"profile", model ? model->profile : ""},
                  {"codec", model ? model->codec : ""},
                  {"data_free", model && model->data_free},
                  {"kv_bytes_per_token_bf16", model ? model->kv_bytes_per_token_bf16 : 0},
                  {"kv_bytes_per_token_stored", model ? model->kv_bytes_per_token_stored : 0}};
  const GatewayMetrics& m = *deps.metrics;
  out["nodes"] = std::move(nodes);
  out["workers"] = std::move(workers);
  out["requests"] = {{"running", deps.pipeline->running()},
                     {"waiting", deps.pipeline->waiting()},
                     {"total", deps.pipeline->requests()},
                     {"in_flight", std::move(in_flight)},
                     {"latest", std::move(latest)}};
  out["tokens"] = {{"prompt", m.prompt_tokens.value()},
                   {"cached", m.cached_tokens.value()},
                   {"generated", m.generated_tokens.value()}};
  out["ttft_seconds"] = HistogramJson(m.ttft_seconds);
  out["tpot_seconds"] = HistogramJson(m.tpot_seconds);
  return out;
}

}  // namespace oscarkv::gateway
