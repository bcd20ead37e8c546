// Our side of the agreement test: reads one JSON string a line, writes {"ids": [...], "text": ...}
// a line, where text is what the ids decode to, special tokens included.
//   tokenizer_agreement_driver FOLDER_WITH_TOKENIZER_JSON < strings > results
#include <chrono>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "model/tokenizer.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s FOLDER_WITH_TOKENIZER_JSON < strings > results\n", argv[0]);
    return 2;
  }
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  const auto tokenizer = oscarkv::Tokenizer::Load(argv[1]);
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", tokenizer.status().ToString().c_str());
    return 1;
  }
  const auto loaded = Clock::now();
  size_t bytes = 0, tokens = 0;
  Clock::duration encoding{};
  std::string line;
  while (std::getline(std::cin, line)) {
    const auto text = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!text.is_string()) {
      std::fprintf(stderr, "not a JSON string: %s\n", line.c_str());
      return 2;
    }
    const auto start = Clock::now();
    const auto ids = (*tokenizer)->Encode(text.get_ref<const std::string&>());
    encoding += Clock::now() - start;
    if (!ids.ok()) {
      std::fprintf(stderr, "%s\n", ids.status().ToString().c_str());
      return 1;
    }
    bytes += text.get_ref<const std::string&>().size();
    tokens += ids->size();
    const nlohmann::json out = {{"ids", *ids}, {"text", (*tokenizer)->Decode(*ids, false)}};
    std::cout << out.dump() << '\n';
  }
  const auto ms = [](Clock::duration d) {
    return std::chrono::duration<double, std::milli>(d).count();
  };
  std::fprintf(stderr, "loaded in %.0f ms; %zu bytes, %zu tokens encoded in %.1f ms\n",
               ms(loaded - begin), bytes, tokens, ms(encoding));
  return std::cout.good() ? 0 : 1;
}
