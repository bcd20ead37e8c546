// The thread that owns one worker of the network library: runs commands, makes progress, spins for
// a moment after the last event, then sleeps until the library's event fd, a watched fd, a command
// or a deadline wakes it. Free of the library itself.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/clock.h"
#include "common/mutex.h"

namespace oscarkv {

// Closes on destruction; move-only.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  ~UniqueFd() { reset(); }
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  int get() const { return fd_; }
  bool ok() const { return fd_ >= 0; }
  void reset();

 private:
  int fd_ = -1;
};

// What a progress thread drives; called by that thread only.
class ProgressDriver {
 public:
  virtual ~ProgressDriver() = default;
  // Handles events of the network library; true when there were any.
  virtual bool Progress() = 0;
  // Sends what there is room for, enforces deadlines; true when anything was done.
  virtual bool Pump(Time now) = 0;
  // Whether answers are awaited: the thread then spins longer.
  virtual bool Busy() const = 0;
  // When Pump must be called next at the latest.
  virtual Time NextDeadline() const = 0;
  // Readies event_fd() to become readable at the next event. False: there is an event already.
  virtual bool Arm() = 0;
  virtual int event_fd() const = 0;  // -1: none
  // Begins to close everything; Closed() turns true when no buffer is in use any more. Progress and
  // Pump go on meanwhile.
  virtual void BeginClose() = 0;
  virtual bool Closed() const = 0;
};

class ProgressThread {
 public:
  using Command = std::function<void()>;

  // `driver` outlives the thread. `name`: at most 15 characters, for people.
  ProgressThread(ProgressDriver* driver, std::string name, Duration spin);
  ~ProgressThread() { Stop(); }

  // Any thread: runs `command` on the thread, in order. False, and `command` is dropped: the thread
  // was stopped.
  bool Run(Command command);
  // Any thread but this one: as Run, and waits until it has run.
  bool RunAndWait(const Command& command);
  // Any thread but this one: refuses further commands, closes the driver (waiting at most
  // kCloseTimeout), joins. Idempotent.
  void Stop();

  // On the thread only: calls `ready` when `fd` is readable or hung up, until Unwatch(fd). `ready`
  // may unwatch.
  void Watch(int fd, Command ready);
  void Unwatch(int fd);

  static constexpr Duration kCloseTimeout = std::chrono::seconds(5);

 private:
  void Loop();
  bool RunCommands();
  bool PollFds(int timeout_ms);  // true when a watched fd was ready
  void Sleep(Time until);

  ProgressDriver* const driver_;
  const std::string name_;
  const Duration spin_;
  UniqueFd epoll_, wake_;

  Mutex mu_;
  std::vector<Command> commands_ GUARDED_BY(mu_);
  bool asleep_ GUARDED_BY(mu_) = false;
  bool stopping_ GUARDED_BY(mu_) = false;
  std::atomic<bool> has_commands_{false};
  std::atomic<bool> stop_{false};

  std::vector<Command> running_;                           // of the thread
  std::unordered_map<int, std::shared_ptr<Command>> fds_;  // of the thread
  Mutex join_mu_;
  std::thread thread_ GUARDED_BY(join_mu_);
};

}  // namespace oscarkv
