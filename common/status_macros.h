// Early return on a bad absl::Status.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define OSCARKV_CONCAT_INNER(a, b) a##b
#define OSCARKV_CONCAT(a, b) OSCARKV_CONCAT_INNER(a, b)

// RETURN_IF_ERROR(DoIt());
#define RETURN_IF_ERROR(expr)                           \
  do {                                                  \
    if (absl::Status _status = (expr); !_status.ok()) { \
      return _status;                                   \
    }                                                   \
  } while (0)

// ASSIGN_OR_RETURN(auto x, MakeX());
#define ASSIGN_OR_RETURN(lhs, expr) \
  OSCARKV_ASSIGN_OR_RETURN(OSCARKV_CONCAT(_statusor, __LINE__), lhs, expr)
#define OSCARKV_ASSIGN_OR_RETURN(var, lhs, expr) \
  auto var = (expr);                             \
  if (!var.ok()) return var.status();            \
  lhs = std::move(var).value()
