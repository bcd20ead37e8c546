#include <gtest/gtest.h>

#include "kernels/cuda_device.h"
#include "tests/unit/kernels/cuda_checks.h"

namespace oscarkv::kernels {
namespace {

class Q2EncodeCudaTest : public testing::TestWithParam<CudaCheck> {};
INSTANTIATE_TEST_SUITE_P(Checks, Q2EncodeCudaTest, testing::ValuesIn(Q2EncodeCudaChecks()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(Q2EncodeCudaTest, Check) {
  if (cuda::DeviceCount() == 0) GTEST_SKIP() << "no usable GPU: " << cuda::LastError();
  EXPECT_EQ(GetParam().run(), "");
}

}  // namespace
}  // namespace oscarkv::kernels
