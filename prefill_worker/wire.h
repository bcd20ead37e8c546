// Between the wire's messages and the prefill engine's types. An adapter file: protobuf types end
// here.
#pragma once

#include "oscarkv/v1/worker.pb.h"
#include "prefill_worker/prefill_engine.h"

namespace oscarkv::prefill_worker {

PrefillJob FromWire(const v1::PrefillRequest& request, Time deadline);
void ToWire(const PrefillResult& result, v1::PrefillResponse* response);

}  // namespace oscarkv::prefill_worker
