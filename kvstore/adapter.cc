#include "kvstore/adapter.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

constexpr size_t kKeyBytes = 32;
constexpr uint64_t kMaxTtlMs =
    uint64_t{1000} * 3600 * 24 * 366;  // longer ones are cut: no overflow in nanoseconds
constexpr int kMaxItemMessages =
    16;  // per call: a batch that failed as a whole says so often enough

uint64_t ToMs(Duration d) {
  return d <= Duration(0) ? 0 : (d.count() + 999'999) / 1'000'000;
}
Duration FromMs(uint64_t ms) {
  return std::chrono::milliseconds(std::min(ms, kMaxTtlMs));
}

absl::Status CheckCount(size_t count, absl::string_view what) {
  if (count <= kv::kMaxItemsPerCall) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(count, " ", what, ": at most ", kv::kMaxItemsPerCall));
}

void KeysToProto(const std::vector<BlockKey>& keys, std::string* out) {
  static_assert(sizeof(BlockKey) == kKeyBytes);
  out->resize(keys.size() * kKeyBytes);
  if (!keys.empty()) std::memcpy(out->data(), keys.data(), out->size());
}

absl::Status KeysFromProto(const std::string& bytes, std::vector<BlockKey>* keys) {
  if (bytes.size() % kKeyBytes != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("keys of ", bytes.size(), " bytes: expected a multiple of ", kKeyBytes));
  }
  RETURN_IF_ERROR(CheckCount(bytes.size() / kKeyBytes, "keys"));
  keys->resize(bytes.size() / kKeyBytes);
  if (!bytes.empty()) std::memcpy(keys->data(), bytes.data(), bytes.size());
  return absl::OkStatus();
}

// Every run has a key at least.
absl::Status CheckRuns(const kv::MatchPrefixRequest& request) {
  const std::vector<uint32_t>& runs = request.run_begins;
  for (size_t r = 0; r < runs.size(); ++r) {
    if (runs[r] < request.keys.size() && (r == 0 ? runs[r] == 0 : runs[r] > runs[r - 1])) continue;
    return absl::InvalidArgumentError(absl::StrCat("run ", r, " begins at key ", runs[r], " of ",
                                                   request.keys.size(),
                                                   ": expected 0, then ascending"));
  }
  return absl::OkStatus();
}

void StatusesToProto(const std::vector<absl::Status>& in, v1::ItemStatuses* out) {
  out->mutable_codes()->Reserve(in.size());
  for (size_t i = 0; i < in.size(); ++i) {
    out->add_codes(static_cast<uint32_t>(in[i].code()));
    if (in[i].ok() || in[i].message().empty() || out->messages_size() >= kMaxItemMessages) continue;
    v1::ItemMessage* message = out->add_messages();
    message->set_item(i);
    message->set_message(std::string(in[i].message()));
  }
}

absl::Status StatusesFromProto(const v1::ItemStatuses& in, std::vector<absl::Status>* out) {
  RETURN_IF_ERROR(CheckCount(in.codes_size(), "item statuses"));
  out->assign(in.codes_size(), absl::OkStatus());
  for (int i = 0; i < in.codes_size(); ++i) {
    if (in.codes(i) == 0) continue;
    const uint32_t code = in.codes(i) <= 16 ? in.codes(i) : 2;  // 2: unknown
    (*out)[i] = absl::Status(static_cast<absl::StatusCode>(code), "");
  }
  for (const v1::ItemMessage& message : in.messages()) {
    if (message.item() >= out->size() || (*out)[message.item()].ok()) continue;
    (*out)[message.item()] = absl::Status((*out)[message.item()].code(), message.message());
  }
  return absl::OkStatus();
}

void TableToProto(const kv::SliceTable& in, v1::SliceTable* out) {
  out->mutable_lengths()->Add(in.lengths.begin(), in.lengths.end());
  out->mutable_crc32c()->Add(in.crc32c.begin(), in.crc32c.end());
}

absl::Status TableFromProto(const v1::SliceTable& in, kv::SliceTable* out) {
  const size_t n = in.lengths_size();
  if (n != static_cast<size_t>(in.crc32c_size()) || n > kv::kMaxSlicesPerBlock) {
    return absl::InvalidArgumentError(
        absl::StrCat("slice table with ", n, " lengths and ", in.crc32c_size(),
                     " checksums: expected as many, at most ", kv::kMaxSlicesPerBlock));
  }
  out->lengths.assign(in.lengths().begin(), in.lengths().end());
  out->crc32c.assign(in.crc32c().begin(), in.crc32c().end());
  return absl::OkStatus();
}

}  // namespace

absl::Status KeyFromProto(const std::string& bytes, BlockKey* key) {
  if (bytes.size() != kKeyBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("key of ", bytes.size(), " bytes: expected ", kKeyBytes));
  }
  std::memcpy(key->bytes.data(), bytes.data(), kKeyBytes);
  return absl::OkStatus();
}

void KeyToProto(const BlockKey& key, std::string* bytes) {
  bytes->assign(reinterpret_cast<const char*>(key.bytes.data()), kKeyBytes);
}

// --- Sessions ---

void ToProto(const kv::OpenSessionRequest& in, v1::OpenSessionRequest* out) {
  out->set_client_name(in.client_name);
  out->set_tenant(in.tenant);
}
absl::Status FromProto(const v1::OpenSessionRequest& in, kv::OpenSessionRequest* out) {
  out->client_name = in.client_name();
  out->tenant = in.tenant();
  return absl::OkStatus();
}

void ToProto(const kv::OpenSessionResponse& in, v1::OpenSessionResponse* out) {
  out->set_session_id(in.session_id);
  out->set_incarnation(in.incarnation);
  out->set_session_ttl_ms(ToMs(in.session_ttl));
  out->set_max_pin_ttl_ms(ToMs(in.max_pin_ttl));
  out->set_put_ttl_ms(ToMs(in.put_ttl));
  out->set_max_block_bytes(in.max_block_bytes);
  out->set_transport_address(in.transport_address);
  out->set_exported_arena(in.exported_arena);
  out->set_transport_name(in.transport_name);
  out->set_arena_bytes(in.arena_bytes);
}
absl::Status FromProto(const v1::OpenSessionResponse& in, kv::OpenSessionResponse* out) {
  out->session_id = in.session_id();
  out->incarnation = in.incarnation();
  out->session_ttl = FromMs(in.session_ttl_ms());
  out->max_pin_ttl = FromMs(in.max_pin_ttl_ms());
  out->put_ttl = FromMs(in.put_ttl_ms());
  out->max_block_bytes = in.max_block_bytes();
  out->transport_address = in.transport_address();
  out->exported_arena = in.exported_arena();
  out->transport_name = in.transport_name();
  out->arena_bytes = in.arena_bytes();
  if (out->session_ttl == Duration(0) || out->max_pin_ttl == Duration(0) ||
      out->put_ttl == Duration(0)) {
    return absl::InvalidArgumentError("the node granted a session with a TTL of 0");
  }
  return absl::OkStatus();
}

void ToProto(const kv::KeepAliveRequest& in, v1::KeepAliveRequest* out) {
  out->set_session_id(in.session_id);
}
absl::Status FromProto(const v1::KeepAliveRequest& in, kv::KeepAliveRequest* out) {
  out->session_id = in.session_id();
  return absl::OkStatus();
}
void ToProto(const kv::KeepAliveResponse& in, v1::KeepAliveResponse* out) {
  out->set_incarnation(in.incarnation);
}
absl::Status FromProto(const v1::KeepAliveResponse& in, kv::KeepAliveResponse* out) {
  out->incarnation = in.incarnation();
  return absl::OkStatus();
}

void ToProto(const kv::CloseSessionRequest& in, v1::CloseSessionRequest* out) {
  out->set_session_id(in.session_id);
}
absl::Status FromProto(const v1::CloseSessionRequest& in, kv::CloseSessionRequest* out) {
  out->session_id = in.session_id();
  return absl::OkStatus();
}
void ToProto(const kv::CloseSessionResponse&, v1::CloseSessionResponse*) {}
absl::Status FromProto(const v1::CloseSessionResponse&, kv::CloseSessionResponse*) {
  return absl::OkStatus();
}

// --- Lookups ---

void ToProto(const kv::MatchPrefixRequest& in, v1::MatchPrefixRequest* out) {
  out->set_session_id(in.session_id);
  KeysToProto(in.keys, out->mutable_keys());
  out->mutable_run_begins()->Add(in.run_begins.begin(), in.run_begins.end());
  out->set_again(in.again);
}
absl::Status FromProto(const v1::MatchPrefixRequest& in, kv::MatchPrefixRequest* out) {
  out->session_id = in.session_id();
  out->run_begins.assign(in.run_begins().begin(), in.run_begins().end());
  out->again = in.again();
  RETURN_IF_ERROR(KeysFromProto(in.keys(), &out->keys));
  return CheckRuns(*out);
}
void ToProto(const kv::MatchPrefixResponse& in, v1::MatchPrefixResponse* out) {
  out->set_matched(in.matched);
  out->mutable_of_runs()->Add(in.of_runs.begin(), in.of_runs.end());
}
absl::Status FromProto(const v1::MatchPrefixResponse& in, kv::MatchPrefixResponse* out) {
  out->matched = in.matched();
  out->of_runs.assign(in.of_runs().begin(), in.of_runs().end());
  return CheckCount(out->of_runs.size(), "runs");
}

void ToProto(const kv::ExistsRequest& in, v1::ExistsRequest* out) {
  out->set_session_id(in.session_id);
  KeysToProto(in.keys, out->mutable_keys());
}
absl::Status FromProto(const v1::ExistsRequest& in, kv::ExistsRequest* out) {
  out->session_id = in.session_id();
  return KeysFromProto(in.keys(), &out->keys);
}
void ToProto(const kv::ExistsResponse& in, v1::ExistsResponse* out) {
  out->mutable_stored()->Reserve(in.stored.size());
  for (bool stored : in.stored) out->add_stored(stored);
}
absl::Status FromProto(const v1::ExistsResponse& in, kv::ExistsResponse* out) {
  RETURN_IF_ERROR(CheckCount(in.stored_size(), "answers"));
  out->stored.assign(in.stored().begin(), in.stored().end());
  return absl::OkStatus();
}

// --- Pins ---

void ToProto(const kv::GetStartRequest& in, v1::GetStartRequest* out) {
  out->set_session_id(in.session_id);
  KeysToProto(in.keys, out->mutable_keys());
  out->set_pin_ttl_ms(ToMs(in.pin_ttl));
}
absl::Status FromProto(const v1::GetStartRequest& in, kv::GetStartRequest* out) {
  out->session_id = in.session_id();
  out->pin_ttl = FromMs(in.pin_ttl_ms());
  return KeysFromProto(in.keys(), &out->keys);
}
void ToProto(const kv::GetStartResponse& in, v1::GetStartResponse* out) {
  StatusesToProto(in.statuses, out->mutable_statuses());
  for (const kv::BlockLocation& l : in.locations) {
    v1::BlockLocation* location = out->add_locations();
    location->set_pin_id(l.pin_id);
    location->set_offset(l.offset);
    location->set_size(l.size);
    location->set_generation(l.generation);
    TableToProto(l.slices, location->mutable_slices());
    location->set_extra_copies(l.extra_copies);
  }
}
absl::Status FromProto(const v1::GetStartResponse& in, kv::GetStartResponse* out) {
  RETURN_IF_ERROR(StatusesFromProto(in.statuses(), &out->statuses));
  RETURN_IF_ERROR(CheckCount(in.locations_size(), "locations"));
  out->locations.resize(in.locations_size());
  for (int i = 0; i < in.locations_size(); ++i) {
    const v1::BlockLocation& location = in.locations(i);
    kv::BlockLocation& l = out->locations[i];
    l.pin_id = location.pin_id();
    l.offset = location.offset();
    l.size = location.size();
    l.generation = location.generation();
    RETURN_IF_ERROR(TableFromProto(location.slices(), &l.slices));
    l.extra_copies = location.extra_copies();
  }
  return absl::OkStatus();
}

void ToProto(const kv::RenewPinsRequest& in, v1::RenewPinsRequest* out) {
  out->set_session_id(in.session_id);
  out->mutable_pin_ids()->Add(in.pin_ids.begin(), in.pin_ids.end());
  out->set_pin_ttl_ms(ToMs(in.pin_ttl));
}
absl::Status FromProto(const v1::RenewPinsRequest& in, kv::RenewPinsRequest* out) {
  out->session_id = in.session_id();
  out->pin_ttl = FromMs(in.pin_ttl_ms());
  out->pin_ids.assign(in.pin_ids().begin(), in.pin_ids().end());
  return CheckCount(out->pin_ids.size(), "pins");
}
void ToProto(const kv::RenewPinsResponse& in, v1::RenewPinsResponse* out) {
  StatusesToProto(in.statuses, out->mutable_statuses());
}
absl::Status FromProto(const v1::RenewPinsResponse& in, kv::RenewPinsResponse* out) {
  return StatusesFromProto(in.statuses(), &out->statuses);
}

void ToProto(const kv::ReleaseRequest& in, v1::ReleaseRequest* out) {
  out->set_session_id(in.session_id);
  out->mutable_pin_ids()->Add(in.pin_ids.begin(), in.pin_ids.end());
  out->mutable_generations()->Add(in.generations.begin(), in.generations.end());
}
absl::Status FromProto(const v1::ReleaseRequest& in, kv::ReleaseRequest* out) {
  out->session_id = in.session_id();
  out->pin_ids.assign(in.pin_ids().begin(), in.pin_ids().end());
  out->generations.assign(in.generations().begin(), in.generations().end());
  return CheckCount(out->pin_ids.size(), "pins");
}
void ToProto(const kv::ReleaseResponse& in, v1::ReleaseResponse* out) {
  StatusesToProto(in.statuses, out->mutable_statuses());
}
absl::Status FromProto(const v1::ReleaseResponse& in, kv::ReleaseResponse* out) {
  return StatusesFromProto(in.statuses(), &out->statuses);
}

// --- Puts ---

void ToProto(const kv::PutStartRequest& in, v1::PutStartRequest* out) {
  out->set_session_id(in.session_id);
  out->set_put_id(in.put_id);
  out->mutable_items()->Reserve(in.items.size());
  for (const kv::PutItem& i : in.items) {
    v1::PutItem* item = out->add_items();
    KeyToProto(i.key, item->mutable_key());
    if (!i.parent.empty()) KeyToProto(i.parent, item->mutable_parent());
    item->set_kind(static_cast<v1::BlockKind>(i.kind));
    item->set_size(i.size);
    item->set_ttl_ms(ToMs(i.ttl));
    if (!i.placement.empty()) KeyToProto(i.placement, item->mutable_placement());
    item->set_restored(i.restored);
    item->set_idle_ms(ToMs(i.idle));
  }
}
absl::Status FromProto(const v1::PutStartRequest& in, kv::PutStartRequest* out) {
  RETURN_IF_ERROR(CheckCount(in.items_size(), "items"));
  out->session_id = in.session_id();
  out->put_id = in.put_id();
  out->items.resize(in.items_size());
  for (int i = 0; i < in.items_size(); ++i) {
    const v1::PutItem& item = in.items(i);
    kv::PutItem& o = out->items[i];
    RETURN_IF_ERROR(KeyFromProto(item.key(), &o.key));
    if (!item.parent().empty()) RETURN_IF_ERROR(KeyFromProto(item.parent(), &o.parent));
    if (item.kind() < 1 || item.kind() > kNumBlockKinds) {
      return absl::InvalidArgumentError(
          absl::StrCat("block kind ", item.kind(), ": expected 1..", kNumBlockKinds));
    }
    o.kind = static_cast<BlockKind>(item.kind());
    o.size = item.size();
    o.ttl = FromMs(item.ttl_ms());
    if (!item.placement().empty()) RETURN_IF_ERROR(KeyFromProto(item.placement(), &o.placement));
    o.restored = item.restored();
    o.idle = FromMs(item.idle_ms());
  }
  return absl::OkStatus();
}
void ToProto(const kv::PutStartResponse& in, v1::PutStartResponse* out) {
  StatusesToProto(in.statuses, out->mutable_statuses());
  out->mutable_offsets()->Add(in.offsets.begin(), in.offsets.end());
  out->mutable_generations()->Add(in.generations.begin(), in.generations.end());
}
absl::Status FromProto(const v1::PutStartResponse& in, kv::PutStartResponse* out) {
  RETURN_IF_ERROR(StatusesFromProto(in.statuses(), &out->statuses));
  out->offsets.assign(in.offsets().begin(), in.offsets().end());
  out->generations.assign(in.generations().begin(), in.generations().end());
  return absl::OkStatus();
}

void ToProto(const kv::PutEndRequest& in, v1::PutEndRequest* out) {
  out->set_session_id(in.session_id);
  out->mutable_items()->Reserve(in.items.size());
  for (const kv::PutEndItem& i : in.items) {
    v1::PutEndItem* item = out->add_items();
    KeyToProto(i.key, item->mutable_key());
    item->set_generation(i.generation);
    TableToProto(i.slices, item->mutable_slices());
  }
}
absl::Status FromProto(const v1::PutEndRequest& in, kv::PutEndRequest* out) {
  RETURN_IF_ERROR(CheckCount(in.items_size(), "items"));
  out->session_id = in.session_id();
  out->items.resize(in.items_size());
  for (int i = 0; i < in.items_size(); ++i) {
    RETURN_IF_ERROR(KeyFromProto(in.items(i).key(), &out->items[i].key));
    out->items[i].generation = in.items(i).generation();
    RETURN_IF_ERROR(TableFromProto(in.items(i).slices(), &out->items[i].slices));
  }
  return absl::OkStatus();
}
void ToProto(const kv::PutEndResponse& in, v1::PutEndResponse* out) {
  StatusesToProto(in.statuses, out->mutable_statuses());
}
absl::Status FromProto(const v1::PutEndResponse& in, kv::PutEndResponse* out) {
  return StatusesFromProto(in.statuses(), &out->statuses);
}

void ToProto(const kv::PutRevokeRequest& in, v1::PutRevokeRequest* out) {
  out->set_session_id(in.session_id);
  out->mutable_generations()->Add(in.generations.begin(), in.generations.end());
  out->set_drained(in.drained);
}
absl::Status FromProto(const v1::PutRevokeRequest& in, kv::PutRevokeRequest* out) {
  out->session_id = in.session_id();
  out->drained = in.drained();
  out->generations.assign(in.generations().begin(), in.generations().end());
  return CheckCount(out->generations.size(), "generations");
}
void ToProto(const kv::PutRevokeResponse& in, v1::PutRevokeResponse* out) {
  StatusesToProto(in.statuses, out->mutable_statuses());
}
absl::Status FromProto(const v1::PutRevokeResponse& in, kv::PutRevokeResponse* out) {
  return StatusesFromProto(in.statuses(), &out->statuses);
}

// --- Erase, stats ---

void ToProto(const kv::EraseRequest& in, v1::EraseRequest* out) {
  out->set_session_id(in.session_id);
  KeysToProto(in.keys, out->mutable_keys());
  out->set_reason(static_cast<v1::EraseReason>(in.reason));
  out->mutable_generations()->Add(in.generations.begin(), in.generations.end());
}
absl::Status FromProto(const v1::EraseRequest& in, kv::EraseRequest* out) {
  if (in.reason() != v1::ERASE_REASON_REQUESTED && in.reason() != v1::ERASE_REASON_CORRUPT) {
    return absl::InvalidArgumentError(
        absl::StrCat("erase reason ", in.reason(), ": expected 1 or 2"));
  }
  out->session_id = in.session_id();
  out->reason = static_cast<kv::EraseReason>(in.reason());
  out->generations.assign(in.generations().begin(), in.generations().end());
  return KeysFromProto(in.keys(), &out->keys);
}
void ToProto(const kv::EraseResponse& in, v1::EraseResponse* out) {
  StatusesToProto(in.statuses, out->mutable_statuses());
}
absl::Status FromProto(const v1::EraseResponse& in, kv::EraseResponse* out) {
  return StatusesFromProto(in.statuses(), &out->statuses);
}

void ToProto(const kv::StatsRequest&, v1::StatsRequest*) {}
absl::Status FromProto(const v1::StatsRequest&, kv::StatsRequest*) {
  return absl::OkStatus();
}
// Of StatsResponse and of TierStats.
template <typename Native, typename Proto>
void KindsToProto(const Native& in, Proto* out) {
  for (int k = 0; k < kNumBlockKinds; ++k) {
    v1::KindStats* kind = out->add_kinds();
    kind->set_kind(static_cast<v1::BlockKind>(k + 1));
    kind->set_blocks(in.kind_blocks[k]);
    kind->set_bytes(in.kind_bytes[k]);
  }
}
template <typename Native, typename Proto>
void KindsFromProto(const Proto& in, Native* out) {
  for (const v1::KindStats& kind : in.kinds()) {
    if (kind.kind() < 1 || kind.kind() > kNumBlockKinds) continue;  // of a newer node
    out->kind_blocks[kind.kind() - 1] = kind.blocks();
    out->kind_bytes[kind.kind() - 1] = kind.bytes();
  }
}

void TierToProto(const TierStats& in, v1::TierStats* out) {
  out->set_capacity_bytes(in.capacity_bytes);
  out->set_used_bytes(in.used_bytes);
  out->set_queued_bytes(in.queued_bytes);
  out->set_unflushed_bytes(in.unflushed_bytes);
  KindsToProto(in, out);
  out->set_adopted_blocks(in.adopted_blocks);
  out->set_demoted_blocks(in.demoted_blocks);
  out->set_promoted_blocks(in.promoted_blocks);
  out->set_dropped_blocks(in.dropped_blocks);
  out->set_evicted_blocks(in.evicted_blocks);
  out->set_corrupt_blocks(in.corrupt_blocks);
  out->set_paused(!in.writable);
}
TierStats TierFromProto(const v1::TierStats& in) {
  TierStats out;
  out.capacity_bytes = in.capacity_bytes();
  out.used_bytes = in.used_bytes();
  out.queued_bytes = in.queued_bytes();
  out.unflushed_bytes = in.unflushed_bytes();
  KindsFromProto(in, &out);
  out.adopted_blocks = in.adopted_blocks();
  out.demoted_blocks = in.demoted_blocks();
  out.promoted_blocks = in.promoted_blocks();
  out.dropped_blocks = in.dropped_blocks();
  out.evicted_blocks = in.evicted_blocks();
  out.corrupt_blocks = in.corrupt_blocks();
  out.writable = !in.paused();
  return out;
}

void ToProto(const kv::StatsResponse& in, v1::StatsResponse* out) {
  out->set_capacity_bytes(in.capacity_bytes);
  out->set_used_bytes(in.used_bytes);
  out->set_pinned_bytes(in.pinned_bytes);
  out->set_reserved_bytes(in.reserved_bytes);
  out->set_quarantined_bytes(in.quarantined_bytes);
  KindsToProto(in, out);
  out->set_hits(in.hits);
  out->set_misses(in.misses);
  out->set_evictions(in.evictions);
  out->set_sessions(in.sessions);
  out->set_incarnation(in.incarnation);
  if (in.replicas.known) {
    v1::ReplicaStats* replicas = out->mutable_replicas();
    replicas->set_waiting_blocks(in.replicas.waiting_blocks);
    replicas->set_no_node_blocks(in.replicas.no_node_blocks);
    replicas->set_no_room_blocks(in.replicas.no_room_blocks);
    replicas->set_restored_blocks(in.replicas.restored_blocks);
    replicas->set_silent_peers(in.replicas.silent_peers);
    replicas->set_compared_ms_ago(in.replicas.compared_ms_ago);
  }
  if (in.tier.capacity_bytes > 0) TierToProto(in.tier, out->mutable_tier());
}
absl::Status FromProto(const v1::StatsResponse& in, kv::StatsResponse* out) {
  out->capacity_bytes = in.capacity_bytes();
  out->used_bytes = in.used_bytes();
  out->pinned_bytes = in.pinned_bytes();
  out->reserved_bytes = in.reserved_bytes();
  out->quarantined_bytes = in.quarantined_bytes();
  KindsFromProto(in, out);
  out->hits = in.hits();
  out->misses = in.misses();
  out->evictions = in.evictions();
  out->sessions = in.sessions();
  out->incarnation = in.incarnation();
  if (in.has_replicas()) {
    const v1::ReplicaStats& replicas = in.replicas();
    out->replicas = {true,
                     replicas.waiting_blocks(),
                     replicas.no_node_blocks(),
                     replicas.no_room_blocks(),
                     replicas.restored_blocks(),
                     replicas.silent_peers(),
                     replicas.compared_ms_ago()};
  }
  if (in.has_tier()) out->tier = TierFromProto(in.tier());
  return absl::OkStatus();
}

// --- Between nodes ---

void ToProto(const kv::CompareDigestsRequest& in, v1::CompareDigestsRequest* out) {
  out->set_from(in.from);
  out->mutable_digests()->Add(in.digests.begin(), in.digests.end());
}
absl::Status FromProto(const v1::CompareDigestsRequest& in, kv::CompareDigestsRequest* out) {
  if (in.digests_size() != static_cast<int>(kv::kDigestBuckets) ||
      in.from().size() > kv::kMaxNameLength) {
    return absl::InvalidArgumentError(absl::StrCat(in.digests_size(), " digests from a name of ",
                                                   in.from().size(), " bytes: expected ",
                                                   kv::kDigestBuckets, " from an endpoint"));
  }
  out->from = in.from();
  out->digests.assign(in.digests().begin(), in.digests().end());
  return absl::OkStatus();
}
void ToProto(const kv::CompareDigestsResponse& in, v1::CompareDigestsResponse* out) {
  out->mutable_differing()->Add(in.differing.begin(), in.differing.end());
}
absl::Status FromProto(const v1::CompareDigestsResponse& in, kv::CompareDigestsResponse* out) {
  for (const uint32_t bucket : in.differing()) {
    if (bucket >= kv::kDigestBuckets || out->differing.size() >= kv::kDigestBuckets) {
      return absl::InvalidArgumentError(
          absl::StrCat("bucket ", bucket, ": expected each below ", kv::kDigestBuckets, " once"));
    }
    out->differing.push_back(bucket);
  }
  return absl::OkStatus();
}

void ToProto(const kv::CompareBlocksRequest& in, v1::CompareBlocksRequest* out) {
  out->set_tenant(in.tenant_digest.data(), in.tenant_digest.size());
  KeysToProto(in.keys, out->mutable_keys());
  out->mutable_idle_seconds()->Add(in.idle_seconds.begin(), in.idle_seconds.end());
}
absl::Status FromProto(const v1::CompareBlocksRequest& in, kv::CompareBlocksRequest* out) {
  if (in.tenant().size() != out->tenant_digest.size()) {
    return absl::InvalidArgumentError(absl::StrCat("tenant digest of ", in.tenant().size(),
                                                   " bytes: expected ", out->tenant_digest.size()));
  }
  std::memcpy(out->tenant_digest.data(), in.tenant().data(), out->tenant_digest.size());
  RETURN_IF_ERROR(KeysFromProto(in.keys(), &out->keys));
  if (static_cast<size_t>(in.idle_seconds_size()) != out->keys.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        out->keys.size(), " keys and ", in.idle_seconds_size(), " idle times: expected as many"));
  }
  out->idle_seconds.assign(in.idle_seconds().begin(), in.idle_seconds().end());
  return absl::OkStatus();
}
void ToProto(const kv::CompareBlocksResponse& in, v1::CompareBlocksResponse* out) {
  for (const kv::CopyState state : in.states) out->add_states(static_cast<v1::CopyState>(state));
}
absl::Status FromProto(const v1::CompareBlocksResponse& in, kv::CompareBlocksResponse* out) {
  RETURN_IF_ERROR(CheckCount(in.states_size(), "states"));
  for (const int state : in.states()) {
    // What a newer node may say that we do not know: nothing to do for us.
    out->states.push_back(state >= 1 && state <= 4 ? static_cast<kv::CopyState>(state)
                                                   : kv::CopyState::kStored);
  }
  return absl::OkStatus();
}

// --- Streams ---

absl::Status FromProto(const v1::ReadBlocksRequest& in, std::vector<kv::ReadPiece>* out) {
  RETURN_IF_ERROR(CheckCount(in.pieces_size(), "pieces"));
  out->reserve(in.pieces_size());
  for (const v1::ReadPiece& p : in.pieces()) out->push_back({p.pin_id(), p.offset(), p.length()});
  return absl::OkStatus();
}

absl::Status FromProto(const v1::WriteBlocksRequest& in, kv::WriteChunk* out) {
  if (in.data().size() > kv::kMaxChunkBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk of ", in.data().size(), " bytes: at most ", kv::kMaxChunkBytes));
  }
  out->generation = in.generation();
  out->offset = in.offset();
  return KeyFromProto(in.key(), &out->key);
}

}  // namespace oscarkv
