#!/usr/bin/env bash
# The CUDA library compiles without warnings, for every machine that it is built for, and exports its
# table. Skipped (77) where there is no nvcc.
#   cuda_build_test.sh SOURCE
set -euo pipefail
source_dir=$1
nvcc=$(command -v nvcc || true)
[[ -n $nvcc ]] || nvcc=/usr/local/cuda/bin/nvcc
if [[ ! -x $nvcc ]]; then
  echo "skipped: no nvcc on the PATH nor at /usr/local/cuda/bin"
  exit 77
fi
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
cmake -S "$source_dir" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DOSCARKV_CUDA=ON -DOSCARKV_WERROR=ON \
  -DOSCARKV_ONLY_ROOMS=kernels -DOSCARKV_TESTS=OFF -DOSCARKV_BENCH=OFF -DCMAKE_CUDA_COMPILER="$nvcc" > "$build/configure.log" ||
  { cat "$build/configure.log"; exit 1; }
ninja -C "$build" -j2 oscarkv_kernels_cuda
nm -D --defined-only "$build/kernels/liboscarkv_kernels_cuda.so" | grep -q ' T oscarkv_cuda_api$'
echo "the CUDA library compiles and exports oscarkv_cuda_api"
