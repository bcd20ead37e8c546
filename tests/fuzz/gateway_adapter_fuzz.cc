// A client's bytes through parsing, validation and the way back: no crash, and what is accepted
// keeps its promises.
#include <google/protobuf/stubs/logging.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "gateway/answer_text.h"
#include "gateway/validate.h"
#include "gateway/wire.h"
#include "model/utf8.h"

using namespace oscarkv::gateway;

namespace {

void Check(bool ok) {
  if (!ok) std::abort();
}

bool IsUtf8(absl::string_view text) {
  return oscarkv::FindInvalidUtf8(text) == absl::string_view::npos;
}

void CheckRequest(absl::string_view bytes) {
  const absl::StatusOr<GenerateInput> input = wire::ParseGenerateRequest(bytes);
  if (!input.ok()) {
    Check(absl::IsInvalidArgument(input.status()) && !input.status().message().empty());
    return;
  }
  const ModelLimits model = {4096, 8192};
  const RequestLimits limits;
  for (const std::string* text : {&input->prompt, &input->request_id, &input->tenant}) {
    Check(IsUtf8(*text));
  }
  const absl::Status status = ValidateRequest(*input, limits, model);
  if (!status.ok()) {
    Check(absl::IsInvalidArgument(status) && IsUtf8(status.message()));
    return;
  }
  Check(input->prompt.empty() != input->prompt_tokens.empty());
  const size_t tokens =
      input->prompt_tokens.empty() ? input->prompt.size() : input->prompt_tokens.size();
  const absl::StatusOr<uint32_t> most = MaxAnswerTokens(input->max_tokens, tokens, limits, model);
  if (most.ok()) Check(*most >= 1 && tokens + *most <= model.max_context);
  // The prompt as an answer's text: stop strings never come through, and nothing is made up.
  StopMatcher matcher(input->stop);
  std::string out = matcher.Push(input->prompt);
  out += matcher.Finish();
  Check(input->prompt.compare(0, out.size(), out) == 0);
  for (const std::string& stop : input->stop) Check(out.find(stop) == std::string::npos);
  // What goes to the workers parses as what it was.
  const auto call = wire::ToProto(
      PrefillCall{input->request_id, input->prompt_tokens, input->sampling, input->tenant});
  oscarkv::v1::PrefillRequest back;
  Check(back.ParseFromString(call.SerializeAsString()));
  Check(back.tokens_size() == static_cast<int>(input->prompt_tokens.size()));
}

// Answers of workers: anything that parses converts.
void CheckWorkers(absl::string_view bytes) {
  const std::string text(bytes);
  oscarkv::v1::DecodeResponse decode;
  if (decode.ParseFromString(text)) {
    const DecodeEvent event = wire::FromProto(decode);
    Check(event.tokens.size() == static_cast<size_t>(decode.tokens_size()));
  }
  oscarkv::v1::PrefillResponse prefill;
  if (prefill.ParseFromString(text))
    Check(wire::FromProto(prefill).ok() == prefill.has_first_token());
  oscarkv::v1::WorkerInfo info;
  if (info.ParseFromString(text)) {
    WorkerState state;
    state.info = wire::FromProto(info);
    const Agreement agreement = Agree({state}, 8192);
    Check(agreement.verdicts.size() == 1);
    Check(agreement.verdicts[0].ok() == (agreement.reference == 0));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const google::protobuf::LogSilencer silence;  // it says what is wrong with every input
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  CheckRequest(bytes);
  (void)wire::ParseTokenizeRequest(bytes);
  CheckWorkers(bytes);
  return 0;
}
