// What the gateway's core works with instead of generated protobuf types. gateway/wire.h converts.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/sha256.h"
#include "model/sampler.h"

namespace oscarkv::gateway {

enum class FinishReason { kNone, kStopToken, kStopString, kLength, kContext };

// A client's request as it came in; RequestValidator says what is allowed.
struct GenerateInput {
  std::string request_id;
  std::string prompt;  // or prompt_tokens
  std::vector<int32_t> prompt_tokens;
  // Whether the tokenizer adds what its file says (BOS) to `prompt`; a chat template did already.
  bool add_special = true;
  uint32_t max_tokens = 0;  // 0: the default, or as many as fit
  SamplingParams sampling;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_tokens;
  bool ignore_eos = false;
  std::string tenant;
  std::vector<int32_t> resume_tokens;  // of the answer, that the client has already
  uint32_t attempt = 0;
  std::string trace_id;  // common/trace.h; empty: a new one
};

struct Usage {
  uint32_t prompt_tokens = 0;
  uint32_t cached_tokens = 0;
  uint32_t generated_tokens = 0;  // those that the client had already included
  Duration ttft{0};
  Duration tpot{0};  // mean time per token after the first
  uint64_t kv_bytes_bf16 = 0;
  uint64_t kv_bytes_stored = 0;
  uint64_t bytes_put = 0;
  uint64_t bytes_got = 0;
  std::vector<std::string> lanes;  // distinct, in order of first use
  std::string prefill_worker;
  std::string attention_worker;  // the last one; empty: the answer ended with its first token
  uint32_t resumes = 0;          // on another attention worker after tokens of the answer
  uint32_t recomputed_tokens = 0;
};

// One message to the client. `finish` and `usage` come together, in the last one.
struct GenerateOutput {
  std::string text;
  std::vector<SampledToken> tokens;
  FinishReason finish = FinishReason::kNone;
  std::optional<Usage> usage;
};

struct Transfers {
  uint64_t bytes = 0;
  uint64_t blocks = 0;
  std::vector<std::string> lanes;
};

struct PrefillCall {
  std::string request_id;
  std::vector<int32_t> tokens;
  SamplingParams sampling;
  std::string tenant;
  std::string trace_id = {};
};

// A part of the time that a call took on its worker.
struct CallPart {
  const char* name = "";
  Duration lasted{0};
};

struct PrefillResult {
  SampledToken first_token;
  uint32_t cached_tokens = 0;
  Transfers put;
  Transfers get;
  uint32_t blocks_not_stored = 0;
  std::vector<CallPart> parts = {};  // in order
};

struct DecodeCall {
  std::string request_id;
  std::vector<int32_t> tokens;  // prompt and answer so far
  uint32_t prompt_tokens = 0;
  SamplingParams sampling;
  uint32_t max_tokens = 0;  // of the whole answer
  std::vector<int32_t> stop_tokens;
  std::string tenant;
  std::string trace_id = {};
};

struct DecodeSummary {
  Transfers get;
  Transfers put;
  uint32_t recomputed_tokens = 0;
  uint32_t preemptions = 0;
  uint64_t kv_bytes_stored = 0;
  uint64_t kv_bytes_bf16 = 0;
};

// Empty: the worker is alive. A summary without `finish`: the worker hands the sequence over.
struct DecodeEvent {
  std::vector<SampledToken> tokens;
  FinishReason finish = FinishReason::kNone;
  std::optional<DecodeSummary> summary;
  std::vector<CallPart> loaded =
      {};  // once, before the first token: what it took to load, in order
};

enum class WorkerRole { kPrefill, kAttention };
inline const char* WorkerRoleName(WorkerRole role) {
  return role == WorkerRole::kPrefill ? "prefill" : "attention";
}

// A worker's answer to GetInfo, field by field as in worker.proto.
struct WorkerInfo {
  std::string role;
  std::string model;
  std::string model_fingerprint;
  std::string codec_fingerprint;
  std::string name_space;
  std::string profile;
  std::string codec;
  bool data_free = false;
  uint32_t max_context = 0;
  uint32_t vocab_size = 0;
  uint32_t running = 0;
  uint32_t waiting = 0;
  uint64_t pool_pages = 0;
  uint64_t pool_pages_free = 0;
  uint64_t kv_bytes_per_token_bf16 = 0;
  uint64_t kv_bytes_per_token_stored = 0;
  std::string prefill_history;
  bool draining = false;
};

}  // namespace oscarkv::gateway
