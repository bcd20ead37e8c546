#include "codec/shaped_file.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "codec/tensor_file.h"
#include "common/status_macros.h"
#include "kernels/types.h"

namespace oscarkv {
namespace {

constexpr const char* kSideNames[] = {"key", "value"};

std::string Name(int layer, int side, absl::string_view what) {
  return absl::StrCat("layers.", layer, ".", kSideNames[side], ".", what);
}

absl::Status CheckFinite(const std::vector<float>& values, const std::string& name) {
  for (const float v : values) {
    if (!std::isfinite(v)) return absl::InvalidArgumentError(absl::StrCat(name, " holds ", v));
  }
  return absl::OkStatus();
}

absl::StatusOr<ShapedSide> ReadSide(const TensorFile& file, const kernels::KvShape& shape,
                                    int layer, int side) {
  const int64_t heads = shape.num_kv_heads, d = shape.head_dim;
  ShapedSide out;
  for (const auto& [what, dims, field] :
       {std::tuple<const char*, std::vector<int64_t>, std::vector<float>*>{
            "transform", {heads, d, d}, &out.transform},
        {"mean", {heads, d}, &out.mean},
        {"metric", {heads, d, d}, &out.metric}}) {
    const std::string name = Name(layer, side, what);
    ASSIGN_OR_RETURN(*field, file.ReadF32(name, dims));
    RETURN_IF_ERROR(CheckFinite(*field, name));
  }
  const std::string name = Name(layer, side, "choice");
  ASSIGN_OR_RETURN(const std::vector<float> choice, file.ReadF32(name, {2}));
  out.widen = choice[0];
  out.gain = choice[1];
  if (!(out.widen >= 0.5f && out.widen <= 4) || !(out.gain >= 0 && out.gain <= 2)) {
    return absl::InvalidArgumentError(absl::StrCat(name, " is widen ", out.widen, ", gain ",
                                                   out.gain, "; allowed are 0.5..4 and 0..2"));
  }
  return out;
}

absl::Status CheckMetadata(const TensorFile& file, const std::string& key,
                           const std::string& expected) {
  const std::string value = file.Metadata(key);
  if (value == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("its metadata says ", key, " \"",
                                                 absl::CHexEscape(value), "\", expected \"",
                                                 expected, "\""));
}

void AddExactly(const std::string& name, std::vector<int64_t> shape,
                const std::vector<float>& values, TensorFileWriter* file) {
  const bool exact = std::all_of(values.begin(), values.end(), [](float v) {
    return kernels::Fp16ToFloat(kernels::FloatToFp16(v)) == v;
  });
  exact ? file->AddF16(name, std::move(shape), values)
        : file->AddF32(name, std::move(shape), values);
}

}  // namespace

std::string WriteShapedFile(const ShapedParameters& p) {
  const int64_t heads = p.shape.num_kv_heads, d = p.shape.head_dim;
  TensorFileWriter file;
  for (const auto& [key, value] : p.metadata) file.SetMetadata(key, value);
  file.SetMetadata("format", "oscarkv.codec");
  file.SetMetadata("format_version", "1");
  file.SetMetadata("profile", p.symmetric ? "shaped-sym" : "shaped");
  file.SetMetadata("layers", absl::StrCat(p.shape.num_layers));
  file.SetMetadata("kv_heads", absl::StrCat(heads));
  file.SetMetadata("head_dim", absl::StrCat(d));
  for (int layer = 0; layer < p.shape.num_layers; ++layer) {
    for (int side : {0, 1}) {
      const ShapedSide& s = p.at(layer, static_cast<kernels::Side>(side));
      AddExactly(Name(layer, side, "transform"), {heads, d, d}, s.transform, &file);
      file.AddF32(Name(layer, side, "mean"), {heads, d}, s.mean);
      AddExactly(Name(layer, side, "metric"), {heads, d, d}, s.metric, &file);
      file.AddF32(Name(layer, side, "choice"), {2}, {s.widen, s.gain});
    }
  }
  return file.Finish();
}

absl::StatusOr<ShapedParameters> ParseShapedFile(absl::Span<const uint8_t> bytes,
                                                 const kernels::KvShape& shape) {
  ASSIGN_OR_RETURN(const TensorFile file, TensorFile::Open(bytes));
  RETURN_IF_ERROR(CheckMetadata(file, "format", "oscarkv.codec"));
  RETURN_IF_ERROR(CheckMetadata(file, "format_version", "1"));
  const bool symmetric = file.Metadata("profile") == "shaped-sym";
  if (!symmetric) RETURN_IF_ERROR(CheckMetadata(file, "profile", "shaped"));
  RETURN_IF_ERROR(CheckMetadata(file, "layers", absl::StrCat(shape.num_layers)));
  RETURN_IF_ERROR(CheckMetadata(file, "kv_heads", absl::StrCat(shape.num_kv_heads)));
  RETURN_IF_ERROR(CheckMetadata(file, "head_dim", absl::StrCat(shape.head_dim)));
  ShapedParameters p;
  p.shape = shape;
  p.symmetric = symmetric;
  p.metadata = file.AllMetadata();
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    for (int side : {0, 1}) {
      ASSIGN_OR_RETURN(ShapedSide s, ReadSide(file, shape, layer, side));
      p.sides.push_back(std::move(s));
    }
  }
  return p;
}

absl::StatusOr<ShapedParameters> ReadShapedFile(const std::string& path,
                                                const kernels::KvShape& shape) {
  const auto annotate = [&](const absl::Status& s) {
    return absl::Status(s.code(), absl::StrCat(path, ": ", s.message()));
  };
  const auto file = ReadWholeFile(path, kMaxTensorFileBytes);
  if (!file.ok()) return annotate(file.status());
  auto parameters = ParseShapedFile(*file, shape);
  if (!parameters.ok()) return annotate(parameters.status());
  return parameters;
}

}  // namespace oscarkv
