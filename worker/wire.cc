#include "worker/wire.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_split.h"

namespace oscarkv::worker {

int ClampToInt(uint64_t value) {
  return static_cast<int>(std::min<uint64_t>(value, std::numeric_limits<int>::max()));
}

SamplingParams FromWire(const v1::Sampling& in) {
  SamplingParams out;
  out.temperature = in.temperature();
  out.top_k = ClampToInt(in.top_k());
  out.top_p = in.top_p() == 0 ? 1 : in.top_p();
  out.min_p = in.min_p();
  out.repetition_penalty = in.repetition_penalty() == 0 ? 1 : in.repetition_penalty();
  out.seed = in.seed();
  out.logprobs = ClampToInt(in.logprobs());
  return out;
}

void ToWire(const SampledToken& token, v1::Token* out) {
  out->set_id(token.token);
  out->set_logprob(token.logprob);
  for (const TokenLogprob& top : token.top) {
    v1::TokenLogprob* entry = out->add_top();
    entry->set_token(top.token);
    entry->set_logprob(top.logprob);
  }
}

void ToWire(const TransferTotals& totals, v1::Transfers* out) {
  out->set_bytes(totals.bytes);
  out->set_blocks(totals.blocks);
  for (absl::string_view lane : absl::StrSplit(totals.lanes, ',', absl::SkipEmpty()))
    out->add_lanes(std::string(lane));
}

void FillInfo(const WorkerRuntime& runtime, const std::string& role, v1::WorkerInfo* info) {
  const auto bytes = [](const auto& digest) { return std::string(digest.begin(), digest.end()); };
  const ModelConfig& config = runtime.runner->config();
  const KvCodec& codec = runtime.runner->codec();
  const KvPool& pool = runtime.arena->pool();
  const bool coded = runtime.io->coded();
  info->set_role(role);
  info->set_model(runtime.model_name);
  info->set_model_fingerprint(bytes(runtime.model_fingerprint));
  info->set_codec_fingerprint(bytes(codec.fingerprint()));
  info->set_name_space(bytes(runtime.io->NameSpace("")));
  info->set_profile(std::string(ProfileName(codec.profile())));
  info->set_codec(codec.Describe());
  info->set_data_free(codec.data_free());
  info->set_max_context(config.max_position_embeddings);
  info->set_vocab_size(config.vocab_size);
  info->set_pool_pages(coded ? pool.num_pages() : pool.num_blocks());
  info->set_pool_pages_free(coded ? pool.free_pages() : pool.free_blocks());
  const uint64_t bf16 = pool.shape().Bf16BlockBytes();
  info->set_kv_bytes_per_token_bf16(bf16 / kBlockTokens);
  info->set_kv_bytes_per_token_stored((coded ? pool.shape().PageBytes() : bf16) / kBlockTokens);
  info->set_prefill_history(runtime.io->identity().canonical_history ? "canonical" : "exact");
}

}  // namespace oscarkv::worker
