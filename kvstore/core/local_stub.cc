#include "kvstore/core/local_stub.h"

#include <algorithm>

namespace oscarkv {

void LocalStub::Call(const kv::KvRequest& request, Time deadline, Done done) {
  std::visit(
      [&](const auto& typed) {
        using Request = std::decay_t<decltype(typed)>;
        if constexpr (std::is_same_v<Request, kv::GetStartRequest>) {
          node_->StartGet(typed, deadline - SteadyClock::Get()->Now(),
                          [done](const absl::Status& status, const kv::GetStartResponse& response) {
                            if (!status.ok()) return done(status);
                            done(kv::KvResponse(response));
                          });
          return;
        }
        typename Request::Response response;
        const absl::Status status = node_->Handle(typed, &response);
        if (status.ok()) {
          done(kv::KvResponse(std::move(response)));
        } else {
          done(status);
        }
      },
      request);
}

void LocalStub::ReadBlocks(uint64_t session_id, std::vector<ReadTarget> targets, Time deadline,
                           ReadDone done) {
  for (const ReadTarget& t : targets) {
    for (uint64_t at = 0; at < t.piece.length; at += kv::kMaxChunkBytes) {
      const uint64_t length = std::min(kv::kMaxChunkBytes, t.piece.length - at);
      const absl::Status read =
          node_->ReadPinned(session_id, {t.piece.pin_id, t.piece.offset + at, length}, t.data + at);
      if (!read.ok()) return done(read);
    }
  }
  done(absl::OkStatus());
}

void LocalStub::WriteBlocks(uint64_t session_id, std::vector<WriteSource> sources, Time deadline,
                            CallCanceller* canceller, WriteDone done) {
  WriteErrors errors;
  for (const WriteSource& s : sources) {
    for (uint64_t at = 0; at < s.data.size(); at += kv::kMaxChunkBytes) {
      kv::WriteChunk chunk = s.chunk;
      chunk.offset += at;
      const absl::Status written =
          node_->WriteReserved(session_id, chunk, s.data.subspan(at, kv::kMaxChunkBytes));
      if (written.ok()) continue;
      errors.emplace_back(s.chunk.key, written);
      break;
    }
  }
  done(std::move(errors));
}

}  // namespace oscarkv
