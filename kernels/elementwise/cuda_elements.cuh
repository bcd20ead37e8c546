// Access to vectors of fp32 or bf16 in kernels and their launches; internal.
#pragma once

#include "kernels/cuda_primitives.cuh"
#include "kernels/elementwise/op_cuda.h"

namespace oscarkv::kernels::cuda {

inline __device__ float LoadElement(const float* p) {
  return *p;
}
inline __device__ float LoadElement(const Bf16* p) {
  return __uint_as_float(static_cast<uint32_t>(*p) << 16);
}
inline __device__ void StoreElement(float* p, float v) {
  *p = v;
}
inline __device__ void StoreElement(Bf16* p, float v) {
  *p = static_cast<Bf16>(PackBf16(v, 0));
}

inline __device__ float SiluGated(float gate, float up) {
  return gate / (1 + __expf(-gate)) * up;
}

// f(data as a pointer to its type).
template <class F>
void WithType(const void* data, ElementType type, const F& f) {
  if (type == ElementType::kFloat32) {
    f(static_cast<const float*>(data));
  } else {
    f(static_cast<const Bf16*>(data));
  }
}
template <class F>
void WithType(void* data, ElementType type, const F& f) {
  if (type == ElementType::kFloat32) {
    f(static_cast<float*>(data));
  } else {
    f(static_cast<Bf16*>(data));
  }
}

}  // namespace oscarkv::kernels::cuda
