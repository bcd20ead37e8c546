// oscarkv codec: looks into files of fitted codecs, and converts rotations between their two forms.
#include <algorithm>
#include <cstdio>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/command.h"
#include "codec/codec.h"
#include "codec/rotation_writer.h"
#include "codec/shaped_codec.h"
#include "codec/tensor_file.h"
#include "common/status_macros.h"
#include "model/model_config.h"

namespace oscarkv::cli {
namespace {

// Layers, kv heads and head_dim as the model has them: a rotation file shared by heads does not
// say.
absl::StatusOr<kernels::KvShape> ShapeOf(const std::string& model_dir) {
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(model_dir));
  return config.kv_shape();
}

absl::Status Required(const std::string& value, const char* flag) {
  if (!value.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--", flag, " is missing"));
}

std::string DigestOf(const RotationSet& set) {
  const kernels::KvShape& s = set.shape();
  Sha256 sha;
  for (int l = 0; l < s.num_layers; ++l) {
    for (int h = 0; h < s.num_kv_heads; ++h)
      sha.Update(set.At(l, h), sizeof(float) * s.head_dim * s.head_dim);
  }
  return ToHex(sha.Finish());
}

class CodecShowCommand final : public Command {
 public:
  std::string name() const override { return "codec show"; }
  std::string summary() const override { return "Print what a fitted file holds"; }
  void AddOptions(OptionTable* table) override {
    table->AddString("file", &file_, "FILE", "Rotations (.pt, .safetensors) or a fit of shaped");
    table->AddString("model", &model_, "DIR", "Hugging Face folder of the model it is for");
  }
  absl::Status Run() override {
    RETURN_IF_ERROR(Required(file_, "file"));
    ASSIGN_OR_RETURN(const kernels::KvShape shape, ShapeOf(model_));
    ASSIGN_OR_RETURN(const std::vector<uint8_t> bytes, ReadFile());
    std::map<std::string, std::string> metadata;
    if (const auto tensors = TensorFile::Open(bytes); tensors.ok())
      metadata = tensors->AllMetadata();
    std::printf("%s: %s, %d layers, %d kv heads, head_dim %d\n", file_.c_str(),
                FormatBytes(bytes.size()).c_str(), shape.num_layers, shape.num_kv_heads,
                shape.head_dim);
    const auto format = metadata.find("format");  // files of torch have no metadata
    RETURN_IF_ERROR(format != metadata.end() && format->second == "oscarkv.codec"
                        ? ShowShaped(shape)
                        : ShowRotations(shape));
    for (const auto& [key, value] : metadata) std::printf("  %s: %s\n", key.c_str(), value.c_str());
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<std::vector<uint8_t>> ReadFile() const {
    auto bytes = ReadWholeFile(file_, kMaxTensorFileBytes);
    if (bytes.ok()) return bytes;
    return absl::Status(bytes.status().code(), absl::StrCat(file_, ": ", bytes.status().message()));
  }

  absl::Status ShowShaped(const kernels::KvShape& shape) const {
    ASSIGN_OR_RETURN(const ShapedParameters p, ReadShapedFile(file_, shape));
    // A fit for shaped serves both profiles.
    for (const bool symmetric : {false, true}) {
      if (p.symmetric && !symmetric) continue;
      ASSIGN_OR_RETURN(const auto codec, ShapedCodec::Create(p, {.symmetric = symmetric}, file_));
      std::printf("profile %s, codec fingerprint %s\n",
                  std::string(ProfileName(codec->profile())).c_str(),
                  ToHex(codec->fingerprint()).c_str());
    }
    for (int l = 0; l < shape.num_layers; ++l) {
      const ShapedSide &k = p.at(l, kernels::Side::kKey), &v = p.at(l, kernels::Side::kValue);
      std::printf("  layer %d: widen K %g V %g, gain K %g V %g\n", l, k.widen, v.widen, k.gain,
                  v.gain);
    }
    return absl::OkStatus();
  }

  absl::Status ShowRotations(const kernels::KvShape& shape) const {
    ASSIGN_OR_RETURN(const RotationSet set, ReadRotations(file_, shape));
    std::printf("rotations, one per %s, digest of the matrices %s\n",
                SharedByHeads(set) ? "layer" : "layer and kv head", DigestOf(set).c_str());
    return absl::OkStatus();
  }

  std::string file_, model_ = "models/reference";
};

class CodecConvertCommand final : public Command {
 public:
  std::string name() const override { return "codec convert"; }
  std::string summary() const override {
    return "Write rotations in the other form: RotationZoo's .pt or safetensors";
  }
  void AddOptions(OptionTable* table) override {
    table->AddString("file", &file_, "FILE", "Rotations of K or of V, .pt or .safetensors");
    table->AddString("out", &out_, "FILE", "Where to write; its ending says in which form");
    table->AddString("model", &model_, "DIR", "Hugging Face folder of the model they are for");
    table->AddString("objective", &objective_, "TEXT",
                     "What the matrices were fitted to, as the written file shall say");
  }
  absl::Status Run() override {
    RETURN_IF_ERROR(Required(file_, "file"));
    RETURN_IF_ERROR(Required(out_, "out"));
    const bool pt = absl::EndsWith(out_, ".pt");
    if (!pt && !absl::EndsWith(out_, ".safetensors")) {
      return absl::InvalidArgumentError(
          absl::StrCat("--out ", out_, " ends with neither .pt nor .safetensors"));
    }
    ASSIGN_OR_RETURN(const kernels::KvShape shape, ShapeOf(model_));
    ASSIGN_OR_RETURN(const RotationSet set, ReadRotations(file_, shape));
    const RotationFile info = {objective_, {}, {}};
    ASSIGN_OR_RETURN(const std::string bytes,
                     pt ? WriteRotationPt(set, info) : WriteRotationSafetensors(set, info));
    RETURN_IF_ERROR(WriteWholeFile(out_, bytes));
    std::printf("wrote %s, %s, digest of the matrices %s\n", out_.c_str(),
                FormatBytes(bytes.size()).c_str(), DigestOf(set).c_str());
    return absl::OkStatus();
  }

 private:
  std::string file_, out_, model_ = "models/reference", objective_ = "unknown";
};

}  // namespace

std::unique_ptr<Command> NewCodecShowCommand() {
  return std::make_unique<CodecShowCommand>();
}
std::unique_ptr<Command> NewCodecConvertCommand() {
  return std::make_unique<CodecConvertCommand>();
}

}  // namespace oscarkv::cli
