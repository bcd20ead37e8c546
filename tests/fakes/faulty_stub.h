// KvStubs that misbehave on demand: the calls of all stubs of one StubFaults are numbered in the
// order in which they are made, and one of them fails. As FaultyTransport, for sweeps.
#pragma once

#include <memory>
#include <string>

#include "common/mutex.h"
#include "kvstore/kv_stub.h"

namespace oscarkv {

enum class StubFault {
  kNone,
  kRefuse,      // does not reach the node
  kLoseAnswer,  // the node does it, the caller learns of an error
};

// Thread-safe.
class StubFaults {
 public:
  // The n-th call (from 0) from now on fails in this way, once.
  void Inject(uint64_t at, StubFault kind, absl::Status status);
  bool fired() const;
  // Wraps `inner`; the faults outlive it.
  std::unique_ptr<KvStub> Wrap(std::unique_ptr<KvStub> inner);

  struct Verdict {
    StubFault kind = StubFault::kNone;
    absl::Status status;
  };
  Verdict Next();

 private:
  mutable Mutex mu_;
  uint64_t calls_ GUARDED_BY(mu_) = 0;
  uint64_t at_ GUARDED_BY(mu_) = 0;
  Verdict fault_ GUARDED_BY(mu_);
  bool fired_ GUARDED_BY(mu_) = false;
};

}  // namespace oscarkv
