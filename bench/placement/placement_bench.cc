// How evenly the placement spreads blocks, how many copies move when a node joins or leaves, and
// what a decision costs. Prints the tables of bench/results/placement.md. Counts runs of 16 blocks,
// the unit of placement; deterministic but for the times.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "kvstore/cluster/placement.h"

namespace oscarkv {
namespace {

constexpr size_t kReplicas = 2;
constexpr size_t kRuns = 100'000;
constexpr double kRealRuns = 1e8 / 16;  // a cluster of 1e8 blocks

std::vector<Member> Nodes(size_t n, size_t zones, bool weighted) {
  std::vector<Member> nodes(n);
  for (size_t i = 0; i < n; ++i) {
    nodes[i].endpoint = absl::StrCat("10.", i / 65536, ".", i / 256 % 256, ".", i % 256, ":7401");
    if (zones > 0) nodes[i].zone = absl::StrCat("z", i % zones);
    nodes[i].weight = weighted ? 1.0 + static_cast<double>(i % 4) : 1;
  }
  return nodes;
}

std::vector<BlockKey> Keys() {
  std::vector<BlockKey> keys(kRuns);
  uint64_t state = 1;
  for (BlockKey& key : keys) {
    for (uint8_t& byte : key.bytes) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      byte = static_cast<uint8_t>(state >> 56);
    }
  }
  return keys;
}

// The replicas of every key, by name.
std::vector<std::vector<std::string>> Place(const std::vector<Member>& nodes,
                                            const std::vector<BlockKey>& keys) {
  const Placement placement(nodes);
  std::vector<std::vector<std::string>> out;
  std::vector<uint32_t> order;
  for (const BlockKey& key : keys) {
    placement.Order(key, kReplicas, &order);
    out.emplace_back();
    for (uint32_t n : order) out.back().push_back(nodes[n].endpoint);
  }
  return out;
}

// Share of the copies that are somewhere else than before.
double Moved(const std::vector<std::vector<std::string>>& before,
             const std::vector<std::vector<std::string>>& after) {
  size_t moved = 0, copies = 0;
  for (size_t k = 0; k < before.size(); ++k) {
    for (const std::string& node : after[k]) {
      ++copies;
      moved += std::find(before[k].begin(), before[k].end(), node) == before[k].end();
    }
  }
  return static_cast<double>(moved) / static_cast<double>(copies);
}

void Row(size_t n, size_t zones, bool weighted, const std::vector<BlockKey>& keys) {
  const std::vector<Member> nodes = Nodes(n, zones, weighted);
  const Time began = SteadyClock::Get()->Now();
  const auto placed = Place(nodes, keys);
  const double nanoseconds =
      static_cast<double>((SteadyClock::Get()->Now() - began).count()) / kRuns;
  double total_weight = 0;
  for (const Member& m : nodes) total_weight += m.weight;
  std::vector<double> load(n);
  for (const auto& replicas : placed) {
    for (const std::string& name : replicas) {
      const auto at = std::find_if(nodes.begin(), nodes.end(),
                                   [&](const Member& m) { return m.endpoint == name; });
      ++load[at - nodes.begin()];
    }
  }
  double worst = 0, squares = 0;
  for (size_t i = 0; i < n; ++i) {
    const double expected = kReplicas * kRuns * nodes[i].weight / total_weight;
    worst = std::max(worst, load[i] / expected);
    squares += (load[i] / expected - 1) * (load[i] / expected - 1);
  }
  const std::vector<Member> joined = Nodes(n + 1, zones, weighted);
  std::vector<Member> left = nodes;
  left.erase(left.begin() + n / 2);
  const double join_share = joined.back().weight / (total_weight + joined.back().weight),
               leave_share = nodes[n / 2].weight / total_weight;
  std::printf(
      "| %zu | %s | %s | %.3f | %.4f | %.4f | %.2f %% (%.2f %%) | %.2f %% (%.2f %%) | %.1f |\n", n,
      zones == 0 ? "-" : absl::StrCat(zones).c_str(), weighted ? "1 to 4" : "equal", worst,
      std::sqrt(squares / static_cast<double>(n)),
      std::sqrt(static_cast<double>(n) / (kReplicas * kRealRuns)),
      100 * Moved(placed, Place(joined, keys)), 100 * join_share,
      100 * Moved(placed, Place(left, keys)), 100 * leave_share, nanoseconds / 1000);
}

}  // namespace
}  // namespace oscarkv

int main() {
  std::printf(
      "| nodes | zones | weights | fullest node / its share | deviation (relative, rms) | the same "
      "at "
      "1e8 blocks, by calculation | copies moved by a join (the node's share) | by a leave | us "
      "for a "
      "decision |\n|---|---|---|---|---|---|---|---|---|\n");
  const std::vector<oscarkv::BlockKey> keys = oscarkv::Keys();
  for (const size_t n : {3, 10, 100, 1000}) oscarkv::Row(n, 0, false, keys);
  for (const size_t n : {9, 100, 999}) oscarkv::Row(n, 3, false, keys);
  for (const size_t n : {8, 100, 1000}) oscarkv::Row(n, 0, true, keys);
  return 0;
}
