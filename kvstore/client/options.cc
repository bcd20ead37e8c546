#include "kvstore/client/options.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/auth/security_options.h"
#include "common/status_macros.h"
#include "kvstore/cluster/etcd_options.h"
#include "kvstore/cluster/membership.h"

namespace oscarkv {

void AddStoreOptions(OptionTable* table, StoreOptions* o) {
  table->AddStrings(
      "nodes", &o->nodes, "HOST:PORT,...",
      "All kvstore nodes, each HOST:PORT[@ZONE][/WEIGHT]; the same list for every role");
  table->AddInt(
      "replicas", &o->replicas, 0, 8,
      "KV nodes that hold each block, in different zones where there are; 0: two when there "
      "are two nodes");
  table->AddInt("write-quorum", &o->write_quorum, 1, 8,
                "Copies that must be committed before a block counts as stored; all replicas are "
                "written in any case");
  AddEtcdOptions(table, &o->etcd, &o->etcd_prefix, &o->etcd_access);
  table->AddString("zone", &o->zone, "NAME",
                   "Zone of this process: replicas in the same zone are read first; empty: none");
}

absl::Status CheckStoreOptions(const StoreOptions& o) {
  if (o.replicas > 0 && o.write_quorum > o.replicas) {
    return absl::InvalidArgumentError(absl::StrCat("--write-quorum=", o.write_quorum,
                                                   ": expected at most --replicas=", o.replicas));
  }
  RETURN_IF_ERROR(CheckEtcdOptions(o.etcd, o.etcd_prefix, o.etcd_access));
  if (o.nodes.empty() == o.etcd.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(o.etcd.empty() ? "--nodes is empty" : "--nodes and --etcd are both given",
                     ": expected HOST:PORT, or several with commas, in --nodes or in --etcd"));
  }
  if (!o.etcd.empty()) return absl::OkStatus();
  for (size_t i = 0; i < o.nodes.size(); ++i) {
    const auto member = ParseMember(o.nodes[i]);
    const std::string& endpoint = member.ok() ? member->endpoint : o.nodes[i];
    const size_t colon = endpoint.rfind(':');
    int port = 0;
    if (!member.ok() || colon == std::string::npos || colon == 0 ||
        !absl::SimpleAtoi(endpoint.substr(colon + 1), &port) || port < 1 || port > 65535) {
      return absl::InvalidArgumentError(
          absl::StrCat("--nodes has \"", o.nodes[i], "\": expected HOST:PORT[@ZONE][/WEIGHT]"));
    }
    for (size_t j = 0; j < i; ++j) {
      if (ParseMember(o.nodes[j])->endpoint == endpoint) {
        return absl::InvalidArgumentError(
            absl::StrCat("--nodes has ", endpoint, " twice: expected once"));
      }
    }
  }
  if (static_cast<size_t>(o.write_quorum) > o.nodes.size()) {
    return absl::InvalidArgumentError(absl::StrCat("--write-quorum=", o.write_quorum,
                                                   ": expected at most the ", o.nodes.size(),
                                                   " nodes of --nodes"));
  }
  return absl::OkStatus();
}

std::string DataPathDevices(const std::string& devices, absl::string_view listen,
                            const StoreOptions& store) {
  if (!devices.empty() || !auth::IsLoopback(listen)) return devices;
  for (const auto* addresses : {&store.nodes, &store.etcd}) {
    for (const std::string& address : *addresses) {
      if (!auth::IsLoopback(address)) return devices;
    }
  }
  return "lo";
}

KvClientOptions ClientOptions(const StoreOptions& o) {
  KvClientOptions client;
  client.nodes = o.nodes;
  client.replicas = o.replicas;
  client.write_quorum = o.write_quorum;
  client.zone = o.zone;
  client.etcd = o.etcd;
  client.etcd_prefix = o.etcd_prefix;
  client.etcd_access = o.etcd_access;
  return client;
}

}  // namespace oscarkv
