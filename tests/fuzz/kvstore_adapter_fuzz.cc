// Messages from the network into the adapters and on into a small node: nothing may crash, and what
// an adapter lets through must come back unchanged when it is sent again. The first byte chooses
// the message.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "kvstore/adapter.h"
#include "kvstore/core/kv_node.h"

namespace oscarkv {
namespace {

class Target {
 public:
  Target() : arena_(256 << 10) {
    KvNodeOptions o;
    o.slab_bytes = 64 << 10;
    o.max_sessions = 64;
    o.max_pins_per_session = 1024;
    node_ = std::make_unique<KvNode>(o, absl::MakeSpan(arena_), &clock_, nullptr);
    kv::OpenSessionResponse session;
    if (!node_->Handle(kv::OpenSessionRequest{"fuzz", ""}, &session).ok()) std::abort();
    session_ = session.session_id;
  }

  // A request: adapter, node, adapter.
  template <typename Native, typename Proto, typename ProtoResponse>
  void Request(const uint8_t* data, size_t size) {
    Proto proto;
    Native native;
    if (!proto.ParseFromArray(data, size) || !FromProto(proto, &native).ok()) return;
    Proto again;
    ToProto(native, &again);
    Native native_again;
    if (!FromProto(again, &native_again).ok()) std::abort();
    if constexpr (requires { native.session_id; }) native.session_id = session_;
    typename Native::Response response;
    if (!node_->Handle(native, &response).ok()) return;
    ProtoResponse answer;
    ToProto(response, &answer);
    typename Native::Response back;
    if (!FromProto(answer, &back).ok() && !std::is_same_v<Native, kv::OpenSessionRequest>)
      std::abort();
  }
  // A response: what a client makes of a hostile node.
  template <typename Native, typename Proto>
  void Response(const uint8_t* data, size_t size) {
    Proto proto;
    Native native;
    if (!proto.ParseFromArray(data, size) || !FromProto(proto, &native).ok()) return;
    Proto again;
    ToProto(native, &again);
  }
  void Streams(const uint8_t* data, size_t size) {
    v1::ReadBlocksRequest read;
    std::vector<kv::ReadPiece> pieces;
    if (read.ParseFromArray(data, size) && FromProto(read, &pieces).ok()) {
      std::vector<uint8_t> out(kv::kMaxChunkBytes);
      for (const kv::ReadPiece& p : pieces)
        node_->ReadPinned(session_, p, out.data()).IgnoreError();
    }
    v1::WriteBlocksRequest write;
    kv::WriteChunk chunk;
    if (!write.ParseFromArray(data, size) || !FromProto(write, &chunk).ok()) return;
    const std::string& bytes = write.data();
    node_
        ->WriteReserved(session_, chunk,
                        {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()})
        .IgnoreError();
  }
  void Tick() {
    clock_.Advance(std::chrono::milliseconds(100));
    kv::KeepAliveResponse alive;
    if (!node_->Handle(kv::KeepAliveRequest{session_}, &alive).ok()) std::abort();
    node_->Tick();
  }
  uint64_t session() const { return session_; }

 private:
  FakeClock clock_;
  std::vector<uint8_t> arena_;
  std::unique_ptr<KvNode> node_;
  uint64_t session_ = 0;
};

}  // namespace
}  // namespace oscarkv

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace oscarkv;  // NOLINT: the entry point has no namespace of its own
  static Target* target = nullptr;
  static int runs = 0;
  if (size == 0) return 0;
  // A fresh node now and then: what went before must not decide for ever.
  if (runs++ % 512 == 0) {
    delete target;
    target = new Target;
  }
  const uint8_t choice = data[0];
  ++data;
  --size;
  switch (choice % 22) {
#define OSCARKV_FUZZ(n, Name)                                                              \
  case n:                                                                                  \
    target->Request<kv::Name##Request, v1::Name##Request, v1::Name##Response>(data, size); \
    break;
    OSCARKV_FUZZ(0, OpenSession)
    OSCARKV_FUZZ(1, KeepAlive)
    OSCARKV_FUZZ(2, MatchPrefix)
    OSCARKV_FUZZ(3, Exists)
    OSCARKV_FUZZ(4, GetStart)
    OSCARKV_FUZZ(5, RenewPins)
    OSCARKV_FUZZ(6, Release)
    OSCARKV_FUZZ(7, PutStart)
    OSCARKV_FUZZ(8, PutEnd)
    OSCARKV_FUZZ(9, PutRevoke)
    OSCARKV_FUZZ(10, Erase)
    OSCARKV_FUZZ(11, Stats)
    OSCARKV_FUZZ(20, CompareDigests)
    OSCARKV_FUZZ(21, CompareBlocks)
#undef OSCARKV_FUZZ
    case 12:
      target->Response<kv::OpenSessionResponse, v1::OpenSessionResponse>(data, size);
      break;
    case 13:
      target->Response<kv::GetStartResponse, v1::GetStartResponse>(data, size);
      break;
    case 14:
      target->Response<kv::PutStartResponse, v1::PutStartResponse>(data, size);
      break;
    case 15:
      target->Response<kv::PutEndResponse, v1::PutEndResponse>(data, size);
      break;
    case 16:
      target->Response<kv::StatsResponse, v1::StatsResponse>(data, size);
      break;
    case 17:
      target->Response<kv::ExistsResponse, v1::ExistsResponse>(data, size);
      break;
    case 18:
      target->Streams(data, size);
      break;
    default:
      target->Tick();
      break;
  }
  return 0;
}
