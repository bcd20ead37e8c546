#include "attention_worker/wire.h"

#include "worker/wire.h"

namespace oscarkv::attention_worker {
namespace {

v1::FinishReason ToWire(StopReason reason) {
  switch (reason) {
    case StopReason::kStopToken:
      return v1::FINISH_REASON_STOP_TOKEN;
    case StopReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case StopReason::kContext:
      return v1::FINISH_REASON_CONTEXT;
    case StopReason::kNone:
      break;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

uint64_t Microseconds(Duration d) {
  return std::chrono::duration_cast<std::chrono::microseconds>(d).count();
}

}  // namespace

DecodeJob FromWire(const v1::DecodeRequest& request, Time deadline) {
  DecodeJob job;
  job.request_id = request.request_id();
  job.tokens.assign(request.tokens().begin(), request.tokens().end());
  job.prompt_tokens = worker::ClampToInt(request.prompt_tokens());
  job.sampling = worker::FromWire(request.sampling());
  job.max_tokens = worker::ClampToInt(request.max_tokens());
  job.stop_tokens.assign(request.stop_tokens().begin(), request.stop_tokens().end());
  job.tenant = request.tenant();
  job.deadline = deadline;
  return job;
}

void ToWire(const DecodeResult& result, v1::DecodeResponse* response) {
  response->set_finish_reason(ToWire(result.reason));
  v1::DecodeSummary* summary = response->mutable_summary();
  worker::ToWire(result.get, summary->mutable_get());
  worker::ToWire(result.put, summary->mutable_put());
  summary->set_recomputed_tokens(result.recomputed_tokens);
  summary->set_preemptions(result.preemptions);
  summary->set_kv_bytes_stored(result.kv_bytes_stored);
  summary->set_kv_bytes_bf16(result.kv_bytes_bf16);
}

void ToWire(const LoadTimes& times, v1::LoadTimes* message) {
  message->set_queue_us(Microseconds(times.queue));
  message->set_fetch_us(Microseconds(times.fetch));
  message->set_recompute_us(Microseconds(times.recompute));
}

}  // namespace oscarkv::attention_worker
