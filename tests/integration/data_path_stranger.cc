// A process that has no business on a KV node's data path (TCP), for the alerts' test.
//
//   data_path_stranger HOST:PORT other_version|ended_session COUNT
//
// Opens a session to learn where the data path is, closes it, and sends COUNT messages there: of
// another version of the protocol, or good ones with the secret of the session that has ended.
// Prints "sending" and goes on until a line or the end comes on its input.
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "common/status_macros.h"
#include "kvstore/client/grpc_stub.h"
#include "transport/descriptors.h"
#include "transport/ucx/am_engine.h"

namespace oscarkv {
namespace {

Time Soon() {
  return SteadyClock::Get()->Now() + std::chrono::seconds(20);
}

// What a worker is told of the node's data path, after its session has ended.
absl::StatusOr<NodeAddress> AddressOfAnEndedSession(const std::string& node) {
  const std::unique_ptr<KvStub> stub = MakeGrpcStub(node);
  ASSIGN_OR_RETURN(const kv::OpenSessionResponse opened,
                   CallAndWait(stub.get(), kv::OpenSessionRequest{"stranger", ""}, Soon()));
  RETURN_IF_ERROR(
      CallAndWait(stub.get(), kv::CloseSessionRequest{opened.session_id}, Soon()).status());
  return DecodeNodeAddress(opened.transport_address);
}

absl::Status Run(const std::string& node, bool other_version, int count) {
  ASSIGN_OR_RETURN(const NodeAddress address, AddressOfAnEndedSession(node));
  const auto tcp = std::find_if(address.lanes.begin(), address.lanes.end(),
                                [](const LaneAddress& l) { return l.lane == LaneClass::kTcp; });
  if (tcp == address.lanes.end())
    return absl::FailedPreconditionError("the node offers no lane over TCP");
  ASSIGN_OR_RETURN(auto context, UcxContext::Create(UCP_FEATURE_AM | UCP_FEATURE_WAKEUP,
                                                    {{"TLS", "tcp"}, {"NET_DEVICES", "lo"}}));
  ASSIGN_OR_RETURN(auto engine, CreateUcxAmEngine(std::move(context)));
  engine->SetReceiver([](absl::Span<const uint8_t>, absl::Span<const uint8_t>) {});
  ASSIGN_OR_RETURN(auto endpoint, engine->Connect(tcp->worker));

  const auto hello = std::make_shared<std::string>(
      reinterpret_cast<const char*>(address.secret.data()), address.secret.size());
  hello->append(engine->address());
  AmHeader header;
  header.kind = AmKind::kHello;
  if (other_version) header.version = kAmVersion + 1;
  std::puts("sending");
  std::fflush(stdout);
  pollfd input{STDIN_FILENO, POLLIN, 0};
  while (poll(&input, 1, 1) == 0) {
    RETURN_IF_ERROR(endpoint->status());
    for (; count > 0 && endpoint->Room() > 0; --count) {
      header.item.id = RandomId();
      endpoint->Send(header, {reinterpret_cast<const uint8_t*>(hello->data()), hello->size()},
                     hello);
    }
    while (engine->Progress()) {
    }
  }
  endpoint->Close();
  while (!endpoint->closed()) engine->Progress();
  return absl::OkStatus();
}

}  // namespace
}  // namespace oscarkv

int main(int argc, char** argv) {
  const absl::string_view what = argc == 4 ? argv[2] : "";
  if (what != "other_version" && what != "ended_session") {
    std::fputs("usage: data_path_stranger HOST:PORT other_version|ended_session COUNT\n", stderr);
    return 2;
  }
  const absl::Status status = oscarkv::Run(argv[1], what == "other_version", std::atoi(argv[3]));
  if (!status.ok()) std::fprintf(stderr, "data_path_stranger: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
