// Scratch memory at cache-line alignment; internal to this room.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace oscarkv::kernels {

// Uninitialised memory aligned to 64 bytes that only grows. Not thread-safe.
class AlignedBuffer {
 public:
  // At least `bytes`; the content is lost when it grows.
  void* Reserve(size_t bytes) {
    if (bytes > capacity_) {
      const size_t rounded = (bytes + 63) & ~size_t{63};
      data_.reset();
      capacity_ = 0;
      data_.reset(std::aligned_alloc(64, rounded));
      if (data_ == nullptr) throw std::bad_alloc();
      capacity_ = rounded;
    }
    return data_.get();
  }
  template <typename T>
  T* Reserve(size_t count) {
    return static_cast<T*>(Reserve(count * sizeof(T)));
  }

  // What the last Reserve returned.
  void* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> data_;
  size_t capacity_ = 0;
};

}  // namespace oscarkv::kernels
