#include "cli/usage.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/terminal.h"
#include "common/options.h"

namespace oscarkv::cli {

std::string FormatUsage(const v1::Usage& u) {
  const std::string resumed = u.resumes() == 0
                                  ? ""
                                  : absl::StrFormat("; resumed %d times (%d tokens recomputed)",
                                                    u.resumes(), u.recomputed_tokens());
  return absl::StrFormat(
      "%d prompt tokens (%d from the cache), %d generated; TTFT %s, %s per token; KV %s (bf16: %s, "
      "%.2fx); shipped %s over %s%s",
      u.prompt_tokens(), u.cached_tokens(), u.generated_tokens(), FormatMicros(u.ttft_us()),
      FormatMicros(u.tpot_us()), FormatBytes(u.kv_bytes_stored()), FormatBytes(u.kv_bytes_bf16()),
      u.kv_bytes_stored() == 0
          ? 0.0
          : static_cast<double>(u.kv_bytes_bf16()) / static_cast<double>(u.kv_bytes_stored()),
      FormatBytes(u.bytes_put() + u.bytes_got()), absl::StrJoin(u.lanes(), ", "), resumed);
}

nlohmann::json UsageJson(const v1::Usage& u) {
  return {{"prompt_tokens", u.prompt_tokens()},
          {"cached_tokens", u.cached_tokens()},
          {"generated_tokens", u.generated_tokens()},
          {"ttft_us", u.ttft_us()},
          {"tpot_us", u.tpot_us()},
          {"kv_bytes_bf16", u.kv_bytes_bf16()},
          {"kv_bytes_stored", u.kv_bytes_stored()},
          {"bytes_put", u.bytes_put()},
          {"bytes_got", u.bytes_got()},
          {"lanes", std::vector<std::string>(u.lanes().begin(), u.lanes().end())},
          {"prefill_worker", u.prefill_worker()},
          {"attention_worker", u.attention_worker()},
          {"resumes", u.resumes()},
          {"recomputed_tokens", u.recomputed_tokens()}};
}

std::string FinishReasonName(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP_TOKEN:
      return "stop_token";
    case v1::FINISH_REASON_STOP_STRING:
      return "stop_string";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_CONTEXT:
      return "context";
    default:
      return "unknown";
  }
}

}  // namespace oscarkv::cli
