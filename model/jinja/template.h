// Templates of chat models: the part of Jinja that they use, rendered as Jinja renders it with
// trim_blocks and lstrip_blocks on. docs/http.md lists what is in it; everything else is refused by
// name when a template is parsed.
//
// The template comes with the model, the values come from clients: time, memory and depth are
// bounded, whatever either holds.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/jinja/value.h"

namespace oscarkv::jinja {

struct RenderLimits {
  size_t max_output_bytes = size_t{16} << 20;
  size_t max_steps = 20'000'000;  // a step: a part of an expression, or 64 bytes of text made
};

struct Node;

// Immutable: thread-safe.
class Template {
 public:
  // kInvalidArgument: not a template; kUnimplemented: outside of the subset. Both name the line.
  static absl::StatusOr<std::unique_ptr<Template>> Parse(absl::string_view source);
  ~Template();

  // kInvalidArgument: what Python would raise, what the template itself raises
  // (raise_exception), or a limit; with the line.
  absl::StatusOr<std::string> Render(const Dict& variables, const RenderLimits& limits = {}) const;

 private:
  explicit Template(std::vector<Node> nodes);
  std::vector<Node> nodes_;
};

}  // namespace oscarkv::jinja
