#!/bin/bash
# Shows that an answer outlives its attention worker: starts a small cluster of real processes, asks once undisturbed, asks again and
# kills the worker that decodes with SIGKILL while the text streams, and compares the two texts byte for byte.
#   scripts/resume_demo.sh [BINARY [MODEL]]     (by default the release build and the reference model; run from the repository's root)
set -euo pipefail
binary=${1:-build/release/cli/oscarkv}
model=${2:-models/reference}
prompt="The Wendigo, as the old guide told it by the fire, was"
folder=$(mktemp -d -t oscarkv-resume-XXXXXX)
declare -A pid_of
pids=()
stop() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$folder"
}
trap stop EXIT

# start NAME ROLE ARGS...: runs a role on a free port; its address is then in $address.
start() {
  local name=$1 role=$2
  shift 2
  "$binary" "$role" --listen 127.0.0.1:0 --ready-file "$folder/$name" "$@" 2>"$folder/$name.log" &
  local pid=$!
  pids+=("$pid")
  for ((i = 0; i < 600; i++)); do
    [ -f "$folder/$name" ] && break
    kill -0 "$pid" 2>/dev/null || { cat "$folder/$name.log"; exit 1; }
    sleep 0.1
  done
  address=127.0.0.1:$(sed -n 's/^grpc=//p' "$folder/$name")
  pid_of[$address]=$pid
  echo "$name: pid $pid, $address"
}

worker=(--model "$model" --prefill-history canonical)
start kvstore-0 kvstore --capacity 64MiB; nodes=$address
start kvstore-1 kvstore --capacity 64MiB; nodes=$nodes,$address
start prefill-0 prefill "${worker[@]}" --nodes "$nodes"; prefill=$address
start attention-0 attention "${worker[@]}" --nodes "$nodes"; attention=$address
start attention-1 attention "${worker[@]}" --nodes "$nodes"; attention=$attention,$address
start gateway gateway --model "$model" --nodes "$nodes" --prefill "$prefill" --attention "$attention"; gateway=$address

ask() { "$binary" generate --gateway "$gateway" --prompt "$prompt" --max-tokens 160 --ignore-eos --temperature 0.8 --seed 3 "$@"; }

echo; echo "== undisturbed"
ask --json >"$folder/undisturbed.json"
ask | tee "$folder/undisturbed.txt"
# The router gives equal prompts to the same worker of an idle cluster.
victim=$(sed -n 's/.*"attention_worker":"\([^"]*\)".*/\1/p' "$folder/undisturbed.json")

echo; echo "== again, and kill -9 ${pid_of[$victim]} (the attention worker at $victim) once 200 bytes have come"
: >"$folder/killed.txt"
ask --usage >"$folder/killed.txt" 2>"$folder/usage.txt" &
client=$!
while [ "$(stat -c %s "$folder/killed.txt")" -lt 200 ]; do
  kill -0 "$client" 2>/dev/null || { cat "$folder/usage.txt"; exit 1; }
  sleep 0.005
done
kill -9 "${pid_of[$victim]}"
wait "${pid_of[$victim]}" 2>/dev/null || true
before=$(stat -c %s "$folder/killed.txt")
wait "$client" || { cat "$folder/usage.txt"; exit 1; }
head -c "$before" "$folder/killed.txt"
printf '[killed here]'
tail -c +$((before + 1)) "$folder/killed.txt"
echo; cat "$folder/usage.txt"

echo; echo "== the gateway's log"
grep -E "failed a request|resuming|request done.*resumes=[1-9]" "$folder/gateway.log" | cut -d' ' -f2-
echo
grep -q "resumed 1 times" "$folder/usage.txt" || { echo "the worker that was killed did not decode this answer"; exit 1; }
cmp "$folder/undisturbed.txt" "$folder/killed.txt"
echo "both texts are equal, byte for byte"
