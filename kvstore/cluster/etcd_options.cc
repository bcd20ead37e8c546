#include "kvstore/cluster/etcd_options.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace oscarkv {

void AddEtcdOptions(OptionTable* table, std::vector<std::string>* etcd, std::string* prefix) {
  table->AddStrings(
      "etcd", etcd, "HOST:PORT,...",
      "Endpoints of an etcd (v3, in plain text) where the KV nodes register, instead of "
      "a fixed list; empty: none");
  table->AddString("etcd-prefix", prefix, "PATH",
                   "Where in etcd this store is: one prefix per store");
}

absl::Status CheckEtcdOptions(const std::vector<std::string>& etcd, const std::string& prefix) {
  for (const std::string& endpoint : etcd) {
    const size_t colon = endpoint.rfind(':');
    int port = 0;
    if (colon == 0 || colon == std::string::npos || absl::StrContains(endpoint, "/") ||
        !absl::SimpleAtoi(endpoint.substr(colon + 1), &port) || port < 1 || port > 65535) {
      return absl::InvalidArgumentError(
          absl::StrCat("--etcd has \"", endpoint, "\": expected HOST:PORT, without http://"));
    }
  }
  if (!absl::StartsWith(prefix, "/") || prefix.size() < 2 || prefix.size() > 200) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--etcd-prefix=", prefix, ": expected a path of 2 to 200 bytes that begins with /"));
  }
  return absl::OkStatus();
}

}  // namespace oscarkv
