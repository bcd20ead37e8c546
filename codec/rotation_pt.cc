// RotationZoo files as torch.save writes them: a zip archive "<name>/data.pkl", "<name>/byteorder",
// "<name>/data/<key>" ...
#include <algorithm>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "codec/pickle.h"
#include "codec/rotation_source.h"
#include "codec/zip_reader.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

using Type = PickleValue::Type;

template <typename... Args>
absl::Status Bad(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

// A layer's key: 7 or "7". -1: neither, or too large for a layer.
int LayerOf(const PickleValue& key) {
  int64_t layer = -1;
  if (key.type == Type::kInt) layer = key.integer;
  if (key.type == Type::kString &&
      (!absl::SimpleAtoi(key.text, &layer) || absl::StrCat(layer) != key.text))
    return -1;
  return layer >= 0 && layer <= INT32_MAX ? static_cast<int>(layer) : -1;
}

// The dict under `key` of `dict`, or an error.
absl::StatusOr<const PickleValue*> FindTyped(const Pickle& p, const PickleValue& dict,
                                             absl::string_view key, Type type) {
  const PickleValue* v = p.Find(dict, key);
  if (v == nullptr) return Bad("has no \"", key, "\"");
  if (v->type != type)
    return Bad("\"", key, "\" is a ", PickleTypeName(v->type), ", not a ", PickleTypeName(type));
  return v;
}

// Storages of one archive. Inflated ones are kept, together at most kMaxRotationFileBytes.
class ZipStorages {
 public:
  ZipStorages(const ZipReader* zip, std::string prefix) : zip_(zip), prefix_(std::move(prefix)) {}

  absl::StatusOr<absl::Span<const uint8_t>> Read(absl::string_view key, uint64_t bytes) {
    auto [it, is_new] = storages_.try_emplace(std::string(key));
    if (is_new) {
      std::vector<uint8_t> buffer;
      auto read = zip_->Read(absl::StrCat(prefix_, "data/", key), budget_, &buffer);
      if (!read.ok()) return read.status();
      if (read->data() == buffer.data() && !buffer.empty()) {
        budget_ -= buffer.size();
        *read = inflated_.emplace_back(std::move(buffer));
      }
      it->second = *read;
    }
    if (it->second.size() != bytes) {
      return Bad("storage \"", absl::CHexEscape(key), "\" has ", it->second.size(),
                 " bytes, its tensors say ", bytes);
    }
    return it->second;
  }

 private:
  const ZipReader* const zip_;
  const std::string prefix_;
  uint64_t budget_ = kMaxRotationFileBytes;
  std::map<std::string, absl::Span<const uint8_t>> storages_;
  std::deque<std::vector<uint8_t>> inflated_;
};

// "<name>/" of the only "<name>/data.pkl".
absl::StatusOr<std::string> ArchivePrefix(const ZipReader& zip) {
  static constexpr absl::string_view kPickle = "/data.pkl";
  std::optional<std::string> prefix;
  for (const auto& [name, entry] : zip.entries()) {
    if (!absl::EndsWith(name, kPickle) || name.find('/') != name.size() - kPickle.size()) continue;
    if (prefix)
      return Bad("has two pickles, ", absl::CHexEscape(*prefix), "data.pkl and ",
                 absl::CHexEscape(name));
    prefix = name.substr(0, name.size() - kPickle.size() + 1);
  }
  if (!prefix) return Bad("is a zip archive without <name>/data.pkl: not written by torch.save");
  return *prefix;
}

absl::Status ReadLayer(const Pickle& p, int64_t version, const PickleValue& key,
                       const PickleValue& layer_dict, const StorageReader& storage,
                       RotationSet* set) {
  const int layer = LayerOf(key);
  if (layer < 0) return Bad("\"layers\" has a key that is no layer number");
  if (layer_dict.type != Type::kDict)
    return Bad("layer ", layer, " is a ", PickleTypeName(layer_dict.type), ", not a dict");
  const auto found = FindTyped(p, layer_dict, "rotation", Type::kTensor);
  if (!found.ok()) return Annotate(found.status(), absl::StrCat("layer ", layer));
  const PickleTensor& t = p.tensors[(*found)->integer];
  if (version == 1 && t.shape.size() != 2) {
    return Bad("layer ", layer, ": rotation has ", t.shape.size(),
               " dimensions, format_version 1 has 2");
  }
  const PickleStorage& s = p.storages[t.storage];
  // No real storage is larger than its file; the bound also keeps the product below from
  // overflowing.
  if (s.elements > static_cast<int64_t>(kMaxRotationFileBytes)) {
    return Bad("layer ", layer, ": storage of ", s.elements,
               " elements is larger than a rotation file may be");
  }
  auto bytes = storage(s.key, s.elements * StorageElementBytes(s.type));
  if (!bytes.ok()) return Annotate(bytes.status(), absl::StrCat("layer ", layer));
  return SetRotation(layer, {s.type, *bytes, t.offset, t.shape, t.strides}, set);
}

}  // namespace

absl::StatusOr<RotationSet> ParseRotationPickle(absl::Span<const uint8_t> pickle,
                                                const StorageReader& storage,
                                                const kernels::KvShape& shape) {
  ASSIGN_OR_RETURN(const Pickle p, ParsePickle(pickle));
  const PickleValue& root = p.at(p.root);
  if (root.type != Type::kDict)
    return Bad("holds a ", PickleTypeName(root.type), ", not RotationZoo's dict");
  int64_t version = 1;
  if (p.Find(root, "format_version") != nullptr) {
    ASSIGN_OR_RETURN(const PickleValue* v, FindTyped(p, root, "format_version", Type::kInt));
    version = v->integer;
  }
  if (version != 1 && version != 2)
    return Bad("format_version ", version, ", 1 and 2 are supported");
  ASSIGN_OR_RETURN(const PickleValue* layers, FindTyped(p, root, "layers", Type::kDict));
  RotationSet set(shape);
  // SetRotation refuses layers beyond the model's and repeated ones, so that this ends after few of
  // them.
  for (size_t i = 0; i + 1 < layers->items.size(); i += 2) {
    RETURN_IF_ERROR(
        ReadLayer(p, version, p.at(layers->items[i]), p.at(layers->items[i + 1]), storage, &set));
  }
  RETURN_IF_ERROR(set.CheckComplete());
  return set;
}

absl::StatusOr<RotationSet> ParseRotationZip(absl::Span<const uint8_t> file,
                                             const kernels::KvShape& shape) {
  ASSIGN_OR_RETURN(const ZipReader zip, ZipReader::Open(file));
  ASSIGN_OR_RETURN(const std::string prefix, ArchivePrefix(zip));
  std::vector<uint8_t> buffer;
  if (const std::string name = prefix + "byteorder"; zip.entries().count(name) > 0) {
    ASSIGN_OR_RETURN(const absl::Span<const uint8_t> order, zip.Read(name, 16, &buffer));
    const absl::string_view text(reinterpret_cast<const char*>(order.data()), order.size());
    if (text != "little")
      return Bad("written with byte order \"", absl::CHexEscape(text),
                 "\", only little is supported");
  }
  ASSIGN_OR_RETURN(const absl::Span<const uint8_t> pickle,
                   zip.Read(prefix + "data.pkl", kMaxPickleBytes, &buffer));
  ZipStorages storages(&zip, prefix);
  return ParseRotationPickle(
      pickle, [&](absl::string_view key, uint64_t bytes) { return storages.Read(key, bytes); },
      shape);
}

}  // namespace oscarkv
