#include "worker/device_placement.h"

#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"

namespace oscarkv::worker {
namespace {

constexpr int kMaxCores = 4096;
constexpr size_t kMaxFileBytes = 65536;

// Its first kMaxFileBytes without white space at the ends; empty: no such file.
std::string ReadSmallFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxFileBytes, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  absl::StripAsciiWhitespace(&text);
  return text;
}

// "0000:3b:00.0": no other characters, so that it names one entry of a folder.
bool IsPciId(absl::string_view id) {
  if (id.empty() || id.size() > 16) return false;
  for (const char c : id) {
    if (!absl::ascii_isxdigit(static_cast<unsigned char>(c)) && c != ':' && c != '.') return false;
  }
  return id.find("..") == absl::string_view::npos && id.find(':') != absl::string_view::npos;
}

}  // namespace

absl::StatusOr<std::vector<int>> ParseCoreList(absl::string_view text) {
  std::vector<int> cores;
  for (const absl::string_view part : absl::StrSplit(text, ',', absl::SkipWhitespace())) {
    const std::pair<absl::string_view, absl::string_view> ends =
        absl::StrSplit(part, absl::MaxSplits('-', 1));
    int first = 0, last = 0;
    const bool one = ends.second.empty() && part.find('-') == absl::string_view::npos;
    if (!absl::SimpleAtoi(ends.first, &first) ||
        !absl::SimpleAtoi(one ? ends.first : ends.second, &last) || first < 0 || last < first ||
        last >= kMaxCores) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", part, "\" is not a core or a range of cores of 0 to ", kMaxCores - 1));
    }
    for (int core = first; core <= last; ++core) cores.push_back(core);
  }
  return cores;
}

absl::StatusOr<std::vector<int>> CoresNearPciDevice(absl::string_view id,
                                                    const std::string& sysfs) {
  if (!IsPciId(id))
    return absl::InvalidArgumentError(absl::StrCat("\"", id, "\" is not the id of a PCI device"));
  const std::string node_path =
      absl::StrCat(sysfs, "/bus/pci/devices/", absl::AsciiStrToLower(id), "/numa_node");
  const std::string node_text = ReadSmallFile(node_path);
  if (node_text.empty()) return std::vector<int>();
  int node = 0;
  if (!absl::SimpleAtoi(node_text, &node))
    return absl::DataLossError(absl::StrCat(node_path, ": expected a number"));
  if (node < 0) return std::vector<int>();
  const std::string list_path = absl::StrCat(sysfs, "/devices/system/node/node", node, "/cpulist");
  absl::StatusOr<std::vector<int>> cores = ParseCoreList(ReadSmallFile(list_path));
  if (!cores.ok())
    return absl::DataLossError(absl::StrCat(list_path, ": ", cores.status().message()));
  return cores;
}

absl::StatusOr<int> RunOnCores(const std::vector<int>& cores) {
  // As large as any list that ParseCoreList gives; a plain cpu_set_t ends at 1024.
  cpu_set_t allowed[kMaxCores / CPU_SETSIZE], chosen[kMaxCores / CPU_SETSIZE];
  CPU_ZERO_S(sizeof chosen, chosen);
  if (sched_getaffinity(0, sizeof allowed, allowed) != 0)
    return absl::InternalError(absl::StrCat("sched_getaffinity: ", std::strerror(errno)));
  int n = 0;
  for (const int core : cores) {
    if (core < 0 || core >= kMaxCores || !CPU_ISSET_S(core, sizeof allowed, allowed)) continue;
    CPU_SET_S(core, sizeof chosen, chosen);
    ++n;
  }
  if (n > 0 && sched_setaffinity(0, sizeof chosen, chosen) != 0)
    return absl::InternalError(absl::StrCat("sched_setaffinity: ", std::strerror(errno)));
  return n;
}

uint64_t AvailableHostBytes(const std::string& meminfo, const std::string& cgroup_limit) {
  uint64_t limit = 0;
  if (!absl::SimpleAtoi(ReadSmallFile(cgroup_limit), &limit))  // "max", or no such file
    limit = std::numeric_limits<uint64_t>::max();
  std::istringstream lines(ReadSmallFile(meminfo));
  for (std::string line; std::getline(lines, line);) {
    constexpr absl::string_view kName = "MemAvailable:";
    if (line.compare(0, kName.size(), kName.data(), kName.size()) != 0) continue;
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipWhitespace());
    uint64_t kib = 0;
    if (words.size() == 3 && words[2] == "kB" && absl::SimpleAtoi(words[1], &kib) &&
        kib < (uint64_t{1} << 50))
      return std::min(kib << 10, limit);
  }
  return 0;
}

}  // namespace oscarkv::worker
