#include "cli/readiness.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace oscarkv::cli {
namespace {

std::string NotUp(const v1::StoreNodeStatus& n) {
  if (!n.reachable()) return absl::StrCat("KV node ", n.endpoint(), " is down: ", n.error());
  return n.draining() ? absl::StrCat("KV node ", n.endpoint(), " drains") : "";
}

std::string MissingCopies(const v1::StoreNodeStatus& n, Duration waited) {
  const int64_t compared = static_cast<int64_t>(n.compared_ms_ago());
  if (!n.knows_peers() ||
      (waited > Duration(0) && compared > waited / std::chrono::milliseconds(1)))
    return absl::StrCat("KV node ", n.endpoint(), " has not compared its blocks with the others'");
  if (n.silent_peers() > 0)
    return absl::StrCat("KV node ", n.endpoint(), " does not reach ", n.silent_peers(),
                        " other(s)");
  if (n.waiting_copies() + n.no_node_copies() > 0) {
    return absl::StrCat("of ", n.waiting_copies() + n.no_node_copies(), " blocks of KV node ",
                        n.endpoint(), " a copy is missing");
  }
  return "";
}

}  // namespace

std::string MissingForWhole(const v1::GetStatusResponse& status, Duration waited) {
  if (!status.membership_error().empty())
    return absl::StrCat("the list of KV nodes cannot be read: ", status.membership_error());
  for (const v1::StoreNodeStatus& node : status.nodes()) {
    if (std::string missing = NotUp(node); !missing.empty()) return missing;
  }
  if (static_cast<uint32_t>(status.nodes_size()) < status.replicas())
    return absl::StrCat(status.nodes_size(), " KV nodes for ", status.replicas(), " copies");
  for (const v1::WorkerStatus& w : status.workers()) {
    if (w.reachable() && w.error().empty()) continue;
    return absl::StrCat(w.info().role(), " worker ", w.endpoint(),
                        w.reachable() ? " is not used: " : " is down: ", w.error());
  }
  const bool repair = std::any_of(status.nodes().begin(), status.nodes().end(),
                                  [](const v1::StoreNodeStatus& n) { return n.knows_peers(); });
  for (const v1::StoreNodeStatus& node : status.nodes()) {
    if (std::string missing = repair ? MissingCopies(node, waited) : ""; !missing.empty())
      return missing;
  }
  return "";
}

}  // namespace oscarkv::cli
