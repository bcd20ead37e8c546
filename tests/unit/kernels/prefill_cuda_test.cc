#include <gtest/gtest.h>

#include "kernels/cuda_device.h"
#include "tests/unit/kernels/cuda_checks.h"

namespace oscarkv::kernels {
namespace {

class PrefillCudaTest : public testing::TestWithParam<CudaCheck> {};
INSTANTIATE_TEST_SUITE_P(Checks, PrefillCudaTest, testing::ValuesIn(PrefillCudaChecks()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(PrefillCudaTest, Check) {
  if (cuda::DeviceCount() == 0) GTEST_SKIP() << "no usable GPU: " << cuda::LastError();
  EXPECT_EQ(GetParam().run(), "");
}

}  // namespace
}  // namespace oscarkv::kernels
