// Sends the pieces of a put to a node without a transport: over the stub's streams, as they come.
//
// At most one stream is open. The first piece opens one at once; what comes while it is open goes
// together with the next. So bytes travel while the caller computes, and many small pieces share a
// call.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "common/mutex.h"
#include "kvstore/client/node_connection.h"

namespace oscarkv {

// One caller at a time; the stub's callbacks may run on other threads.
class StreamWriter {
 public:
  // Every stream ends before `deadline`.
  StreamWriter(LinkPtr link, Time deadline) : link_(std::move(link)), deadline_(deadline) {}
  // Cancels what is under way and waits for its end.
  ~StreamWriter();
  StreamWriter(const StreamWriter&) = delete;
  StreamWriter& operator=(const StreamWriter&) = delete;

  // Returns at once. The memory must stay until Finish returned, or this is destroyed.
  void Send(KvStub::WriteSource source);

  struct Result {
    absl::Status whole;          // not OK: the connection failed, nothing of this writer counts
    KvStub::WriteErrors errors;  // what the node refused, by block
  };
  // Waits until all has arrived; what has not by `deadline` is given up. Then nothing of ours reads
  // the memory any more. Pieces sent later are another round.
  Result Finish(Time deadline);

 private:
  void OpenNext();
  void Done(absl::StatusOr<KvStub::WriteErrors> errors);

  const LinkPtr link_;
  const Time deadline_;
  CallCanceller canceller_;  // of the open stream; once used, every later one ends at once
  Mutex mu_;
  CondVar changed_;
  std::vector<KvStub::WriteSource> waiting_ GUARDED_BY(mu_);
  bool open_ GUARDED_BY(mu_) = false;
  Result result_ GUARDED_BY(mu_);
};

}  // namespace oscarkv
