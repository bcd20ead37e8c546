// Writes zip archives, pickles and rotation files for tests, the way torch.save does and in the
// ways an attacker would.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "codec/pickle.h"

namespace oscarkv::testing {

std::string LittleEndian(uint64_t value, int bytes);
inline absl::Span<const uint8_t> Bytes(std::string_view s) {
  return {reinterpret_cast<const uint8_t*>(s.data()), s.size()};
}

// Appends opcodes; nothing is checked.
class PickleWriter {
 public:
  PickleWriter& Raw(std::string_view bytes);
  PickleWriter& Op(int op) { return Raw(std::string(1, static_cast<char>(op))); }
  PickleWriter& Proto(int version = 2) { return Op(0x80).Op(version); }
  PickleWriter& Mark() { return Op('('); }
  PickleWriter& Dict() { return Op('}'); }
  PickleWriter& SetItem() { return Op('s'); }
  PickleWriter& SetItems() { return Op('u'); }
  PickleWriter& Tuple() { return Op('t'); }
  PickleWriter& Reduce() { return Op('R'); }
  PickleWriter& False() { return Op(0x89); }
  PickleWriter& Str(std::string_view s) { return Op('X').Raw(LittleEndian(s.size(), 4)).Raw(s); }
  PickleWriter& Int(int64_t v);
  PickleWriter& Ints(const std::vector<int64_t>& values);  // a tuple
  PickleWriter& Global(std::string_view module, std::string_view name);
  PickleWriter& Put(int index) { return Op('q').Op(index); }
  PickleWriter& Get(int index) { return Op('h').Op(index); }
  // torch._utils._rebuild_tensor_v2 over storage `key`.
  PickleWriter& Tensor(std::string_view storage_class, std::string_view key, int64_t elements,
                       int64_t offset, const std::vector<int64_t>& shape,
                       const std::vector<int64_t>& strides);
  std::string Stop() { return Op('.').out_; }

 private:
  std::string out_;
};

struct ZipItem {
  std::string name, data;
  bool deflate = false;
};
struct ZipStyle {
  bool data_descriptors =
      true;               // as torch writes: sizes and CRC behind the data, not in the local header
  bool zip64_end = true;  // the extra end records that torch always writes
  std::string comment;
};
std::string WriteZip(const std::vector<ZipItem>& items, const ZipStyle& style = {});

// One entry of "layers".
struct LayerSpec {
  int key = 0;
  bool string_key = false;
  std::vector<float> values;  // the storage, in elements of `type`
  StorageType type = StorageType::kF32;
  int64_t offset = 0;
  std::vector<int64_t> shape, strides;  // empty strides: dense
  bool eigenvalues = false;
};
struct RotationFileSpec {
  int64_t format_version = 1;
  std::vector<LayerSpec> layers;
  bool deflate = false;
  std::string byte_order = "little";  // empty: no record
};
std::string WriteRotationPickle(const RotationFileSpec& spec);
std::string WriteRotationFile(const RotationFileSpec& spec);
std::string WriteSafetensors(const std::string& json_header, std::string_view data);

// `values` as an array of `type`, in file order.
std::string StorageBytes(const std::vector<float>& values, StorageType type);

// An orthogonal d x d matrix that is not symmetric; another one for every seed.
std::vector<float> Orthogonal(int d, int seed);

}  // namespace oscarkv::testing
