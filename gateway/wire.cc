#include "gateway/wire.h"

#include <google/protobuf/unknown_field_set.h>

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "gateway/validate.h"

namespace oscarkv::gateway::wire {
namespace {

// Parses with the reason for a refusal. The generated parser refuses text that is not UTF-8 without
// saying where; read as a message without fields, every text is an unknown field whose bytes can be
// looked at.
template <typename Message>
absl::Status Parse(absl::string_view bytes, Message* message) {
  if (bytes.size() > static_cast<size_t>(std::numeric_limits<int>::max())) {
    return absl::InvalidArgumentError(absl::StrCat("a message of ", bytes.size(), " bytes"));
  }
  v1::GetModelRequest raw;
  if (!raw.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::InvalidArgumentError(
        absl::StrCat("these ", bytes.size(), " bytes are no ", Message::descriptor()->full_name()));
  }
  const google::protobuf::UnknownFieldSet& fields = raw.GetReflection()->GetUnknownFields(raw);
  for (int i = 0; i < fields.field_count(); ++i) {
    const google::protobuf::FieldDescriptor* field =
        Message::descriptor()->FindFieldByNumber(fields.field(i).number());
    if (field != nullptr && field->type() == google::protobuf::FieldDescriptor::TYPE_STRING &&
        fields.field(i).type() == google::protobuf::UnknownField::TYPE_LENGTH_DELIMITED) {
      RETURN_IF_ERROR(ValidateUtf8(field->name(), fields.field(i).length_delimited()));
    }
  }
  if (!message->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::InvalidArgumentError(
        absl::StrCat("these ", bytes.size(), " bytes are no ", Message::descriptor()->full_name()));
  }
  return absl::OkStatus();
}

absl::Status ToInt(const char* field, uint32_t value, int* result) {
  if (value > static_cast<uint32_t>(std::numeric_limits<int>::max())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "sampling.", field, " is ", value, "; allowed: 0..", std::numeric_limits<int>::max()));
  }
  *result = static_cast<int>(value);
  return absl::OkStatus();
}

// Fields that are absent on the wire read as 0, which for top_p and repetition_penalty means off.
absl::StatusOr<SamplingParams> FromProto(const v1::Sampling& s) {
  SamplingParams p;
  p.temperature = s.temperature();
  RETURN_IF_ERROR(ToInt("top_k", s.top_k(), &p.top_k));
  p.top_p = s.top_p() == 0 ? 1 : s.top_p();
  p.min_p = s.min_p();
  p.repetition_penalty = s.repetition_penalty() == 0 ? 1 : s.repetition_penalty();
  p.seed = s.seed();
  RETURN_IF_ERROR(ToInt("logprobs", s.logprobs(), &p.logprobs));
  return p;
}

v1::Sampling ToProto(const SamplingParams& p) {
  v1::Sampling s;
  s.set_temperature(p.temperature);
  s.set_top_k(static_cast<uint32_t>(p.top_k));
  s.set_top_p(p.top_p);
  s.set_min_p(p.min_p);
  s.set_repetition_penalty(p.repetition_penalty);
  s.set_seed(p.seed);
  s.set_logprobs(static_cast<uint32_t>(p.logprobs));
  return s;
}

SampledToken FromProto(const v1::Token& t) {
  SampledToken token;
  token.token = t.id();
  token.logprob = t.logprob();
  for (const v1::TokenLogprob& top : t.top()) token.top.push_back({top.token(), top.logprob()});
  return token;
}

void ToProto(const SampledToken& token, v1::Token* t) {
  t->set_id(token.token);
  t->set_logprob(token.logprob);
  for (const TokenLogprob& top : token.top) {
    v1::TokenLogprob* out = t->add_top();
    out->set_token(top.token);
    out->set_logprob(top.logprob);
  }
}

Transfers FromProto(const v1::Transfers& t) {
  return {t.bytes(), t.blocks(), {t.lanes().begin(), t.lanes().end()}};
}

FinishReason FromProto(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP_TOKEN:
      return FinishReason::kStopToken;
    case v1::FINISH_REASON_STOP_STRING:
      return FinishReason::kStopString;
    case v1::FINISH_REASON_LENGTH:
      return FinishReason::kLength;
    case v1::FINISH_REASON_CONTEXT:
      return FinishReason::kContext;
    default:
      return FinishReason::kNone;
  }
}

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStopToken:
      return v1::FINISH_REASON_STOP_TOKEN;
    case FinishReason::kStopString:
      return v1::FINISH_REASON_STOP_STRING;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kContext:
      return v1::FINISH_REASON_CONTEXT;
    case FinishReason::kNone:
      break;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

uint64_t Micros(Duration d) {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(d).count());
}

// Of a worker; what no clock could have measured is cut.
Duration FromMicros(uint64_t us) {
  constexpr uint64_t kYear = 366ull * 24 * 3600 * 1000 * 1000;
  return std::chrono::microseconds(std::min(us, kYear));
}

void ToProto(const Usage& usage, v1::Usage* u) {
  u->set_prompt_tokens(usage.prompt_tokens);
  u->set_cached_tokens(usage.cached_tokens);
  u->set_generated_tokens(usage.generated_tokens);
  u->set_ttft_us(Micros(usage.ttft));
  u->set_tpot_us(Micros(usage.tpot));
  u->set_kv_bytes_bf16(usage.kv_bytes_bf16);
  u->set_kv_bytes_stored(usage.kv_bytes_stored);
  u->set_bytes_put(usage.bytes_put);
  u->set_bytes_got(usage.bytes_got);
  for (const std::string& lane : usage.lanes) u->add_lanes(lane);
  u->set_prefill_worker(usage.prefill_worker);
  u->set_attention_worker(usage.attention_worker);
  u->set_resumes(usage.resumes);
  u->set_recomputed_tokens(usage.recomputed_tokens);
}

}  // namespace

absl::StatusOr<GenerateInput> ParseGenerateRequest(absl::string_view bytes) {
  v1::GenerateRequest request;
  RETURN_IF_ERROR(Parse(bytes, &request));
  GenerateInput input;
  if (request.has_sampling()) {
    ASSIGN_OR_RETURN(input.sampling, FromProto(request.sampling()));
  }
  input.request_id = std::move(*request.mutable_request_id());
  input.prompt = std::move(*request.mutable_prompt());
  input.prompt_tokens.assign(request.prompt_tokens().begin(), request.prompt_tokens().end());
  input.max_tokens = request.max_tokens();
  input.stop.assign(request.stop().begin(), request.stop().end());
  input.stop_tokens.assign(request.stop_tokens().begin(), request.stop_tokens().end());
  input.ignore_eos = request.ignore_eos();
  input.tenant = std::move(*request.mutable_tenant());
  input.resume_tokens.assign(request.resume_tokens().begin(), request.resume_tokens().end());
  input.attempt = request.attempt();
  return input;
}

absl::StatusOr<std::string> ParseTokenizeRequest(absl::string_view bytes) {
  v1::TokenizeRequest request;
  RETURN_IF_ERROR(Parse(bytes, &request));
  return std::move(*request.mutable_text());
}

v1::GenerateResponse ToProto(const std::string& request_id, const GenerateOutput& output) {
  v1::GenerateResponse response;
  response.set_request_id(request_id);
  response.set_text(output.text);
  for (const SampledToken& token : output.tokens) ToProto(token, response.add_tokens());
  response.set_finish_reason(ToProto(output.finish));
  if (output.usage) ToProto(*output.usage, response.mutable_usage());
  return response;
}

v1::GetModelResponse ToModelResponse(const WorkerInfo& info) {
  v1::GetModelResponse response;
  response.set_name(info.model);
  response.set_max_context(info.max_context);
  response.set_vocab_size(info.vocab_size);
  response.set_profile(info.profile);
  response.set_codec(info.codec);
  response.set_data_free(info.data_free);
  response.set_kv_bytes_per_token_bf16(info.kv_bytes_per_token_bf16);
  response.set_kv_bytes_per_token_stored(info.kv_bytes_per_token_stored);
  return response;
}

v1::WorkerStatus ToProto(const WorkerState& state) {
  v1::WorkerStatus out;
  out.set_endpoint(state.endpoint);
  out.set_reachable(!absl::IsUnavailable(state.status));
  out.set_error(std::string(state.status.message()));
  const WorkerInfo& w = state.info;
  v1::WorkerInfo* info = out.mutable_info();
  // Before its first answer a worker's role is known from the list it is in.
  info->set_role(w.role.empty() ? WorkerRoleName(state.role) : w.role);
  info->set_model(w.model);
  info->set_model_fingerprint(w.model_fingerprint);
  info->set_codec_fingerprint(w.codec_fingerprint);
  info->set_name_space(w.name_space);
  info->set_profile(w.profile);
  info->set_codec(w.codec);
  info->set_data_free(w.data_free);
  info->set_max_context(w.max_context);
  info->set_vocab_size(w.vocab_size);
  info->set_running(w.running);
  info->set_waiting(w.waiting);
  info->set_pool_pages(w.pool_pages);
  info->set_pool_pages_free(w.pool_pages_free);
  info->set_kv_bytes_per_token_bf16(w.kv_bytes_per_token_bf16);
  info->set_kv_bytes_per_token_stored(w.kv_bytes_per_token_stored);
  info->set_prefill_history(w.prefill_history);
  info->set_draining(w.draining);
  return out;
}

v1::StoreNodeStatus ToProto(const KvNodeStats& stats) {
  const auto kind = [](BlockKind k) { return static_cast<size_t>(k) - 1; };
  v1::StoreNodeStatus out;
  out.set_endpoint(stats.node);
  out.set_reachable(stats.reachable);
  out.set_error(stats.error);
  out.set_capacity_bytes(stats.capacity_bytes);
  out.set_used_bytes(stats.used_bytes);
  out.set_pinned_bytes(stats.pinned_bytes);
  out.set_page_bytes(stats.kind_bytes[kind(BlockKind::kPage)]);
  out.set_bf16_bytes(stats.kind_bytes[kind(BlockKind::kBf16)]);
  out.set_handover_bytes(stats.kind_bytes[kind(BlockKind::kHandover)]);
  out.set_page_blocks(stats.kind_blocks[kind(BlockKind::kPage)]);
  out.set_bf16_blocks(stats.kind_blocks[kind(BlockKind::kBf16)]);
  out.set_handover_blocks(stats.kind_blocks[kind(BlockKind::kHandover)]);
  out.set_hits(stats.hits);
  out.set_misses(stats.misses);
  out.set_evictions(stats.evictions);
  out.set_sessions(stats.sessions);
  out.set_zone(stats.zone);
  out.set_draining(stats.draining);
  out.set_knows_peers(stats.replicas.known);
  out.set_waiting_copies(stats.replicas.waiting_blocks);
  out.set_no_node_copies(stats.replicas.no_node_blocks);
  out.set_no_room_copies(stats.replicas.no_room_blocks);
  out.set_restored_copies(stats.replicas.restored_blocks);
  out.set_silent_peers(stats.replicas.silent_peers);
  out.set_compared_ms_ago(stats.replicas.compared_ms_ago);
  out.set_ssd_capacity_bytes(stats.tier.capacity_bytes);
  out.set_ssd_used_bytes(stats.tier.used_bytes);
  for (uint64_t blocks : stats.tier.kind_blocks) out.set_ssd_blocks(out.ssd_blocks() + blocks);
  out.set_ssd_promoted_blocks(stats.tier.promoted_blocks);
  out.set_ssd_dropped_blocks(stats.tier.dropped_blocks);
  out.set_ssd_paused(!stats.tier.writable);
  return out;
}

v1::GetTraceResponse ToProto(const RequestRecord& record) {
  v1::GetTraceResponse out;
  out.set_request_id(record.request_id);
  out.set_trace_id(record.trace_id);
  out.set_tenant(record.tenant);
  out.set_arrived_unix_ms(record.arrived_unix_ms);
  out.set_lasted_us(Micros(record.lasted));
  out.set_ended(record.ended);
  out.set_code(static_cast<uint32_t>(record.status.code()));
  out.set_error(std::string(record.status.message()));
  for (size_t i = 0; i < record.phases.size(); ++i) {
    const RequestPhase& phase = record.phases[i];
    v1::TracePhase* p = out.add_phases();
    p->set_name(phase.name);
    p->set_begin_us(Micros(phase.begin));
    p->set_lasted_us(Micros(record.PhaseLasted(i)));
    p->set_worker(phase.worker);
    for (const CallPart& part : phase.parts) {
      v1::TracePart* message = p->add_parts();
      message->set_name(part.name);
      message->set_lasted_us(Micros(part.lasted));
    }
  }
  ToProto(record.usage, out.mutable_usage());
  return out;
}

v1::PrefillRequest ToProto(const PrefillCall& call) {
  v1::PrefillRequest request;
  request.set_request_id(call.request_id);
  request.mutable_tokens()->Assign(call.tokens.begin(), call.tokens.end());
  *request.mutable_sampling() = ToProto(call.sampling);
  request.set_tenant(call.tenant);
  return request;
}

v1::DecodeRequest ToProto(const DecodeCall& call) {
  v1::DecodeRequest request;
  request.set_request_id(call.request_id);
  request.mutable_tokens()->Assign(call.tokens.begin(), call.tokens.end());
  request.set_prompt_tokens(call.prompt_tokens);
  *request.mutable_sampling() = ToProto(call.sampling);
  request.set_max_tokens(call.max_tokens);
  request.mutable_stop_tokens()->Assign(call.stop_tokens.begin(), call.stop_tokens.end());
  request.set_tenant(call.tenant);
  return request;
}

absl::StatusOr<PrefillResult> FromProto(const v1::PrefillResponse& r) {
  if (!r.has_first_token()) return absl::InternalError("the answer has no first token");
  return PrefillResult{FromProto(r.first_token()),
                       r.cached_tokens(),
                       FromProto(r.put()),
                       FromProto(r.get()),
                       r.blocks_not_stored(),
                       {{"queue", FromMicros(r.queue_us())},
                        {"fetch", FromMicros(r.fetch_us())},
                        {"compute", FromMicros(r.turns_us())},
                        {"put", FromMicros(r.put_us())}}};
}

DecodeEvent FromProto(const v1::DecodeResponse& r) {
  DecodeEvent event;
  for (const v1::Token& t : r.tokens()) event.tokens.push_back(FromProto(t));
  event.finish = FromProto(r.finish_reason());
  if (r.has_summary()) {
    const v1::DecodeSummary& s = r.summary();
    event.summary = DecodeSummary{FromProto(s.get()), FromProto(s.put()),  s.recomputed_tokens(),
                                  s.preemptions(),    s.kv_bytes_stored(), s.kv_bytes_bf16()};
  }
  if (r.has_loaded()) {
    event.loaded = {{"queue", FromMicros(r.loaded().queue_us())},
                    {"fetch", FromMicros(r.loaded().fetch_us())},
                    {"recompute", FromMicros(r.loaded().recompute_us())}};
  }
  return event;
}

WorkerInfo FromProto(const v1::WorkerInfo& i) {
  WorkerInfo info;
  info.role = i.role();
  info.model = i.model();
  info.model_fingerprint = i.model_fingerprint();
  info.codec_fingerprint = i.codec_fingerprint();
  info.name_space = i.name_space();
  info.profile = i.profile();
  info.codec = i.codec();
  info.data_free = i.data_free();
  info.max_context = i.max_context();
  info.vocab_size = i.vocab_size();
  info.running = i.running();
  info.waiting = i.waiting();
  info.pool_pages = i.pool_pages();
  info.pool_pages_free = i.pool_pages_free();
  info.kv_bytes_per_token_bf16 = i.kv_bytes_per_token_bf16();
  info.kv_bytes_per_token_stored = i.kv_bytes_per_token_stored();
  info.prefill_history = i.prefill_history();
  info.draining = i.draining();
  return info;
}

}  // namespace oscarkv::gateway::wire
