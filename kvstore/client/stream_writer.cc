#include "kvstore/client/stream_writer.h"

namespace oscarkv {

StreamWriter::~StreamWriter() {
  Finish(SteadyClock::Get()->Now());
}

void StreamWriter::Send(KvStub::WriteSource source) {
  {
    MutexLock lock(mu_);
    if (!result_.whole.ok()) return;
    waiting_.push_back(source);
    if (open_) return;
    open_ = true;
  }
  OpenNext();
}

// `open_` is true: nobody else opens one.
void StreamWriter::OpenNext() {
  std::vector<KvStub::WriteSource> sources;
  {
    MutexLock lock(mu_);
    sources = std::exchange(waiting_, {});
  }
  link_->stub->WriteBlocks(
      link_->grant.session_id, std::move(sources), deadline_, &canceller_,
      [this](absl::StatusOr<KvStub::WriteErrors> errors) { Done(std::move(errors)); });
}

void StreamWriter::Done(absl::StatusOr<KvStub::WriteErrors> errors) {
  {
    MutexLock lock(mu_);
    if (errors.ok()) {
      for (auto& error : *errors) result_.errors.push_back(std::move(error));
    } else {
      result_.whole = errors.status();
      waiting_.clear();
    }
    if (waiting_.empty()) {
      open_ = false;
      changed_.NotifyAll();  // under the lock: the waiter may destroy this at once
      return;
    }
  }
  OpenNext();
}

StreamWriter::Result StreamWriter::Finish(Time deadline) {
  {
    MutexLock lock(mu_);
    while (open_ && changed_.WaitUntil(mu_, deadline)) {
    }
    if (!open_) return std::exchange(result_, {});
    waiting_.clear();
  }
  canceller_.Cancel();
  MutexLock lock(mu_);
  while (open_) changed_.Wait(mu_);
  Result result = std::exchange(result_, {});
  // The stream may have ended well in the last moment, but without what was still waiting.
  result.whole = absl::DeadlineExceededError("the bytes did not arrive in time");
  return result;
}

}  // namespace oscarkv
