// A reader that holds its pins for as long as it is told to, for the eviction test.
//
//   pinned_reader HOST:PORT COUNT BYTES [unfinished]
//
// unfinished: reserves COUNT blocks of BYTES bytes instead, writes nothing, prints "reserved" and
// holds them until a line or the end comes on its input: a writer that hangs.
//
// Puts COUNT blocks of BYTES bytes, pins them and prints "pinned"; keeps the pins alive until a
// line or the end comes on its input; then reads all of them by their pins, compares, releases the
// pins and prints "intact".
#include <poll.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/crc32c.h"
#include "common/status_macros.h"
#include "kvstore/client/grpc_stub.h"

namespace oscarkv {
namespace {

Time Soon() {
  return SteadyClock::Get()->Now() + std::chrono::seconds(20);
}

BlockKey NumberedKey(uint32_t number) {
  BlockKey key{};
  std::memcpy(key.bytes.data(), &number, sizeof number);
  key.bytes.back() = 0x77;
  return key;
}

std::vector<uint8_t> Content(uint32_t number, uint64_t size) {
  std::vector<uint8_t> bytes(size);
  for (uint64_t i = 0; i < size; ++i)
    bytes[i] = static_cast<uint8_t>(i * 31 + number * 7 + i / 251);
  return bytes;
}

absl::Status FirstError(const std::vector<absl::Status>& statuses) {
  for (const absl::Status& status : statuses) RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

class PinnedReader {
 public:
  PinnedReader(const std::string& node, uint32_t count, uint64_t size)
      : stub_(MakeGrpcStub(node)), count_(count), size_(size) {}

  absl::Status Run() {
    RETURN_IF_ERROR(Open());
    RETURN_IF_ERROR(PutAll());
    kv::GetStartRequest get;
    get.session_id = session_;
    for (uint32_t i = 0; i < count_; ++i) get.keys.push_back(NumberedKey(i));
    ASSIGN_OR_RETURN(const kv::GetStartResponse pinned, CallAndWait(stub_.get(), get, Soon()));
    RETURN_IF_ERROR(FirstError(pinned.statuses));
    for (const kv::BlockLocation& l : pinned.locations) {
      pins_.push_back(l.pin_id);
      generations_.push_back(l.generation);
    }
    std::puts("pinned");
    std::fflush(stdout);
    RETURN_IF_ERROR(HoldUntilInput());
    RETURN_IF_ERROR(ReadAndCompare());
    kv::ReleaseRequest release{session_, pins_, generations_};
    ASSIGN_OR_RETURN(const kv::ReleaseResponse released, CallAndWait(stub_.get(), release, Soon()));
    RETURN_IF_ERROR(FirstError(released.statuses));
    std::puts("intact");
    return absl::OkStatus();
  }

  absl::Status RunUnfinished() {
    RETURN_IF_ERROR(Open());
    RETURN_IF_ERROR(Reserve().status());
    std::puts("reserved");
    std::fflush(stdout);
    return HoldUntilInput();
  }

 private:
  absl::Status Open() {
    ASSIGN_OR_RETURN(const kv::OpenSessionResponse opened,
                     CallAndWait(stub_.get(), kv::OpenSessionRequest{"pinned-reader", ""}, Soon()));
    session_ = opened.session_id;
    return absl::OkStatus();
  }

  absl::StatusOr<kv::PutStartResponse> Reserve() {
    kv::PutStartRequest start;
    start.session_id = session_;
    start.put_id = 1;
    for (uint32_t i = 0; i < count_; ++i)
      start.items.push_back({NumberedKey(i), BlockKey{}, BlockKind::kPage, size_, Duration{0}});
    ASSIGN_OR_RETURN(kv::PutStartResponse started, CallAndWait(stub_.get(), start, Soon()));
    RETURN_IF_ERROR(FirstError(started.statuses));
    return started;
  }

  absl::Status PutAll() {
    ASSIGN_OR_RETURN(const kv::PutStartResponse started, Reserve());
    kv::PutEndRequest end;
    end.session_id = session_;
    std::vector<std::vector<uint8_t>> contents;
    std::vector<KvStub::WriteSource> sources;
    for (uint32_t i = 0; i < count_; ++i) {
      contents.push_back(Content(i, size_));
      const std::vector<uint8_t>& bytes = contents.back();
      end.items.push_back({NumberedKey(i),
                           started.generations[i],
                           {{size_}, {Crc32c(bytes.data(), bytes.size())}}});
      sources.push_back({{NumberedKey(i), started.generations[i], 0}, bytes});
    }
    CallBarrier barrier;
    barrier.Add();
    CallCanceller canceller;
    absl::Status written;
    stub_->WriteBlocks(session_, std::move(sources), Soon(), &canceller,
                       [&](absl::StatusOr<KvStub::WriteErrors> errors) {
                         written = errors.status();
                         if (errors.ok() && !errors->empty()) written = errors->front().second;
                         barrier.Done();
                       });
    barrier.Wait();
    RETURN_IF_ERROR(written);
    ASSIGN_OR_RETURN(const kv::PutEndResponse ended, CallAndWait(stub_.get(), end, Soon()));
    return FirstError(ended.statuses);
  }

  absl::Status HoldUntilInput() {
    pollfd input{STDIN_FILENO, POLLIN, 0};
    while (poll(&input, 1, 500) == 0) {
      RETURN_IF_ERROR(CallAndWait(stub_.get(), kv::KeepAliveRequest{session_}, Soon()).status());
      if (pins_.empty()) continue;
      ASSIGN_OR_RETURN(
          const kv::RenewPinsResponse renewed,
          CallAndWait(stub_.get(), kv::RenewPinsRequest{session_, pins_, Duration{0}}, Soon()));
      RETURN_IF_ERROR(FirstError(renewed.statuses));
    }
    return absl::OkStatus();
  }

  absl::Status ReadAndCompare() {
    std::vector<std::vector<uint8_t>> read(count_, std::vector<uint8_t>(size_));
    std::vector<KvStub::ReadTarget> targets;
    for (uint32_t i = 0; i < count_; ++i) targets.push_back({{pins_[i], 0, size_}, read[i].data()});
    CallBarrier barrier;
    barrier.Add();
    absl::Status status;
    stub_->ReadBlocks(session_, std::move(targets), Soon(), [&](absl::Status s) {
      status = std::move(s);
      barrier.Done();
    });
    barrier.Wait();
    RETURN_IF_ERROR(status);
    for (uint32_t i = 0; i < count_; ++i) {
      if (read[i] != Content(i, size_))
        return absl::DataLossError(absl::StrCat("pinned block ", i, " has other bytes now"));
    }
    return absl::OkStatus();
  }

  const std::unique_ptr<KvStub> stub_;
  const uint32_t count_;
  const uint64_t size_;
  uint64_t session_ = 0;
  std::vector<uint64_t> pins_, generations_;
};

}  // namespace
}  // namespace oscarkv

int main(int argc, char** argv) {
  const bool unfinished = argc == 5 && std::strcmp(argv[4], "unfinished") == 0;
  if (argc != 4 && !unfinished) {
    std::fputs("usage: pinned_reader HOST:PORT COUNT BYTES [unfinished]\n", stderr);
    return 2;
  }
  oscarkv::PinnedReader reader(argv[1], static_cast<uint32_t>(std::atoi(argv[2])),
                               static_cast<uint64_t>(std::atoll(argv[3])));
  const absl::Status status = unfinished ? reader.RunUnfinished() : reader.Run();
  if (!status.ok()) std::fprintf(stderr, "pinned_reader: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
