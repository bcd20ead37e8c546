#include "model/cuda/cuda_library.h"

#include <dlfcn.h>

#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace oscarkv {
namespace {

namespace cuda = kernels::cuda;

std::vector<std::string> Candidates() {
  std::vector<std::string> paths;
  std::error_code error;
  const std::filesystem::path exe = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) {
    const std::filesystem::path folder = exe.parent_path();
    for (const char* from : {".", "../lib", "../kernels", "../../../kernels"}) {
      const auto path = (folder / from / cuda::kLibraryName).lexically_normal();
      if (std::filesystem::exists(path, error)) paths.push_back(path.string());
    }
  }
  paths.push_back(cuda::kLibraryName);
  return paths;
}

absl::StatusOr<const cuda::Api*> Open() {
  std::vector<std::string> errors;
  for (const std::string& path : Candidates()) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      errors.push_back(dlerror());
      continue;
    }
    const auto get =
        reinterpret_cast<decltype(&oscarkv_cuda_api)>(dlsym(library, cuda::kApiSymbol));
    const cuda::Api* api = get == nullptr ? nullptr : get();
    if (api != nullptr && api->version == cuda::kApiVersion && api->bytes == sizeof(cuda::Api))
      return api;
    errors.push_back(absl::StrCat(path, " belongs to another build of oscarkv"));
    dlclose(library);
  }
  return absl::UnavailableError(
      absl::StrCat("the CUDA library cannot be opened (", absl::StrJoin(errors, "; "),
                   "): build with -DOSCARKV_CUDA=ON, or use --device cpu"));
}

}  // namespace

absl::StatusOr<const cuda::Api*> OpenCudaLibrary() {
  static const absl::StatusOr<const cuda::Api*> api = Open();
  return api;
}

}  // namespace oscarkv
