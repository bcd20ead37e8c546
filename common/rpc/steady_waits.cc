#include "common/rpc/steady_waits.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <ctime>

#include "absl/base/internal/thread_identity.h"
#include "absl/synchronization/internal/kernel_timeout.h"
#include "absl/synchronization/internal/per_thread_sem.h"
#include "absl/synchronization/internal/waiter.h"

namespace oscarkv::rpc {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

static_assert(ABSL_WAITER_MODE == ABSL_WAITER_MODE_FUTEX,
              "this abseil does not wait on futexes: see whether its waits still follow the wall "
              "clock (KernelTimeout), and drop or rewrite this file");

std::atomic<uint64_t> steady_waits{0};

int64_t Nanoseconds(const timespec& t) {
  return int64_t{t.tv_sec} * kSecond + t.tv_nsec;
}
int64_t Now(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return Nanoseconds(t);
}

// A semaphore's wait, as absl::synchronization_internal::Waiter's, that returns false once the
// monotonic clock shows `deadline`.
bool WaitUntil(std::atomic<int32_t>* semaphore, int64_t deadline) {
  for (;;) {
    int32_t count = semaphore->load(std::memory_order_relaxed);
    while (count != 0) {
      if (semaphore->compare_exchange_weak(count, count - 1, std::memory_order_acquire,
                                           std::memory_order_relaxed))
        return true;
    }
    const int64_t left = deadline - Now(CLOCK_MONOTONIC);
    if (left <= 0) return false;
    const timespec relative = {static_cast<time_t>(left / kSecond),
                               static_cast<long>(left % kSecond)};
    // Woken, interrupted, expired or no longer 0: all are seen above.
    syscall(SYS_futex, semaphore, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 0, &relative, nullptr, 0);
  }
}

}  // namespace

void RequireSteadyWaits() {}

uint64_t SteadyWaits() {
  return steady_waits.load(std::memory_order_relaxed);
}

}  // namespace oscarkv::rpc

// Abseil's hook: a weak symbol there. Its other half, Post, stays: it counts up and wakes.
extern "C" bool ABSL_INTERNAL_C_SYMBOL(AbslInternalPerThreadSemWait)(
    absl::synchronization_internal::KernelTimeout timeout) {
  using absl::synchronization_internal::Waiter;
  auto* identity = absl::base_internal::CurrentThreadIdentityIfPresent();  // made by the caller
  if (!timeout.has_timeout()) return Waiter::GetWaiter(identity)->Wait(timeout);
  oscarkv::rpc::steady_waits.fetch_add(1, std::memory_order_relaxed);
  const int64_t left =
      oscarkv::rpc::Nanoseconds(timeout.MakeAbsTimespec()) - oscarkv::rpc::Now(CLOCK_REALTIME);
  // A Waiter is its semaphore (the assertion above).
  static_assert(sizeof(Waiter) == sizeof(std::atomic<int32_t>));
  auto* semaphore = reinterpret_cast<std::atomic<int32_t>*>(identity->waiter_state.data);
  return oscarkv::rpc::WaitUntil(semaphore, oscarkv::rpc::Now(CLOCK_MONOTONIC) + left);
}
