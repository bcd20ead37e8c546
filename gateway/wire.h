// Between the generated protobuf types and the core's. Everything that comes from the network is
// checked here or in validate.h.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "gateway/request_log.h"
#include "gateway/types.h"
#include "gateway/worker_set.h"
#include "kvstore/client/client.h"
#include "oscarkv/v1/gateway.pb.h"
#include "oscarkv/v1/worker.pb.h"

namespace oscarkv::gateway::wire {

// Serialised requests, so that text which is not UTF-8 can be refused with its field and byte
// (generated parsers only say no). kInvalidArgument: not UTF-8, not the message, or a number beyond
// the range of its field in SamplingParams.
absl::StatusOr<GenerateInput> ParseGenerateRequest(absl::string_view bytes);
absl::StatusOr<std::string> ParseTokenizeRequest(absl::string_view bytes);

v1::GenerateResponse ToProto(const std::string& request_id, const GenerateOutput& output);
v1::GetModelResponse ToModelResponse(const WorkerInfo& info);
v1::WorkerStatus ToProto(const WorkerState& state);
v1::StoreNodeStatus ToProto(const KvNodeStats& stats);
v1::GetTraceResponse ToProto(const RequestRecord& record);

v1::PrefillRequest ToProto(const PrefillCall& call);
v1::DecodeRequest ToProto(const DecodeCall& call);
// kInternal without a first token.
absl::StatusOr<PrefillResult> FromProto(const v1::PrefillResponse& response);
DecodeEvent FromProto(const v1::DecodeResponse& response);
WorkerInfo FromProto(const v1::WorkerInfo& info);

}  // namespace oscarkv::gateway::wire
