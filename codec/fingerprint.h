// Internal to the room: what a codec's fingerprint covers.
#pragma once

#include "codec/codec.h"
#include "codec/rotation_zoo.h"
#include "common/sha256.h"

namespace oscarkv {

// SHA-256 over format version, profile name, shape, clip ratios and the fp32 matrices of all
// (layer, kv head), keys then values (null: none), so that it does not matter in which file form or
// how shared they were. The same bytes on every machine.
Sha256Digest CodecFingerprint(Profile profile, const kernels::KvShape& shape,
                              const RotationSet* key_rotations, const RotationSet* value_rotations,
                              float key_clip, float value_clip);

}  // namespace oscarkv
