// A template and its variables, both from the fuzzer, with a zero byte between: no crash, no
// runaway.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "model/bounded_json.h"
#include "model/jinja/template.h"

using namespace oscarkv;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t zero = input.find('\0');
  const auto parsed = jinja::Template::Parse(input.substr(0, zero));
  if (!parsed.ok()) {
    if (parsed.status().message().empty()) std::abort();
    return 0;
  }
  jinja::Dict variables;
  if (zero != absl::string_view::npos) {
    JsonLimits limits;
    limits.max_members = 64;
    const auto json = ParseBoundedOrderedJson(input.substr(zero + 1), "variables", limits);
    if (json.ok()) {
      auto messages = jinja::Value::FromJson(*json);
      if (messages.ok()) variables.emplace_back("messages", *std::move(messages));
    }
  }
  jinja::RenderLimits limits;
  limits.max_output_bytes = 1 << 16;
  limits.max_steps = 1 << 16;
  const auto text = (*parsed)->Render(variables, limits);
  if (text.ok() && text->size() > limits.max_output_bytes) std::abort();
  return 0;
}
