// Block headers: as they come, and with the CRC made right, so that the checks behind it are
// reached.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "codec/block_format.h"
#include "common/crc32c.h"

namespace oscarkv {
namespace {

void Decode(absl::Span<const uint8_t> bytes) {
  const auto header = DecodeHeader(bytes);
  if (!header.ok()) {
    const absl::StatusCode code = header.status().code();
    if (code != absl::StatusCode::kDataLoss && code != absl::StatusCode::kFailedPrecondition)
      std::abort();
    return;
  }
  // A header has one encoding: what was read is written as the same bytes.
  uint8_t again[kBlockHeaderBytes];
  if (!EncodeHeader(*header, again).ok()) std::abort();
  if (std::memcmp(again, bytes.data(), kBlockHeaderBytes) != 0) std::abort();
  if (!CheckHeader(*header, *header).ok()) std::abort();
  if (SliceTable(header->body, header->shape).back().offset >=
      BlockBytes(header->body, header->shape))
    std::abort();
}

}  // namespace
}  // namespace oscarkv

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  oscarkv::Decode({data, size});
  if (size < oscarkv::kBlockHeaderBytes) return 0;
  std::vector<uint8_t> fixed(data, data + oscarkv::kBlockHeaderBytes);
  const uint32_t crc = oscarkv::Crc32c(fixed.data(), fixed.size() - 4);
  std::memcpy(fixed.data() + fixed.size() - 4, &crc, 4);
  oscarkv::Decode(fixed);
  return 0;
}
