#!/bin/bash
# Measures the transport against ucx_perftest and a raw TCP stream and writes bench/results/transport.md.
# Run it on a quiet machine: bench/transport/run.sh [--build DIR] [--seconds S] [--repeat N] [--out FILE]
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python3 bench/transport/run.py "$@"
