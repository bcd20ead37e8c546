// Which instruction sets the SIMD files are compiled for; included before any header of Highway.
#pragma once

#define HWY_WANT_AVX3_DL  // VNNI, off by default
// Vectors without a size known at compile time cannot be kept in arrays, which the blocked loops
// here do.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
