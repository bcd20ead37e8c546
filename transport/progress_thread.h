// The thread that owns one worker of the network library: runs commands, makes progress, spins for
// a moment after the last event, then sleeps until the library's event fd, a watched fd, a command
// or a deadline wakes it. Free of the library itself.
//
// A caller that waits for a transfer, and is the only one, drives the worker itself meanwhile, and
// the thread stands aside: nothing is handed from thread to thread (a wake-up costs as much as
// 200 KB over shared memory), and one core spins instead of two. One drives at a time.
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
#include "transport/transfer_state.h"

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

// What a progress thread drives; called by one thread at a time, the thread or who stands in for
// it.
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

  enum class Urgency {
    kNow,
    kSoon,  // the caller is likely to Await; within kMaxPark if it does not
  };
  // Any thread: has who drives run `command`, in order. False, and `command` is dropped: the thread
  // was stopped.
  bool Run(Command command, Urgency urgency = Urgency::kNow);
  // Not from a command: as Run, and waits until it has run.
  bool RunAndWait(const Command& command);
  // Not from a command: blocks until the transfer ended (true) or `deadline` passed (false).
  bool Await(TransferState& state, Time deadline);
  // Any thread but this one: refuses further commands, closes the driver (waiting at most
  // kCloseTimeout), joins. Idempotent.
  void Stop();

  // From commands and the driver only: calls `ready` when `fd` is readable or hung up, until
  // Unwatch(fd). `ready` may unwatch.
  void Watch(int fd, Command ready);
  void Unwatch(int fd);

  static constexpr Duration kCloseTimeout = std::chrono::seconds(5);
  // The thread takes over this long after a caller drove for the last time, or a little later: the
  // caller may come back at once.
  static constexpr Duration kLinger = std::chrono::microseconds(200);
  // How long the thread may stand aside without looking.
  static constexpr Duration kMaxPark = std::chrono::milliseconds(1);

 private:
  enum class Next { kTurn, kYield, kSleep };

  void Loop();
  void Drive(const TransferState& state, Time until);
  void Turn() REQUIRES(drive_mu_);
  // What to do after a turn. kSleep: the driver is armed, and `until` set.
  Next AfterTurn(Time* until) REQUIRES(drive_mu_);
  bool RunCommands() REQUIRES(drive_mu_);
  bool PollFds() REQUIRES(drive_mu_);  // true when a watched fd was ready
  void Yield();
  // Sleeps until something happens; `asleep` tells Run that a wake-up is needed. Not if a caller
  // drove since there were `drives`: what it did disarmed the event fd.
  void Sleep(Time until, bool* asleep, uint64_t drives);
  // The thread: whether it is to stand aside.
  bool Helped() const;
  void Park();
  void Unpark();
  static void Signal(const UniqueFd& fd);

  ProgressDriver* const driver_;
  const std::string name_;
  const Duration spin_;
  UniqueFd epoll_, wake_, unpark_;

  Mutex mu_;
  std::vector<Command> commands_ GUARDED_BY(mu_);
  bool stopping_ GUARDED_BY(mu_) = false;
  // Who sleeps until an event, and whether the thread stands aside. Written under mu_.
  bool thread_asleep_ GUARDED_BY(mu_) = false, helper_asleep_ GUARDED_BY(mu_) = false;
  bool parked_ GUARDED_BY(mu_) = false;
  std::atomic<bool> has_commands_{false};
  std::atomic<bool> stop_{false};
  std::atomic<bool> helper_{false};  // a caller drives
  std::atomic<uint64_t> drives_{0};  // calls that drove
  std::atomic<int> waiters_{0};      // callers that wait, the one that drives among them
  std::atomic<Time> helped_at_{Time{}};
  std::atomic<Time> crowded_until_{Time{}};  // another thread wants this core: do not spin

  // Held by who drives, the thread for one turn, a caller for all of its turns.
  Mutex drive_mu_;
  std::vector<Command> running_ GUARDED_BY(drive_mu_);
  std::unordered_map<int, std::shared_ptr<Command>> fds_;  // of who drives
  Time now_ GUARDED_BY(drive_mu_),
      last_event_ GUARDED_BY(drive_mu_), last_fds_ GUARDED_BY(drive_mu_);
  Duration park_{};                   // of the thread
  std::atomic<bool> poll_fds_{true};  // someone was woken

  Mutex join_mu_;
  std::thread thread_ GUARDED_BY(join_mu_);
};

}  // namespace oscarkv
