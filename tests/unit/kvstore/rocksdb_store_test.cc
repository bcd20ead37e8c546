// The tier on a real RocksDB in a temporary folder: what the fake disk cannot show.
#include "kvstore/tier/rocksdb_store.h"

#include <gmock/gmock.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "kvstore/tier/ssd_tier.h"
#include "tier_support.h"

namespace oscarkv {
namespace {

namespace fs = std::filesystem;
using kvtest::Bytes;
using kvtest::Fetch;
using kvtest::Key;
using kvtest::Offer;
using kvtest::TierKeyOf;

constexpr uint64_t kBlock = 100'000;

class RocksDbStoreTest : public testing::Test {
 protected:
  RocksDbStoreTest() {
    std::string pattern = testing::TempDir() + "/oscarkv-tier-XXXXXX";
    folder_ = mkdtemp(pattern.data());
    options_.capacity = 64 << 20;
    options_.queue_bytes = 1 << 30;
  }
  ~RocksDbStoreTest() override {
    tier_.reset();
    fs::remove_all(folder_);
  }
  absl::Status Start(const fs::path& folder) {
    absl::StatusOr<std::unique_ptr<DiskStore>> store =
        OpenRocksDbStore({folder.string(), /*memtable_bytes=*/1 << 20});
    if (!store.ok()) return store.status();
    auto tier = SsdTier::Create(options_, *std::move(store), &clock_, nullptr);
    if (!tier.ok()) return tier.status();
    tier_ = *std::move(tier);
    return absl::OkStatus();
  }
  absl::Status Start() { return Start(folder_ / "tier"); }
  uint64_t FolderBytes() const {
    uint64_t sum = 0;
    for (const auto& file : fs::recursive_directory_iterator(folder_)) {
      std::error_code gone;
      if (file.is_regular_file(gone)) sum += fs::file_size(file, gone);
    }
    return sum;
  }
  // Changes a byte in the middle of every file with this extension.
  int Damage(const std::string& extension) {
    int files = 0;
    for (const auto& file : fs::recursive_directory_iterator(folder_)) {
      if (file.path().extension() != extension) continue;
      std::fstream f(file.path(), std::ios::in | std::ios::out | std::ios::binary);
      const auto at = static_cast<std::streamoff>(fs::file_size(file) / 2);
      f.seekg(at);
      const char byte = static_cast<char>(f.get());
      f.seekp(at);
      f.put(static_cast<char>(byte ^ 0x10));
      ++files;
    }
    return files;
  }

  FakeClock clock_;
  fs::path folder_;
  SsdTierOptions options_;
  std::unique_ptr<SsdTier> tier_;
};

TEST_F(RocksDbStoreTest, ReturnsWhatItTookAlsoAfterARestart) {
  ASSERT_TRUE(Start().ok());
  for (int n = 0; n < 100; ++n) Offer(tier_.get(), n, n % 2 == 0 ? kBlock : 700);
  tier_->WaitIdle();
  for (int n = 0; n < 100; ++n)
    EXPECT_EQ(*Fetch(tier_.get(), TierKeyOf(n)), Bytes(Key(n), n % 2 == 0 ? kBlock : 700));
  tier_->Erase(TierKeyOf(5));
  tier_->WaitIdle();
  tier_.reset();
  ASSERT_TRUE(Start().ok());
  EXPECT_EQ(tier_->stats().adopted_blocks, 99u);
  for (int n = 0; n < 100; ++n) {
    if (n != 5) {
      EXPECT_EQ(*Fetch(tier_.get(), TierKeyOf(n)), Bytes(Key(n), n % 2 == 0 ? kBlock : 700));
    }
  }
}

TEST_F(RocksDbStoreTest, TheFolderKeepsItsCapacityAndBytesAreWrittenOnce) {
  options_.capacity = 16 << 20;
  ASSERT_TRUE(Start().ok());
  for (int n = 0; n < 1000; ++n) {  // six times the capacity
    Offer(tier_.get(), n, kBlock);
    if (n % 20 == 0) tier_->WaitIdle();
    // Files that were dropped may still wait for RocksDB's thread: half a generation.
    EXPECT_LE(FolderBytes(), options_.capacity + (1 << 20)) << n;
  }
  tier_->WaitIdle();
  EXPECT_GT(tier_->stats().kind_bytes[0], options_.capacity * 8 / 10);
  for (int n = 990; n < 1000; ++n)
    EXPECT_EQ(*Fetch(tier_.get(), TierKeyOf(n)), Bytes(Key(n), kBlock));
}

TEST_F(RocksDbStoreTest, DroppingAGenerationUnderReadersIsSafe) {
  options_.capacity = 16 << 20;
  ASSERT_TRUE(Start().ok());
  std::atomic<bool> stop{false};
  std::thread reader([&] {
    for (uint64_t i = 0; !stop.load(); ++i) {
      const uint64_t n = i % 500;
      const auto got = Fetch(tier_.get(), TierKeyOf(n));
      EXPECT_TRUE(got.ok() ? *got == Bytes(Key(n), kBlock) : absl::IsNotFound(got.status()))
          << got.status();
    }
  });
  for (int n = 0; n < 500; ++n) Offer(tier_.get(), n, kBlock);
  tier_->WaitIdle();
  stop = true;
  reader.join();
}

// Run by SurvivesKillWhileWriting in a process of its own (RocksDB's threads do not survive a
// fork): writes until it is killed.
TEST_F(RocksDbStoreTest, DISABLED_Writer) {
  ASSERT_TRUE(Start(std::getenv("OSCARKV_TEST_FOLDER")).ok());
  for (int n = 0; n < 100; ++n) Offer(tier_.get(), n, kBlock);
  tier_->WaitIdle();
  for (int n = 100; n < 250; ++n) Offer(tier_.get(), n, kBlock);
  ASSERT_EQ(write(STDOUT_FILENO, "#", 1), 1);
  for (int n = 250;; ++n) Offer(tier_.get(), n, kBlock);
}

// What it had flushed is there, nothing is damaged.
TEST_F(RocksDbStoreTest, SurvivesKillWhileWriting) {
  int out[2];
  ASSERT_EQ(pipe(out), 0);
  const std::string folder = "OSCARKV_TEST_FOLDER=" + (folder_ / "tier").string();
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    dup2(out[1], STDOUT_FILENO);
    const char* args[] = {"writer", "--gtest_filter=*DISABLED_Writer",
                          "--gtest_also_run_disabled_tests", nullptr};
    const char* env[] = {folder.c_str(), nullptr};
    execve("/proc/self/exe", const_cast<char**>(args), const_cast<char**>(env));
    _exit(127);
  }
  close(out[1]);
  char byte = 0;
  while (byte != '#' && read(out[0], &byte, 1) == 1) {
  }
  EXPECT_EQ(byte, '#') << "the writer failed";
  ASSERT_EQ(kill(child, SIGKILL), 0);
  waitpid(child, nullptr, 0);
  close(out[0]);
  ASSERT_TRUE(Start().ok());
  EXPECT_GE(tier_->stats().adopted_blocks, 100u);
  for (int n = 0; n < 100; ++n)
    EXPECT_EQ(*Fetch(tier_.get(), TierKeyOf(n)), Bytes(Key(n), kBlock)) << n;
  EXPECT_EQ(tier_->Scrub(0), 0u);
}

TEST_F(RocksDbStoreTest, FlippedBitsInFilesAreFound) {
  ASSERT_TRUE(Start().ok());
  for (int n = 0; n < 100; ++n) Offer(tier_.get(), n, kBlock);
  tier_->WaitIdle();
  tier_.reset();
  const int files = Damage(".blob");
  ASSERT_GT(files, 0);
  ASSERT_TRUE(Start().ok());
  int lost = 0;
  for (int n = 0; n < 100; ++n) {
    const auto got = Fetch(tier_.get(), TierKeyOf(n));
    if (got.ok()) {
      EXPECT_EQ(*got, Bytes(Key(n), kBlock));
    } else {
      EXPECT_TRUE(absl::IsDataLoss(got.status())) << got.status();
      EXPECT_FALSE(tier_->Contains(TierKeyOf(n)));
      ++lost;
    }
  }
  EXPECT_EQ(lost, files);
}

TEST_F(RocksDbStoreTest, TruncatedFilesCostTheirBlocks) {
  ASSERT_TRUE(Start().ok());
  for (int n = 0; n < 100; ++n) Offer(tier_.get(), n, kBlock);
  tier_->WaitIdle();
  tier_.reset();
  for (const auto& file : fs::recursive_directory_iterator(folder_)) {
    if (file.path().extension() == ".blob") fs::resize_file(file, fs::file_size(file) / 2);
  }
  ASSERT_TRUE(Start().ok());  // some versions refuse such files: then all of them are thrown away
  for (int n = 0; n < 100; ++n) {
    const auto got = Fetch(tier_.get(), TierKeyOf(n));
    if (got.ok()) {
      EXPECT_EQ(*got, Bytes(Key(n), kBlock));
    }
  }
  Offer(tier_.get(), 500, kBlock);
  tier_->WaitIdle();
  EXPECT_TRUE(tier_->Contains(TierKeyOf(500)));
}

TEST_F(RocksDbStoreTest, AnUnreadableFolderIsStartedAnew) {
  ASSERT_TRUE(Start().ok());
  for (int n = 0; n < 10; ++n) Offer(tier_.get(), n, kBlock);
  tier_->WaitIdle();
  tier_.reset();
  std::ofstream(folder_ / "tier" / "CURRENT") << "nonsense\n";
  ASSERT_TRUE(Start().ok());
  EXPECT_EQ(tier_->stats().adopted_blocks, 0u);
  Offer(tier_.get(), 1, kBlock);
  tier_->WaitIdle();
  EXPECT_EQ(*Fetch(tier_.get(), TierKeyOf(1)), Bytes(Key(1), kBlock));
}

TEST_F(RocksDbStoreTest, SaysWhatIsWrongWithTheFolder) {
  std::ofstream(folder_ / "diary.txt") << "dear diary";
  const absl::Status foreign = Start(folder_);
  EXPECT_TRUE(absl::IsInvalidArgument(foreign)) << foreign;
  EXPECT_TRUE(absl::IsUnavailable(Start(folder_ / "diary.txt" / "tier")));
  ASSERT_TRUE(Start().ok());
  const auto second = OpenRocksDbStore({(folder_ / "tier").string(), 1 << 20});
  EXPECT_TRUE(absl::IsFailedPrecondition(second.status())) << second.status();
  EXPECT_TRUE(fs::exists(folder_ / "diary.txt"));
}

// A file system that is really full. Needs the right to mount one.
TEST_F(RocksDbStoreTest, AFullFileSystemCostsBlocksOnly) {
  const fs::path mounted = folder_ / "full";
  fs::create_directory(mounted);
  if (mount("tmpfs", mounted.c_str(), "tmpfs", 0, "size=12m") != 0)
    GTEST_SKIP() << "cannot mount a tmpfs here; NothingIsWrittenIntoTheReserve stands for it";
  ASSERT_TRUE(Start(mounted / "tier").ok());  // with a capacity that the disk does not have
  int offered = 0;
  while (tier_->stats().writable && offered < 1000) {
    Offer(tier_.get(), offered++, kBlock);
    tier_->WaitIdle();
  }
  ASSERT_FALSE(tier_->stats().writable) << "the disk was never full";
  // It makes room and goes on. RocksDB itself looks every five seconds.
  const uint64_t at_full = tier_->stats().demoted_blocks;
  const Time give_up = SteadyClock::Get()->Now() + std::chrono::seconds(60);
  while (tier_->stats().demoted_blocks < at_full + 20 && SteadyClock::Get()->Now() < give_up) {
    clock_.Advance(options_.pause_after_error);
    Offer(tier_.get(), offered++, kBlock);
    tier_->WaitIdle();
    if (!tier_->stats().writable) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  EXPECT_GE(tier_->stats().demoted_blocks, at_full + 20) << "it did not come back";
  // Whatever it says it has is right.
  int found = 0;
  for (int n = 0; n < offered; ++n) {
    if (!tier_->Contains(TierKeyOf(n))) continue;
    const auto got = Fetch(tier_.get(), TierKeyOf(n));
    if (got.ok()) {
      EXPECT_EQ(*got, Bytes(Key(n), kBlock));
      ++found;
    }
  }
  EXPECT_GT(found, 0);
  tier_.reset();
  EXPECT_EQ(umount(mounted.c_str()), 0);
}

// RocksDB must not be let write: it would end the process if its manifest did not fit.
TEST_F(RocksDbStoreTest, NothingIsWrittenIntoTheReserve) {
  const std::string folder = (folder_ / "tier").string();
  const std::string bytes = Bytes(Key(1), kBlock);
  const absl::Span<const uint8_t> data(reinterpret_cast<const uint8_t*>(bytes.data()),
                                       bytes.size());
  {
    auto store = OpenRocksDbStore({folder, 1 << 20});
    ASSERT_TRUE(store.ok()) << store.status();
    const auto generation = (*store)->NewGeneration();
    ASSERT_TRUE(generation.ok());
    ASSERT_TRUE((*store)->Put(*generation, TierKeyOf(1), "meta", data).ok());
    ASSERT_TRUE((*store)->Flush().ok());
  }
  // A reserve that no disk has.
  auto store = OpenRocksDbStore({folder, 1 << 20, uint64_t{1} << 60});
  ASSERT_TRUE(store.ok()) << store.status();
  ASSERT_THAT((*store)->Generations(), testing::SizeIs(1));
  const uint64_t generation = (*store)->Generations()[0];
  const absl::Status put = (*store)->Put(generation, TierKeyOf(2), "meta", data);
  EXPECT_TRUE(absl::IsResourceExhausted(put)) << put;
  EXPECT_THAT(std::string(put.message()), testing::HasSubstr("in reserve"));
  EXPECT_TRUE(absl::IsResourceExhausted((*store)->NewGeneration().status()));
  EXPECT_TRUE(absl::IsResourceExhausted((*store)->DropGeneration(generation)));
  EXPECT_TRUE(absl::IsResourceExhausted((*store)->Flush()));
  const auto record = (*store)->Get(generation, TierKeyOf(1));
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_TRUE(std::equal(data.begin(), data.end(), record->data.begin(), record->data.end()));
}

}  // namespace
}  // namespace oscarkv
