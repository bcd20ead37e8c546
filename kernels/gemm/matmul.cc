// oneDNN 2.6 as used here. Measured: `matmul` with weights of format `any` reaches the same rate as
// inner_product, and the blocked layout it picks depends on (n, k) only, so one packed weight
// serves every m. Making a primitive costs 0.2 ms, executing one some 2 us beside the arithmetic.
//
// Scratchpads are the user's (a thread-local buffer): the library's own mode shares one buffer per
// thread between primitives and ties a primitive to the thread that made it.
#include "kernels/gemm/matmul.h"

#include <atomic>
#include <map>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <tuple>
#include <unordered_map>

#include "kernels/aligned_buffer.h"

// The two functions of libgomp that are needed. <omp.h> and -fopenmp under clang would mean libomp,
// a second runtime whose thread numbers libdnnl never sees.
extern "C" {
int omp_get_max_threads();
void omp_set_num_threads(int n);
}

namespace oscarkv::kernels {
namespace {

using dnnl::memory;

// Rows of A with which the layout of B is asked for.
constexpr int64_t kLayoutRows = 64;
// A model uses some hundred shapes; beyond this the cache starts anew.
constexpr size_t kMaxCached = 1024;

std::atomic<int> g_gemm_threads{0};  // 0: never set

const dnnl::engine& Engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

dnnl::stream& ThreadStream() {
  thread_local dnnl::stream stream(Engine());
  return stream;
}

memory::data_type DataType(Compute compute) {
  return compute == Compute::kBf16 ? memory::data_type::bf16 : memory::data_type::f32;
}

dnnl::primitive_attr Attributes(bool accumulate) {
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (accumulate) {
    dnnl::post_ops ops;
    ops.append_sum(1.0f);
    attr.set_post_ops(ops);
  }
  return attr;
}

dnnl::matmul::primitive_desc MakeMatmulDesc(int64_t m, const memory::desc& b,
                                            const Matmul::Key& key) {
  const memory::desc a({m, key.k}, DataType(key.compute), memory::format_tag::ab);
  const memory::desc c({m, key.n}, memory::data_type::f32, memory::format_tag::ab);
  if (!key.bias) return {{a, b, c}, Attributes(key.accumulate), Engine()};
  const memory::desc bias({1, key.n}, memory::data_type::f32, memory::format_tag::ab);
  return {{a, b, bias, c}, Attributes(key.accumulate), Engine()};
}

memory::desc PackedDesc(int64_t n, int64_t k, Compute compute) {
  const Matmul::Key key{kLayoutRows, n, k, compute, false, false};
  return MakeMatmulDesc(kLayoutRows, {{k, n}, DataType(compute), memory::format_tag::any}, key)
      .weights_desc();
}

// Memory objects around pointers that the library only reads for A, B and bias.
memory Wrap(const memory::desc& desc, const void* data) {
  return memory(desc, Engine(), const_cast<void*>(data));
}

void Execute(const dnnl::primitive& primitive, std::unordered_map<int, memory>& arguments,
             const memory::desc& scratchpad) {
  thread_local AlignedBuffer buffer;
  if (scratchpad.get_size() != 0) {
    arguments.emplace(DNNL_ARG_SCRATCHPAD, Wrap(scratchpad, buffer.Reserve(scratchpad.get_size())));
  }
  primitive.execute(ThreadStream(), arguments);
  ThreadStream().wait();
}

// shared_ptrs handed out outlive their removal. Two threads that miss at once both make one; the
// first to insert wins.
template <typename Key, typename Value>
class Cache {
 public:
  template <typename Make>
  std::shared_ptr<const Value> Get(const Key& key, const Make& make) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (const auto found = entries_.find(key); found != entries_.end()) return found->second;
    }
    std::shared_ptr<const Value> made = make();
    std::lock_guard<std::mutex> lock(mutex_);
    if (entries_.size() >= kMaxCached) entries_.clear();
    return entries_.emplace(key, std::move(made)).first->second;
  }

 private:
  std::mutex mutex_;  // guards entries_
  std::map<Key, std::shared_ptr<const Value>> entries_;
};

class DnnlPacker : public Packer {
 public:
  explicit DnnlPacker(const Key& key)
      : from_({key.k, key.n}, DataType(key.source_bf16 ? Compute::kBf16 : Compute::kFp32),
              key.source_is_n_k ? memory::format_tag::ba : memory::format_tag::ab),
        to_(PackedDesc(key.n, key.k, key.compute)),
        desc_(Engine(), from_, Engine(), to_, Attributes(false)),
        reorder_(desc_) {}

  size_t bytes() const override { return to_.get_size(); }
  void Run(const void* source, void* packed) const override {
    std::unordered_map<int, memory> arguments{{DNNL_ARG_FROM, Wrap(from_, source)},
                                              {DNNL_ARG_TO, Wrap(to_, packed)}};
    Execute(reorder_, arguments, desc_.scratchpad_desc());
  }

 private:
  memory::desc from_, to_;
  dnnl::reorder::primitive_desc desc_;
  dnnl::reorder reorder_;
};

class DnnlMatmul : public Matmul {
 public:
  explicit DnnlMatmul(const Key& key)
      : desc_(MakeMatmulDesc(key.m, PackedDesc(key.n, key.k, key.compute), key)),
        a_(desc_.src_desc()),
        b_(desc_.weights_desc()),
        c_(desc_.dst_desc()),
        bias_({1, key.n}, memory::data_type::f32, memory::format_tag::ab),
        has_bias_(key.bias),
        scratchpad_(desc_.scratchpad_desc()),
        matmul_(desc_) {}

  void Run(const void* a, const void* packed, const float* bias, float* c) const override {
    std::unordered_map<int, memory> arguments{{DNNL_ARG_SRC, Wrap(a_, a)},
                                              {DNNL_ARG_WEIGHTS, Wrap(b_, packed)},
                                              {DNNL_ARG_DST, Wrap(c_, c)}};
    if (has_bias_) arguments.emplace(DNNL_ARG_BIAS, Wrap(bias_, bias));
    Execute(matmul_, arguments, scratchpad_);
  }

 private:
  dnnl::matmul::primitive_desc desc_;
  memory::desc a_, b_, c_, bias_;
  bool has_bias_;
  memory::desc scratchpad_;
  dnnl::matmul matmul_;
};

}  // namespace

bool LibraryHasBf16() {
  static const bool has = [] {
    try {
      PackedDesc(64, 64, Compute::kBf16);
      return true;
    } catch (const dnnl::error&) {
      return false;  // dnnl_unimplemented: this CPU lacks AVX-512
    }
  }();
  return has;
}

std::shared_ptr<const Packer> Packer::Get(const Key& key) {
  static auto& cache = *new Cache<std::pair<Key, int>, Packer>;
  return cache.Get({key, omp_get_max_threads()}, [&] { return std::make_shared<DnnlPacker>(key); });
}

std::shared_ptr<const Matmul> Matmul::Get(const Key& key) {
  static auto& cache = *new Cache<std::pair<Key, int>, Matmul>;
  return cache.Get({key, omp_get_max_threads()}, [&] { return std::make_shared<DnnlMatmul>(key); });
}

ScopedOmpThreads::ScopedOmpThreads(int n) : old_(omp_get_max_threads()), changed_(n != old_) {
  if (changed_) omp_set_num_threads(n);
}

ScopedOmpThreads::~ScopedOmpThreads() {
  if (changed_) omp_set_num_threads(old_);
}

int GemmThreads() {
  const int n = g_gemm_threads.load(std::memory_order_relaxed);
  return n > 0 ? n : omp_get_max_threads();
}

void SetGemmThreads(int n) {
  g_gemm_threads.store(n, std::memory_order_relaxed);
}

bool HasNativeBf16() {
  const dnnl::cpu_isa isa = dnnl::get_effective_cpu_isa();
  return isa == dnnl::cpu_isa::avx512_core_bf16 || isa == dnnl::cpu_isa::avx512_core_amx;
}

}  // namespace oscarkv::kernels
