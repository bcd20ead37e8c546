// KvClient over stubs: routes by placement, asks the owners in parallel, moves the bytes (get.h,
// put_batch.h).
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "kvstore/client/client.h"
#include "kvstore/client/maintainer.h"
#include "kvstore/client/node_connection.h"
#include "kvstore/cluster/membership.h"
#include "kvstore/cluster/placement.h"

namespace oscarkv {

// As KvClient::Create, with stubs of the caller's making (tests: LocalStub).
absl::StatusOr<std::unique_ptr<KvClient>> CreateKvClient(const KvClientOptions& options,
                                                         const KvStubFactory& make_stub);

// The items of a call that one node serves.
struct NodeGroup {
  NodeConnection* connection = nullptr;
  LinkPtr link;  // null: the node is down, `why` says so
  absl::Status why;
  std::vector<size_t> items;  // indices in the call, ascending
};

class KvClientImpl final : public KvClient {
 public:
  KvClientImpl(const KvClientOptions& options, const Membership& membership,
               const KvStubFactory& make_stub);
  ~KvClientImpl() override;

  // kUnavailable when no node answered, with each node's reason.
  absl::Status Start();

  absl::StatusOr<size_t> Match(absl::Span<const BlockKey> chain, Time deadline) override;
  std::vector<bool> Exists(absl::Span<const BlockKey> keys, absl::Span<const BlockKey> placement,
                           Time deadline) override;
  std::vector<absl::Status> Get(absl::Span<const GetRequest> requests, Time deadline,
                                TransferTotals* totals) override;
  absl::StatusOr<std::unique_ptr<PutBatch>> StartPut(absl::Span<const BlockSpec> items,
                                                     Time deadline) override;
  absl::Status Erase(absl::Span<const BlockKey> keys, absl::Span<const BlockKey> placement,
                     Time deadline) override;
  std::vector<KvNodeStats> Stats(Time deadline) override;

 private:
  // `placement_of(i)` for the items 0..count-1.
  template <typename F>
  std::vector<NodeGroup> GroupByOwner(size_t count, F placement_of) const;

  const KvClientOptions options_;
  const std::shared_ptr<const MemberList> members_;
  const Placement placement_;
  std::unique_ptr<KvClientMetrics> metrics_;
  std::vector<std::unique_ptr<NodeConnection>> connections_;  // in the order of members_
  std::atomic<uint64_t> next_put_{1};
  Maintainer maintainer_;  // last: its thread uses the others
};

}  // namespace oscarkv
