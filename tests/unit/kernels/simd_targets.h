// Runs a test body once per instruction set that was compiled and that this CPU has.
#pragma once

#include <gtest/gtest.h>

#include "hwy/targets.h"

namespace oscarkv::kernels {

template <class Body>
void ForEachSimdTarget(const Body& body) {
  const int64_t all = hwy::SupportedTargets();
  for (int64_t rest = all; rest != 0; rest &= rest - 1) {
    const int64_t target = rest & -rest;
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(target);
    body();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace oscarkv::kernels
