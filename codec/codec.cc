#include "codec/codec.h"

#include <algorithm>
#include <bit>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "codec/bf16_codec.h"
#include "codec/block_format.h"
#include "codec/fingerprint.h"
#include "codec/oscar_codec.h"
#include "codec/rotation_zoo.h"
#include "codec/shaped_codec.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

// Sorted names of the regular files "<prefix>*.pt" and "<prefix>*.safetensors" of a folder.
absl::StatusOr<std::vector<std::string>> Candidates(const std::string& dir,
                                                    absl::string_view prefix) {
  std::error_code ec;
  std::filesystem::directory_iterator it(dir, ec);
  std::vector<std::string> names;
  for (; !ec && it != std::filesystem::directory_iterator(); it.increment(ec)) {
    const std::string name = it->path().filename().string();
    if (!absl::StartsWith(name, prefix)) continue;
    if (!absl::EndsWith(name, ".pt") && !absl::EndsWith(name, ".safetensors")) continue;
    std::error_code ignored;  // a dangling link is no candidate
    if (it->is_regular_file(ignored)) names.push_back(name);
  }
  if (ec) return absl::NotFoundError(absl::StrCat("model folder ", dir, ": ", ec.message()));
  std::sort(names.begin(), names.end());
  return names;
}

absl::Status CheckClip(absl::string_view name, float ratio) {
  if (ratio > 0 && ratio <= 1) return absl::OkStatus();  // false for NaN
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", ratio, ", allowed are values above 0 and up to 1 (no clip)"));
}

std::string FileName(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

void UpdateMatrices(const RotationSet& set, Sha256* sha) {
  const kernels::KvShape& s = set.shape();
  for (int l = 0; l < s.num_layers; ++l) {
    for (int h = 0; h < s.num_kv_heads; ++h) {
      sha->Update(set.At(l, h), sizeof(float) * s.head_dim * s.head_dim);
    }
  }
}

absl::StatusOr<std::shared_ptr<const KvCodec>> CreateShaped(const CodecOptions& options,
                                                            const kernels::KvShape& shape) {
  if (options.shaped_file.empty()) {
    const absl::string_view name = ProfileName(options.profile);
    return absl::InvalidArgumentError(absl::StrCat(
        "profile ", name, " needs the file that `oscarkv calibrate --profile ", name, "` writes"));
  }
  const bool symmetric = options.profile == Profile::kShapedSym;
  ASSIGN_OR_RETURN(const ShapedParameters parameters, ReadShapedFile(options.shaped_file, shape));
  if (parameters.symmetric && !symmetric) {
    return absl::InvalidArgumentError(absl::StrCat(
        options.shaped_file, " was fitted for profile shaped-sym, expected one for shaped"));
  }
  auto codec = ShapedCodec::Create(parameters, {.sweeps = options.sweeps, .symmetric = symmetric},
                                   absl::StrCat("fit from ", FileName(options.shaped_file)));
  if (!codec.ok()) {
    return absl::Status(codec.status().code(),
                        absl::StrCat(options.shaped_file, ": ", codec.status().message()));
  }
  return *codec;
}

absl::Status FindShapedFile(const std::string& model_dir, CodecOptions* options) {
  if (!options->shaped_file.empty()) return absl::OkStatus();
  const auto symmetric = [](const std::string& name) {
    return absl::StartsWith(name, "codec_shaped-sym");
  };
  ASSIGN_OR_RETURN(std::vector<std::string> names, Candidates(model_dir, "codec_shaped"));
  const bool own =
      options->profile == Profile::kShapedSym && std::any_of(names.begin(), names.end(), symmetric);
  std::erase_if(names, [&](const std::string& name) { return symmetric(name) != own; });
  if (names.size() != 1) {
    const absl::string_view profile = ProfileName(options->profile);
    return absl::InvalidArgumentError(absl::StrCat(
        model_dir, " has ", names.size(), " files codec_shaped", own ? "-sym" : "", "*.safetensors",
        names.empty() ? "" : " (", absl::StrJoin(names, ", "), names.empty() ? "" : ")",
        ", profile ", profile, " needs one: name it, or let `oscarkv calibrate --profile ", profile,
        "` make it"));
  }
  options->shaped_file = (std::filesystem::path(model_dir) / names[0]).string();
  return absl::OkStatus();
}

static_assert(std::endian::native == std::endian::little,
              "fingerprints are defined over little-endian floats");

}  // namespace

absl::string_view ProfileName(Profile profile) {
  switch (profile) {
    case Profile::kBf16:
      return "bf16";
    case Profile::kOscar:
      return "oscar";
    case Profile::kShaped:
      return "shaped";
    case Profile::kShapedSym:
      return "shaped-sym";
  }
  return "unknown";
}

absl::StatusOr<Profile> ParseProfile(absl::string_view name) {
  for (const Profile p : {Profile::kBf16, Profile::kOscar, Profile::kShaped, Profile::kShapedSym}) {
    if (name == ProfileName(p)) return p;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("profile \"", name, "\", allowed are bf16, oscar, shaped and shaped-sym"));
}

Sha256Digest CodecFingerprint(Profile profile, const kernels::KvShape& shape,
                              const RotationSet* key_rotations, const RotationSet* value_rotations,
                              float key_clip, float value_clip) {
  Sha256 sha;
  sha.UpdateField("oscarkv.codec").UpdateU64(kBlockFormatVersion).UpdateField(ProfileName(profile));
  sha.UpdateU64(shape.num_layers).UpdateU64(shape.num_kv_heads).UpdateU64(shape.head_dim);
  sha.UpdateU64(std::bit_cast<uint32_t>(key_clip)).UpdateU64(std::bit_cast<uint32_t>(value_clip));
  for (const RotationSet* set : {key_rotations, value_rotations}) {
    sha.UpdateU64(set != nullptr ? 1 : 0);
    if (set != nullptr) UpdateMatrices(*set, &sha);
  }
  return sha.Finish();
}

absl::StatusOr<std::shared_ptr<const KvCodec>> CreateCodec(const CodecOptions& options,
                                                           const kernels::KvShape& shape) {
  RETURN_IF_ERROR(ValidateShape(shape));
  if (!shape.offsets)
    return absl::InvalidArgumentError("a codec is made for a model's shape: that has offsets");
  if (options.profile == Profile::kBf16) return std::make_shared<const Bf16Codec>(shape);
  if (IsShaped(options.profile)) return CreateShaped(options, shape);
  if (options.profile != Profile::kOscar) {
    return absl::InvalidArgumentError(
        absl::StrCat("profile ", static_cast<int>(options.profile), ", allowed are 0 to 3"));
  }
  RETURN_IF_ERROR(CheckClip("key clip ratio", options.key_clip));
  RETURN_IF_ERROR(CheckClip("value clip ratio", options.value_clip));
  const std::string &k = options.key_rotation_file, &v = options.value_rotation_file;
  if (options.data_free) {
    if (!k.empty() || !v.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "rotation files (", k, ", ", v, ") and data-free rotations exclude each other"));
    }
    return std::make_shared<const OscarCodec>(HadamardRotations(shape), HadamardRotations(shape),
                                              options.key_clip, options.value_clip, true,
                                              "data-free Hadamard rotations");
  }
  if (k.empty() || v.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("profile oscar needs rotation files of keys and values, or the data-free ",
                     "fallback; given are \"", k, "\" and \"", v, "\""));
  }
  ASSIGN_OR_RETURN(RotationSet keys, ReadRotations(k, shape));
  ASSIGN_OR_RETURN(RotationSet values, ReadRotations(v, shape));
  return std::make_shared<const OscarCodec>(
      std::move(keys), std::move(values), options.key_clip, options.value_clip, false,
      absl::StrCat("rotations from ", FileName(k), " and ", FileName(v)));
}

absl::Status FindCodecFiles(const std::string& model_dir, CodecOptions* options) {
  if (options->profile == Profile::kBf16) return absl::OkStatus();
  if (IsShaped(options->profile)) return FindShapedFile(model_dir, options);
  // What was given explicitly stays; profile bf16 has no rotations.
  if (options->profile == Profile::kBf16 || options->data_free ||
      (!options->key_rotation_file.empty() && !options->value_rotation_file.empty())) {
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> k, Candidates(model_dir, "k_rotation_"));
  ASSIGN_OR_RETURN(const std::vector<std::string> v, Candidates(model_dir, "v_rotation_"));
  if (k.size() > 1 || v.size() > 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        model_dir, " holds several rotation files, name one of keys and one of values: ",
        absl::StrJoin(k, ", "), "; ", absl::StrJoin(v, ", ")));
  }
  const auto path = [&](const std::vector<std::string>& names) {
    return names.empty() ? std::string() : (std::filesystem::path(model_dir) / names[0]).string();
  };
  std::string key = options->key_rotation_file.empty() ? path(k) : options->key_rotation_file;
  std::string value = options->value_rotation_file.empty() ? path(v) : options->value_rotation_file;
  if (key.empty() && value.empty()) {
    options->data_free = true;
    return absl::OkStatus();
  }
  if (key.empty() || value.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("only ", key.empty() ? value : key, " was found in ", model_dir, ": no ",
                     key.empty() ? "k_rotation_*" : "v_rotation_*", " file of its other side"));
  }
  options->key_rotation_file = std::move(key);
  options->value_rotation_file = std::move(value);
  return absl::OkStatus();
}

}  // namespace oscarkv
