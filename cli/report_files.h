// Reports of `oscarkv calibrate` and `oscarkv eval` on disk: a page, and its figures beside it.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "eval/figures.h"

namespace oscarkv::cli {

// `path` ends with .html (else kInvalidArgument; an empty one is allowed).
absl::Status CheckReportPath(const std::string& path);

// Writes <path>, and for every figure <path without .html>-<name>.svg, drawn by gnuplot. Where
// gnuplot is not installed the page holds the tables alone, and a line on stdout says so.
// kUnavailable: a file cannot be written, or gnuplot failed, with what it said.
absl::Status WriteReportFiles(const std::string& path, absl::string_view title,
                              absl::string_view tables, const std::vector<Figure>& figures);

}  // namespace oscarkv::cli
