// The order of code bytes in a page-head, for host code; internal.
//
// Between the codes of a row and the page stands a row of "packed bytes": byte 16 ch + i of a token
// holds the codes of channels 64 ch + 16 p + i, p = 0..3, at bits 2 p. In the page these bytes keep
// their bits and only change place.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/layout.h"

namespace oscarkv::kernels {

template <int kHeadDim>
using ByteOrder = std::array<uint16_t, kPageTokens * kHeadDim / 4>;

// Entry token * head_dim / 4 + byte: where that packed byte stands in the side's codes.
template <Side kSide, int kHeadDim>
constexpr ByteOrder<kHeadDim> MakeByteOrder() {
  ByteOrder<kHeadDim> order{};
  for (int token = 0; token < kPageTokens; ++token) {
    for (int byte = 0; byte < kHeadDim / 4; ++byte) {
      const int channel = 64 * (byte / 16) + byte % 16;  // p = 0
      const CodePosition at = kSide == Side::kKey ? KeyPosition(kHeadDim, token, channel)
                                                  : ValuePosition(kHeadDim, token, channel);
      order[token * kHeadDim / 4 + byte] = static_cast<uint16_t>(4 * at.word + at.bit / 8);
    }
  }
  return order;
}

inline const uint16_t* PackedByteOrder(Side side, int head_dim) {
  static constexpr auto kKey64 = MakeByteOrder<Side::kKey, 64>(),
                        kValue64 = MakeByteOrder<Side::kValue, 64>();
  static constexpr auto kKey128 = MakeByteOrder<Side::kKey, 128>(),
                        kValue128 = MakeByteOrder<Side::kValue, 128>();
  if (head_dim == 64) return side == Side::kKey ? kKey64.data() : kValue64.data();
  return side == Side::kKey ? kKey128.data() : kValue128.data();
}

}  // namespace oscarkv::kernels
