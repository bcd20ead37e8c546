#include "model/byte_alphabet.h"

#include "model/utf8.h"

namespace oscarkv {
namespace {

constexpr int kCharacters = 256 + 68;

std::array<int16_t, kCharacters> MakeInverse() {
  std::array<int16_t, kCharacters> inverse;
  inverse.fill(-1);
  for (int byte = 0; byte < 256; ++byte) {
    inverse[ByteAlphabet()[byte]] = static_cast<int16_t>(byte);
  }
  return inverse;
}

}  // namespace

const std::array<char16_t, 256>& ByteAlphabet() {
  static const std::array<char16_t, 256> alphabet = [] {
    std::array<char16_t, 256> out;
    char16_t next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
      out[byte] = printable ? static_cast<char16_t>(byte) : next++;
    }
    return out;
  }();
  return alphabet;
}

std::optional<std::string> BytesOfSpelling(absl::string_view spelling) {
  static const std::array<int16_t, kCharacters> inverse = MakeInverse();
  std::string bytes;
  bytes.reserve(spelling.size());
  while (!spelling.empty()) {
    const Utf8Char c = DecodeUtf8(spelling);
    if (c.state != Utf8Char::State::kValid || c.code >= kCharacters || inverse[c.code] < 0) {
      return std::nullopt;
    }
    bytes.push_back(static_cast<char>(inverse[c.code]));
    spelling.remove_prefix(c.bytes);
  }
  return bytes;
}

}  // namespace oscarkv
