// The calls of a kvstore node as plain structs: what KvNode handles, what KvStub sends and what the
// gRPC adapters convert. proto/oscarkv/v1/kvstore.proto documents each call and its statuses; here
// is its image in our types.
//
// Each request names its Response. Per-item results are one absl::Status per item in the order of
// the request.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"
#include "kvstore/types.h"

namespace oscarkv {

inline constexpr int kTokensPerBlock = 64;  // for counting only: to the store a block is bytes

namespace kv {

// Limits of one call; larger ones are kInvalidArgument.
inline constexpr size_t kMaxItemsPerCall = 65536;
inline constexpr size_t kMaxSlicesPerBlock = 4096;
inline constexpr size_t kMaxNameLength = 256;  // client name, tenant
inline constexpr uint64_t kMaxChunkBytes = 1 << 20;

// The checksummed parts of a block: they follow each other without gaps from its first byte to its
// last.
struct SliceTable {
  std::vector<uint64_t> lengths;
  std::vector<uint32_t> crc32c;
  bool operator==(const SliceTable&) const = default;
};

struct OpenSessionResponse {
  uint64_t session_id = 0;
  uint64_t incarnation = 0;  // of the node's process
  Duration session_ttl{0};
  Duration max_pin_ttl{0};
  Duration put_ttl{0};
  uint64_t max_block_bytes = 0;
  std::string transport_address;  // empty: only the streaming data path
  std::string exported_arena;
  std::string transport_name;
  uint64_t arena_bytes = 0;
};
struct OpenSessionRequest {
  using Response = OpenSessionResponse;
  std::string client_name;
  std::string tenant;
};

struct KeepAliveResponse {
  uint64_t incarnation = 0;
};
struct KeepAliveRequest {
  using Response = KeepAliveResponse;
  uint64_t session_id = 0;
};

struct CloseSessionResponse {};
struct CloseSessionRequest {
  using Response = CloseSessionResponse;
  uint64_t session_id = 0;
};

struct MatchPrefixResponse {
  uint32_t matched = 0;                // keys[0 .. matched) are stored
  std::vector<uint32_t> of_runs = {};  // the same for each run; as many as asked for
};
struct MatchPrefixRequest {
  using Response = MatchPrefixResponse;
  uint64_t session_id = 0;
  std::vector<BlockKey> keys;
  std::vector<uint32_t> run_begins = {};  // empty: one run; else from 0, ascending
  bool again = false;                     // another replica was asked before: no miss of this node
};

struct ExistsResponse {
  std::vector<bool> stored;
};
struct ExistsRequest {
  using Response = ExistsResponse;
  uint64_t session_id = 0;
  std::vector<BlockKey> keys;
};

// A pinned block.
struct BlockLocation {
  uint64_t pin_id = 0;
  uint64_t offset = 0;  // in the node's arena
  uint64_t size = 0;
  uint64_t generation = 0;
  SliceTable slices;
  uint32_t extra_copies = 0;
};
struct GetStartResponse {
  std::vector<absl::Status> statuses;
  std::vector<BlockLocation> locations;  // one per item
};
struct GetStartRequest {
  using Response = GetStartResponse;
  uint64_t session_id = 0;
  std::vector<BlockKey> keys;
  Duration pin_ttl{0};  // 0: the node's maximum
};

struct RenewPinsResponse {
  std::vector<absl::Status> statuses;
};
struct RenewPinsRequest {
  using Response = RenewPinsResponse;
  uint64_t session_id = 0;
  std::vector<uint64_t> pin_ids;
  Duration pin_ttl{0};
};

struct ReleaseResponse {
  std::vector<absl::Status> statuses;
};
struct ReleaseRequest {
  using Response = ReleaseResponse;
  uint64_t session_id = 0;
  std::vector<uint64_t> pin_ids;
  std::vector<uint64_t> generations;
};

struct PutItem {
  BlockKey key;
  BlockKey parent;
  BlockKind kind = BlockKind::kPage;
  uint64_t size = 0;
  Duration ttl{0};
  BlockKey placement = {};
  bool restored = false;
  Duration idle{0};
};
struct PutStartResponse {
  std::vector<absl::Status> statuses;
  std::vector<uint64_t> offsets;
  std::vector<uint64_t> generations;
};
struct PutStartRequest {
  using Response = PutStartResponse;
  uint64_t session_id = 0;
  std::vector<PutItem> items;
  uint64_t put_id = 0;  // tells a repeated call from another put of the same block
};

struct PutEndItem {
  BlockKey key;
  uint64_t generation = 0;
  SliceTable slices;
};
struct PutEndResponse {
  std::vector<absl::Status> statuses;
};
struct PutEndRequest {
  using Response = PutEndResponse;
  uint64_t session_id = 0;
  std::vector<PutEndItem> items;
};

struct PutRevokeResponse {
  std::vector<absl::Status> statuses;
};
struct PutRevokeRequest {
  using Response = PutRevokeResponse;
  uint64_t session_id = 0;
  std::vector<uint64_t> generations;  // of the reservations
  bool drained = false;               // no transfer into these blocks is under way
};

enum class EraseReason : uint8_t { kRequested = 1, kCorrupt = 2 };
struct EraseResponse {
  std::vector<absl::Status> statuses;
};
struct EraseRequest {
  using Response = EraseResponse;
  uint64_t session_id = 0;
  std::vector<BlockKey> keys;
  EraseReason reason = EraseReason::kRequested;
  std::vector<uint64_t> generations;  // empty, or one per key
};

struct StatsResponse {
  uint64_t capacity_bytes = 0, used_bytes = 0, pinned_bytes = 0, reserved_bytes = 0,
           quarantined_bytes = 0;
  uint64_t kind_bytes[kNumBlockKinds] = {};  // by BlockKind - 1
  uint64_t kind_blocks[kNumBlockKinds] = {};
  uint64_t hits = 0, misses = 0, evictions = 0, sessions = 0, incarnation = 0;
  ReplicaStats replicas;
  TierStats tier;
};
struct StatsRequest {
  using Response = StatsResponse;
};

inline constexpr size_t kDigestBuckets = 1024;
struct CompareDigestsResponse {
  std::vector<uint32_t> differing;  // buckets
};
struct CompareDigestsRequest {
  using Response = CompareDigestsResponse;
  std::string from;               // the asking node's endpoint
  std::vector<uint64_t> digests;  // kDigestBuckets
};

enum class CopyState : uint8_t { kStored = 1, kWanted = 2, kNoRoom = 3, kErased = 4 };
struct CompareBlocksResponse {
  std::vector<CopyState> states;  // one per key
};
struct CompareBlocksRequest {
  using Response = CompareBlocksResponse;
  std::array<uint8_t, 16> tenant_digest{};  // TenantDigest
  std::vector<BlockKey> keys;
  std::vector<uint32_t> idle_seconds;  // one per key
};

// The streaming data path. Not part of KvRequest: these are long calls with their own methods.
struct ReadPiece {
  uint64_t pin_id = 0;
  uint64_t offset = 0;  // in the block
  uint64_t length = 0;
};
struct WriteChunk {
  BlockKey key;
  uint64_t generation = 0;
  uint64_t offset = 0;  // in the block
};

using KvRequest =
    std::variant<OpenSessionRequest, KeepAliveRequest, CloseSessionRequest, MatchPrefixRequest,
                 ExistsRequest, GetStartRequest, RenewPinsRequest, ReleaseRequest, PutStartRequest,
                 PutEndRequest, PutRevokeRequest, EraseRequest, StatsRequest, CompareDigestsRequest,
                 CompareBlocksRequest>;

// Of each request, in the same order.
using KvResponse =
    std::variant<OpenSessionResponse, KeepAliveResponse, CloseSessionResponse, MatchPrefixResponse,
                 ExistsResponse, GetStartResponse, RenewPinsResponse, ReleaseResponse,
                 PutStartResponse, PutEndResponse, PutRevokeResponse, EraseResponse, StatsResponse,
                 CompareDigestsResponse, CompareBlocksResponse>;

}  // namespace kv
}  // namespace oscarkv
