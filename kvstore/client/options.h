// The options of every role that uses the store.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/options.h"
#include "kvstore/client/client.h"

namespace oscarkv {

struct StoreOptions {
  std::vector<std::string> nodes;  // HOST:PORT[@ZONE][/WEIGHT]
  int replicas = 0;
  int write_quorum = 1;
  std::string zone;
  std::vector<std::string> etcd;
  std::string etcd_prefix = "/oscarkv/";
  EtcdAccess etcd_access;
};

// Rows for all of them.
void AddStoreOptions(OptionTable* table, StoreOptions* options);
// What a table cannot check; kInvalidArgument names the option.
absl::Status CheckStoreOptions(const StoreOptions& options);
// Devices of the data path (UcxOptions) of a worker that listens there: `devices`, if any is named;
// "lo" when everything named is on this machine, for UCX opens a port on every device that it may
// use; else empty, all.
std::string DataPathDevices(const std::string& devices, absl::string_view listen,
                            const StoreOptions& store);
// A client's options with these.
KvClientOptions ClientOptions(const StoreOptions& options);

}  // namespace oscarkv
