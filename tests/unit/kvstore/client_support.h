// Blocks as a client sees them: registered memory, specs and pieces of chains.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "kvstore/client/client.h"
#include "support.h"
#include "transport/transport.h"

namespace oscarkv::kvtest {

inline Time In(Duration d) {
  return SteadyClock::Get()->Now() + d;
}
inline Time Soon() {
  return In(std::chrono::seconds(20));
}

// Memory that transfers may use; plain memory without a transport.
class Buffer {
 public:
  Buffer(Transport* transport, uint64_t bytes) : plain_(bytes) {
    if (transport == nullptr) return;
    auto region = transport->Register(absl::MakeSpan(plain_));
    EXPECT_TRUE(region.ok()) << region.status();
    if (region.ok()) region_ = *std::move(region);
  }
  uint8_t* data() { return plain_.data(); }

 private:
  std::vector<uint8_t> plain_;
  std::unique_ptr<MemoryRegion> region_;  // after the memory: destroyed first
};

inline std::vector<Slice> SlicesOf(const kv::SliceTable& table) {
  std::vector<Slice> slices;
  uint64_t at = 0;
  for (size_t s = 0; s < table.lengths.size(); ++s) {
    slices.push_back({at, table.lengths[s], table.crc32c[s]});
    at += table.lengths[s];
  }
  return slices;
}

inline std::vector<BlockSpec> SpecsOf(const std::vector<BlockKey>& chain, uint64_t size) {
  std::vector<BlockSpec> specs;
  for (size_t i = 0; i < chain.size(); ++i) {
    specs.push_back({chain[i], i == 0 ? BlockKey{} : chain[i - 1], PlacementOf(chain, i),
                     BlockKind::kPage, size});
  }
  return specs;
}

// A put of whole blocks, three slices each, one Write per slice. `buffer` holds specs.size()
// blocks.
inline std::vector<absl::Status> PutAll(KvClient* client, const std::vector<BlockSpec>& specs,
                                        uint8_t* buffer, Time deadline = Soon(),
                                        TransferTotals* totals = nullptr) {
  auto batch = client->StartPut(specs, deadline);
  if (!batch.ok()) return std::vector<absl::Status>(specs.size(), batch.status());
  std::vector<std::vector<Slice>> slices(specs.size());
  for (size_t i = 0; i < specs.size(); ++i) {
    const std::string bytes = Bytes(specs[i].key, specs[i].size);
    std::memcpy(buffer, bytes.data(), bytes.size());
    slices[i] = SlicesOf(Table(bytes));
    for (const Slice& s : slices[i]) {
      const LocalPiece piece{s.offset, s.length, buffer + s.offset};
      (*batch)->Write(i, absl::MakeConstSpan(&piece, 1));
    }
    buffer += specs[i].size;
  }
  auto statuses = (*batch)->Commit(slices, deadline);
  if (totals != nullptr) *totals = (*batch)->totals();
  return statuses;
}

inline std::vector<GetRequest> RequestsOf(const std::vector<BlockSpec>& specs, uint8_t* buffer) {
  std::vector<GetRequest> requests;
  for (const BlockSpec& s : specs) {
    requests.push_back({s.key, s.placement, {{0, s.size, buffer}}});
    buffer += s.size;
  }
  return requests;
}

inline bool AllOk(const std::vector<absl::Status>& statuses) {
  for (const absl::Status& s : statuses) {
    if (!s.ok()) ADD_FAILURE() << s;
    if (!s.ok()) return false;
  }
  return true;
}

}  // namespace oscarkv::kvtest
