// What the encoder on a GPU must do, as functions that return "" or what went wrong: the unit test
// runs them, and so does the benchmark's --check on machines without GoogleTest. They need a GPU.
#pragma once

#include <string>
#include <vector>

namespace oscarkv::kernels {

struct Q2EncodeCudaCheck {
  const char* name;
  std::string (*run)();
};
const std::vector<Q2EncodeCudaCheck>& Q2EncodeCudaChecks();

}  // namespace oscarkv::kernels
