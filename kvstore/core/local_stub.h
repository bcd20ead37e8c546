// A KvStub straight onto a KvNode of the same process: no network, `done` runs before the call
// returns, unless a get waits for the tier.
#pragma once

#include "kvstore/core/kv_node.h"
#include "kvstore/kv_stub.h"

namespace oscarkv {

class LocalStub final : public KvStub {
 public:
  explicit LocalStub(KvNode* node) : node_(node) {}
  void Call(const kv::KvRequest& request, Time deadline, Done done) override;
  void ReadBlocks(uint64_t session_id, std::vector<ReadTarget> targets, Time deadline,
                  ReadDone done) override;
  void WriteBlocks(uint64_t session_id, std::vector<WriteSource> sources, Time deadline,
                   CallCanceller* canceller, WriteDone done) override;

 private:
  KvNode* const node_;
};

}  // namespace oscarkv
