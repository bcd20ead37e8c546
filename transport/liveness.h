// Tells whether a process on this host is alive, for lanes that cannot: reads from the shared
// memory of a dead process go on succeeding. Each node listens on an abstract unix socket named by
// its random instance number; whoever uses its shared memory keeps a connection open. The kernel
// hangs it up when the node closes or dies, however it dies. Abstract sockets do not leave their
// network namespace: where they cannot be reached, shared memory is not used.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>

#include "absl/status/statusor.h"
#include "transport/progress_thread.h"

namespace oscarkv {

// The listening side. After creation on the progress thread only.
class LivenessListener {
 public:
  static absl::StatusOr<std::unique_ptr<LivenessListener>> Create(uint64_t instance);
  // Accepts and forgets connections on this thread from now on.
  void Start(ProgressThread* thread);
  void Stop();

 private:
  explicit LivenessListener(UniqueFd fd) : fd_(std::move(fd)) {}
  void Accept();

  UniqueFd fd_;
  ProgressThread* thread_ = nullptr;
  std::unordered_map<int, UniqueFd> clients_;
};

// A connection to the node with this instance number; readable (hung up) when the node is gone.
// Does not block. kUnavailable: it cannot be reached, or belongs to another user.
absl::StatusOr<UniqueFd> ConnectLiveness(uint64_t instance);
// Whether the other side of a connection has hung up.
bool HungUp(int fd);

}  // namespace oscarkv
