#include "transport/progress_thread.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace oscarkv {
namespace {

// While answers are awaited the thread spins this many times longer than after the last event. It
// does not spin for ever: a stopped peer would cost a core until the deadline.
constexpr int kBusySpinFactor = 10;
// How often watched fds are looked at while the thread spins.
constexpr Duration kFdInterval = std::chrono::milliseconds(1);

void Relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

void UniqueFd::reset() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

ProgressThread::ProgressThread(ProgressDriver* driver, std::string name, Duration spin)
    : driver_(driver),
      name_(std::move(name)),
      spin_(spin),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  for (int fd : {wake_.get(), driver_->event_fd()}) {
    if (fd < 0) continue;
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event);
  }
  MutexLock lock(join_mu_);
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), name_.substr(0, 15).c_str());
    Loop();
  });
}

bool ProgressThread::Run(Command command) {
  MutexLock lock(mu_);
  if (stopping_) return false;
  commands_.push_back(std::move(command));
  has_commands_.store(true, std::memory_order_release);
  if (asleep_) {
    asleep_ = false;
    const uint64_t one = 1;
    // Cannot fail: the counter is far from its limit.
    [[maybe_unused]] const ssize_t n = write(wake_.get(), &one, sizeof(one));
  }
  return true;
}

bool ProgressThread::RunAndWait(const Command& command) {
  Mutex mu;
  CondVar ran;
  bool done = false;
  if (!Run([&] {
        command();
        MutexLock lock(mu);
        done = true;
        ran.NotifyAll();  // under the lock: the waiter destroys both when it sees `done`
      })) {
    return false;
  }
  MutexLock lock(mu);
  while (!done) ran.Wait(mu);
  return true;
}

void ProgressThread::Stop() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
  }
  stop_.store(true, std::memory_order_release);
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(wake_.get(), &one, sizeof(one));
  MutexLock lock(join_mu_);
  if (thread_.joinable()) thread_.join();
}

void ProgressThread::Watch(int fd, Command ready) {
  fds_[fd] = std::make_shared<Command>(std::move(ready));
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event);
}

void ProgressThread::Unwatch(int fd) {
  if (fds_.erase(fd) > 0) epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

void ProgressThread::Loop() {
  Time last_event = SteadyClock::Get()->Now(), last_fds = last_event, closing_until{};
  for (;;) {
    const bool stop =
        stop_.load(std::memory_order_acquire);  // before the commands: all of them run
    bool active = RunCommands();
    active |= driver_->Progress();
    const Time now = SteadyClock::Get()->Now();
    active |= driver_->Pump(now);
    if (!fds_.empty() && now - last_fds >= kFdInterval) {
      last_fds = now;
      active |= PollFds(0);
    }
    if (stop) {
      if (closing_until == Time{}) {
        driver_->BeginClose();
        closing_until = now + kCloseTimeout;
      }
      if (driver_->Closed() || now >= closing_until) return;
      continue;
    }
    if (active) {
      last_event = now;
    } else if (now - last_event < spin_ * (driver_->Busy() ? kBusySpinFactor : 1)) {
      Relax();
    } else if (driver_->Arm()) {
      Sleep(driver_->NextDeadline());
      last_fds = SteadyClock::Get()->Now();
    }
  }
}

bool ProgressThread::RunCommands() {
  if (!has_commands_.load(std::memory_order_acquire)) return false;
  {
    MutexLock lock(mu_);
    running_.swap(commands_);
    has_commands_.store(false, std::memory_order_relaxed);
  }
  for (Command& command : running_) command();
  const bool any = !running_.empty();
  running_.clear();
  return any;
}

bool ProgressThread::PollFds(int timeout_ms) {
  epoll_event events[32];
  const int n = epoll_wait(epoll_.get(), events, 32, timeout_ms);
  bool any = false;
  for (int i = 0; i < n; ++i) {
    const int fd = events[i].data.fd;
    if (fd == wake_.get()) {
      uint64_t count;
      [[maybe_unused]] const ssize_t r = read(fd, &count, sizeof(count));
      continue;
    }
    auto it = fds_.find(fd);
    if (it == fds_.end()) continue;  // the library's own, or unwatched by a callback before
    const std::shared_ptr<Command> ready = it->second;
    (*ready)();
    any = true;
  }
  return any;
}

void ProgressThread::Sleep(Time until) {
  {
    MutexLock lock(mu_);
    if (!commands_.empty() || stopping_) return;
    asleep_ = true;
  }
  int timeout_ms = -1;
  if (until != Time::max()) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(until - SteadyClock::Get()->Now());
    timeout_ms = static_cast<int>(std::clamp<int64_t>(left.count(), 0, 60'000));
  }
  PollFds(timeout_ms);
  MutexLock lock(mu_);
  asleep_ = false;
}

}  // namespace oscarkv
