// What the kvstore's tests share: keys and chains by number, blocks with recognisable bytes, a node
// under a fake clock.
#pragma once

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/crc32c.h"
#include "kvstore/core/kv_node.h"

namespace oscarkv::kvtest {

inline BlockKey Key(uint64_t n) {
  Sha256Digest ns{};
  const int32_t tokens[2] = {static_cast<int32_t>(n), static_cast<int32_t>(n >> 32)};
  return ChainKey(ns, BlockKey{}, tokens);
}

// `count` keys, each the child of the one before.
inline std::vector<BlockKey> Chain(uint64_t name, int count) {
  std::vector<int32_t> tokens(count * 64);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(name * 7919 + i);
  return ChainKeys(Sha256Digest{}, tokens);
}

// The bytes of a block: a function of its key, so that a mix-up is seen.
inline std::string Bytes(const BlockKey& key, uint64_t size) {
  std::string out(size, '\0');
  uint64_t state = key.Prefix64();
  for (char& c : out) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    c = static_cast<char>(state >> 56);
  }
  return out;
}

inline kv::SliceTable Table(const std::string& bytes, int slices = 3) {
  kv::SliceTable table;
  uint64_t at = 0;
  for (int s = 0; s < slices; ++s) {
    const uint64_t length = s + 1 == slices ? bytes.size() - at : bytes.size() / slices;
    table.lengths.push_back(length);
    table.crc32c.push_back(Crc32c(bytes.data() + at, length));
    at += length;
  }
  return table;
}

// A node and one session, and short forms of the calls.
class TestNode {
 public:
  explicit TestNode(KvNodeOptions options = {}, uint64_t arena_bytes = 1 << 20,
                    Tier* tier = nullptr, KvTierMetrics* tier_metrics = nullptr)
      : arena_(arena_bytes),
        node_(options, absl::MakeSpan(arena_), &clock_, nullptr, tier, tier_metrics) {
    session_ = Open("test");
  }

  KvNode& node() { return node_; }
  FakeClock& clock() { return clock_; }
  uint8_t* arena() { return arena_.data(); }
  uint64_t session() const { return session_; }

  uint64_t Open(const std::string& name, const std::string& tenant = "") {
    kv::OpenSessionResponse response;
    return node_.Handle(kv::OpenSessionRequest{name, tenant}, &response).ok() ? response.session_id
                                                                              : 0;
  }
  // Moves time and does what is due, keeping the sessions alive.
  void Pass(Duration time, std::vector<uint64_t> alive = {}) {
    alive.push_back(session_);
    for (Duration step = std::chrono::seconds(1); time > Duration(0); time -= step) {
      clock_.Advance(std::min(step, time));
      kv::KeepAliveResponse response;
      for (uint64_t s : alive) node_.Handle(kv::KeepAliveRequest{s}, &response).IgnoreError();
      node_.Tick();
    }
  }

  struct Place {
    absl::Status status;
    uint64_t offset = 0, generation = 0;
  };
  Place Start(const kv::PutItem& item, uint64_t session = 0, uint64_t put_id = 1) {
    kv::PutStartResponse response;
    const absl::Status status =
        node_.Handle(kv::PutStartRequest{Or(session), {item}, put_id}, &response);
    if (!status.ok()) return {status};
    return {response.statuses[0], response.offsets[0], response.generations[0]};
  }
  absl::Status End(const BlockKey& key, uint64_t generation, const kv::SliceTable& table,
                   uint64_t session = 0) {
    kv::PutEndResponse response;
    const absl::Status status =
        node_.Handle(kv::PutEndRequest{Or(session), {{key, generation, table}}}, &response);
    return status.ok() ? response.statuses[0] : status;
  }
  void WriteArena(uint64_t offset, const std::string& bytes) {
    std::memcpy(arena_.data() + offset, bytes.data(), bytes.size());
  }
  // All of a put.
  absl::Status Put(const kv::PutItem& item, uint64_t session = 0) {
    const Place place = Start(item, session);
    if (!place.status.ok()) return place.status;
    const std::string bytes = Bytes(item.key, item.size);
    WriteArena(place.offset, bytes);
    return End(item.key, place.generation, Table(bytes), session);
  }
  absl::Status PutChain(const std::vector<BlockKey>& chain, uint64_t size, uint64_t session = 0) {
    for (size_t i = 0; i < chain.size(); ++i) {
      const absl::Status status =
          Put({chain[i], i == 0 ? BlockKey{} : chain[i - 1], BlockKind::kPage, size}, session);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }
  absl::Status Revoke(uint64_t generation, bool drained, uint64_t session = 0) {
    kv::PutRevokeResponse response;
    const absl::Status status =
        node_.Handle(kv::PutRevokeRequest{Or(session), {generation}, drained}, &response);
    return status.ok() ? response.statuses[0] : status;
  }

  size_t Match(const std::vector<BlockKey>& keys) {
    kv::MatchPrefixResponse response;
    EXPECT_TRUE(node_.Handle(kv::MatchPrefixRequest{session_, keys}, &response).ok());
    return response.matched;
  }
  bool Exists(const BlockKey& key) {
    kv::ExistsResponse response;
    EXPECT_TRUE(node_.Handle(kv::ExistsRequest{session_, {key}}, &response).ok());
    return response.stored[0];
  }
  // Null when it is not stored.
  std::optional<kv::BlockLocation> Pin(const BlockKey& key, uint64_t session = 0,
                                       Duration ttl = Duration(0)) {
    kv::GetStartResponse response;
    EXPECT_TRUE(node_.Handle(kv::GetStartRequest{Or(session), {key}, ttl}, &response).ok());
    if (response.statuses.empty() || !response.statuses[0].ok()) return std::nullopt;
    return response.locations[0];
  }
  absl::Status Release(const kv::BlockLocation& location, uint64_t session = 0) {
    kv::ReleaseResponse response;
    const absl::Status status = node_.Handle(
        kv::ReleaseRequest{Or(session), {location.pin_id}, {location.generation}}, &response);
    return status.ok() ? response.statuses[0] : status;
  }
  std::string Read(const kv::BlockLocation& location) const {
    return std::string(reinterpret_cast<const char*>(arena_.data()) + location.offset,
                       location.size);
  }
  // What a reader gets: the bytes, or nothing.
  std::optional<std::string> Get(const BlockKey& key) {
    const auto location = Pin(key);
    if (!location) return std::nullopt;
    const std::string bytes = Read(*location);
    EXPECT_TRUE(Release(*location).ok());
    return bytes;
  }
  absl::Status Erase(const BlockKey& key, kv::EraseReason reason = kv::EraseReason::kRequested) {
    kv::EraseResponse response;
    const absl::Status status =
        node_.Handle(kv::EraseRequest{session_, {key}, reason, {}}, &response);
    return status.ok() ? response.statuses[0] : status;
  }
  kv::StatsResponse Stats() {
    kv::StatsResponse response;
    EXPECT_TRUE(node_.Handle(kv::StatsRequest{}, &response).ok());
    return response;
  }

 private:
  uint64_t Or(uint64_t session) const { return session == 0 ? session_ : session; }

  FakeClock clock_;
  std::vector<uint8_t> arena_;
  KvNode node_;
  uint64_t session_ = 0;
};

}  // namespace oscarkv::kvtest
