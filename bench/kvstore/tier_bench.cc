// The tier on disk by itself: blocks are offered as fast as it takes them, then read one by one and
// many at once, from the disk and from the kernel's cache. Beside it the yardstick of the same
// folder: plain writes of the same bytes with an fsync every 64 MiB, plain reads of the same
// sizes. Prints a Markdown table.
//
//   tier_bench --path FOLDER [--bytes N] [--blocks SIZE,SIZE,...]
#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "kvstore/kv_stub.h"
#include "kvstore/tier/rocksdb_store.h"
#include "kvstore/tier/ssd_tier.h"

namespace oscarkv {
namespace {

constexpr int kLayers = 36;
constexpr uint64_t kQueue = 64 << 20;

[[noreturn]] void Die(const std::string& what) {
  std::fprintf(stderr, "tier_bench: %s\n", what.c_str());
  std::exit(1);
}

double Now() {
  return std::chrono::duration<double>(SteadyClock::Get()->Now().time_since_epoch()).count();
}

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return t.tv_sec + t.tv_usec / 1e6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

struct Cost {
  double bytes_per_second, cpu_per_gb;
};

// Of `work`, which moves `bytes`.
template <typename Work>
Cost Measure(uint64_t bytes, Work work) {
  const double start = Now(), cpu = CpuSeconds();
  work();
  const double moved = static_cast<double>(bytes);
  return {moved / (Now() - start), (CpuSeconds() - cpu) / (moved / 1e9)};
}

// What the kernel holds of the files of a folder goes: the next read is the disk's.
void ForgetFiles(const std::string& folder) {
  sync();
  DIR* const dir = opendir(folder.c_str());
  if (dir == nullptr) Die("cannot list " + folder);
  while (const dirent* entry = readdir(dir)) {
    const std::string path = absl::StrCat(folder, "/", entry->d_name);
    struct stat s {};
    if (stat(path.c_str(), &s) != 0) continue;
    if (S_ISDIR(s.st_mode)) {
      if (entry->d_name[0] != '.') ForgetFiles(path);
      continue;
    }
    const int fd = open(path.c_str(), O_RDONLY);
    if (fd < 0) continue;
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
  }
  closedir(dir);
}

BlockKey KeyOf(uint64_t n) {
  BlockKey key;
  std::mt19937_64 random(n);
  for (int i = 0; i < 4; ++i) {
    const uint64_t word = random();
    std::memcpy(key.bytes.data() + 8 * i, &word, 8);
  }
  return key;
}

struct Row {
  uint64_t block;
  Cost demote, write, promote, promote_cached;
  double p50_us, p99_us, cached_p50_us, cached_p99_us, pread_p50_us, cached_pread_p50_us;
};

double Percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<size_t>(share * values.size()))];
}

class Bench {
 public:
  Bench(const std::string& path, uint64_t block, uint64_t bytes)
      : path_(path), block_(block), count_(bytes / block), data_(block) {
    std::mt19937_64 random(1);
    for (uint8_t& b : data_) b = static_cast<uint8_t>(random());
    auto store = OpenRocksDbStore({path_ + "/tier"});
    if (!store.ok()) Die(store.status().ToString());
    SsdTierOptions options;
    options.capacity = 4 * bytes + (uint64_t{1} << 30);
    options.admit_all = true;
    options.queue_bytes = kQueue;
    auto tier = SsdTier::Create(options, *std::move(store), SteadyClock::Get(), nullptr);
    if (!tier.ok()) Die(tier.status().ToString());
    tier_ = *std::move(tier);
    auto table = std::make_shared<kv::SliceTable>();
    const uint64_t layer = block / kLayers;
    for (int l = 0; l < kLayers; ++l) {
      const uint64_t length = l + 1 < kLayers ? layer : block - layer * (kLayers - 1);
      table->lengths.push_back(length);
      table->crc32c.push_back(Crc32c(data_.data() + l * layer, length));
    }
    slices_ = std::move(table);
  }
  ~Bench() { tier_->Shutdown(Time{}); }

  Row Run() {
    Row row{};
    row.block = block_;
    const uint64_t bytes = count_ * block_;
    row.demote = Measure(bytes, [this] { DemoteAll(); });
    if (tier_->stats().demoted_blocks != count_) Die("the tier did not take every block");
    row.write = Measure(bytes, [this] { PlainWrite(); });
    ForgetFiles(path_);
    const std::vector<double> cold = ReadEach();
    row.p50_us = Percentile(cold, 0.5), row.p99_us = Percentile(cold, 0.99);
    const std::vector<double> warm = ReadEach();
    row.cached_p50_us = Percentile(warm, 0.5), row.cached_p99_us = Percentile(warm, 0.99);
    ForgetFiles(path_);
    row.promote = Measure(bytes, [this] { PromoteAll(); });
    row.promote_cached = Measure(bytes, [this] { PromoteAll(); });
    ForgetFiles(path_);
    row.pread_p50_us = Percentile(PlainRead(), 0.5);
    row.cached_pread_p50_us = Percentile(PlainRead(), 0.5);
    return row;
  }

 private:
  void DemoteAll() {
    TierBlock block;
    block.size = block_;
    block.slices = slices_;
    for (uint64_t n = 0; n < count_; ++n) {
      while (tier_->stats().queued_bytes + block_ > kQueue) usleep(200);
      block.key = {DigestOfTenant(""), KeyOf(n)};
      tier_->Offer(block, true, data_);
    }
    tier_->WaitIdle();
  }
  void PlainWrite() {
    const int fd = open((path_ + "/plain").c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
    if (fd < 0) Die("cannot write to " + path_);
    for (uint64_t n = 0, unsynced = 0; n < count_; ++n) {
      if (write(fd, data_.data(), block_) != static_cast<ssize_t>(block_)) Die("write failed");
      if ((unsynced += block_) < (64 << 20)) continue;
      fsync(fd);
      unsynced = 0;
    }
    fsync(fd);
    close(fd);
  }
  uint64_t Samples() const { return std::min<uint64_t>(count_, 400); }
  std::vector<uint64_t> RandomOrder() const {
    std::vector<uint64_t> order(count_);
    for (uint64_t n = 0; n < count_; ++n) order[n] = n;
    std::shuffle(order.begin(), order.end(), std::mt19937_64(7));
    return order;
  }
  void Fetch(uint64_t n, CallBarrier* barrier) {
    barrier->Add();
    const bool there =
        tier_->Fetch({DigestOfTenant(""), KeyOf(n)}, Time::max(),
                     [barrier](const absl::StatusOr<TierBlock>& block, absl::Span<const uint8_t>) {
                       if (!block.ok()) Die(block.status().ToString());
                       barrier->Done();
                     });
    if (!there) Die("a block is missing");
  }
  std::vector<double> ReadEach() {
    std::vector<double> us;
    const std::vector<uint64_t> order = RandomOrder();
    for (uint64_t i = 0; i < Samples(); ++i) {
      const double start = Now();
      CallBarrier barrier;
      Fetch(order[i], &barrier);
      barrier.Wait();
      us.push_back((Now() - start) * 1e6);
    }
    return us;
  }
  // As gets of 16 blocks would.
  void PromoteAll() {
    const std::vector<uint64_t> order = RandomOrder();
    for (uint64_t n = 0; n < count_; n += 16) {
      CallBarrier barrier;
      for (uint64_t i = n; i < std::min(count_, n + 16); ++i) Fetch(order[i], &barrier);
      barrier.Wait();
    }
  }
  std::vector<double> PlainRead() {
    const int fd = open((path_ + "/plain").c_str(), O_RDONLY);
    std::vector<double> us;
    const std::vector<uint64_t> order = RandomOrder();
    std::vector<uint8_t> buffer(block_);
    for (uint64_t i = 0; i < Samples(); ++i) {
      const double start = Now();
      if (pread(fd, buffer.data(), block_, static_cast<off_t>(order[i] * block_)) !=
          static_cast<ssize_t>(block_)) {
        Die("read failed");
      }
      us.push_back((Now() - start) * 1e6);
    }
    close(fd);
    return us;
  }

  const std::string path_;
  const uint64_t block_, count_;
  std::vector<uint8_t> data_;
  std::shared_ptr<const kv::SliceTable> slices_;
  std::unique_ptr<SsdTier> tier_;
};

void Print(const std::vector<Row>& rows) {
  std::printf(
      "| block | demoted MB/s (plain writes) | CPU s per GB | read p50 / p99 us, disk (plain read) "
      "| read p50 / p99 us, cached (plain read) | promoted MB/s, 16 at once: disk / cached | CPU s "
      "per GB |\n|---|---|---|---|---|---|---|\n");
  for (const Row& r : rows) {
    std::printf(
        "| %llu KiB | %.0f (%.0f) | %.2f | %.0f / %.0f (%.0f) | %.0f / %.0f (%.0f) | %.0f / %.0f | "
        "%.2f |\n",
        static_cast<unsigned long long>(r.block >> 10), r.demote.bytes_per_second / 1e6,
        r.write.bytes_per_second / 1e6, r.demote.cpu_per_gb, r.p50_us, r.p99_us, r.pread_p50_us,
        r.cached_p50_us, r.cached_p99_us, r.cached_pread_p50_us, r.promote.bytes_per_second / 1e6,
        r.promote_cached.bytes_per_second / 1e6, r.promote_cached.cpu_per_gb);
  }
}

int Main(int argc, char** argv) {
  std::string path;
  uint64_t bytes = uint64_t{512} << 20;
  std::vector<uint64_t> blocks = {72 << 10, 512 << 10, 1296 << 10};
  for (int i = 1; i + 1 < argc; i += 2) {
    const absl::string_view name = argv[i], value = argv[i + 1];
    bool good = name == "--path";
    if (good) path = argv[i + 1];
    if (name == "--bytes") good = absl::SimpleAtoi(value, &bytes) && bytes > 0;
    if (name == "--blocks") {
      blocks.clear();
      for (absl::string_view n : absl::StrSplit(value, ',')) {
        blocks.push_back(0);
        good = absl::SimpleAtoi(n, &blocks.back()) && blocks.back() >= kLayers;
        if (!good) break;
      }
    }
    if (!good) Die(absl::StrCat("bad argument ", name, " ", value));
  }
  if (path.empty()) Die("--path is missing: expected a folder on the disk to be measured");
  if (const absl::Status log = InitLog("warn", "bench"); !log.ok()) Die(log.ToString());
  std::vector<Row> rows;
  for (uint64_t block : blocks) {
    const std::string folder = absl::StrCat(path, "/", block);
    if (mkdir(folder.c_str(), 0700) != 0) Die("cannot make " + folder);
    Bench bench(folder, block, bytes);
    rows.push_back(bench.Run());
  }
  Print(rows);
  return 0;
}

}  // namespace
}  // namespace oscarkv

int main(int argc, char** argv) {
  return oscarkv::Main(argc, argv);
}
