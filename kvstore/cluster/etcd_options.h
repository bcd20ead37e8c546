// The command line's options of etcd: of whoever uses the store, and of its nodes.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/options.h"
#include "kvstore/etcd_access.h"

namespace oscarkv {

void AddEtcdOptions(OptionTable* table, std::vector<std::string>* etcd, std::string* prefix,
                    EtcdAccess* access);
// kInvalidArgument names the option. Looks at the files: whether they are there, belong together,
// and have not expired.
absl::Status CheckEtcdOptions(const std::vector<std::string>& etcd, const std::string& prefix,
                              const EtcdAccess& access);
// The first line of access.password_file. kInvalidArgument: it cannot be read, or is empty.
absl::StatusOr<std::string> ReadEtcdPassword(const EtcdAccess& access);

}  // namespace oscarkv
