// Restores lost copies of a node's blocks. Every node looks after the blocks that it has itself: it
// asks the nodes that should have them too what they lack, and puts that there. So each missing
// copy has somebody who restores it as long as one node has the block, and nobody decides for
// others.
//
// A round, every `interval`: list the own blocks -> per peer digests of what both should have ->
// CompareDigests -> keys of the buckets that differ, CompareBlocks -> put what is missing, the most
// recently used first, at most `rate` bytes a second, over the data path of clients. In a quiet
// cluster a round is one small call per peer.
//
// A peer that does not answer is silent; after `grace` it is gone, and the next node in the
// placement order of its blocks takes its place (where readers look, too). A peer that left the
// list is treated alike unless it said that it drains. When a peer is back, it is asked as any
// other, and gets what it lacks. Several nodes that have a block may bring it at the same time: the
// first one wins, the others are told that it is stored.
//
// Besides, every `hot.window`: blocks that this node has to serve often get extra copies at the
// nodes behind their replicas (hot.h), by the same way and within the same rate; those who read
// them are told by the node.
//
// Threads: one, started by Start. Drain, RunRound and RunHotRound are for the thread's owner when
// it does not run.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common/mutex.h"
#include "kvstore/client/client.h"
#include "kvstore/core/kv_node.h"
#include "kvstore/kv_stub.h"
#include "kvstore/metrics.h"
#include "kvstore/repair/hot.h"
#include "kvstore/repair/plan.h"

namespace oscarkv {

struct RepairOptions {
  std::string self;          // this node's endpoint among the members
  std::string name;          // in logs and metrics
  int replicas = 0;          // as KvClientOptions::replicas
  uint64_t rate = 64 << 20;  // bytes per second; 0: no limit
  Duration interval = std::chrono::seconds(10);
  Duration grace = std::chrono::seconds(30);
  // Blocks younger than this are left to their writer, who may still be busy with the second copy.
  Duration settle = std::chrono::seconds(5);
  Duration call_timeout = std::chrono::seconds(2);
  Duration put_timeout = std::chrono::seconds(10);
  HotOptions hot;
};

// A client of one node and one tenant.
using ConnectPeer = std::function<absl::StatusOr<std::unique_ptr<KvClient>>(
    const Member& peer, const std::string& tenant)>;

class Repairer {
 public:
  // All outlive the repairer; `metrics` may be null. `membership` may have another listener.
  Repairer(const RepairOptions& options, KvNode* node, const Membership* membership,
           KvStubFactory make_stub, ConnectPeer connect, const Clock* clock,
           KvRepairMetrics* metrics);
  ~Repairer();

  void Start();
  void Stop();
  // What a node does before it leaves: restores the copies that go with it, those first that nobody
  // else has, until `deadline`, without the limit of the rate. Ends the thread. Returns how many
  // blocks it could not bring elsewhere.
  size_t Drain(Time deadline);
  // One round, for tests.
  ReplicaStats RunRound();
  // Ends a window of reads, for tests.
  void RunHotRound();

 private:
  struct Peer {
    Member member;
    std::shared_ptr<KvStub> stub;
    bool listed = true;
    std::optional<Time> silent_since;
  };
  // A copy to make: blocks[block] at members[peer].
  struct Copy {
    uint32_t block = 0;
    uint32_t peer = 0;
    bool last = false;  // nobody else has it
  };
  struct Findings {
    std::vector<BlockIndex::Listed> blocks;
    std::vector<Copy> copies;
    std::vector<bool> stored_elsewhere, waiting, no_room;  // per block
    ReplicaStats stats;
  };

  void Run();
  void SyncPeers(Time now);
  RepairView MakeView(Time now, bool leaving) const;
  // Asks everybody; the presence of peers follows from who answers.
  Findings Look(bool leaving);
  std::vector<std::vector<uint32_t>> CompareDigests(const RepairView& view, uint32_t self,
                                                    const Survey& survey);
  void CompareBlocks(const RepairView& view, uint32_t peer, const std::vector<uint32_t>& ask,
                     Findings* findings);
  void Judge(Peer* peer, const absl::Status& status, Time now);
  void Count(const RepairView& view, const Survey& survey, Findings* findings);
  void Publish(const ReplicaStats& stats);
  // Restores copies until `until`, when stopped, or when all is done. Updates findings->stats.
  void RestoreAll(const RepairView& view, Findings* findings, Time until, bool paced);
  // Copies in this order, but those to one peer together; `done` learns of each that was tried
  // whether it is there now. ttl: 0, or of extra copies.
  using CopyDone = std::function<void(size_t copy, bool there)>;
  void CopyAll(const RepairView& view, absl::Span<const BlockIndex::Listed> blocks,
               absl::Span<const Copy> copies, Duration ttl, Time until, bool paced,
               const CopyDone& done);
  // False: the peer cannot be used in this round. Adds to *sent the bytes that went there.
  bool CopySome(const Member& peer, const std::string& tenant,
                absl::Span<const BlockIndex::Listed* const> blocks, Duration ttl,
                std::vector<bool>* there, uint64_t* sent);
  // "restored" and so on, for the metrics.
  const char* OnResult(const BlockIndex::Listed& block, const absl::Status& status);
  void MakeExtraCopies(const RepairView& view, const std::vector<HotPlan::Step>& steps);
  void CountCopies(const char* outcome, bool extra, size_t copies);
  absl::StatusOr<KvClient*> ClientOf(const Member& peer, const std::string& tenant);
  void CloseIdleClients(Time now);
  // False: stopped.
  bool PauseUntil(Time time);

  const RepairOptions options_;
  KvNode* const node_;
  const Membership* const membership_;
  const KvStubFactory make_stub_;
  const ConnectPeer connect_;
  const Clock* const clock_;
  KvRepairMetrics* const metrics_;

  // Of the thread.
  std::map<std::string, Peer> peers_;  // by endpoint
  struct Client {
    std::unique_ptr<KvClient> client;
    Time used{};
  };
  std::map<std::pair<std::string, std::string>, Client> clients_;  // by endpoint and tenant
  uint64_t restored_ = 0;
  Time next_copy_{};
  Time looked_at_{};  // the beginning of the last Look()
  HotPlan hot_;
  Time window_began_;

  Mutex mu_;
  CondVar changed_;
  bool stop_ GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace oscarkv
