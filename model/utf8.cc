#include "model/utf8.h"

#include <algorithm>
#include <cstdint>

namespace oscarkv {
namespace {

constexpr char32_t kReplacement = 0xfffd;

// Lead byte: how many bytes follow, and the range of the first of them (which excludes overlong
// forms, surrogates and > 10FFFF).
struct Lead {
  int following;
  uint8_t low, high;
};
Lead LeadOf(uint8_t byte) {
  if (byte < 0xc2) return {0, 0, 0};
  if (byte < 0xe0) return {1, 0x80, 0xbf};
  if (byte == 0xe0) return {2, 0xa0, 0xbf};
  if (byte == 0xed) return {2, 0x80, 0x9f};
  if (byte < 0xf0) return {2, 0x80, 0xbf};
  if (byte == 0xf0) return {3, 0x90, 0xbf};
  if (byte < 0xf4) return {3, 0x80, 0xbf};
  if (byte == 0xf4) return {3, 0x80, 0x8f};
  return {0, 0, 0};
}

}  // namespace

Utf8Char DecodeUtf8(absl::string_view text) {
  const uint8_t first = static_cast<uint8_t>(text[0]);
  if (first < 0x80) return {first, 1, Utf8Char::State::kValid};
  const Lead lead = LeadOf(first);
  if (lead.following == 0) return {kReplacement, 1, Utf8Char::State::kInvalid};
  char32_t code = first & (0x3f >> lead.following);
  for (int i = 1; i <= lead.following; ++i) {
    if (static_cast<size_t>(i) == text.size()) {
      return {kReplacement, i, Utf8Char::State::kTruncated};
    }
    const uint8_t byte = static_cast<uint8_t>(text[i]);
    const uint8_t low = i == 1 ? lead.low : 0x80, high = i == 1 ? lead.high : 0xbf;
    if (byte < low || byte > high) return {kReplacement, i, Utf8Char::State::kInvalid};
    code = code << 6 | (byte & 0x3f);
  }
  return {code, lead.following + 1, Utf8Char::State::kValid};
}

size_t FindInvalidUtf8(absl::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const Utf8Char c = DecodeUtf8(text.substr(i));
    if (c.state != Utf8Char::State::kValid) return i;
    i += c.bytes;
  }
  return absl::string_view::npos;
}

void AppendUtf8(char32_t code, std::string* out) {
  const auto put = [out](char32_t byte) { out->push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | code >> 6);
    put(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    put(0xe0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
  } else {
    put(0xf0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3f));
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
  }
}

std::string ReplaceInvalidUtf8(absl::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Utf8Char c = DecodeUtf8(text);
    if (c.state == Utf8Char::State::kValid) {
      out.append(text.data(), c.bytes);
    } else {
      AppendUtf8(kReplacement, &out);
    }
    text.remove_prefix(c.bytes);
  }
  return out;
}

size_t TruncatedUtf8Tail(absl::string_view text) {
  // A lead byte cannot be part of an earlier character, so the last one within reach decides.
  for (size_t n = 1; n <= std::min<size_t>(3, text.size()); ++n) {
    const absl::string_view tail = text.substr(text.size() - n);
    if ((static_cast<uint8_t>(tail[0]) & 0xc0) == 0x80) continue;
    const Utf8Char c = DecodeUtf8(tail);
    return c.state == Utf8Char::State::kTruncated && static_cast<size_t>(c.bytes) == n ? n : 0;
  }
  return 0;
}

}  // namespace oscarkv
