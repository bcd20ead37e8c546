// Metadata operations per second of a KV node over gRPC: the server in one process, one client in
// another, batches of 128 keys, no block bytes moved by the client. Beside each rate stands the
// yardstick of the same run: an empty gRPC call whose messages have the same sizes, served by the
// same sort of server. Prints a Markdown table.
//
//   kvstore_bench [--seconds S] [--repeat N] [--outstanding N,N]
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "kvstore/adapter.h"
#include "kvstore/client/grpc_stub.h"
#include "kvstore/server/kvstore_server.h"

namespace oscarkv {
namespace {

constexpr int kBatch = 128;
constexpr uint64_t kBlockBytes = 256;  // the node checks their checksum when a put ends
constexpr int kChain = 8192;           // keys that are looked up

Time In(Duration d) {
  return SteadyClock::Get()->Now() + d;
}
Time Soon() {
  return In(std::chrono::seconds(30));
}

[[noreturn]] void Die(const std::string& what) {
  std::fprintf(stderr, "kvstore_bench: %s\n", what.c_str());
  std::exit(1);
}

// --- The servers, in a child process ---

// Answers any call with as many bytes as the first four of the request say.
class EchoService final : public grpc::CallbackGenericService {
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext*) override {
    return new Reactor;
  }

  class Reactor final : public grpc::ServerGenericBidiReactor {
   public:
    Reactor() { StartRead(&request_); }
    void OnReadDone(bool ok) override {
      if (!ok) return Finish(grpc::Status::OK);
      grpc::Slice slice;
      request_.DumpToSingleSlice(&slice);
      uint32_t size = 0;
      if (slice.size() >= sizeof(size)) std::memcpy(&size, slice.begin(), sizeof(size));
      const grpc::Slice answer(std::string(std::min<uint32_t>(size, 1 << 20), 'x'));
      response_ = grpc::ByteBuffer(&answer, 1);
      StartWriteAndFinish(&response_, grpc::WriteOptions(), grpc::Status::OK);
    }
    void OnDone() override { delete this; }

   private:
    grpc::ByteBuffer request_, response_;
  };
};

// Writes the two ports to `fd` and serves until it is killed.
[[noreturn]] void RunServers(int fd) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  KvStoreServerOptions o;
  o.capacity = uint64_t{1} << 30;
  o.huge_pages = false;
  o.session_ttl = std::chrono::minutes(10);
  auto server = KvStoreServer::Start(o, nullptr, nullptr);
  if (!server.ok()) Die(server.status().ToString());
  EchoService echo;
  grpc::ServerBuilder builder;
  int ports[2] = {(*server)->port(), 0};
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &ports[1]);
  builder.RegisterCallbackGenericService(&echo);
  const auto echo_server = builder.BuildAndStart();
  if (write(fd, ports, sizeof(ports)) != sizeof(ports)) Die("the pipe to the client broke");
  for (;;) pause();
}

// --- The client ---

// Runs `call(thread, n)` on `threads` threads for `seconds`; calls per second.
double Rate(int threads, double seconds, const std::function<void(int, uint64_t)>& call) {
  std::atomic<uint64_t> calls{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> workers;
  const Time start = SteadyClock::Get()->Now();
  for (int t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      uint64_t n = 0;
      while (!stop) call(t, n++);
      calls += n;
    });
  }
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  stop = true;
  for (std::thread& w : workers) w.join();
  return calls / std::chrono::duration<double>(SteadyClock::Get()->Now() - start).count();
}

BlockKey NumberedKey(uint64_t number) {
  BlockKey key;
  uint64_t state = number * 0x9e3779b97f4a7c15u + 1;
  for (int i = 0; i < 4; ++i) {
    state ^= state >> 31;
    state *= 0xbf58476d1ce4e5b9u;
    std::memcpy(key.bytes.data() + 8 * i, &state, 8);
  }
  return key;
}

template <typename Request>
typename Request::Response Must(KvStub* stub, Request request) {
  auto response = CallAndWait(stub, std::move(request), Soon());
  if (!response.ok()) Die(response.status().ToString());
  return *std::move(response);
}

class Client {
 public:
  Client(int kv_port, int echo_port)
      : stub_(MakeGrpcStub(absl::StrCat("127.0.0.1:", kv_port))),
        channel_(grpc::CreateChannel(absl::StrCat("127.0.0.1:", echo_port),
                                     grpc::InsecureChannelCredentials())),
        echo_(channel_) {
    session_ = Must(stub_.get(), kv::OpenSessionRequest{"bench", ""}).session_id;
    const std::string zeros(kBlockBytes, '\0');  // the arena's own bytes: nothing has to be written
    table_ = {{kBlockBytes}, {Crc32c(zeros.data(), zeros.size())}};
    for (int i = 0; i < kChain; ++i) chain_.push_back(NumberedKey(i));
    for (int i = 0; i < kChain; i += kBatch)
      Put(std::vector<BlockKey>(chain_.begin() + i, chain_.begin() + i + kBatch));
    next_key_ = kChain;
  }

  void MatchOnce(int thread, uint64_t n) {
    const size_t first = (n * 7 + thread * 3) % (kChain / kBatch) * kBatch;
    kv::MatchPrefixRequest request{session_,
                                   {chain_.begin() + first, chain_.begin() + first + kBatch}};
    if (Must(stub_.get(), std::move(request)).matched != kBatch) Die("a stored key did not match");
  }
  void PutOnce() {
    const uint64_t first = next_key_.fetch_add(kBatch);
    std::vector<BlockKey> keys;
    for (int i = 0; i < kBatch; ++i) keys.push_back(NumberedKey(first + i));
    Put(keys);
  }
  // An empty call with messages of these sizes.
  void EchoOnce(size_t request_bytes, uint32_t response_bytes) {
    std::string bytes(std::max(request_bytes, sizeof(response_bytes)), 'r');
    std::memcpy(bytes.data(), &response_bytes, sizeof(response_bytes));
    const grpc::Slice slice(bytes);
    grpc::ByteBuffer request(&slice, 1), response;
    grpc::ClientContext context;
    CallBarrier barrier;
    barrier.Add();
    grpc::Status status;
    echo_.UnaryCall(&context, "/bench.Echo/Call", grpc::StubOptions(), &request, &response,
                    [&](grpc::Status s) {
                      status = std::move(s);
                      barrier.Done();
                    });
    barrier.Wait();
    if (!status.ok() || response.Length() != response_bytes)
      Die("the yardstick failed: " + status.error_message());
  }

  struct Sizes {
    size_t request, response;
  };
  Sizes MatchSizes() const {
    v1::MatchPrefixRequest request;
    v1::MatchPrefixResponse response;
    ToProto(kv::MatchPrefixRequest{session_, {chain_.begin(), chain_.begin() + kBatch}}, &request);
    ToProto(kv::MatchPrefixResponse{kBatch}, &response);
    return {request.ByteSizeLong(), response.ByteSizeLong()};
  }
  // Of PutStart and of PutEnd.
  std::vector<Sizes> PutSizes() const { return {put_start_, put_end_}; }

 private:
  void Put(const std::vector<BlockKey>& keys) {
    kv::PutStartRequest start{session_, {}, next_put_.fetch_add(1)};
    for (size_t i = 0; i < keys.size(); ++i) {
      start.items.push_back(
          {keys[i], i == 0 ? BlockKey{} : keys[i - 1], BlockKind::kPage, kBlockBytes});
    }
    const kv::PutStartResponse started = Must(stub_.get(), start);
    kv::PutEndRequest end{session_, {}};
    for (size_t i = 0; i < keys.size(); ++i) {
      if (!started.statuses[i].ok()) Die(started.statuses[i].ToString());
      end.items.push_back({keys[i], started.generations[i], table_});
    }
    const kv::PutEndResponse ended = Must(stub_.get(), end);
    for (const absl::Status& s : ended.statuses) {
      if (!s.ok()) Die(s.ToString());
    }
    if (next_key_ == kChain || put_start_.request > 0) return;
    put_start_ = SizesOf<v1::PutStartRequest, v1::PutStartResponse>(start, started);
    put_end_ = SizesOf<v1::PutEndRequest, v1::PutEndResponse>(end, ended);
  }
  template <typename ProtoRequest, typename ProtoResponse, typename Request, typename Response>
  static Sizes SizesOf(const Request& request, const Response& response) {
    ProtoRequest in;
    ProtoResponse out;
    ToProto(request, &in);
    ToProto(response, &out);
    return {in.ByteSizeLong(), out.ByteSizeLong()};
  }

  const std::unique_ptr<KvStub> stub_;
  const std::shared_ptr<grpc::Channel> channel_;
  grpc::GenericStub echo_;
  uint64_t session_ = 0;
  kv::SliceTable table_;
  std::vector<BlockKey> chain_;
  std::atomic<uint64_t> next_key_{0}, next_put_{1};
  Sizes put_start_{0, 0}, put_end_{0, 0};
};

struct Row {
  std::string name;
  int outstanding;
  double keys_per_second, yardstick_keys_per_second;
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void Run(Client* client, double seconds, int repeat, const std::vector<int>& outstanding) {
  client->PutOnce();  // learns the sizes of its messages
  std::vector<Row> rows;
  for (int n : outstanding) {
    std::vector<double> match, match_echo, put, put_echo;
    for (int r = 0; r < repeat; ++r) {  // in turns: what else the machine does hits all alike
      const Client::Sizes m = client->MatchSizes();
      match.push_back(kBatch *
                      Rate(n, seconds, [&](int t, uint64_t i) { client->MatchOnce(t, i); }));
      match_echo.push_back(kBatch * Rate(n, seconds, [&](int, uint64_t) {
                             client->EchoOnce(m.request, m.response);
                           }));
      put.push_back(kBatch * Rate(n, seconds, [&](int, uint64_t) { client->PutOnce(); }));
      put_echo.push_back(kBatch * Rate(n, seconds, [&](int, uint64_t) {
                           for (const Client::Sizes& s : client->PutSizes())
                             client->EchoOnce(s.request, s.response);
                         }));
    }
    rows.push_back({"lookup (MatchPrefix, all found)", n, Median(match), Median(match_echo)});
    rows.push_back({"put (PutStart + PutEnd)", n, Median(put), Median(put_echo)});
  }
  std::printf(
      "| operation | calls outstanding | keys/s | empty calls of the same size: keys/s | share "
      "|\n");
  std::printf("|---|---|---|---|---|\n");
  for (const Row& row : rows) {
    std::printf("| %s | %d | %.0f | %.0f | %.2f |\n", row.name.c_str(), row.outstanding,
                row.keys_per_second, row.yardstick_keys_per_second,
                row.keys_per_second / row.yardstick_keys_per_second);
  }
}

int Main(int argc, char** argv) {
  double seconds = 2;
  int repeat = 3;
  std::vector<int> outstanding = {1, 4};
  for (int i = 1; i + 1 < argc; i += 2) {
    const absl::string_view name = argv[i], value = argv[i + 1];
    bool good = false;
    if (name == "--seconds") good = absl::SimpleAtod(value, &seconds) && seconds > 0;
    if (name == "--repeat") good = absl::SimpleAtoi(value, &repeat) && repeat > 0;
    if (name == "--outstanding") {
      outstanding.clear();
      for (absl::string_view n : absl::StrSplit(value, ',')) {
        outstanding.push_back(0);
        good = absl::SimpleAtoi(n, &outstanding.back()) && outstanding.back() > 0;
        if (!good) break;
      }
    }
    if (!good) Die(absl::StrCat("bad argument ", name, " ", value));
  }
  int fds[2];
  if (pipe(fds) != 0) Die("pipe");
  const pid_t child = fork();  // before gRPC has any thread
  if (child < 0) Die("fork");
  if (const absl::Status log = InitLog("warn", "bench"); !log.ok()) Die(log.ToString());
  if (child == 0) RunServers(fds[1]);
  int ports[2];
  if (read(fds[0], ports, sizeof(ports)) != sizeof(ports)) Die("the server did not start");
  {
    Client client(ports[0], ports[1]);
    Run(&client, seconds, repeat, outstanding);
  }
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  return 0;
}

}  // namespace
}  // namespace oscarkv

int main(int argc, char** argv) {
  return oscarkv::Main(argc, argv);
}
