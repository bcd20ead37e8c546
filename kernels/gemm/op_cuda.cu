#include "kernels/gemm/op_cuda.h"

#include <cublasLt.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdio>
#include <map>
#include <tuple>

#include "kernels/cuda_device.h"
#include "kernels/cuda_launch.cuh"
#include "kernels/cuda_primitives.cuh"
#include "kernels/elementwise/cuda_elements.cuh"

namespace oscarkv::kernels::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{64} << 20;

// The functions of cuBLASLt that are used here.
struct Lt {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmul) matmul;
};

KernelStatus Fail(const char* what, const char* why) {
  SetLastError(what, why);
  return KernelStatus::kDevice;
}

KernelStatus CheckLt(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return KernelStatus::kOk;
  char text[32];
  std::snprintf(text, sizeof text, "status %d", static_cast<int>(status));
  return Fail(what, text);
}

KernelStatus OpenLt(Lt* lt) {
  static char name[32];
  std::snprintf(name, sizeof name, "libcublasLt.so.%d", CUBLAS_VER_MAJOR);
  void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    // Where the toolkit installs it, if the loader's path does not name that folder.
    char path[128];
    std::snprintf(path, sizeof path, "/usr/local/cuda/lib64/%s", name);
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  }
  if (library == nullptr) return Fail("cuBLASLt", dlerror());
  const char* missing = nullptr;
  const auto find = [&](auto* function, const char* symbol) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(dlsym(library, symbol));
    if (*function == nullptr) missing = symbol;
  };
  find(&lt->create, "cublasLtCreate");
  find(&lt->destroy, "cublasLtDestroy");
  find(&lt->desc_create, "cublasLtMatmulDescCreate");
  find(&lt->desc_destroy, "cublasLtMatmulDescDestroy");
  find(&lt->desc_set, "cublasLtMatmulDescSetAttribute");
  find(&lt->layout_create, "cublasLtMatrixLayoutCreate");
  find(&lt->layout_destroy, "cublasLtMatrixLayoutDestroy");
  find(&lt->preference_create, "cublasLtMatmulPreferenceCreate");
  find(&lt->preference_destroy, "cublasLtMatmulPreferenceDestroy");
  find(&lt->preference_set, "cublasLtMatmulPreferenceSetAttribute");
  find(&lt->heuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(&lt->matmul, "cublasLtMatmul");
  return missing == nullptr ? KernelStatus::kOk : Fail(name, missing);
}

// Products with few rows of x read the weights once and do little else: a kernel of our own comes
// nearer to the memory's rate. A thread block computes kChannels channels of W for all kRows rows
// of x; its threads share k. It may start while the kernel before it still runs: its first weights
// are then under way when x is ready.
constexpr int kFewThreads = 128;
constexpr int kFewUnroll = 4;    // rounds of loads under way
constexpr int kFewElements = 8;  // of a load

// kGated: half of the block's channels are gates, the others the same channels of W's second half.
template <int kRows, int kChannels, bool kGated, class Out>
__global__ void __launch_bounds__(kFewThreads)
    FewRowsKernel(const Bf16* x, const Bf16* __restrict__ w, const float* __restrict__ bias, Out* y,
                  int64_t n, int64_t k) {
  LetNextKernelStart();
  constexpr int64_t kRound = kFewThreads * kFewElements;
  constexpr int kOutputs = kGated ? kChannels / 2 : kChannels;
  const int64_t outputs = kGated ? n / 2 : n;
  const int64_t first = int64_t{blockIdx.x} * kOutputs;
  const Bf16* channel[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const int64_t half = c / kOutputs * outputs;
    channel[c] = w + (half + min(first + c % kOutputs, outputs - 1)) * k;
  }
  float sum[kRows][kChannels] = {};
  for (int64_t begin = threadIdx.x * kFewElements; begin < k; begin += kFewUnroll * kRound) {
    uint4 weights[kFewUnroll][kChannels];
#pragma unroll
    for (int u = 0; u < kFewUnroll; ++u) {
      const int64_t at = begin + u * kRound;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        weights[u][c] = at < k ? __ldcs(reinterpret_cast<const uint4*>(channel[c] + at))
                               : make_uint4(0, 0, 0, 0);
      }
    }
    if (begin < kRound) WaitForPriorKernels();
#pragma unroll
    for (int u = 0; u < kFewUnroll; ++u) {
      const int64_t at = begin + u * kRound;
      if (at >= k) continue;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const uint4 values = *reinterpret_cast<const uint4*>(x + r * k + at);
        const uint32_t v[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          const uint32_t by[4] = {weights[u][c].x, weights[u][c].y, weights[u][c].z,
                                  weights[u][c].w};
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float2 a = UnpackBf16(v[i]), b = UnpackBf16(by[i]);
            sum[r][c] = fmaf(a.x, b.x, fmaf(a.y, b.y, sum[r][c]));
          }
        }
      }
    }
  }
  WaitForPriorKernels();  // also of threads without a share: y may still be read
  __shared__ float parts[kFewThreads / 32][kRows][kChannels];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      float s = sum[r][c];
      for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2)
        s += __shfl_xor_sync(kAllLanes, s, lane_mask);
      if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32][r][c] = s;
    }
  }
  __syncthreads();
  if (threadIdx.x >= kRows * kOutputs) return;
  const int r = threadIdx.x / kOutputs, c = threadIdx.x % kOutputs;
  if (first + c >= outputs) return;
  const auto whole = [&](int channel) {
    float s = bias == nullptr ? 0 : bias[first + c];
    for (int part = 0; part < kFewThreads / 32; ++part) s += parts[part][r][channel];
    return s;
  };
  if constexpr (kGated) {
    StoreElement(y + r * outputs + first + c, SiluGated(whole(c), whole(c + kOutputs)));
  } else {
    StoreElement(y + r * outputs + first + c, whole(c));
  }
}

template <int kRows, bool kGated, class Out>
KernelStatus LaunchFewRows(const MatmulArgs& args, Out* y, cudaStream_t stream) {
  // More channels a block where there are plenty: x is read less often.
  const bool wide = args.n >= 16384;
  const int channels = wide ? 4 : 2;
  const auto kernel =
      wide ? FewRowsKernel<kRows, 4, kGated, Out> : FewRowsKernel<kRows, 2, kGated, Out>;
  return LaunchEarly("FewRowsKernel", kernel,
                     dim3(static_cast<unsigned>((args.n + channels - 1) / channels)),
                     dim3(kFewThreads), 0, stream, args.x, args.w, args.bias, y, args.n, args.k);
}

template <int kRows = 1>
KernelStatus FewRows(const MatmulArgs& args, cudaStream_t stream) {
  if constexpr (kRows < kMaxFewRows) {
    if (args.m > kRows) return FewRows<kRows + 1>(args, stream);
  }
  KernelStatus status = KernelStatus::kOk;
  WithType(args.y.data, args.y.type, [&](auto* y) {
    status = args.gated ? LaunchFewRows<kRows, true>(args, y, stream)
                        : LaunchFewRows<kRows, false>(args, y, stream);
  });
  return status;
}

}  // namespace

class MatmulContext {
 public:
  ~MatmulContext() {
    for (auto& [key, plan] : plans_) Destroy(&plan);
    if (handle_ != nullptr) lt_.destroy(handle_);
    cudaFree(workspace_);
  }

  KernelStatus Open() {
    KernelStatus status = OpenLt(&lt_);
    if (status == KernelStatus::kOk) status = CheckLt(lt_.create(&handle_), "cublasLtCreate");
    if (status == KernelStatus::kOk)
      status =
          Check(cudaMalloc(&workspace_, kWorkspaceBytes), "cudaMalloc of cuBLASLt's workspace");
    return status;
  }

  KernelStatus Run(const MatmulArgs& args, cudaStream_t stream) {
    if (args.m <= kMaxFewRows) return FewRows(args, stream);
    const Key key{args.m, args.n, args.k, args.bias != nullptr, args.y.type};
    auto it = plans_.find(key);
    if (it == plans_.end()) {
      Plan plan;
      const KernelStatus status = Make(args, &plan);
      if (status != KernelStatus::kOk) {
        Destroy(&plan);
        return status;
      }
      it = plans_.emplace(key, plan).first;
    }
    const Plan& plan = it->second;
    if (args.bias != nullptr) {
      const KernelStatus status =
          CheckLt(lt_.desc_set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &args.bias,
                               sizeof args.bias),
                  "cublasLt bias");
      if (status != KernelStatus::kOk) return status;
    }
    const float one = 1, zero = 0;
    return CheckLt(lt_.matmul(handle_, plan.operation, &one, args.w, plan.w, args.x, plan.x, &zero,
                              args.y.data, plan.y, args.y.data, plan.y, &plan.algorithm, workspace_,
                              kWorkspaceBytes, stream),
                   "cublasLtMatmul");
  }

 private:
  using Key = std::tuple<int64_t, int64_t, int64_t, bool, ElementType>;
  struct Plan {
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
    cublasLtMatmulAlgo_t algorithm{};
  };

  // In the library's column-major terms: y^T [n, m] = (W^T)^T x^T.
  KernelStatus Make(const MatmulArgs& args, Plan* plan) {
    const cudaDataType_t out = args.y.type == ElementType::kFloat32 ? CUDA_R_32F : CUDA_R_16BF;
    const cublasOperation_t transpose = CUBLAS_OP_T;
    KernelStatus status = KernelStatus::kOk;
    const auto step = [&status](cublasStatus_t s, const char* what) {
      if (status == KernelStatus::kOk) status = CheckLt(s, what);
    };
    step(lt_.desc_create(&plan->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLt operation");
    step(lt_.layout_create(&plan->w, CUDA_R_16BF, args.k, args.n, args.k), "cublasLt layout");
    step(lt_.layout_create(&plan->x, CUDA_R_16BF, args.k, args.m, args.k), "cublasLt layout");
    step(lt_.layout_create(&plan->y, out, args.n, args.m, args.n), "cublasLt layout");
    if (status != KernelStatus::kOk) return status;
    step(lt_.desc_set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof transpose),
         "cublasLt transpose");
    if (args.bias != nullptr) {
      const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
      step(lt_.desc_set(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue),
           "cublasLt epilogue");
      step(lt_.desc_set(plan->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &args.bias,
                        sizeof args.bias),
           "cublasLt bias");
    }
    cublasLtMatmulPreference_t preference = nullptr;
    step(lt_.preference_create(&preference), "cublasLt preference");
    step(lt_.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspaceBytes,
                            sizeof kWorkspaceBytes),
         "cublasLt preference");
    int found = 0;
    cublasLtMatmulHeuristicResult_t result{};
    if (status == KernelStatus::kOk) {
      step(lt_.heuristic(handle_, plan->operation, plan->w, plan->x, plan->y, plan->y, preference,
                         1, &result, &found),
           "cublasLtMatmulAlgoGetHeuristic");
    }
    if (preference != nullptr) lt_.preference_destroy(preference);
    if (status == KernelStatus::kOk && found == 0) status = KernelStatus::kUnsupported;
    plan->algorithm = result.algo;
    return status;
  }

  void Destroy(Plan* plan) {
    for (cublasLtMatrixLayout_t layout : {plan->w, plan->x, plan->y}) {
      if (layout != nullptr) lt_.layout_destroy(layout);
    }
    if (plan->operation != nullptr) lt_.desc_destroy(plan->operation);
  }

  Lt lt_{};
  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  std::map<Key, Plan> plans_;
};

KernelStatus CreateMatmul(MatmulContext** context) {
  *context = new MatmulContext;
  const KernelStatus status = (*context)->Open();
  if (status != KernelStatus::kOk) {
    delete *context;
    *context = nullptr;
  }
  return status;
}

void DestroyMatmul(MatmulContext* context) {
  delete context;
}

KernelStatus Matmul(MatmulContext* context, const MatmulArgs& args, Stream stream) {
  if (args.m <= 0 || args.n <= 0) return KernelStatus::kOk;
  if (args.k % 8 != 0 || (args.bias != nullptr && args.y.type != ElementType::kFloat32) ||
      (args.gated && (args.m > kMaxFewRows || args.n % 2 != 0 || args.bias != nullptr)))
    return KernelStatus::kUnsupported;
  return context->Run(args, static_cast<cudaStream_t>(stream.handle));
}

}  // namespace oscarkv::kernels::cuda
