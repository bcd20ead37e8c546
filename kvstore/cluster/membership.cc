#include "kvstore/cluster/membership.h"

#include <algorithm>

namespace oscarkv {

StaticMembership::StaticMembership(std::vector<std::string> nodes) {
  std::sort(nodes.begin(), nodes.end());
  nodes.erase(std::unique(nodes.begin(), nodes.end()), nodes.end());
  list_ = std::make_shared<const MemberList>(MemberList{1, std::move(nodes)});
}

}  // namespace oscarkv
