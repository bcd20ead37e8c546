#!/usr/bin/env bash
# clang-tidy by .clang-tidy over what is compiled without a GPU: every file (40 CPU minutes), or those named, or those that differ from a commit.
#   scripts/tidy_check.sh
#   scripts/tidy_check.sh kvstore/core/kv_node.cc
#   scripts/tidy_check.sh --since main~5
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
install_packages build test lint
CMAKE_EXTRA=()
build_preset clang-check oscarkv  # the generated headers

case "${1:-}" in
  --since) mapfile -t files < <(git diff --name-only --diff-filter=d "${2:?a commit is expected}" -- '*.cc') ;;
  '') mapfile -t files < <(git ls-files '*.cc') ;;
  *) files=("$@") ;;
esac
# A file that no target compiles (the example outside of the build, targets that are off) has no command to read.
compiled=()
for file in "${files[@]}"; do
  grep -qF "\"$PWD/$file\"" build/clang-check/compile_commands.json && compiled+=("$file")
done
((${#compiled[@]} > 0)) || die "none of these files is compiled by the preset clang-check"
say "clang-tidy over ${#compiled[@]} files"
printf '%s\n' "${compiled[@]}" | xargs -P "$(nproc)" -n 1 clang-tidy-14 -p build/clang-check --quiet
