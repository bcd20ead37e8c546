// Stores a chain of blocks, finds its prefix, reads it back. What an engine's connector does, with
// made-up bytes in place of a KV cache.
//
//   kv_example HOST:PORT[,HOST:PORT...] [ucx|grpc]
#include <cstdio>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "common/crc32c.h"
#include "kvstore/client/client.h"
#include "transport/transport.h"

namespace {

constexpr uint64_t kBlockBytes = 73'728;
constexpr int kBlocks = 32;
constexpr int kLayers = 8;  // slices of a block, written and checked one by one

oscarkv::Time Soon() {
  return oscarkv::SteadyClock::Get()->Now() + std::chrono::seconds(10);
}

int Fail(const char* what, const std::string& why) {
  std::fprintf(stderr, "kv_example: %s: %s\n", what, why.c_str());
  return 1;
}

std::vector<std::string> Split(const std::string& list) {
  std::vector<std::string> parts;
  std::stringstream stream(list);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

void Fill(uint8_t* block, int number) {
  for (uint64_t i = 0; i < kBlockBytes; ++i) block[i] = static_cast<uint8_t>(i * 31 + number * 7);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return Fail("usage", "kv_example HOST:PORT[,HOST:PORT...] [ucx|grpc]");
  std::unique_ptr<oscarkv::Transport> transport;  // without one, blocks travel over gRPC
  if (argc < 3 || std::string(argv[2]) == "ucx") {
    auto created = oscarkv::CreateUcxTransport(oscarkv::UcxOptions{}, nullptr);
    if (!created.ok()) return Fail("transport", created.status().ToString());
    transport = std::move(*created);
  }

  // Memory that blocks are sent from and read into.
  std::vector<uint8_t> memory(kBlocks * kBlockBytes);
  std::unique_ptr<oscarkv::MemoryRegion> registered;
  if (transport != nullptr) {
    auto region = transport->Register(absl::MakeSpan(memory));
    if (!region.ok()) return Fail("register", region.status().ToString());
    registered = std::move(*region);
  }

  oscarkv::KvClientOptions options;
  options.nodes = Split(argv[1]);
  options.name = "example";
  options.transport = transport.get();
  auto client = oscarkv::KvClient::Create(options);
  if (!client.ok()) return Fail("connect", client.status().ToString());

  // Names: a hash chain over token ids in a namespace of all that decides the bytes.
  oscarkv::NamespaceFields fields;
  fields.prefill_history = "exact";
  fields.tenant = "example";
  std::vector<int32_t> tokens(kBlocks * 64);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 17 % 4096);
  const std::vector<oscarkv::BlockKey> chain =
      oscarkv::ChainKeys(oscarkv::NamespaceDigest(fields), tokens);

  std::vector<oscarkv::BlockSpec> specs;
  for (int i = 0; i < kBlocks; ++i) {
    specs.push_back({chain[i], i == 0 ? oscarkv::BlockKey{} : chain[i - 1],
                     oscarkv::PlacementOf(chain, i), oscarkv::BlockKind::kPage, kBlockBytes});
  }
  // Put: reserve, write layer by layer, make visible with the checksums.
  auto put = (*client)->StartPut(specs, Soon());
  if (!put.ok()) return Fail("put", put.status().ToString());
  std::vector<std::vector<oscarkv::Slice>> slices(kBlocks);
  for (int i = 0; i < kBlocks; ++i) {
    uint8_t* const block = memory.data() + i * kBlockBytes;
    Fill(block, i);
    const uint64_t layer = kBlockBytes / kLayers;
    for (int l = 0; l < kLayers; ++l) {
      slices[i].push_back({l * layer, layer, oscarkv::Crc32c(block + l * layer, layer)});
      const oscarkv::LocalPiece piece{l * layer, layer, block + l * layer};
      (*put)->Write(i, absl::MakeConstSpan(&piece, 1));
    }
  }
  for (const absl::Status& status : (*put)->Commit(slices, Soon())) {
    if (!status.ok() && !absl::IsAlreadyExists(status)) return Fail("commit", status.ToString());
  }

  // Match and get.
  const auto matched = (*client)->Match(chain, Soon());
  if (!matched.ok() || *matched != kBlocks)
    return Fail("match", matched.ok() ? std::to_string(*matched) : matched.status().ToString());
  std::fill(memory.begin(), memory.end(), 0);
  std::vector<oscarkv::GetRequest> requests;
  for (int i = 0; i < kBlocks; ++i) {
    requests.push_back({chain[i],
                        oscarkv::PlacementOf(chain, i),
                        {{0, kBlockBytes, memory.data() + i * kBlockBytes}}});
  }
  oscarkv::TransferTotals totals;
  for (const absl::Status& status : (*client)->Get(requests, Soon(), &totals)) {
    if (!status.ok()) return Fail("get", status.ToString());
  }
  std::vector<uint8_t> expected(kBlockBytes);
  for (int i = 0; i < kBlocks; ++i) {
    Fill(expected.data(), i);
    if (!std::equal(expected.begin(), expected.end(), memory.begin() + i * kBlockBytes))
      return Fail("get", "wrong bytes");
  }
  std::printf("%d blocks, %llu bytes, lanes %s: ok\n", kBlocks,
              static_cast<unsigned long long>(totals.bytes), totals.lanes.c_str());
  put->reset();  // before the client
  return 0;
}
