// KvClient over stubs: routes by placement, asks the owners in parallel, moves the bytes (get.h,
// put_batch.h).
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "kvstore/client/client.h"
#include "kvstore/client/extra_copies.h"
#include "kvstore/client/latency_window.h"
#include "kvstore/client/maintainer.h"
#include "kvstore/client/node_connection.h"
#include "kvstore/client/replicas.h"
#include "kvstore/cluster/membership.h"

namespace oscarkv {

// As KvClient::Create, with stubs of the caller's making (tests: LocalStub).
absl::StatusOr<std::unique_ptr<KvClient>> CreateKvClient(const KvClientOptions& options,
                                                         const KvStubFactory& make_stub);
// With a membership of the caller's instead of options.nodes.
absl::StatusOr<std::unique_ptr<KvClient>> CreateKvClient(const KvClientOptions& options,
                                                         std::unique_ptr<Membership> membership,
                                                         const KvStubFactory& make_stub);

inline constexpr int kMaxReplicas = 8;

// The items of a call that one node serves.
struct NodeGroup {
  NodeConnection* connection = nullptr;
  LinkPtr link;  // null: the node is down, `why` says so
  absl::Status why;
  std::vector<size_t> items;  // indices in the call, ascending
  bool may_leave = false;     // another replica can be asked for every one of them
};

struct RunSearch;  // of a chain, in Match

class KvClientImpl final : public KvClient {
 public:
  KvClientImpl(const KvClientOptions& options, std::unique_ptr<Membership> membership,
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
  KvStoreView View() const override;
  std::vector<KvNodeStats> Stats(Time deadline) override;

 private:
  ViewPtr view() const;
  // Makes the view of the membership's current list; connections of members that stay are kept.
  void Refresh();
  // How long a replica may take for a lookup before the next one is asked.
  Time LeaveAt(Time deadline) const;
  void TakeMatches(const NodeGroup& group, const absl::StatusOr<kv::MatchPrefixResponse>& answer,
                   int round, std::vector<RunSearch>* runs);
  void CountFailovers(absl::string_view op, absl::string_view reason, size_t blocks);

  const KvClientOptions options_;
  const KvStubFactory make_stub_;
  const std::unique_ptr<Membership> membership_;
  std::unique_ptr<KvClientMetrics> metrics_;
  LatencyWindow lookup_times_, pin_times_;
  ExtraCopies extra_copies_;
  std::atomic<uint64_t> next_put_{1};
  mutable Mutex mu_;
  ViewPtr view_ GUARDED_BY(mu_);
  Maintainer maintainer_;  // last: its thread uses the others
};

}  // namespace oscarkv
