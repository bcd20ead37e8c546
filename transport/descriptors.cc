#include "transport/descriptors.h"

#include <cstring>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "common/crc32c.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

constexpr uint32_t kNodeMagic = 0x4e4b534f;    // "OSKN"
constexpr uint32_t kRegionMagic = 0x524b534f;  // "OSKR"
constexpr uint8_t kVersion = 1;

// Appends little-endian fields (this code runs on little-endian machines only; the magic would
// differ elsewhere).
class Writer {
 public:
  template <typename T>
  void Put(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    out_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  void PutString(absl::string_view s) {
    oversized_ |= s.size() > kMaxDescriptorBytes;
    Put(static_cast<uint16_t>(s.size()));
    out_.append(s.data(), s.size());
  }
  absl::StatusOr<std::string> Finish() && {
    Put(Crc32c(out_.data(), out_.size()));
    if (oversized_ || out_.size() > kMaxDescriptorBytes) {
      return absl::ResourceExhaustedError(absl::StrCat("transport descriptor of ", out_.size(),
                                                       " bytes; at most ", kMaxDescriptorBytes,
                                                       " (fewer network devices make it shorter)"));
    }
    return std::move(out_);
  }

 private:
  std::string out_;
  bool oversized_ = false;
};

class Reader {
 public:
  explicit Reader(absl::string_view in) : in_(in) {}
  template <typename T>
  T Get() {
    T value{};
    if (in_.size() < sizeof(T)) {
      ok_ = false;
      in_ = {};
    } else {
      std::memcpy(&value, in_.data(), sizeof(T));
      in_.remove_prefix(sizeof(T));
    }
    return value;
  }
  std::string GetString() {
    const size_t size = Get<uint16_t>();
    if (in_.size() < size) {
      ok_ = false;
      in_ = {};
      return {};
    }
    std::string s(in_.substr(0, size));
    in_.remove_prefix(size);
    return s;
  }
  bool ok() const { return ok_; }
  bool finished() const { return ok_ && in_.empty(); }

 private:
  absl::string_view in_;
  bool ok_ = true;
};

// The fields between the header and the CRC.
absl::StatusOr<Reader> Open(absl::string_view text, uint32_t magic, const char* what) {
  if (text.size() > kMaxDescriptorBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " of ", text.size(), " bytes; at most ", kMaxDescriptorBytes));
  }
  Reader reader(text);
  const uint32_t got_magic = reader.Get<uint32_t>();
  const uint8_t version = reader.Get<uint8_t>();
  if (!reader.ok() || got_magic != magic)
    return absl::InvalidArgumentError(absl::StrCat("not a ", what));
  if (version != kVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " of version ", version, "; this build speaks version ", kVersion));
  }
  uint32_t crc = 0;
  constexpr size_t kHeader = sizeof(magic) + sizeof(version);
  if (text.size() < kHeader + sizeof(crc))
    return absl::InvalidArgumentError(absl::StrCat(what, " is cut off"));
  const absl::string_view covered = text.substr(0, text.size() - sizeof(crc));
  std::memcpy(&crc, text.data() + covered.size(), sizeof(crc));
  if (crc != Crc32c(covered.data(), covered.size())) {
    return absl::InvalidArgumentError(absl::StrCat(what, " is damaged: checksum mismatch"));
  }
  return Reader(covered.substr(kHeader));
}

bool ValidLane(LaneClass lane) {
  return lane == LaneClass::kShm || lane == LaneClass::kRdma || lane == LaneClass::kTcp;
}

}  // namespace

const char* LaneClassName(LaneClass lane) {
  switch (lane) {
    case LaneClass::kShm:
      return "shm";
    case LaneClass::kRdma:
      return "rdma";
    case LaneClass::kTcp:
      return "tcp";
  }
  return "unknown";
}

absl::StatusOr<std::string> Encode(const NodeAddress& address) {
  Writer w;
  w.Put(kNodeMagic);
  w.Put(kVersion);
  w.Put(address.instance);
  w.Put(address.secret);
  w.Put(address.host);
  w.Put(static_cast<uint8_t>(address.lanes.size()));
  for (const LaneAddress& lane : address.lanes) {
    w.Put(lane.lane);
    w.PutString(lane.worker);
    w.PutString(lane.probe);
  }
  return std::move(w).Finish();
}

absl::StatusOr<NodeAddress> DecodeNodeAddress(absl::string_view text) {
  ASSIGN_OR_RETURN(Reader r, Open(text, kNodeMagic, "transport address"));
  NodeAddress address;
  address.instance = r.Get<uint64_t>();
  address.secret = r.Get<NodeSecret>();
  address.host = r.Get<HostId>();
  const int lanes = r.Get<uint8_t>();
  if (lanes > kNumLaneClasses)
    return absl::InvalidArgumentError("transport address with too many lanes");
  for (int i = 0; i < lanes && r.ok(); ++i) {
    LaneAddress lane;
    lane.lane = r.Get<LaneClass>();
    lane.worker = r.GetString();
    lane.probe = r.GetString();
    if (!ValidLane(lane.lane) || lane.worker.empty()) {
      return absl::InvalidArgumentError("transport address with an invalid lane");
    }
    address.lanes.push_back(std::move(lane));
  }
  if (!r.finished())
    return absl::InvalidArgumentError("transport address with fields cut off or left over");
  return address;
}

absl::StatusOr<std::string> Encode(const RegionDescriptor& region) {
  Writer w;
  w.Put(kRegionMagic);
  w.Put(kVersion);
  w.Put(region.instance);
  w.Put(region.id);
  w.Put(region.token);
  w.Put(region.size);
  w.Put(static_cast<uint8_t>(region.keys.size()));
  for (const RegionKey& key : region.keys) {
    w.Put(key.lane);
    w.Put(key.base);
    w.PutString(key.rkey);
  }
  return std::move(w).Finish();
}

absl::StatusOr<RegionDescriptor> DecodeRegionDescriptor(absl::string_view text) {
  ASSIGN_OR_RETURN(Reader r, Open(text, kRegionMagic, "region descriptor"));
  RegionDescriptor region;
  region.instance = r.Get<uint64_t>();
  region.id = r.Get<uint64_t>();
  region.token = r.Get<uint64_t>();
  region.size = r.Get<uint64_t>();
  const int keys = r.Get<uint8_t>();
  if (keys > kNumLaneClasses)
    return absl::InvalidArgumentError("region descriptor with too many keys");
  for (int i = 0; i < keys && r.ok(); ++i) {
    RegionKey key;
    key.lane = r.Get<LaneClass>();
    key.base = r.Get<uint64_t>();
    key.rkey = r.GetString();
    // The end of the region must not wrap around, or bounds checks on it mean nothing.
    if (!ValidLane(key.lane) || key.rkey.empty() || key.base > ~uint64_t{0} - region.size) {
      return absl::InvalidArgumentError("region descriptor with an invalid key");
    }
    region.keys.push_back(std::move(key));
  }
  if (!r.finished())
    return absl::InvalidArgumentError("region descriptor with fields cut off or left over");
  if (region.token == 0 || region.size == 0) {
    return absl::InvalidArgumentError("region descriptor without token or size");
  }
  return region;
}

}  // namespace oscarkv
