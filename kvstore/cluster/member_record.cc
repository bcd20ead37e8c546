#include "kvstore/cluster/member_record.h"

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace oscarkv {
namespace {

constexpr size_t kMaxKey = 512, kMaxValue = 16 << 10;

absl::Status Wrong(absl::string_view key, absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("registered node \"", absl::CHexEscape(key.substr(0, kMaxKey)), "\": ", what));
}

}  // namespace

std::string MemberFolder(absl::string_view prefix) {
  return absl::StrCat(prefix, absl::EndsWith(prefix, "/") ? "" : "/", "nodes/");
}

std::string MemberValue(const Member& m) {
  return absl::StrCat("version=1\nzone=", m.zone, "\nweight=", m.weight,
                      "\ncapacity=", m.capacity_bytes, "\nincarnation=", absl::Hex(m.incarnation),
                      "\ndraining=", m.draining ? 1 : 0,
                      "\ntransport=", absl::BytesToHexString(m.transport_address), "\n");
}

absl::StatusOr<Member> ParseMemberRecord(absl::string_view folder, absl::string_view key,
                                         absl::string_view value) {
  if (key.size() > kMaxKey || value.size() > kMaxValue) return Wrong(key, "too long");
  if (!absl::StartsWith(key, folder)) return Wrong(key, absl::StrCat("expected ", folder, "..."));
  Member m;
  m.endpoint = std::string(key.substr(folder.size()));
  const size_t colon = m.endpoint.rfind(':');
  int port = 0;
  if (colon == 0 || colon == std::string::npos ||
      !absl::SimpleAtoi(m.endpoint.substr(colon + 1), &port) || port < 1 || port > 65535) {
    return Wrong(key, "the name is no HOST:PORT");
  }
  for (absl::string_view line : absl::StrSplit(value, '\n', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> field =
        absl::StrSplit(line, absl::MaxSplits('=', 1));
    const auto& [name, text] = field;
    bool good = true;
    if (name == "version") {
      good = text == "1";
    } else if (name == "zone") {
      m.zone = std::string(text);
    } else if (name == "weight") {
      good = absl::SimpleAtod(text, &m.weight) && m.weight >= 1e-3 && m.weight <= 1e6;
    } else if (name == "capacity") {
      good = absl::SimpleAtoi(text, &m.capacity_bytes);
    } else if (name == "incarnation") {
      good = absl::SimpleHexAtoi(text, &m.incarnation);
    } else if (name == "draining") {
      good = text == "0" || text == "1";
      m.draining = text == "1";
    } else if (name == "transport") {
      m.transport_address = absl::HexStringToBytes(text.substr(0, text.size() / 2 * 2));
    }
    if (!good)
      return Wrong(key, absl::StrCat("its field ", name, " is \"", absl::CHexEscape(text), "\""));
  }
  return m;
}

}  // namespace oscarkv
