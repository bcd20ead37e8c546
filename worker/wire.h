// Between the wire's messages and the core's types, for both workers. An adapter file: protobuf
// types end here.
#pragma once

#include <string>
#include <vector>

#include "kvstore/client/client.h"
#include "model/sampler.h"
#include "oscarkv/v1/worker.pb.h"
#include "worker/runtime.h"

namespace oscarkv::worker {

// Numbers that do not fit become the largest that do: the core's checks then name them. A top_p or
// repetition_penalty of zero means that it was not set.
SamplingParams FromWire(const v1::Sampling& sampling);
int ClampToInt(uint64_t value);

void ToWire(const SampledToken& token, v1::Token* out);
void ToWire(const TransferTotals& totals, v1::Transfers* out);
// All but running and waiting.
void FillInfo(const WorkerRuntime& runtime, const std::string& role, v1::WorkerInfo* info);

}  // namespace oscarkv::worker
