#include "codec/rotation_writer.h"

#include <zlib.h>

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "codec/tensor_file.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

std::string LittleEndian(uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i, value >>= 8) out.push_back(static_cast<char>(value));
  return out;
}

// The opcodes of pickle protocol 2 that a rotation file needs.
class PickleWriter {
 public:
  PickleWriter() { out_ = "\x80\x02"; }
  PickleWriter& Op(char op) {
    out_ += op;
    return *this;
  }
  PickleWriter& Str(const std::string& s) {
    out_ += 'X' + LittleEndian(s.size(), 4) + s;
    return *this;
  }
  PickleWriter& Int(int64_t v) {
    if (v < 256) return Append('K' + LittleEndian(v, 1));
    if (v < 65536) return Append('M' + LittleEndian(v, 2));
    return Append('J' + LittleEndian(v, 4));
  }
  PickleWriter& Global(const char* module, const char* name) {
    return Append(absl::StrCat("c", module, "\n", name, "\n"));
  }
  PickleWriter& Ints(const std::vector<int64_t>& values) {
    Op('(');
    for (const int64_t v : values) Int(v);
    return Op('t');
  }
  // torch._utils._rebuild_tensor_v2(storage `key`, offset 0, shape, strides, False, OrderedDict()).
  PickleWriter& DenseFloats(const std::string& key, const std::vector<int64_t>& shape) {
    std::vector<int64_t> strides(shape.size());
    int64_t elements = 1;
    for (size_t i = shape.size(); i-- > 0; elements *= shape[i]) strides[i] = elements;
    Global("torch._utils", "_rebuild_tensor_v2").Op('(');
    Op('(').Str("storage").Global("torch", "FloatStorage").Str(key).Str("cpu").Int(elements);
    Op('t').Op('Q').Int(0).Ints(shape).Ints(strides).Op('\x89');
    return Global("collections", "OrderedDict").Op(')').Op('R').Op('t').Op('R');
  }
  const std::string& out() const { return out_; }

 private:
  PickleWriter& Append(const std::string& bytes) {
    out_ += bytes;
    return *this;
  }
  std::string out_;
};

// Stored entries, sizes in the local headers, no extensions.
class ZipWriter {
 public:
  void Add(const std::string& name, absl::string_view data) {
    const uint32_t crc =
        static_cast<uint32_t>(crc32_z(0, reinterpret_cast<const Bytef*>(data.data()), data.size()));
    const std::string size = LittleEndian(data.size(), 4);
    const std::string common =  // version 2.0, no flags, stored, no time
        LittleEndian(20, 2) + LittleEndian(0, 8) + LittleEndian(crc, 4) + size + size +
        LittleEndian(name.size(), 2);
    directory_ += "PK\1\2" + LittleEndian(20, 2) + common + LittleEndian(0, 12) +
                  LittleEndian(out_.size(), 4) + name;
    out_ += "PK\3\4" + common + LittleEndian(0, 2) + name;
    out_.append(data.data(), data.size());
    ++entries_;
  }
  std::string Finish() && {
    const size_t at = out_.size();
    out_ += directory_ + "PK\5\6" + LittleEndian(0, 4) + LittleEndian(entries_, 2) +
            LittleEndian(entries_, 2) + LittleEndian(directory_.size(), 4) + LittleEndian(at, 4) +
            LittleEndian(0, 2);
    return std::move(out_);
  }

 private:
  std::string out_, directory_;
  int entries_ = 0;
};

absl::Status CheckSet(const RotationSet& set, const RotationFile& file, int heads) {
  RETURN_IF_ERROR(set.CheckComplete());
  const size_t needed = size_t{1} * set.shape().num_layers * heads * set.shape().head_dim;
  if (!file.eigenvalues.empty() && file.eigenvalues.size() != needed) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.eigenvalues.size(), " eigenvalues, the rotations have ", needed));
  }
  return absl::OkStatus();
}

// One layer's [heads, d, d] and [heads, d].
std::vector<float> Matrices(const RotationSet& set, int layer, int heads) {
  const size_t square = size_t{1} * set.shape().head_dim * set.shape().head_dim;
  std::vector<float> all;
  for (int h = 0; h < heads; ++h) {
    const float* m = set.At(layer, h);
    all.insert(all.end(), m, m + square);
  }
  return all;
}
std::vector<float> Eigenvalues(const RotationFile& file, int layer, int heads, int d) {
  const auto first = file.eigenvalues.begin() + size_t{1} * layer * heads * d;
  return {first, first + heads * d};
}

std::vector<int64_t> Shape(int heads, std::vector<int64_t> rest) {
  if (heads > 1) rest.insert(rest.begin(), heads);
  return rest;
}

absl::string_view BytesOf(const std::vector<float>& v) {
  return {reinterpret_cast<const char*>(v.data()), v.size() * sizeof(float)};
}

}  // namespace

bool SharedByHeads(const RotationSet& set) {
  const kernels::KvShape& s = set.shape();
  const size_t bytes = sizeof(float) * s.head_dim * s.head_dim;
  for (int l = 0; l < s.num_layers; ++l) {
    for (int h = 1; h < s.num_kv_heads; ++h) {
      if (set.At(l, h) != set.At(l, 0) && std::memcmp(set.At(l, h), set.At(l, 0), bytes) != 0)
        return false;
    }
  }
  return true;
}

absl::StatusOr<std::string> WriteRotationPt(const RotationSet& set, const RotationFile& file) {
  const kernels::KvShape& s = set.shape();
  const bool shared = SharedByHeads(set);
  const int heads = shared ? 1 : s.num_kv_heads, d = s.head_dim;
  RETURN_IF_ERROR(CheckSet(set, file, heads));
  PickleWriter p;
  std::vector<std::vector<float>> storages;
  const auto tensor = [&](std::vector<float> values, const std::vector<int64_t>& shape) {
    p.DenseFloats(absl::StrCat(storages.size()), shape);
    storages.push_back(std::move(values));
  };
  p.Op('}').Op('(').Str("format_version").Int(shared ? 1 : 2);
  p.Str("objective").Str(file.objective);
  p.Str("source_grouping").Str(shared ? "layer" : "head").Str("layers").Op('}').Op('(');
  for (int layer = 0; layer < s.num_layers; ++layer) {
    p.Int(layer).Op('}').Op('(').Str("layer_id").Int(layer).Str("rotation");
    tensor(Matrices(set, layer, heads), Shape(heads, {d, d}));
    if (!file.eigenvalues.empty()) {
      p.Str("eigenvalues");
      tensor(Eigenvalues(file, layer, heads, d), Shape(heads, {d}));
    }
    p.Op('u');
  }
  p.Op('u').Op('u').Op('.');
  ZipWriter zip;
  zip.Add("rotation/data.pkl", p.out());
  zip.Add("rotation/byteorder", "little");
  for (size_t i = 0; i < storages.size(); ++i)
    zip.Add(absl::StrCat("rotation/data/", i), BytesOf(storages[i]));
  zip.Add("rotation/version", "3\n");
  return std::move(zip).Finish();
}

absl::StatusOr<std::string> WriteRotationSafetensors(const RotationSet& set,
                                                     const RotationFile& file) {
  const kernels::KvShape& s = set.shape();
  const bool shared = SharedByHeads(set);
  const int heads = shared ? 1 : s.num_kv_heads, d = s.head_dim;
  RETURN_IF_ERROR(CheckSet(set, file, heads));
  TensorFileWriter writer;
  for (const auto& [key, value] : file.metadata) writer.SetMetadata(key, value);
  writer.SetMetadata("format", "oscarkv.rotation");
  writer.SetMetadata("objective", file.objective);
  writer.SetMetadata("source_grouping", shared ? "layer" : "head");
  for (int layer = 0; layer < s.num_layers; ++layer) {
    const std::string prefix = absl::StrCat("layers.", layer, ".");
    writer.AddF32(prefix + "rotation", Shape(heads, {d, d}), Matrices(set, layer, heads));
    if (file.eigenvalues.empty()) continue;
    writer.AddF32(prefix + "eigenvalues", Shape(heads, {d}), Eigenvalues(file, layer, heads, d));
  }
  return writer.Finish();
}

}  // namespace oscarkv
