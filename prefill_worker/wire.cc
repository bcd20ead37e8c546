#include "prefill_worker/wire.h"

#include "worker/wire.h"

namespace oscarkv::prefill_worker {
namespace {
uint64_t Microseconds(Duration d) {
  return std::chrono::duration_cast<std::chrono::microseconds>(d).count();
}
}  // namespace

PrefillJob FromWire(const v1::PrefillRequest& request, Time deadline) {
  PrefillJob job;
  job.request_id = request.request_id();
  job.tokens.assign(request.tokens().begin(), request.tokens().end());
  job.sampling = worker::FromWire(request.sampling());
  job.tenant = request.tenant();
  job.deadline = deadline;
  return job;
}

void ToWire(const PrefillResult& result, v1::PrefillResponse* response) {
  worker::ToWire(result.first_token, response->mutable_first_token());
  response->set_cached_tokens(result.cached_tokens);
  response->set_queue_us(Microseconds(result.queue));
  response->set_compute_us(Microseconds(result.compute));
  response->set_fetch_us(Microseconds(result.fetch));
  response->set_turns_us(Microseconds(result.turns));
  response->set_put_us(Microseconds(result.store));
  worker::ToWire(result.put, response->mutable_put());
  worker::ToWire(result.get, response->mutable_get());
  response->set_blocks_not_stored(result.blocks_not_stored);
}

}  // namespace oscarkv::prefill_worker
