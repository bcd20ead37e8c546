#include "common/status_macros.h"

#include <memory>

#include "gtest/gtest.h"

namespace oscarkv {
namespace {

absl::StatusOr<std::unique_ptr<int>> Make(bool ok) {
  if (!ok) return absl::NotFoundError("none");
  return std::make_unique<int>(5);
}

absl::Status Use(bool ok, int* calls) {
  RETURN_IF_ERROR(absl::OkStatus());
  ASSIGN_OR_RETURN(const std::unique_ptr<int> a, Make(true));
  ASSIGN_OR_RETURN(std::unique_ptr<int> b,
                   Make(ok));  // two in one scope: their hidden variables differ
  *calls += *a + *b;
  RETURN_IF_ERROR(absl::AbortedError("end"));
  ++*calls;
  return absl::OkStatus();
}

TEST(StatusMacrosTest, ReturnEarly) {
  int calls = 0;
  EXPECT_EQ(Use(false, &calls), absl::NotFoundError("none"));
  EXPECT_EQ(calls, 0);
  EXPECT_EQ(Use(true, &calls), absl::AbortedError("end"));
  EXPECT_EQ(calls, 10);
}

}  // namespace
}  // namespace oscarkv
