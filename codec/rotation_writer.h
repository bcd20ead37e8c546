// Writes the rotations of one side (K or V), in RotationZoo's `.pt` form, which torch.load takes,
// or as safetensors. rotation_zoo.h reads both back.
//
// The `.pt` is what torch.save writes, restricted to what this content needs: a zip archive of
// stored entries and a pickle of protocol 2 that names torch._utils._rebuild_tensor_v2,
// torch.FloatStorage and collections.OrderedDict only. The same input gives the same bytes.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "codec/rotation_zoo.h"

namespace oscarkv {

struct RotationFile {
  std::string objective;  // "qqt_r_h_pbr" (K), "sst_r_h_pbr" (V)
  // [layers][heads][head_dim], ascending; empty: not written. heads: 1 where all layers share one
  // matrix between their heads, else kv heads.
  std::vector<double> eigenvalues;
  std::map<std::string, std::string> metadata;  // safetensors only
};

// True when every layer has one matrix for all its heads: format_version 1, else 2.
bool SharedByHeads(const RotationSet& set);

// kInvalidArgument: the set is not complete, or eigenvalues do not fit it.
absl::StatusOr<std::string> WriteRotationPt(const RotationSet& set, const RotationFile& file);
absl::StatusOr<std::string> WriteRotationSafetensors(const RotationSet& set,
                                                     const RotationFile& file);

}  // namespace oscarkv
