#include <gtest/gtest.h>

#include "kernels/cuda_device.h"
#include "tests/unit/kernels/cuda_checks.h"

namespace oscarkv::kernels {
namespace {

class DecodeStepCudaTest : public testing::TestWithParam<CudaCheck> {};
INSTANTIATE_TEST_SUITE_P(Checks, DecodeStepCudaTest, testing::ValuesIn(DecodeStepCudaChecks()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(DecodeStepCudaTest, Check) {
  if (cuda::DeviceCount() == 0) GTEST_SKIP() << "no usable GPU: " << cuda::LastError();
  EXPECT_EQ(GetParam().run(), "");
}

}  // namespace
}  // namespace oscarkv::kernels
