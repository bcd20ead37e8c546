// Between api.h and the generated messages of oscarkv/v1/kvstore.proto: the only place where the
// two meet. FromProto checks what came from the network (counts, key lengths, ranges) and says what
// was wrong; ToProto cannot fail.
#pragma once

#include "absl/status/status.h"
#include "kvstore/api.h"
#include "oscarkv/v1/kvstore.pb.h"

namespace oscarkv {

// Each native request and response, in both directions. On an error *out is unspecified.
#define OSCARKV_ADAPT(Name)                        \
  void ToProto(const kv::Name& in, v1::Name* out); \
  absl::Status FromProto(const v1::Name& in, kv::Name* out);
OSCARKV_ADAPT(OpenSessionRequest)
OSCARKV_ADAPT(OpenSessionResponse)
OSCARKV_ADAPT(KeepAliveRequest)
OSCARKV_ADAPT(KeepAliveResponse)
OSCARKV_ADAPT(CloseSessionRequest)
OSCARKV_ADAPT(CloseSessionResponse)
OSCARKV_ADAPT(MatchPrefixRequest)
OSCARKV_ADAPT(MatchPrefixResponse)
OSCARKV_ADAPT(ExistsRequest)
OSCARKV_ADAPT(ExistsResponse)
OSCARKV_ADAPT(GetStartRequest)
OSCARKV_ADAPT(GetStartResponse)
OSCARKV_ADAPT(RenewPinsRequest)
OSCARKV_ADAPT(RenewPinsResponse)
OSCARKV_ADAPT(ReleaseRequest)
OSCARKV_ADAPT(ReleaseResponse)
OSCARKV_ADAPT(PutStartRequest)
OSCARKV_ADAPT(PutStartResponse)
OSCARKV_ADAPT(PutEndRequest)
OSCARKV_ADAPT(PutEndResponse)
OSCARKV_ADAPT(PutRevokeRequest)
OSCARKV_ADAPT(PutRevokeResponse)
OSCARKV_ADAPT(EraseRequest)
OSCARKV_ADAPT(EraseResponse)
OSCARKV_ADAPT(StatsRequest)
OSCARKV_ADAPT(StatsResponse)
OSCARKV_ADAPT(CompareDigestsRequest)
OSCARKV_ADAPT(CompareDigestsResponse)
OSCARKV_ADAPT(CompareBlocksRequest)
OSCARKV_ADAPT(CompareBlocksResponse)
#undef OSCARKV_ADAPT

// The items of the data path's streams.
absl::Status KeyFromProto(const std::string& bytes, BlockKey* key);
void KeyToProto(const BlockKey& key, std::string* bytes);
absl::Status FromProto(const v1::ReadBlocksRequest& in, std::vector<kv::ReadPiece>* out);
absl::Status FromProto(const v1::WriteBlocksRequest& in, kv::WriteChunk* out);

}  // namespace oscarkv
