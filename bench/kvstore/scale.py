#!/usr/bin/env python3
"""Put and get throughput of one client process against 1, 2 and 4 KV nodes on loopback, and CPU per GB moved on both sides.

    bench/kvstore/scale.py [--build build/release] [--out bench/results/store_scale.md] [--seconds 3] [--repeat 3]

All processes share the machine's cores: what grows with nodes here is overhead, not speed. The CPU a byte costs is what carries over."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/integration"))
NODES = (1, 2, 4)
CASES = (("tcp", 1), ("tcp", 2), ("posix,tcp", 1))  # lanes, copies of each block


def cpu_seconds(pid):
    """User and system time of a process, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_busy():
    """Share of all cores' time that is not idle, over two seconds."""
    def read():
        values = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
        return values[3] + values[4], sum(values)
    idle, total = read()
    time.sleep(2)
    idle2, total2 = read()
    return 1 - (idle2 - idle) / (total2 - total)


def measure(args, cluster, bench, lanes, copies, nodes):
    roles = [cluster.Role(args.folder, f"kvstore-{i}", ["--capacity", "1GiB", "--ucx-lanes", lanes]) for i in range(nodes)]
    try:
        runs = []
        for _ in range(args.repeat):
            before = sum(cpu_seconds(r.process.pid) for r in roles)
            out = json.loads(subprocess.run(
                [bench, "--nodes", ",".join(r.address for r in roles), "--lanes", lanes, "--replicas", str(copies),
                 "--seconds", str(args.seconds)], check=True, capture_output=True, text=True).stdout)
            # Puts reach every replica.
            moved = (out["put_bytes_per_second"] * copies + out["get_bytes_per_second"]) * args.seconds / 1e9
            out["node_cpu_per_gb"] = (sum(cpu_seconds(r.process.pid) for r in roles) - before) / moved
            runs.append(out)
        return {key: statistics.median(r[key] for r in runs) for key in runs[0] if key != "lanes"} | {"lanes": runs[0]["lanes"]}
    finally:
        for role in roles:
            role.terminate()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build/release")
    parser.add_argument("--out", default="bench/results/store_scale.md")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    os.environ["OSCARKV_BINARY"] = str(Path(args.build).resolve() / "cli/oscarkv")
    import cluster
    import tempfile
    bench = str(Path(args.build).resolve() / "bench/kvstore/store_bench")
    busy = machine_busy()
    rows = []
    with tempfile.TemporaryDirectory(prefix="oscarkv-scale-") as args.folder:
        for lanes, copies in CASES:
            for nodes in NODES:
                if nodes >= copies:
                    rows.append((lanes, copies, nodes, measure(args, cluster, bench, lanes, copies, nodes)))
                    print(rows[-1], flush=True)
    base = {(lanes, copies): r for lanes, copies, nodes, r in reversed(rows)}
    lines = ["| lane | copies | nodes | put GB/s | against the fewest nodes | get GB/s | against the fewest nodes "
             "| client CPU s per GB: put, get | nodes' CPU s per GB moved |", "|---|---|---|---|---|---|---|---|---|"]
    for lanes, copies, nodes, r in rows:
        first = base[lanes, copies]
        put, get = r["put_bytes_per_second"], r["get_bytes_per_second"]
        lines.append(f"| {r['lanes']} | {copies} | {nodes} | {put / 1e9:.2f} | {put / first['put_bytes_per_second']:.2f} | {get / 1e9:.2f} "
                     f"| {get / first['get_bytes_per_second']:.2f} | {r['put_cpu_per_gb']:.2f}, {r['get_cpu_per_gb']:.2f} "
                     f"| {r['node_cpu_per_gb']:.2f} |")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip()
    model = next(line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    text = "\n".join(lines) + (f"\n\n- machine: {model}, {os.cpu_count()} cores\n- command: bench/kvstore/scale.py --seconds {args.seconds:g} "
                               f"--repeat {args.repeat}; medians\n- commit: {commit}\n- before the run the machine was {busy:.0%} busy; load average "
                               f"at the end: {' '.join(f'{x:.1f}' for x in os.getloadavg())}\n")
    print(text)
    Path(args.out).write_text("# The store against 1, 2 and 4 nodes\n\n" + text)


if __name__ == "__main__":
    main()
