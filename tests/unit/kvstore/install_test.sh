#!/bin/bash
# Installs the client library into an empty folder, builds kvstore/example against it outside of the tree, and runs it against two
# nodes over each data path.
#   install_test.sh BUILD_DIR SOURCE_DIR TEST_SERVER CXX_COMPILER
set -euo pipefail
build=$1 source=$2 server=$3 compiler=$4
work=$(mktemp -d)
pids=()
cleanup() {
  for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null || true; done
  rm -rf "$work"
}
trap cleanup EXIT

cmake --install "$build" --component kvstore_client --prefix "$work/prefix"
[ -z "$(find "$work/prefix" -name '*.h' -path '*core*')" ] || { echo "internal headers are installed" >&2; exit 1; }
cp -r "$source/kvstore/example" "$work/example"  # nothing of the tree is in reach by accident
cmake -S "$work/example" -B "$work/build" -DCMAKE_PREFIX_PATH="$work/prefix" -DCMAKE_CXX_COMPILER="$compiler" \
  -DCMAKE_BUILD_TYPE=Release > "$work/configure.log" || { cat "$work/configure.log" >&2; exit 1; }
cmake --build "$work/build"

nodes=
for i in 1 2; do
  mkfifo "$work/stdin$i"
  "$server" < "$work/stdin$i" > "$work/port$i" 2> "$work/node$i.log" &
  pids+=($!)
  exec {fd}> "$work/stdin$i"  # keeps the node alive until we end
  for _ in $(seq 600); do [ -s "$work/port$i" ] && break; sleep 0.05; done
  nodes+=${nodes:+,}127.0.0.1:$(cat "$work/port$i")
done
for path in ucx grpc; do
  "$work/build/kv_example" "$nodes" $path | tee "$work/out"
  grep -q ': ok$' "$work/out"
done
"$work/build/kv_example" 127.0.0.1:1 grpc 2> "$work/err" && { echo "a missing node is no error" >&2; exit 1; }
grep -q '127.0.0.1:1' "$work/err"
echo passed
