// What nodes tell each other about themselves, as opaque strings that travel through the control
// plane: the node's address (Transport::Address) and a region's descriptor (MemoryRegion::Export).
// Both end in a CRC32C and are checked on every field; the addresses of the network library inside
// are trusted once the CRC holds, as that library does not check them.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace oscarkv {

constexpr size_t kMaxDescriptorBytes = 4096;

// Ways to reach a node; each has its own worker of the network library.
enum class LaneClass : uint8_t {
  kShm = 1,   // shared memory, one-sided, same host only
  kRdma = 2,  // one-sided over a network with remote direct memory access
  kTcp = 3,   // active messages
};
constexpr int kNumLaneClasses = 3;
const char* LaneClassName(LaneClass lane);  // "shm", "rdma", "tcp"

using HostId = std::array<uint8_t, 16>;  // the kernel's boot id: equal on one host, and only there
using NodeSecret = std::array<uint8_t, 16>;

struct LaneAddress {
  LaneClass lane;
  std::string worker;  // of the network library
  std::string probe;   // a RegionDescriptor to try the lane with; empty for kTcp
};

struct NodeAddress {
  uint64_t instance = 0;  // random; also names the node's liveness socket
  NodeSecret secret{};    // whoever knows the address may open a session: this proves it
  HostId host{};
  std::vector<LaneAddress> lanes;
};

struct RegionKey {
  LaneClass lane;
  uint64_t base = 0;  // where span().data() is in the owner's address space
  std::string rkey;   // of the network library
};

struct RegionDescriptor {
  uint64_t instance = 0;  // of the owner
  uint64_t id = 0;
  uint64_t token = 0;           // random, never 0
  uint64_t size = 0;            // never 0
  std::vector<RegionKey> keys;  // for the one-sided lanes
};

// kResourceExhausted: longer than kMaxDescriptorBytes.
absl::StatusOr<std::string> Encode(const NodeAddress& address);
absl::StatusOr<std::string> Encode(const RegionDescriptor& region);
// kInvalidArgument: not such a descriptor, another version, or damaged.
absl::StatusOr<NodeAddress> DecodeNodeAddress(absl::string_view text);
absl::StatusOr<RegionDescriptor> DecodeRegionDescriptor(absl::string_view text);

}  // namespace oscarkv
