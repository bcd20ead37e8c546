// Child processes of `oscarkv serve --processes`: started with a ready file, stopped together.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/role.h"
#include "common/clock.h"
#include "common/options.h"

namespace oscarkv::cli {

// Ports of 127.0.0.1 that nobody listened on a moment ago, distinct.
absl::StatusOr<std::vector<int>> FreePorts(int count);

// One thread. Call BlockStopSignals() first.
class ChildProcesses {
 public:
  // log_dir: each child's stderr goes to <log_dir>/<role>-<n>.log; empty: ours.
  explicit ChildProcesses(std::string log_dir);
  ~ChildProcesses();  // kills what still runs

  // Runs this binary with `args`, waits for its ready file, returns its ports. The child dies with
  // this process.
  absl::StatusOr<RolePorts> Start(const std::string& role, const std::vector<std::string>& args,
                                  Duration timeout);
  // Returns OK at a stop signal, kUnavailable naming the role when a child ended by itself.
  absl::Status WaitForStopSignalOrExit();
  // SIGTERM in reverse order, each waited for; SIGKILL after `timeout` in all.
  void StopAll(Duration timeout);

 private:
  struct Child {
    std::string role;
    pid_t pid;
  };
  // The child's exit in words when it ended, else empty.
  static std::string Ended(pid_t pid, bool wait);

  const std::string log_dir_;
  std::string ready_dir_;
  std::vector<Child> children_;
  int started_ = 0;
};

}  // namespace oscarkv::cli
