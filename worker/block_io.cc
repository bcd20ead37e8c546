#include "worker/block_io.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/log.h"

namespace oscarkv::worker {
namespace {
// An unfinished block has no chain key of its own: it lives with the block before it.
BlockKey PartialPlacement(const ChainNames& names, const BlockKey& own) {
  const auto chain = names.chain();
  return chain.empty() ? own : PlacementOf(chain, chain.size() - 1);
}
}  // namespace

ChainNames::ChainNames(const Sha256Digest& name_space, size_t answers_from, std::string tenant)
    : name_space_(name_space),
      answers_(name_space),
      answers_from_(answers_from),
      tenant_(std::move(tenant)) {
  if (answers_from == SIZE_MAX) return;
  answers_ = Sha256().Update(name_space.data(), name_space.size()).Update("answers").Finish();
}

void ChainNames::Extend(absl::Span<const int32_t> tokens) {
  while ((chain_.size() + 1) * kBlockTokens <= tokens.size()) {
    const size_t b = chain_.size();
    chain_.push_back(ChainKey(name_space((b + 1) * kBlockTokens), parent(b),
                              tokens.subspan(b * kBlockTokens, kBlockTokens)));
  }
}

BlockIo::BlockIo(StoreOf store_of, KvArena* arena, const BlockIdentity& identity,
                 const BlockIoOptions& options, const Clock* clock)
    : store_of_(std::move(store_of)),
      arena_(arena),
      identity_(identity),
      options_(options),
      clock_(clock) {}

Sha256Digest BlockIo::NameSpace(absl::string_view tenant) const {
  NamespaceFields fields;
  fields.model_fingerprint = identity_.model_fingerprint;
  fields.codec_fingerprint = identity_.codec_fingerprint;
  fields.format_version = kBlockFormatVersion;
  fields.page_tokens = kBlockTokens;
  fields.sink_tokens = kSinkBlocks * kBlockTokens;
  fields.recent_tokens = kWindowBlocks * kBlockTokens;
  fields.prefill_history = identity_.canonical_history ? "canonical" : "exact";
  fields.tenant = std::string(tenant);
  return NamespaceDigest(fields);
}

StoredBlock BlockIo::Describe(const ChainNames& names, BlockKind kind, int tokens) const {
  StoredBlock block;
  block.tenant = names.tenant();
  block.header = {.profile = identity_.profile,
                  .body = static_cast<BlockBody>(kind),
                  .canonical_history = identity_.canonical_history,
                  .shape = identity_.shape,
                  .tokens = tokens,
                  .codec_fingerprint = identity_.codec_fingerprint,
                  .model_fingerprint = identity_.model_fingerprint};
  block.spec.kind = kind;
  block.spec.size = BlockBytes(block.header.body, identity_.shape);
  if (kind == BlockKind::kHandover) block.spec.ttl = options_.handover_ttl;
  return block;
}

StoredBlock BlockIo::Main(const ChainNames& names, const SequenceKv& kv, int b) const {
  StoredBlock block =
      Describe(names, IsPage(b) ? BlockKind::kPage : BlockKind::kBf16, kBlockTokens);
  block.spec.key = names.chain()[b];
  block.spec.parent = names.parent(b);
  block.spec.placement = PlacementOf(names.chain(), b);
  if (IsPage(b)) {
    block.header_slot = arena_->page_header(kv.at(b).page);
    block.body = kv.pool().page(kv.at(b).page);
  } else {
    block.header_slot = arena_->block_header(kv.at(b).block);
    block.body = reinterpret_cast<uint8_t*>(kv.pool().block(kv.at(b).block));
  }
  return block;
}

StoredBlock BlockIo::Window(const ChainNames& names, const SequenceKv& kv, int b) const {
  StoredBlock block = Describe(names, BlockKind::kHandover, kBlockTokens);
  block.spec.key = WindowKey(names.chain()[b]);
  block.spec.placement = PlacementOf(names.chain(), b);
  block.header_slot = arena_->block_header(kv.at(b).block);
  block.body = reinterpret_cast<uint8_t*>(kv.pool().block(kv.at(b).block));
  return block;
}

StoredBlock BlockIo::Partial(const ChainNames& names, const SequenceKv& kv,
                             absl::Span<const int32_t> rows) const {
  StoredBlock block = Describe(names, BlockKind::kHandover, static_cast<int>(rows.size()));
  const int b = static_cast<int>(names.chain().size());
  block.spec.key =
      PartialKey(names.name_space(b * kBlockTokens + rows.size()), names.parent(b), rows);
  block.spec.placement = PartialPlacement(names, block.spec.key);
  block.header_slot = arena_->block_header(kv.at(b).block);
  block.body = reinterpret_cast<uint8_t*>(kv.pool().block(kv.at(b).block));
  return block;
}

std::vector<absl::Status> BlockIo::Fetch(absl::Span<const StoredBlock> blocks,
                                         const std::atomic<bool>& cancelled, TransferTotals* totals,
                                         const FetchPace& pace) const {
  std::vector<absl::Status> statuses;
  if (blocks.empty()) return statuses;
  const auto store = Store(blocks[0].tenant);
  if (!store.ok()) {
    statuses.assign(blocks.size(), store.status());
    return statuses;
  }
  statuses.reserve(blocks.size());
  for (size_t begin = 0; begin < blocks.size(); begin += pace.get_blocks) {
    const auto group = blocks.subspan(begin, pace.get_blocks);
    if (cancelled.load()) {
      statuses.resize(blocks.size(), absl::CancelledError("the request was cancelled"));
      break;
    }
    std::vector<GetRequest> requests;
    requests.reserve(group.size());
    uint64_t asked = 0;
    for (const StoredBlock& block : group) {
      requests.push_back(
          {block.spec.key, block.spec.placement, {block.HeaderPiece(), block.BodyPiece()}});
      asked += block.spec.size;
    }
    const Time start = clock_->Now();
    const Duration patience =
        pace.patience ? pace.patience(begin, begin + group.size()) : Duration::max();
    const Duration limit = std::min(patience, options_.timeout);
    TransferTotals moved;
    std::vector<absl::Status> got = (*store)->Get(requests, start + limit, &moved);
    AddTotals(moved, totals);
    const Duration took = clock_->Now() - start;
    const bool late = took >= limit && std::any_of(got.begin(), got.end(), [](const auto& s) {
                        return absl::IsDeadlineExceeded(s);
                      });
    if (pace.observe) pace.observe(moved, asked, took, late);
    for (size_t i = 0; i < group.size(); ++i) {
      statuses.push_back(got[i].ok() ? CheckFetched(store->get(), group[i]) : std::move(got[i]));
    }
    if (late && limit == patience) {
      statuses.resize(blocks.size(),
                      absl::DeadlineExceededError("not asked for: those before came too late"));
      break;
    }
  }
  return statuses;
}

// The checksums were right, so a wrong header is a block that someone stored under this key by
// mistake.
absl::Status BlockIo::CheckFetched(KvClient* store, const StoredBlock& block) const {
  auto header = DecodeHeader(absl::MakeConstSpan(block.header_slot, kBlockHeaderBytes));
  absl::Status status = header.ok() ? CheckHeader(*header, block.header) : header.status();
  if (status.ok()) return status;
  LogWarn("a stored block is not what its key says",
          {{"key", block.spec.key.Hex()}, {"error", std::string(status.message())}});
  store->Erase({block.spec.key}, {block.spec.placement}, Deadline()).IgnoreError();
  return absl::DataLossError(
      absl::StrCat("header of block ", block.spec.key.Hex(), ": ", status.message()));
}

void AddTotals(const TransferTotals& more, TransferTotals* sum) {
  sum->bytes += more.bytes;
  sum->blocks += more.blocks;
  if (more.lanes.empty() || more.lanes == sum->lanes) return;
  std::vector<std::string> lanes = absl::StrSplit(sum->lanes, ',', absl::SkipEmpty());
  for (absl::string_view lane : absl::StrSplit(more.lanes, ',', absl::SkipEmpty())) {
    if (std::find(lanes.begin(), lanes.end(), lane) == lanes.end()) lanes.emplace_back(lane);
  }
  sum->lanes = absl::StrJoin(lanes, ",");
}

}  // namespace oscarkv::worker
