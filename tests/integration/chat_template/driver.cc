// Renders templates for chat_template_test.py: one JSON object a line on stdin, {"template",
// "variables"}, one a line on stdout, {"text"} or {"error"}.
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "model/jinja/template.h"

int main() {
  using Json = nlohmann::ordered_json;
  for (std::string line; std::getline(std::cin, line);) {
    const Json request = Json::parse(line);
    Json answer;
    oscarkv::jinja::Dict variables;
    absl::Status status;
    for (const auto& [name, value] : request["variables"].items()) {
      auto converted = oscarkv::jinja::Value::FromJson(value);
      if (!converted.ok()) status = converted.status();
      if (converted.ok()) variables.emplace_back(name, *std::move(converted));
    }
    const auto parsed = oscarkv::jinja::Template::Parse(request["template"].get<std::string>());
    if (!parsed.ok()) status = parsed.status();
    if (status.ok()) {
      const auto text = (*parsed)->Render(variables);
      status = text.status();
      if (text.ok()) answer["text"] = *text;
    }
    if (!status.ok()) answer["error"] = status.ToString();
    std::cout << answer.dump() << "\n";
  }
}
