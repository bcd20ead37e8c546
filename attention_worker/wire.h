// Between the wire's messages and the attention engine's types. An adapter file: protobuf types end
// here.
#pragma once

#include "attention_worker/decode_sequence.h"
#include "oscarkv/v1/worker.pb.h"

namespace oscarkv::attention_worker {

DecodeJob FromWire(const v1::DecodeRequest& request, Time deadline);
// Finish reason and summary of the last message.
void ToWire(const DecodeResult& result, v1::DecodeResponse* response);
void ToWire(const LoadTimes& times, v1::LoadTimes* message);

}  // namespace oscarkv::attention_worker
