// Where the threads and the host memory of a worker with a GPU lie best: at the GPU's NUMA node.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace oscarkv::worker {

// The cores of the NUMA node of PCI device `id` ("0000:3b:00.0", in any case), from `sysfs`. Empty:
// the machine does not say, as where it has one node only. kInvalidArgument: an id that is none;
// kDataLoss: a file there that cannot be read as what it should be.
absl::StatusOr<std::vector<int>> CoresNearPciDevice(absl::string_view id,
                                                    const std::string& sysfs = "/sys");

// "0-3,8,10-11" as numbers. kInvalidArgument: not such a list, or beyond core 4095.
absl::StatusOr<std::vector<int>> ParseCoreList(absl::string_view text);

// From here on the calling thread, and threads that it starts, run on those of `cores` on which it
// may; the memory they touch first comes from there. Returns how many; 0: none, nothing changed.
absl::StatusOr<int> RunOnCores(const std::vector<int>& cores);

// Bytes that the host can give without swapping (MemAvailable), at most what the control group of a
// container may take in all; 0: the first file does not say.
uint64_t AvailableHostBytes(const std::string& meminfo = "/proc/meminfo",
                            const std::string& cgroup_limit = "/sys/fs/cgroup/memory.max");

}  // namespace oscarkv::worker
