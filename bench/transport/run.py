"""Drives transport_bench and its yardsticks; see run.sh. GB/s = 1e9 bytes a second, the median of the repeats. A ratio is
the median of ratios of which both sides were measured within seconds of each other: machines of two virtual cores change
their speed by half within minutes."""
import argparse
import os
import socket
import statistics
import subprocess
import sys
import time

BLOCKS = [9216, 36864, 73728, 165888, 1327104, 1 << 20, 4 << 20]
TARGET_SIZES = [1 << 20, 4 << 20]
LANES = {"shm": {"UCX_TLS": "posix,sysv,cma,self"}, "tcp": {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "lo"}}
PERFTESTS = ["ucp_get", "ucp_put_bw", "tag_bw", "ucp_am_bw", "stream_bw"]


class Server:
    def __init__(self, bench, lane):
        self.process = subprocess.Popen([bench, "serve", lane], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.address, self.region = self.process.stdout.readline().split()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def move(bench, server, lane, kind, block, depth, batch, readers, seconds):
    """Sum of the readers' GB/s, the median of their p50 latencies in us, the lane in use."""
    command = [bench, kind, lane, server.address, server.region, str(block), str(depth), str(batch), str(seconds)]
    clients = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(readers)]
    lanes = {c.stdout.readline().split()[1] for c in clients}
    for c in clients:
        c.stdin.write("\n")
        c.stdin.flush()
    results = [c.stdout.readline().split() for c in clients]
    for c in clients:
        if c.wait() != 0:
            sys.exit("transport_bench failed")
    return sum(float(r[0]) for r in results), statistics.median(float(r[1]) for r in results), ",".join(lanes)


def raw_tcp(bench, seconds, mode, messages=(64 << 10, 256 << 10, 1 << 20)):
    """GB/s of one stream whose ends poll or sleep in the kernel, the best message size."""
    return max(float(subprocess.run([bench, "raw", str(message), str(seconds), *(["poll"] if mode == "poll" else [])],
                                    capture_output=True, text=True, check=True).stdout) for message in messages)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def perftest(lane, test, size, window, seconds, options=()):
    env = dict(os.environ, **LANES[lane])
    port = str(free_port())
    # About `seconds` of work at 5 GB/s, ten times that over shared memory.
    iterations = str(max(100, int(seconds * (5e10 if lane == "shm" else 5e9) / size)))
    server = subprocess.Popen(["ucx_perftest", "-p", port], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.3)
        out = subprocess.run(["ucx_perftest", "127.0.0.1", "-p", port, "-t", test, "-s", str(size), "-n", iterations, "-w",
                              "50", "-f", "-O", str(window), *options], env=env, capture_output=True, text=True, timeout=120).stdout
    except subprocess.TimeoutExpired:
        return 0.0
    finally:
        server.kill()
        server.wait()
    # The last line of numbers: iterations, three times in us, average and overall MiB/s, two message rates.
    rows = [line.replace("Final:", "").split() for line in out.splitlines()]
    rows = [row for row in rows if len(row) == 8 and row[0].isdigit()]
    return float(rows[-1][5]) * 1.048576e-3 if rows else 0.0


def paired(repeat, ours, yard):
    """Medians of ours, of the yardstick, and of the ratios of neighbours."""
    pairs = [(ours(), yard()) for _ in range(repeat)]
    return [statistics.median(column) for column in
            ([a for a, _ in pairs], [b for _, b in pairs], [a / b if b else 0 for a, b in pairs])]


def against_perftest(lane, size, args, ours, options=()):
    """ours, ucx_perftest, ratio, test: against the better of the two tests that short runs of all found best."""
    short = {(test, window): perftest(lane, test, size, window, args.seconds / 5, options)
             for test in PERFTESTS for window in (1, 16)}
    finalists = sorted(short, key=short.get, reverse=True)[:2]
    results = [(*paired(args.repeat, ours, lambda t=test, w=window: perftest(lane, t, size, w, args.seconds, options)),
                f"{test} -O {window}") for test, window in finalists]
    return max(results, key=lambda r: r[1])


def median_of(repeat, f):
    return statistics.median(f() for _ in range(repeat))


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        model = next((l.split(":")[1].strip() for l in f if l.startswith("model name")), "unknown CPU")
    return f"{model}, {os.cpu_count()} cores, Linux {os.uname().release}"


def measure_targets(args, out, bench, server, lane):
    like = lane == "tcp"  # where endpoints with and without error handling differ
    out("One reader, 4 outstanding, against ucx_perftest's best (any of " + ", ".join(PERFTESTS) + "; window 1 or 16).")
    if like:
        out("Like for like is `ucx_perftest -e`: endpoints that notice dead peers, as all of ours over TCP. Without that, UCX's\n"
            "rendezvous protocol lets the kernel write into the receiver's buffer, which with it is not available.")
    extra = " perftest -e GB/s | test | read / perftest -e (target 0.90) |" if like else ""
    out(f"\n| bytes | read GB/s | write GB/s | ucx_perftest GB/s | test | read / perftest (target 0.90) |{extra}")
    out("|---" * (9 if like else 6) + "|")
    for size in TARGET_SIZES:
        def read(size=size):
            return move(bench, server, lane, "read", size, 4, 1, 1, args.seconds)[0]
        write = median_of(args.repeat, lambda s=size: move(bench, server, lane, "write", s, 4, 1, 1, args.seconds)[0])
        ours, yard, ratio, test = against_perftest(lane, size, args, read)
        row = f"| {size} | {ours:.2f} | {write:.2f} | {yard:.2f} | {test} | {ratio:.2f} |"
        if like:
            _, yard, ratio, test = against_perftest(lane, size, args, read, ("-e",))
            row += f" {yard:.2f} | {test} | {ratio:.2f} |"
        out(row)


def measure_blocks(args, out, bench, server, lane):
    tcp = lane == "tcp"
    out("\nBlocks, in batches of about 1 MB, 4 batches outstanding; GB/s in sum over the reader processes"
        + ("; raw: a single TCP\nstream of 1 MB messages over loopback whose ends sleep in the kernel, or poll, measured beside each row:\n" if tcp else ":\n"))
    extra = " raw, sleeping | raw, polling | 1 reader / sleeping (target 0.57) | / polling | least sum (target 2.00, or 0.57 raw) |" if tcp else ""
    out(f"| block bytes | 1 reader | 2 readers | 4 readers | write, 1 writer | one block alone, p50 us |{extra}")
    out("|---" * (11 if tcp else 6) + "|")
    for block in BLOCKS:
        batch = max(1, (1 << 20) // block)

        def read(readers=1, block=block, batch=batch):
            return move(bench, server, lane, "read", block, 4, batch, readers, args.seconds)[0]
        raws = {}
        if tcp:
            for mode in ("sleep", "poll"):
                one, *raws[mode] = paired(args.repeat, read, lambda m=mode: raw_tcp(bench, args.seconds, m, (1 << 20,)))
        else:
            one = median_of(args.repeat, read)
        sums = [one] + [median_of(args.repeat, lambda n=n: read(n)) for n in (2, 4)]
        write = median_of(args.repeat, lambda: move(bench, server, lane, "write", block, 4, batch, 1, args.seconds)[0])
        alone = median_of(args.repeat, lambda: move(bench, server, lane, "read", block, 1, 1, 1, args.seconds)[1])
        row = f"| {block} | " + " | ".join(f"{s:.2f}" for s in sums) + f" | {write:.2f} | {alone:.0f} |"
        if tcp:
            row += f" {raws['sleep'][0]:.2f} | {raws['poll'][0]:.2f} | {raws['sleep'][1]:.2f} | {raws['poll'][1]:.2f} | {min(sums):.2f} |"
        out(row)
    out("")


def measure(args, out):
    bench = os.path.join(args.build, "bench", "transport", "transport_bench")
    for lane in args.lanes.split(","):
        server = Server(bench, lane)
        out(f"## {lane}\n")
        measure_targets(args, out, bench, server, lane)
        measure_blocks(args, out, bench, server, lane)
        server.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", default="build/release")
    parser.add_argument("--seconds", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--lanes", default=",".join(LANES))
    parser.add_argument("--out", default="bench/results/transport.md")
    args = parser.parse_args()
    lines = []

    def out(line):
        print(line, flush=True)
        lines.append(line)

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    out("# Transport\n")
    out(f"{machine()}; load average at the start {os.getloadavg()[0]:.1f}; commit {commit}; {time.strftime('%Y-%m-%d')}")
    out(f"`bench/transport/run.sh --seconds {args.seconds} --repeat {args.repeat}`; server and readers are separate processes.\n")
    measure(args, out)
    out(f"Load average at the end {os.getloadavg()[0]:.1f} (the benchmark's own processes are two to five).")
    with open(args.out, "w", encoding="utf-8") as f:
        f.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
