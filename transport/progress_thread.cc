#include "transport/progress_thread.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
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

// A yield that takes longer than this let another thread run.
constexpr Duration kCrowdedYield = std::chrono::microseconds(20);
// For so long after that, sleeping is better than spinning: who sleeps gives the core away and gets
// it back at the next event, who spins and yields is made to wait for a whole slice.
constexpr Duration kCrowded = std::chrono::milliseconds(5);
constexpr Duration kMinPark = std::chrono::microseconds(100);

Time Now() {
  return SteadyClock::Get()->Now();
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
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      unpark_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      now_(Now()),
      last_event_(now_),
      last_fds_(now_) {
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

void ProgressThread::Signal(const UniqueFd& fd) {
  const uint64_t one = 1;
  // Cannot fail: the counter is far from its limit.
  [[maybe_unused]] const ssize_t n = write(fd.get(), &one, sizeof(one));
}

bool ProgressThread::Run(Command command, Urgency urgency) {
  MutexLock lock(mu_);
  if (stopping_) return false;
  commands_.push_back(std::move(command));
  has_commands_.store(true, std::memory_order_release);
  // The flag stays set until the sleeper is up: another may take the signal from it before.
  if (helper_.load() ? helper_asleep_ : thread_asleep_) {
    Signal(wake_);
  } else if (parked_ && urgency == Urgency::kNow) {
    parked_ = false;
    Signal(unpark_);
  }
  return true;
}

bool ProgressThread::RunAndWait(const Command& command) {
  Mutex mu;
  CondVar ran;
  bool done = false;
  waiters_.fetch_add(1);  // before Run: the thread, if it stands aside, sees that it is needed
  const bool accepted = Run([&] {
    command();
    MutexLock lock(mu);
    done = true;
    ran.NotifyAll();  // under the lock: the waiter destroys both when it sees `done`
  });
  if (accepted) {
    MutexLock lock(mu);
    while (!done) ran.Wait(mu);
  }
  waiters_.fetch_sub(1);
  return accepted;
}

bool ProgressThread::Await(TransferState& state, Time deadline) {
  if (state.ended()) return true;
  const bool alone = waiters_.fetch_add(1) == 0;
  const bool helping = alone && !helper_.exchange(true);
  if (helping) {
    drives_.fetch_add(1);
    Drive(state, deadline);
    helped_at_.store(Now());
    MutexLock lock(mu_);
    helper_.store(false);
    // It slept through all this and the network library's events are no longer armed.
    if (thread_asleep_) Signal(wake_);
  } else {
    state.WaitEnded(deadline, *SteadyClock::Get());
  }
  const bool others = waiters_.fetch_sub(1) > 1;
  if (helping && (others || has_commands_.load())) Unpark();
  // Not ended when the thread was stopped: then that thread ends everything.
  return state.WaitEnded(deadline, *SteadyClock::Get());
}

void ProgressThread::Stop() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
  }
  stop_.store(true, std::memory_order_release);
  Signal(wake_);
  Signal(unpark_);
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
  Time closing_until{};
  for (;;) {
    const bool stop =
        stop_.load(std::memory_order_acquire);  // before the commands: all of them run
    if (!stop && Helped()) {
      Park();
      continue;
    }
    park_ = kMinPark;
    Next next = Next::kTurn;
    Time until{};
    uint64_t drives = 0;
    {
      MutexLock drive(drive_mu_);
      drives = drives_.load();
      Turn();
      if (!stop) {
        next = AfterTurn(&until);
      } else if (closing_until == Time{}) {
        driver_->BeginClose();
        closing_until = now_ + kCloseTimeout;
      }
      if (stop && (driver_->Closed() || now_ >= closing_until)) return;
    }
    if (next == Next::kYield) Yield();
    if (next == Next::kSleep) Sleep(until, &thread_asleep_, drives);
  }
}

void ProgressThread::Drive(const TransferState& state, Time until) {
  MutexLock drive(drive_mu_);
  last_event_ = Now();
  while (!stop_.load(std::memory_order_acquire)) {
    Turn();
    if (state.ended() || now_ >= until) return;
    Time sleep_until{};
    const Next next = AfterTurn(&sleep_until);
    if (next == Next::kYield) Yield();
    if (next == Next::kSleep) Sleep(std::min(until, sleep_until), &helper_asleep_, drives_.load());
  }
}

void ProgressThread::Turn() {
  bool active = RunCommands();
  active |= driver_->Progress();
  now_ = Now();
  active |= driver_->Pump(now_);
  if ((!fds_.empty() && now_ - last_fds_ >= kFdInterval) ||
      poll_fds_.load(std::memory_order_relaxed)) {
    poll_fds_.store(false, std::memory_order_relaxed);
    last_fds_ = now_;
    active |= PollFds();
  }
  if (active) last_event_ = now_;
}

ProgressThread::Next ProgressThread::AfterTurn(Time* until) {
  const Duration idle = now_ - last_event_;
  if (idle <= Duration::zero()) return Next::kTurn;
  if (idle < spin_ * (driver_->Busy() ? kBusySpinFactor : 1) && now_ >= crowded_until_.load()) {
    return Next::kYield;
  }
  if (!driver_->Arm()) return Next::kTurn;
  *until = driver_->NextDeadline();
  return Next::kSleep;
}

void ProgressThread::Yield() {
  const Time before = Now();
  sched_yield();
  const Time after = Now();
  if (after - before >= kCrowdedYield) crowded_until_.store(after + kCrowded);
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

bool ProgressThread::PollFds() {
  epoll_event events[32];
  const int n = epoll_wait(epoll_.get(), events, 32, 0);
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

void ProgressThread::Sleep(Time until, bool* asleep, uint64_t drives) {
  {
    MutexLock lock(mu_);
    if (!commands_.empty() || stopping_ || drives_.load() != drives) return;
    *asleep = true;
  }
  int timeout_ms = -1;
  if (until != Time::max()) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Now());
    timeout_ms = static_cast<int>(std::clamp<int64_t>(left.count(), 0, 60'000));
  }
  epoll_event event;  // only whether there is any: who drives looks at them
  epoll_wait(epoll_.get(), &event, 1, timeout_ms);
  poll_fds_.store(true, std::memory_order_relaxed);
  MutexLock lock(mu_);
  *asleep = false;
}

bool ProgressThread::Helped() const {
  if (helper_.load()) return true;
  return waiters_.load() == 0 && Now() - helped_at_.load() < kLinger;
}

void ProgressThread::Park() {
  {
    MutexLock lock(mu_);
    if (stopping_ || !Helped()) return;
    parked_ = true;
  }
  // Not a condition variable: those of the standard library wait by the clock on the wall.
  pollfd fd = {unpark_.get(), POLLIN, 0};
  const timespec timeout = {0, std::chrono::nanoseconds(park_).count()};
  park_ = std::min(park_ * 2, kMaxPark);
  if (ppoll(&fd, 1, &timeout, nullptr) > 0) {
    uint64_t count;
    [[maybe_unused]] const ssize_t n = read(unpark_.get(), &count, sizeof(count));
  }
  MutexLock lock(mu_);
  parked_ = false;
}

void ProgressThread::Unpark() {
  MutexLock lock(mu_);
  if (!parked_) return;
  parked_ = false;
  Signal(unpark_);
}

}  // namespace oscarkv
