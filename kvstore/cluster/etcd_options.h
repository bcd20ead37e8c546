// The command line's options of etcd: of whoever uses the store, and of its nodes.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/options.h"

namespace oscarkv {

void AddEtcdOptions(OptionTable* table, std::vector<std::string>* etcd, std::string* prefix);
// kInvalidArgument names the option.
absl::Status CheckEtcdOptions(const std::vector<std::string>& etcd, const std::string& prefix);

}  // namespace oscarkv
