#include "tests/unit/codec/pt_writer.h"

#include <zlib.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/types.h"

namespace oscarkv::testing {
namespace {

const char* StorageClass(StorageType type) {
  switch (type) {
    case StorageType::kF32:
      return "FloatStorage";
    case StorageType::kF64:
      return "DoubleStorage";
    case StorageType::kBf16:
      return "BFloat16Storage";
    case StorageType::kF16:
      return "HalfStorage";
  }
  return "";
}

std::vector<int64_t> DenseStrides(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
  return strides;
}

std::string Deflate(const std::string& data) {
  std::string out(compressBound(data.size()) + 64, '\0');
  z_stream z{};
  deflateInit2(&z, 9, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
  z.avail_in = static_cast<uInt>(data.size());
  z.next_out = reinterpret_cast<Bytef*>(out.data());
  z.avail_out = static_cast<uInt>(out.size());
  deflate(&z, Z_FINISH);
  out.resize(z.total_out);
  deflateEnd(&z);
  return out;
}

}  // namespace

std::string LittleEndian(uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i, value >>= 8) out.push_back(static_cast<char>(value));
  return out;
}

PickleWriter& PickleWriter::Raw(std::string_view bytes) {
  out_ += bytes;
  return *this;
}

PickleWriter& PickleWriter::Int(int64_t v) {
  if (v >= 0 && v < 256) return Op('K').Raw(LittleEndian(v, 1));
  if (v >= 0 && v < 65536) return Op('M').Raw(LittleEndian(v, 2));
  if (v >= INT32_MIN && v <= INT32_MAX) return Op('J').Raw(LittleEndian(v, 4));
  return Op(0x8a).Op(8).Raw(LittleEndian(v, 8));
}

PickleWriter& PickleWriter::Ints(const std::vector<int64_t>& values) {
  Mark();
  for (int64_t v : values) Int(v);
  return Tuple();
}

PickleWriter& PickleWriter::Global(std::string_view module, std::string_view name) {
  return Op('c').Raw(module).Raw("\n").Raw(name).Raw("\n");
}

PickleWriter& PickleWriter::Tensor(std::string_view storage_class, std::string_view key,
                                   int64_t elements, int64_t offset,
                                   const std::vector<int64_t>& shape,
                                   const std::vector<int64_t>& strides) {
  Global("torch._utils", "_rebuild_tensor_v2").Mark();
  Mark()
      .Str("storage")
      .Global("torch", storage_class)
      .Str(key)
      .Str("cpu")
      .Int(elements)
      .Tuple()
      .Op('Q');
  Int(offset).Ints(shape).Ints(strides).False();
  return Global("collections", "OrderedDict").Op(')').Reduce().Tuple().Reduce();
}

std::string WriteZip(const std::vector<ZipItem>& items, const ZipStyle& style) {
  std::string out, directory;
  for (const ZipItem& item : items) {
    const std::string packed = item.deflate ? Deflate(item.data) : item.data;
    const uint32_t crc =
        crc32_z(0, reinterpret_cast<const Bytef*>(item.data.data()), item.data.size());
    const std::string sums =
        LittleEndian(crc, 4) + LittleEndian(packed.size(), 4) + LittleEndian(item.data.size(), 4);
    const std::string common = LittleEndian(style.data_descriptors ? 0x808 : 0x800, 2) +
                               LittleEndian(item.deflate ? 8 : 0, 2) +
                               LittleEndian(0, 4);  // flags, method, time
    directory += "PK\1\2" + LittleEndian(20, 2) + LittleEndian(20, 2) + common + sums +
                 LittleEndian(item.name.size(), 2) + LittleEndian(0, 12) +
                 LittleEndian(out.size(), 4) + item.name;
    out += "PK\3\4" + LittleEndian(20, 2) + common +
           (style.data_descriptors ? std::string(12, '\0') : sums) +
           LittleEndian(item.name.size(), 2) + LittleEndian(0, 2) + item.name + packed;
    if (style.data_descriptors) out += "PK\7\10" + sums;
  }
  const uint64_t at = out.size(), n = items.size();
  out += directory;
  if (style.zip64_end) {
    const uint64_t end64 = out.size();
    out += "PK\6\6" + LittleEndian(44, 8) + LittleEndian(45, 2) + LittleEndian(45, 2) +
           LittleEndian(0, 8) + LittleEndian(n, 8) + LittleEndian(n, 8) +
           LittleEndian(directory.size(), 8) + LittleEndian(at, 8);
    out += "PK\6\7" + LittleEndian(0, 4) + LittleEndian(end64, 8) + LittleEndian(1, 4);
  }
  return out + "PK\5\6" + LittleEndian(0, 4) + LittleEndian(n, 2) + LittleEndian(n, 2) +
         LittleEndian(directory.size(), 4) + LittleEndian(at, 4) +
         LittleEndian(style.comment.size(), 2) + style.comment;
}

std::string StorageBytes(const std::vector<float>& values, StorageType type) {
  std::string out;
  for (const float v : values) {
    switch (type) {
      case StorageType::kF32:
        out += LittleEndian(std::bit_cast<uint32_t>(v), 4);
        break;
      case StorageType::kF64:
        out += LittleEndian(std::bit_cast<uint64_t>(static_cast<double>(v)), 8);
        break;
      case StorageType::kBf16:
        out += LittleEndian(kernels::ToBf16(v), 2);
        break;
      case StorageType::kF16:
        out += LittleEndian(kernels::FloatToFp16(v), 2);
        break;
    }
  }
  return out;
}

std::string WriteRotationPickle(const RotationFileSpec& spec) {
  PickleWriter w;
  w.Proto().Dict().Mark().Str("format_version").Int(spec.format_version);
  w.Str("objective").Str("qqt_r_h_pbr").Str("layers").Dict().Mark();
  int storage = 0;
  for (const LayerSpec& layer : spec.layers) {
    layer.string_key ? w.Str(absl::StrCat(layer.key)) : w.Int(layer.key);
    w.Dict().Mark().Str("layer_id").Int(layer.key).Str("rotation");
    w.Tensor(StorageClass(layer.type), absl::StrCat(storage++),
             static_cast<int64_t>(layer.values.size()), layer.offset, layer.shape,
             layer.strides.empty() ? DenseStrides(layer.shape) : layer.strides);
    // Its storage is not in the archive: whoever looks at it fails.
    if (layer.eigenvalues) w.Str("eigenvalues").Tensor("FloatStorage", "absent", 4, 0, {4}, {1});
    w.SetItems();
  }
  return w.SetItems().SetItems().Stop();
}

std::string WriteRotationFile(const RotationFileSpec& spec) {
  std::vector<ZipItem> items = {{"rot/data.pkl", WriteRotationPickle(spec), spec.deflate}};
  if (!spec.byte_order.empty()) items.push_back({"rot/byteorder", spec.byte_order});
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    items.push_back({absl::StrCat("rot/data/", i),
                     StorageBytes(spec.layers[i].values, spec.layers[i].type), spec.deflate});
  }
  items.push_back({"rot/version", "3\n"});
  return WriteZip(items);
}

std::string WriteSafetensors(const std::string& json_header, std::string_view data) {
  return LittleEndian(json_header.size(), 8) + json_header + std::string(data);
}

std::vector<float> Orthogonal(int d, int seed) {
  // A product of plane rotations with angles from the seed.
  std::vector<double> m(static_cast<size_t>(d) * d, 0.0);
  for (int i = 0; i < d; ++i) m[i * d + i] = 1;
  for (int i = 0; i < d; ++i) {
    for (int j = i + 1; j < d; ++j) {
      const double angle = 0.7 + 0.31 * i + 0.17 * j + 1.3 * seed, c = std::cos(angle),
                   s = std::sin(angle);
      for (int r = 0; r < d; ++r) {
        const double a = m[r * d + i], b = m[r * d + j];
        m[r * d + i] = c * a - s * b;
        m[r * d + j] = s * a + c * b;
      }
    }
  }
  return {m.begin(), m.end()};
}

}  // namespace oscarkv::testing
