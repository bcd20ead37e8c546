#!/bin/bash
# Measures metadata operations of a KV node beside empty gRPC calls of the same size and writes bench/results/kvstore.md.
# Run it on a quiet machine: bench/kvstore/run.sh [--build DIR] [--out FILE] [arguments of kvstore_bench]
set -euo pipefail
cd "$(dirname "$0")/../.."
build=build/release
out=bench/results/kvstore.md
while [ $# -gt 0 ]; do
  case $1 in
    --build) build=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    *) break ;;
  esac
done
binary=$build/bench/kvstore/kvstore_bench
[ -x "$binary" ] || { echo "$binary is missing: cmake --build $build --target kvstore_bench" >&2; exit 1; }
# Server and client share two cores.
command=("$binary" "$@")
pin=()
if command -v taskset > /dev/null && [ "$(nproc)" -gt 2 ]; then pin=(taskset -c 0,1); fi
# What others do on the machine is part of the result: the share of idle time in the two seconds before.
cpu_times() { awk '/^cpu / {print $5 + $6, $2 + $3 + $4 + $5 + $6 + $7 + $8 + $9}' /proc/stat; }
read -r idle0 all0 <<< "$(cpu_times)"
sleep 2
read -r idle1 all1 <<< "$(cpu_times)"
idle=$(((idle1 - idle0) * 100 / (all1 - all0)))
table=$("${pin[@]}" "${command[@]}")
mkdir -p "$(dirname "$out")"
cat > "$out" <<TABLE
# KV node: metadata operations

One server process and one client process on 2 cores, over gRPC on loopback, batches of 128 keys, no block bytes moved by the client
(the node checks the checksum of each 256-byte block when a put ends). A put is a PutStart and a PutEnd. The yardstick of the same
run: empty gRPC calls with messages of the same sizes, two of them for a put. Median of the repetitions.

Targets: 200,000 lookups/s, 80,000 put keys/s.

$table

- machine: $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2- | xargs), $(nproc) cores
- command: bench/kvstore/run.sh $*
- commit: $(git rev-parse --short HEAD)$(git diff --quiet HEAD -- kvstore proto common bench/kvstore || echo ' with changes')
- before the run the machine was $idle % idle; load average at the end: $(cut -d' ' -f1-3 /proc/loadavg)
TABLE
cat "$out"
