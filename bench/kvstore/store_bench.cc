// Bytes per second of puts and gets against given KV nodes, through the client library: what
// bench/kvstore/scale.py runs against 1, 2 and 4 nodes. Each thread puts chains of 16 blocks of its
// own and then reads them in turns. Prints one line of JSON; CPU seconds are this process's.
//
//   store_bench --nodes HOST:PORT,... [--lanes LIST] [--block BYTES] [--chains N] [--threads N]
//               [--seconds S] [--replicas N]
#include <sys/resource.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "kvstore/client/client.h"
#include "transport/transport.h"

namespace oscarkv {
namespace {

constexpr int kChain = 16;
constexpr int kLayers = 36;

[[noreturn]] void Die(const std::string& what) {
  std::fprintf(stderr, "store_bench: %s\n", what.c_str());
  std::exit(1);
}

Time Soon() {
  return SteadyClock::Get()->Now() + std::chrono::seconds(30);
}

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return t.tv_sec + t.tv_usec / 1e6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

struct Settings {
  std::string nodes, lanes = "tcp";
  int block = 1'327'104;  // a layer's share is a whole number: 36 layers
  int chains = 4;         // of each thread
  int threads = 2;
  int replicas = 1;
  double seconds = 3;
};

// One thread's blocks: a buffer for a chain, registered.
class Worker {
 public:
  Worker(const Settings& settings, KvClient* client, Transport* transport, int number)
      : settings_(settings), client_(client), memory_(size_t{kChain} * settings.block) {
    auto region = transport->Register(absl::MakeSpan(memory_));
    if (!region.ok()) Die(region.status().ToString());
    region_ = *std::move(region);
    for (size_t i = 0; i < memory_.size(); ++i)
      memory_[i] = static_cast<uint8_t>(i * 31 + i / 4096 * 7 + number);
    const uint64_t layer = settings.block / kLayers;
    for (int l = 0; l < kLayers; ++l) slices_.push_back({l * layer, layer, 0});
    NamespaceFields fields;
    fields.prefill_history = "exact";
    fields.tenant = absl::StrCat("bench", number);
    for (int c = 0; c < settings.chains; ++c) {
      std::vector<int32_t> tokens(kChain * 64);
      for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 17 + c * 5);
      chains_.push_back(ChainKeys(NamespaceDigest(fields), tokens));
    }
  }

  // Puts chain c; the time of making checksums is the client's, as in a worker.
  uint64_t Put(int c) {
    std::vector<BlockSpec> specs;
    for (int i = 0; i < kChain; ++i) {
      specs.push_back({chains_[c][i], i == 0 ? BlockKey{} : chains_[c][i - 1],
                       PlacementOf(chains_[c], i), BlockKind::kPage,
                       static_cast<uint64_t>(settings_.block)});
    }
    auto put = client_->StartPut(specs, Soon());
    if (!put.ok()) Die(put.status().ToString());
    std::vector<std::vector<Slice>> slices(kChain, slices_);
    for (int i = 0; i < kChain; ++i) {
      uint8_t* const block = memory_.data() + static_cast<size_t>(i) * settings_.block;
      for (Slice& s : slices[i]) s.crc32c = Crc32c(block + s.offset, s.length);
      const LocalPiece piece{0, static_cast<uint64_t>(settings_.block), block};
      (*put)->Write(i, absl::MakeConstSpan(&piece, 1));
    }
    for (const absl::Status& status : (*put)->Commit(slices, Soon())) {
      if (!status.ok()) Die(absl::StrCat("put: ", status.ToString()));
    }
    return memory_.size();
  }
  uint64_t Get(int c) {
    std::vector<GetRequest> requests;
    for (int i = 0; i < kChain; ++i) {
      requests.push_back({chains_[c][i],
                          PlacementOf(chains_[c], i),
                          {{0, static_cast<uint64_t>(settings_.block),
                            memory_.data() + static_cast<size_t>(i) * settings_.block}}});
    }
    TransferTotals totals;
    for (const absl::Status& status : client_->Get(requests, Soon(), &totals)) {
      if (!status.ok()) Die(absl::StrCat("get: ", status.ToString()));
    }
    lanes_ = totals.lanes;
    return totals.bytes;
  }
  void Erase(int c) {
    std::vector<BlockKey> placement(kChain, PlacementOf(chains_[c], 0));
    const absl::Status status = client_->Erase(chains_[c], placement, Soon());
    if (!status.ok()) Die(absl::StrCat("erase: ", status.ToString()));
  }
  const std::string& lanes() const { return lanes_; }

 private:
  const Settings settings_;
  KvClient* const client_;
  std::vector<uint8_t> memory_;
  std::unique_ptr<MemoryRegion> region_;
  std::vector<Slice> slices_;
  std::vector<std::vector<BlockKey>> chains_;
  std::string lanes_;
};

struct Result {
  double bytes_per_second, cpu_seconds_per_gb;
};

// Runs `step(worker, n)`, which returns bytes, on all workers for the time of the settings.
template <typename Step>
Result Measure(const Settings& settings, std::vector<std::unique_ptr<Worker>>* workers, Step step) {
  std::atomic<uint64_t> bytes{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  const double cpu = CpuSeconds();
  const Time start = SteadyClock::Get()->Now();
  for (auto& worker : *workers) {
    threads.emplace_back([&] {
      for (int n = 0; !stop; ++n) bytes += step(worker.get(), n);
    });
  }
  std::this_thread::sleep_for(std::chrono::duration<double>(settings.seconds));
  stop = true;
  for (std::thread& t : threads) t.join();
  const double took = std::chrono::duration<double>(SteadyClock::Get()->Now() - start).count();
  const double moved = static_cast<double>(bytes.load());
  return {moved / took, (CpuSeconds() - cpu) / (moved / 1e9)};
}

Settings Parse(int argc, char** argv) {
  Settings s;
  for (int i = 1; i + 1 < argc; i += 2) {
    const absl::string_view name = argv[i], value = argv[i + 1];
    bool good = true;
    if (name == "--nodes") {
      s.nodes = argv[i + 1];
    } else if (name == "--lanes") {
      s.lanes = argv[i + 1];
    } else if (name == "--block") {
      good = absl::SimpleAtoi(value, &s.block) && s.block > 0 && s.block % kLayers == 0;
    } else if (name == "--chains") {
      good = absl::SimpleAtoi(value, &s.chains) && s.chains > 0;
    } else if (name == "--threads") {
      good = absl::SimpleAtoi(value, &s.threads) && s.threads > 0;
    } else if (name == "--replicas") {
      good = absl::SimpleAtoi(value, &s.replicas) && s.replicas > 0;
    } else if (name == "--seconds") {
      good = absl::SimpleAtod(value, &s.seconds) && s.seconds > 0;
    } else {
      good = false;
    }
    if (!good) Die(absl::StrCat("bad argument ", name, " ", value));
  }
  if (s.nodes.empty()) Die("--nodes is missing");
  return s;
}

int Main(int argc, char** argv) {
  const Settings settings = Parse(argc, argv);
  if (const absl::Status log = InitLog("warn", "bench"); !log.ok()) Die(log.ToString());
  UcxOptions ucx;
  ucx.lanes = settings.lanes;
  auto transport = CreateUcxTransport(ucx, nullptr);
  if (!transport.ok()) Die(transport.status().ToString());
  KvClientOptions options;
  options.nodes = absl::StrSplit(settings.nodes, ',');
  options.replicas = settings.replicas;
  options.name = "bench";
  options.transport = transport->get();
  auto client = KvClient::Create(options);
  if (!client.ok()) Die(client.status().ToString());
  {
    std::vector<std::unique_ptr<Worker>> workers;
    for (int t = 0; t < settings.threads; ++t)
      workers.push_back(std::make_unique<Worker>(settings, client->get(), transport->get(), t));
    // A put of what is there moves nothing: each chain is erased before it is put again.
    const Result put = Measure(settings, &workers, [&](Worker* w, int n) {
      const int c = n % settings.chains;
      if (n >= settings.chains) w->Erase(c);
      return w->Put(c);
    });
    for (auto& w : workers) {  // whatever the time was up in
      for (int c = 0; c < settings.chains; ++c) {
        w->Erase(c);
        w->Put(c);
      }
    }
    const Result get =
        Measure(settings, &workers, [&](Worker* w, int n) { return w->Get(n % settings.chains); });
    for (auto& w : workers) {  // the next run puts the same
      for (int c = 0; c < settings.chains; ++c) w->Erase(c);
    }
    std::printf(
        "{\"put_bytes_per_second\": %.0f, \"put_cpu_per_gb\": %.4f, \"get_bytes_per_second\": "
        "%.0f, \"get_cpu_per_gb\": %.4f, \"lanes\": \"%s\"}\n",
        put.bytes_per_second, put.cpu_seconds_per_gb, get.bytes_per_second, get.cpu_seconds_per_gb,
        workers[0]->lanes().c_str());
  }
  return 0;
}

}  // namespace
}  // namespace oscarkv

int main(int argc, char** argv) {
  return oscarkv::Main(argc, argv);
}
