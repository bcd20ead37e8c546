#!/bin/bash
# Draws docs/images/decode_h200.svg, bytes and time of decoding against context, from bench/results/*_h200.md. Needs gnuplot.
set -euo pipefail
cd "$(dirname "$0")/../.."

# Rows "| batch 8, 32K | 49.9 | ... |" of one batch as: context in K tokens, best bf16 us, 2-bit us, 2-bit MB.
kernel() {
  awk -F'|' -v batch="batch $1" '{ gsub(/^ +| +$/, "", $2); split($2, c, ", ") }
    c[1] == batch && c[2] ~ /^[0-9]+K$/ && !c[3] { print c[2] + 0, ($12 + 0 < $11 + 0 ? $12 : $11) + 0, $3 + 0, $5 + 0 }' \
    bench/results/paged_attention_h200.md
}
# Rows "| 32K | 8 | 562 | 54 | 3453 | ...": context, tokens/s of bf16 and of 2 bits under one budget of memory.
budget() {
  awk -F'|' '/^Under a KV budget/ { on = 1 } /^Issue/ { on = 0 } on && $2 ~ /^ [0-9]+K $/ { print $2 + 0, $4 + 0, $6 + 0 }' bench/results/decode_h200.md
}
data=$(mktemp -d)
trap 'rm -rf "$data"' EXIT
kernel 1 > "$data/b1"; kernel 32 > "$data/b32"; budget > "$data/budget"
for f in b1 b32 budget; do [[ $(wc -l < "$data/$f") == 3 ]] || { echo "$f: 3 contexts expected in bench/results" >&2; exit 1; }; done

gnuplot <<GNUPLOT
set terminal svg size 900,330 dynamic font "sans-serif,12" background "#ffffff"
set output "docs/images/decode_h200.svg"
set multiplot layout 1,3 margins 0.075,0.985,0.17,0.84 spacing 0.085
bf16 = "#9a9a9a"; two = "#0b6e99"
set xtics (8, 32, 64, 128) nomirror; set ytics nomirror; set border 3; set grid ytics lc "#e4e4e4"
set xlabel "context, K tokens"; set xrange [0:135]; set yrange [0:*]
set key top left reverse Left samplen 1.5
set title "KV of one Qwen3-8B sequence, GB"
# 147,456 and 20,736 bytes per token; 320 tokens of sink and window stay bf16.
plot 147456 * 1024 * x / 1e9 lw 2 lc rgb bf16 title "bf16", (20736 * 1024 * x + (147456 - 20736) * 320) / 1e9 lw 2 lc rgb two title "2 bits"
set title "attention of a layer, batch 32, us"
set ytics 1000
plot "$data/b32" using 1:2 with linespoints pt 7 ps 0.6 lw 2 lc rgb bf16 title "best bf16", \
     "$data/b32" using 1:3 with linespoints pt 7 ps 0.6 lw 2 lc rgb two title "2 bits"
set title "tokens/s with 40 GB of KV"
set ytics autofreq; set key top right noreverse Right
set logscale xy; set xtics (8, 32, 128); set xrange [6:170]; set yrange [90:20000]; unset mytics; set ytics (100, 1000, 10000)
plot "$data/budget" using 1:2 with linespoints pt 7 ps 0.6 lw 2 lc rgb bf16 title "bf16", \
     "$data/budget" using 1:3 with linespoints pt 7 ps 0.6 lw 2 lc rgb two title "2 bits"
GNUPLOT
echo "wrote docs/images/decode_h200.svg"
