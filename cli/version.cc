#include "cli/version.h"

#include "absl/strings/str_cat.h"
#include "kernels/cpu_targets.h"
#include "oscarkv_commit.h"
#include "transport/transport.h"

namespace oscarkv::cli {

std::string VersionText() {
  return absl::StrCat("oscarkv ", OSCARKV_VERSION, "\ncommit ", OSCARKV_COMMIT, "\ncompiler ",
                      OSCARKV_COMPILER, "\nUCX ", UcxVersion(), "\nkernels ",
                      kernels::CpuTargets());
}

}  // namespace oscarkv::cli
