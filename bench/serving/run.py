#!/usr/bin/env python3
"""Load on a whole cluster: throughput up to saturation, what overload does to it, and memory over time.

    bench/serving/run.py                          writes bench/results/serving.md
    bench/serving/run.py --soak 1800              also half an hour at saturation, resident memory every half minute

One KV node, one prefill worker, two attention workers and a gateway as processes on this machine, reference model, closed loop:
each client asks again when its answer ended; who is refused comes back after 0.2 s (oscarkv bench)."""
import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/integration"))
from cluster import BINARY, Cluster  # noqa: E402


def load(cluster, clients, seconds, args):
    out = subprocess.run([BINARY, "bench", "--gateway", cluster.gateway.address, "--text", str(ROOT / "tests/data/wendigo.txt"), "--clients",
                          str(clients), "--seconds", str(seconds), "--prompt-bytes", str(args.prompt_bytes), "--prefixes",
                          str(args.prefixes), "--max-tokens", str(args.max_tokens)], capture_output=True, text=True, check=True).stdout
    rate, tokens = re.search(r"([\d.]+) requests/s, ([\d.]+) generated", out).groups()
    refused = {code: int(n) for n, code in re.findall(r"(\d+) failed with (\w+)", out)}
    # TTFT  32.3 ms  57.9 ms ...: p50, p90, p99, max, each with its unit
    latency = {row[0]: [" ".join(row[i:i + 2]) for i in range(1, len(row), 2)]
               for row in (line.split() for line in out.splitlines()) if row and row[0] in ("TTFT", "TPOT", "request")}
    return float(rate), float(tokens), refused, latency, out


def rss(cluster):
    page = os.sysconf("SC_PAGE_SIZE")
    return {name: int(Path(f"/proc/{role.process.pid}/statm").read_text().split()[1]) * page >> 20 for name, role in cluster.roles.items()}


def describe(refused):
    return ", ".join(f"{n} {code}" for code, n in refused.items()) or "-"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=20, help="of each step")
    parser.add_argument("--soak", type=int, default=0, help="seconds of load at saturation with memory watched")
    parser.add_argument("--clients", default="1,2,4,8,16")
    parser.add_argument("--prompt-bytes", type=int, default=3000)
    parser.add_argument("--prefixes", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--out", default=str(ROOT / "bench/results/serving.md"))
    args = parser.parse_args()
    lines = []

    def out(line=""):
        print(line, flush=True)
        lines.append(line)

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown CPU")
    out("# Serving under load\n")
    out(f"{cpu}, {os.cpu_count()} cores shared by all roles and the load; load average at the start {os.getloadavg()[0]:.1f}; commit {commit}; "
        f"{time.strftime('%Y-%m-%d')}")
    out(f"`bench/serving/run.py {' '.join(sys.argv[1:])}`: prompts of {args.prompt_bytes} bytes, {args.prefixes} different ones, "
        f"answers of {args.max_tokens} tokens.\n")
    cluster = Cluster(attentions=2)
    try:
        load(cluster, 4, 10, args)  # every prompt is in the store
        out("| clients | answers/s | tokens/s | TTFT p50 / p99 | request p50 / p99 | refused |\n|---|---|---|---|---|---|")
        best = (0, 0.0)
        for clients in map(int, args.clients.split(",")):
            rate, tokens, refused, latency, _ = load(cluster, clients, args.seconds, args)
            out(f"| {clients} | {rate:.2f} | {tokens:.0f} | {latency['TTFT'][0]} / {latency['TTFT'][2]} | {latency['request'][0]} / "
                f"{latency['request'][2]} | {describe(refused)} |")
            if rate > best[1] * 1.05:
                best = (clients, rate)
    finally:
        cluster.stop()
    saturated = best[0]
    out(f"\nSaturated by {saturated} clients. Overload: a gateway that admits {saturated} requests (`--max-running {saturated} --max-waiting "
        f"{saturated}`), goodput = answers that were complete:\n")
    cluster = Cluster(attentions=2, gateway_args=["--max-running", str(saturated), "--max-waiting", str(saturated)])
    try:
        load(cluster, 4, 10, args)
        out("| offered | clients | goodput, answers/s | of 1x | refused |\n|---|---|---|---|---|")
        one = None
        for times in (1, 2, 3, 6):
            rate, _, refused, _, _ = load(cluster, times * saturated, args.seconds, args)
            one = one or rate
            out(f"| {times}x | {times * saturated} | {rate:.2f} | {rate / one:.2f} | {describe(refused)} |")
        if args.soak:
            out(f"\nSoak: {args.soak} s with {saturated} clients; resident MiB of each role:\n")
            before = rss(cluster)
            out("| s | " + " | ".join(before) + " | answers/s |\n|" + "---|" * (len(before) + 2))
            start = time.monotonic()
            while time.monotonic() - start < args.soak:
                rate = load(cluster, saturated, 30, args)[0]
                out(f"| {time.monotonic() - start:.0f} | " + " | ".join(map(str, rss(cluster).values())) + f" | {rate:.2f} |")
    finally:
        cluster.stop()
    Path(args.out).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
