// The safetensors header: every tensor that comes out of a hostile file lies inside it.
#include <cstdint>
#include <cstdlib>

#include "model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto tensors = oscarkv::ParseSafetensors({data, size});
  if (!tensors.ok()) return 0;
  size_t total = 0;
  volatile uint8_t sink = 0;
  for (const auto& [name, view] : *tensors) {
    if (view.data < data || view.data > data + size || view.bytes > size) std::abort();
    if (static_cast<size_t>(data + size - view.data) < view.bytes) std::abort();
    if (static_cast<size_t>(view.num_elements()) * oscarkv::DTypeSize(view.dtype) != view.bytes) {
      std::abort();
    }
    if (view.bytes > 0) sink = sink + view.data[0] + view.data[view.bytes - 1];
    total += view.bytes;
  }
  if (total > size) std::abort();  // they do not overlap
  return 0;
}
