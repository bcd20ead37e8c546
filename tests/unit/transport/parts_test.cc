// The small parts: descriptors, the progress thread, the liveness socket, the region table,
// transfer states.
#include <gtest/gtest.h>

#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "transport/am/lane.h"
#include "transport/descriptors.h"
#include "transport/liveness.h"
#include "transport/progress_thread.h"
#include "transport/region_table.h"
#include "transport/transfer.h"

namespace oscarkv {
namespace {

using std::chrono::seconds;

constexpr seconds kLong(30);
Time Now() {
  return SteadyClock::Get()->Now();
}

NodeAddress SomeAddress() {
  NodeAddress a;
  a.instance = 0x1122334455667788;
  a.secret[0] = 1;
  a.host[15] = 2;
  a.lanes = {{LaneClass::kShm, "shm worker", "probe"},
             {LaneClass::kTcp, std::string(200, 't'), ""}};
  return a;
}

RegionDescriptor SomeRegion() {
  RegionDescriptor r;
  r.instance = 9;
  r.id = 8;
  r.token = 7;
  r.size = 4096;
  r.keys = {{LaneClass::kShm, 0x7f0000000000, "rkey"}};
  return r;
}

TEST(Descriptors, RoundTrip) {
  const NodeAddress a = SomeAddress();
  const auto address = DecodeNodeAddress(Encode(a).value());
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_EQ(address->instance, a.instance);
  EXPECT_EQ(address->secret, a.secret);
  EXPECT_EQ(address->host, a.host);
  ASSERT_EQ(address->lanes.size(), 2u);
  EXPECT_EQ(address->lanes[0].lane, LaneClass::kShm);
  EXPECT_EQ(address->lanes[0].probe, "probe");
  EXPECT_EQ(address->lanes[1].worker, a.lanes[1].worker);
  const RegionDescriptor r = SomeRegion();
  const auto region = DecodeRegionDescriptor(Encode(r).value());
  ASSERT_TRUE(region.ok()) << region.status();
  EXPECT_EQ(region->instance, r.instance);
  EXPECT_EQ(region->id, r.id);
  EXPECT_EQ(region->token, r.token);
  EXPECT_EQ(region->size, r.size);
  ASSERT_EQ(region->keys.size(), 1u);
  EXPECT_EQ(region->keys[0].base, r.keys[0].base);
  EXPECT_EQ(region->keys[0].rkey, "rkey");
}

TEST(Descriptors, EveryFlippedBitAndEveryCutIsRefused) {
  const std::string address = Encode(SomeAddress()).value(), region = Encode(SomeRegion()).value();
  for (const std::string& good : {address, region}) {
    for (size_t n = 0; n < good.size(); ++n) {
      EXPECT_FALSE(DecodeNodeAddress(good.substr(0, n)).ok()) << n;
      EXPECT_FALSE(DecodeRegionDescriptor(good.substr(0, n)).ok()) << n;
      for (int bit = 0; bit < 8; ++bit) {
        std::string bad = good;
        bad[n] = static_cast<char>(bad[n] ^ (1 << bit));
        EXPECT_FALSE(DecodeNodeAddress(bad).ok()) << n;
        EXPECT_FALSE(DecodeRegionDescriptor(bad).ok()) << n;
      }
    }
    EXPECT_FALSE(DecodeNodeAddress(good + "x").ok());
    EXPECT_FALSE(DecodeRegionDescriptor(good + "x").ok());
  }
  EXPECT_FALSE(DecodeNodeAddress(region).ok());
  EXPECT_FALSE(DecodeRegionDescriptor(address).ok());
}

TEST(Descriptors, ValuesThatCannotBeAreRefusedThoughTheChecksumHolds) {
  RegionDescriptor r = SomeRegion();
  r.token = 0;
  EXPECT_FALSE(DecodeRegionDescriptor(Encode(r).value()).ok());
  r = SomeRegion();
  r.size = 0;
  EXPECT_FALSE(DecodeRegionDescriptor(Encode(r).value()).ok());
  r = SomeRegion();
  r.size = ~uint64_t{0} - 10;  // wraps around behind the base
  EXPECT_FALSE(DecodeRegionDescriptor(Encode(r).value()).ok());
  r = SomeRegion();
  r.keys[0].rkey = "";
  EXPECT_FALSE(DecodeRegionDescriptor(Encode(r).value()).ok());
  r = SomeRegion();
  r.keys.assign(4, r.keys[0]);
  EXPECT_FALSE(DecodeRegionDescriptor(Encode(r).value()).ok());
  r = SomeRegion();
  r.keys[0].lane = static_cast<LaneClass>(4);
  EXPECT_FALSE(DecodeRegionDescriptor(Encode(r).value()).ok());
  NodeAddress a = SomeAddress();
  a.lanes[0].worker = "";
  EXPECT_FALSE(DecodeNodeAddress(Encode(a).value()).ok());
  a = SomeAddress();
  a.lanes[0].lane = static_cast<LaneClass>(0);
  EXPECT_FALSE(DecodeNodeAddress(Encode(a).value()).ok());
  a = SomeAddress();
  a.lanes[0].worker.assign(4096, 'w');
  EXPECT_EQ(Encode(a).status().code(), absl::StatusCode::kResourceExhausted);
  a.lanes[0].worker.assign(70'000, 'w');
  EXPECT_EQ(Encode(a).status().code(), absl::StatusCode::kResourceExhausted);
}

class IdleDriver : public ProgressDriver {
 public:
  bool Progress() override { return false; }
  bool Pump(Time) override {
    ++pumps;
    return false;
  }
  bool Busy() const override { return false; }
  Time NextDeadline() const override { return Time::max(); }
  bool Arm() override { return true; }
  int event_fd() const override { return event.get(); }
  void BeginClose() override { closing = true; }
  bool Closed() const override { return closing; }
  UniqueFd event{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  std::atomic<int> pumps{0};
  bool closing = false;
};

TEST(ProgressThread, RunsCommandsInOrderFromManyThreads) {
  IdleDriver driver;
  ProgressThread thread(&driver, "test", std::chrono::microseconds(1));
  std::vector<std::vector<int>> seen(4);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 1000; ++i) {
        ASSERT_TRUE(thread.Run([&seen, t, i] { seen[t].push_back(i); }));
        if (i % 100 == 0) std::this_thread::yield();  // lets it fall asleep now and then
      }
    });
  }
  for (std::thread& t : threads) t.join();
  ASSERT_TRUE(thread.RunAndWait([] {}));
  for (const auto& one : seen) {
    ASSERT_EQ(one.size(), 1000u);
    for (int i = 0; i < 1000; ++i) ASSERT_EQ(one[i], i);
  }
  thread.Stop();
  EXPECT_TRUE(driver.closing);
  EXPECT_FALSE(thread.Run([] { FAIL(); }));
  EXPECT_FALSE(thread.RunAndWait([] { FAIL(); }));
  thread.Stop();
}

TEST(ProgressThread, AsleepItWakesForCommandsEventsAndWatchedFds) {
  IdleDriver driver;
  ProgressThread thread(&driver, "test", Duration::zero());
  for (int i = 0; i < 200; ++i) ASSERT_TRUE(thread.RunAndWait([] {}));
  const int before = driver.pumps;
  const uint64_t one = 1;
  ASSERT_EQ(write(driver.event.get(), &one, sizeof(one)), static_cast<ssize_t>(sizeof(one)));
  Time until = Now() + kLong;
  while (driver.pumps == before && Now() < until) std::this_thread::yield();
  EXPECT_GT(driver.pumps, before);

  UniqueFd watched(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  std::atomic<int> ready{0};
  ASSERT_TRUE(thread.RunAndWait([&] {
    thread.Watch(watched.get(), [&] {
      ++ready;
      thread.Unwatch(watched.get());  // from its own callback
    });
  }));
  EXPECT_EQ(ready, 0);
  ASSERT_EQ(write(watched.get(), &one, sizeof(one)), static_cast<ssize_t>(sizeof(one)));
  until = Now() + kLong;
  while (ready == 0 && Now() < until) std::this_thread::yield();
  ASSERT_TRUE(thread.RunAndWait([] {}));
  EXPECT_EQ(ready, 1);
}

// Calls a function in every turn.
class HookedDriver final : public IdleDriver {
 public:
  explicit HookedDriver(std::function<void()> h) : hook(std::move(h)) {}
  bool Pump(Time) override {
    hook();
    return false;
  }
  void BeginClose() override {
    if (on_close) on_close();
    closing = true;
  }
  const std::function<void()> hook;
  std::function<void()> on_close;
};

TEST(ProgressThread, TheOnlyWaiterDrivesItself) {
  const std::thread::id self = std::this_thread::get_id();
  std::shared_ptr<TransferState> awaited;  // of who drives
  HookedDriver driver([&] {
    if (awaited != nullptr && std::this_thread::get_id() == self) awaited->End(absl::OkStatus());
  });
  ProgressThread thread(&driver, "test", std::chrono::microseconds(1));
  for (int i = 0; i < 200; ++i) {
    const auto state = std::make_shared<TransferState>();
    ASSERT_TRUE(thread.Run([&] { awaited = state; }, ProgressThread::Urgency::kSoon));
    ASSERT_TRUE(thread.Await(*state, Now() + kLong));
    ASSERT_TRUE(thread.RunAndWait([&] { awaited.reset(); })) << "the thread is back";
  }
  TransferState never;
  EXPECT_FALSE(thread.Await(never, Now()));
  ASSERT_TRUE(thread.RunAndWait([] {}));
}

TEST(ProgressThread, CommandsWakeAWaiterThatSleeps) {
  IdleDriver driver;
  ProgressThread thread(&driver, "test", Duration::zero());
  for (int i = 0; i < 200; ++i) {
    const auto state = std::make_shared<TransferState>();
    std::thread waiter([&] { EXPECT_TRUE(thread.Await(*state, Now() + kLong)); });
    if (i % 2 == 0) std::this_thread::yield();
    ASSERT_TRUE(thread.Run([state] { state->End(absl::OkStatus()); }));
    waiter.join();
  }
}

TEST(ProgressThread, EveryWaiterIsServedWhoeverDrives) {
  Mutex mu;
  std::vector<std::shared_ptr<TransferState>> waiting;  // guarded by mu
  // One ends in each turn, so that those who drive leave while others still wait.
  HookedDriver driver([&] {
    MutexLock lock(mu);
    if (waiting.empty()) return;
    waiting.back()->End(absl::OkStatus());
    waiting.pop_back();
  });
  ProgressThread thread(&driver, "test", std::chrono::microseconds(1));
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 500; ++i) {
        const auto state = std::make_shared<TransferState>();
        ASSERT_TRUE(thread.Run([&] {
          MutexLock lock(mu);
          waiting.push_back(state);
        }));
        ASSERT_TRUE(thread.Await(*state, Now() + kLong));
      }
    });
  }
  for (std::thread& t : threads) t.join();
}

TEST(ProgressThread, StopEndsAWait) {
  TransferState state;
  std::atomic<bool> driven{false};
  const std::thread::id self = std::this_thread::get_id();
  std::atomic<std::thread::id> waiter_id{self};
  HookedDriver driver([&] {
    if (std::this_thread::get_id() == waiter_id.load()) driven = true;
  });
  std::atomic<bool> closed_by_waiter{false};
  driver.on_close = [&] {
    closed_by_waiter = std::this_thread::get_id() == waiter_id.load();
    state.End(absl::UnavailableError("stopped"));
  };
  ProgressThread thread(&driver, "test", Duration::zero());
  std::thread waiter([&] {
    waiter_id = std::this_thread::get_id();
    EXPECT_TRUE(thread.Await(state, Now() + kLong));
  });
  while (!driven) std::this_thread::yield();
  thread.Stop();
  waiter.join();
  EXPECT_FALSE(closed_by_waiter);
  EXPECT_EQ(state.status().code(), absl::StatusCode::kUnavailable);
  TransferState late;
  EXPECT_FALSE(thread.Await(late, Now())) << "nobody drives a stopped one";
}

TEST(Liveness, HangsUpWhenTheListenerGoes) {
  IdleDriver driver;
  const uint64_t instance = RandomId();
  EXPECT_EQ(ConnectLiveness(instance).status().code(), absl::StatusCode::kUnavailable);
  auto listener = LivenessListener::Create(instance);
  ASSERT_TRUE(listener.ok()) << listener.status();
  EXPECT_FALSE(LivenessListener::Create(instance).ok()) << "the name is taken";
  ProgressThread thread(&driver, "test", Duration::zero());
  ASSERT_TRUE(thread.RunAndWait([&] { (*listener)->Start(&thread); }));
  auto one = ConnectLiveness(instance), two = ConnectLiveness(instance);
  ASSERT_TRUE(one.ok() && two.ok()) << one.status() << two.status();
  EXPECT_FALSE(HungUp(one->get()));
  one->reset();  // the listener forgets it
  ASSERT_TRUE(thread.RunAndWait([] {}));
  EXPECT_FALSE(HungUp(two->get()));
  ASSERT_TRUE(thread.RunAndWait([&] { (*listener)->Stop(); }));
  EXPECT_TRUE(HungUp(two->get()));
  EXPECT_FALSE(ConnectLiveness(instance).ok());
}

struct PlainRegion final : RegionCore {
  PlainRegion(uint64_t i, uint8_t* data, size_t size) {
    id = i;
    span = {data, size};
  }
};

TEST(RegionTable, FindsByIdAndByAddress) {
  std::vector<uint8_t> memory(1000);
  uint8_t* m = memory.data();
  RegionTable table;
  table.Add(std::make_shared<PlainRegion>(1, m, 100));
  table.Add(std::make_shared<PlainRegion>(2, m + 100, 100));
  table.Add(std::make_shared<PlainRegion>(3, m, 1000));  // overlaps both
  const auto id_of = [&](uint8_t* at, uint64_t length) -> uint64_t {
    const auto region = table.FindAddress(at, length);
    return region == nullptr ? 0 : region->id;
  };
  EXPECT_NE(id_of(m, 100), 0u);
  EXPECT_EQ(id_of(m + 100, 100), 2u);
  EXPECT_EQ(id_of(m + 50, 100), 3u) << "across two regions, but inside the third";
  EXPECT_EQ(id_of(m + 999, 1), 3u);
  EXPECT_EQ(id_of(m + 999, 2), 0u);
  EXPECT_EQ(id_of(m + 500, ~uint64_t{0}), 0u);
  EXPECT_NE(table.FindId(2), nullptr);
  table.Remove(3);
  table.Remove(3);
  EXPECT_EQ(id_of(m + 50, 100), 0u);
  EXPECT_EQ(id_of(m, 100), 1u);
  EXPECT_EQ(table.FindId(3), nullptr);
}

TEST(TransferState, FirstEndDecidesAndDrainIsSeparate) {
  TransferState state;
  EXPECT_TRUE(state.Start());
  EXPECT_TRUE(state.End(absl::CancelledError("one")));
  EXPECT_FALSE(state.End(absl::OkStatus()));
  EXPECT_EQ(state.status().code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(state.drained());
  EXPECT_FALSE(state.Start());
  state.Drain();
  EXPECT_TRUE(state.drained());

  TransferState success;
  EXPECT_TRUE(success.Start());
  EXPECT_TRUE(success.End(absl::OkStatus()));
  EXPECT_TRUE(success.drained());

  TransferState dropped;
  dropped.Drain();
  EXPECT_EQ(dropped.status().code(), absl::StatusCode::kCancelled);
}

TEST(TransferState, WaitsByAnInjectedClock) {
  FakeClock clock;
  TransferState state;
  EXPECT_FALSE(state.WaitEnded(clock.Now(), clock));
  std::thread ender([&] { state.End(absl::OkStatus()); });
  EXPECT_TRUE(state.WaitEnded(clock.Now() + seconds(1), clock));
  ender.join();
}

TEST(Transfer, GivesItsBytesInPieces) {
  std::vector<uint8_t> memory(32);
  uint8_t* m = memory.data();
  std::vector<ResolvedOp> ops = {{TransferKind::kRead, m, 0, 0, nullptr, nullptr},
                                 {TransferKind::kRead, m, 25, 100, nullptr, nullptr},
                                 {TransferKind::kWrite, m, 7, 50, nullptr, nullptr}};
  Transfer transfer(std::move(ops), Time::max(), Time{});
  EXPECT_EQ(transfer.read_bytes, 25u);
  EXPECT_EQ(transfer.write_bytes, 7u);
  std::vector<std::pair<uint64_t, uint64_t>> pieces;
  Transfer::Piece piece;
  while (transfer.Peek(10, 4, &piece)) {
    pieces.emplace_back(piece.remote_offset, piece.length);
    transfer.Take(piece);
  }
  const std::vector<std::pair<uint64_t, uint64_t>> want = {
      {100, 10}, {110, 10}, {120, 5}, {50, 4}, {54, 3}};
  EXPECT_EQ(pieces, want);
}

}  // namespace
}  // namespace oscarkv
