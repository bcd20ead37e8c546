// A gateway's bytes through parsing, conversion and the checks of both workers: no crash, and what
// is accepted keeps its promises.
#include <google/protobuf/stubs/logging.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "attention_worker/wire.h"
#include "prefill_worker/wire.h"

namespace oscarkv {
namespace {

void Check(bool ok) {
  if (!ok) std::abort();
}

ModelConfig Model() {
  ModelConfig config;
  config.vocab_size = 1000;
  config.max_position_embeddings = 64;
  return config;
}

void CheckSampling(const SamplingParams& p) {
  Check(std::isfinite(p.temperature) && p.temperature >= 0 && p.top_k >= 0);
  Check(p.top_p > 0 && p.top_p <= 1 && p.min_p >= 0 && p.min_p < 1 && p.repetition_penalty > 0);
  Check(p.logprobs >= 0 && p.logprobs <= 20);
}

void CheckTokens(const std::vector<int32_t>& tokens, size_t most) {
  Check(!tokens.empty() && tokens.size() <= most);
  for (int32_t token : tokens) Check(token >= 0 && token < 1000);
}

// True: the job may go to an engine.
bool Accepted(const absl::Status& status) {
  Check(status.ok() || (absl::IsInvalidArgument(status) && !status.message().empty()));
  return status.ok();
}

void CheckPrefill(const std::string& bytes) {
  v1::PrefillRequest request;
  if (!request.ParseFromString(bytes)) return;
  const PrefillJob job = prefill_worker::FromWire(request, Time{});
  if (!Accepted(CheckJob(job, Model()))) return;
  CheckTokens(job.tokens, 63);
  CheckSampling(job.sampling);
}

void CheckDecode(const std::string& bytes) {
  v1::DecodeRequest request;
  if (!request.ParseFromString(bytes)) return;
  const DecodeJob job = attention_worker::FromWire(request, Time{});
  if (!Accepted(CheckJob(job, Model()))) return;
  CheckTokens(job.tokens, 64);
  CheckSampling(job.sampling);
  Check(job.prompt_tokens >= 1 && job.prompt_tokens <= static_cast<int>(job.tokens.size()));
  Check(job.max_tokens >= 1);
}

}  // namespace
}  // namespace oscarkv

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const google::protobuf::LogSilencer silence;  // it says what is wrong with every input
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  oscarkv::CheckPrefill(bytes);
  oscarkv::CheckDecode(bytes);
  return 0;
}
