#!/usr/bin/env python3
"""Injects faults into a cluster under load and checks that every answer stays what it was without faults.

    tests/chaos/chaos.py                      one of each fault, a few minutes
    tests/chaos/chaos.py --seconds 600        all faults in seeded random order, again and again for ten minutes

Each process runs in a network namespace of its own and UCX is held to TCP, so that a cut link cuts everything. The result is a
table of faults and outcomes; exit status 0 when every check held, 77 where no namespaces can be made."""
import argparse
import datetime
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))
import cluster as processes  # noqa: E402
from faults import (BitFlips, ClockJump, Delay, DiskFlips, EtcdPartition, FullDisk, Kill, Partition, Reset, Slow, Stall, Stop,  # noqa: E402
                    mount, rss)
from hosts import SUBNET, Network, Proxy, why_not  # noqa: E402
from load import Load, conversations  # noqa: E402

TTL_S = 15  # of hand-over blocks
RECOVERED = 4  # answers in a row
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


class ChaosCluster(processes.Cluster):
    """Cluster whose roles live on hosts of their own; KV nodes are reached through proxies. With `etcd` they register in one.

    Each node has a tier on a small disk of its own, where such may be mounted (`disks`), else in a folder."""

    def __init__(self, network, work, etcd, **options):
        self.network, self.proxies, self._pulsing, self.load = network, {}, None, None
        self.work, self.disks, self.full_disks, self.etcd = Path(work), [], True, None
        if etcd:
            self.etcd = Etcd(network.host("etcd"), self.work)
            options["etcd"] = ["--etcd", f"{network.host('etcd').address}:2379"]
        super().__init__(lanes="tcp", peers=False, **options)  # their addresses are those of proxies, made later

    def disk(self, role):
        return self.work / f"disk-{role}"

    def start(self, role, args):
        host = self.network.host(role)
        args = [*args, "--metrics-listen", f"{host.address}:0"]
        if role != "gateway":
            args += ["--ucx-devices", "eth0"]
        if role.startswith("kvstore"):
            self.proxies[role] = Proxy()
            if not mount(self.disk(role), "64m"):
                self.full_disks = False
            self.disks.append(role)
            args += ["--ssd-path", str(self.disk(role) / "tier"), "--ssd-capacity", "40MiB", "--ssd-admission", "always",
                     "--ssd-scrub-rate", "64MiB", "--slab", "1MiB"]
            if self.etcd:
                args += ["--etcd", f"{self.etcd.host.address}:2379", "--advertise", self.proxies[role].address]
        env = {}
        if self.has_clock(role):
            clock = Path(self._folder.name) / f"{role}.clock"
            clock.write_text("+0")
            # Deadlines count the monotonic clock, which no administrator can set.
            env = {"LD_PRELOAD": FAKETIME, "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_CACHE_DURATION": "1",
                   "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        self.roles[role] = started = processes.Role(self._folder.name, role, args, f"{host.address}:0", host.prefix, env)
        if role.startswith("kvstore"):
            self.proxies[role].target = started.listen
            started.address = self.proxies[role].address  # what the others are told
        return started

    def close(self):
        for role in self.roles.values():
            role.kill()
        if self.etcd:
            self.etcd.process.kill()
            self.etcd.process.wait()
        for role in self.disks:
            subprocess.run(["umount", str(self.disk(role))], capture_output=True, check=False)

    @staticmethod
    def has_clock(role):
        """Whether this role's wall clock can be set: the first of each kind, where libfaketime is installed."""
        return os.path.exists(FAKETIME) and role in ("kvstore-0", "attention-0", "prefill-0", "gateway")

    def set_clock(self, role, ahead_s):
        (Path(self._folder.name) / f"{role}.clock").write_text(f"+{ahead_s}")

    def log_ahead_s(self, role):
        """Seconds by which the newest line of a role's log is ahead of now."""
        for line in reversed(self[role].log().splitlines()):
            try:
                return (datetime.datetime.fromisoformat(line.split()[0]) - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
            except (ValueError, IndexError):
                continue
        return 0

    def total(self, kinds, name, **labels):
        """Sum over the living processes of these kinds."""
        return sum(values.get("sum", 0) for values in self._read(kinds, name, labels))

    def zeros(self, kinds, name, **labels):
        """How many series of a gauge are 0."""
        return sum(values.get("zeros", 0) for values in self._read(kinds, name, labels))

    def missing(self):
        """Workers that the gateway does not use, nodes that a client does not use, and processes that do not answer."""
        found = []
        for name, role in list(self.roles.items()):
            try:
                found += [f"{key} of {name}" for key, value in role.metrics(timeout=2).items()
                          if value == 0 and key.partition("{")[0] in ("oscarkv_gateway_worker_up", "oscarkv_kvstore_client_node_up")]
            except OSError as e:
                found.append(f"{name} ({e})")
        return found

    def _read(self, kinds, name, labels):
        for role_name, role in list(self.roles.items()):
            if role_name.rsplit("-", 1)[0] not in kinds:
                continue
            try:
                series = [value for key, value in role.metrics(timeout=0.5).items() if key.partition("{")[0] == name
                          and all(f'{k}="{v}"' in key for k, v in labels.items())]
            except OSError:
                continue  # dead, stopped or cut off
            yield {"sum": sum(series), "zeros": series.count(0.0)}

    def pulse(self, role, stopped_s=0.0, running_s=0.0):
        """Stops and continues a process in turns; None ends it."""
        if self._pulsing is not None:
            self._pulsing.set()
            self._pulsing = None
        if role is None:
            return
        done = self._pulsing = threading.Event()

        def run():
            while not done.is_set():
                role.send(processes.signal.SIGSTOP)
                done.wait(stopped_s)
                role.send(processes.signal.SIGCONT)
                done.wait(running_s)
        threading.Thread(target=run, daemon=True).start()


class Etcd:
    def __init__(self, host, work):
        self.host = host
        client, peer = f"http://{host.address}:2379", f"http://{host.address}:2380"
        self.process = subprocess.Popen(
            [*host.prefix, "etcd", "--data-dir", str(work / "etcd"), "--listen-client-urls", client, "--advertise-client-urls", client,
             "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
             "--log-level", "error"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            try:
                return socket.create_connection((host.address, 2379), 1).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


class Report:
    def __init__(self):
        self.rows, self.problems = [], []

    def problem(self, text):
        self.problems.append(text)
        print("PROBLEM:", text, flush=True)


def rate(outcomes, seconds):
    return sum(o.kind in ("ok", "tie") for o in outcomes) / seconds


def run_fault(fault, load, report, before_s):
    time.sleep(before_s)
    injected = time.monotonic()
    count = fault.before()
    fault.inject()
    seen = False
    while time.monotonic() < injected + (fault.hold_s if seen else max(fault.hold_s, fault.longest_hold_s)):
        time.sleep(0.3)
        seen = seen or fault.noticed() > count
    fault.heal()
    healed = time.monotonic()
    # Recovered: RECOVERED answers in a row, all asked after the healing.
    recovered = None
    while recovered is None and time.monotonic() < healed + 60:
        time.sleep(0.2)
        seen = seen or fault.noticed() > count
        run = 0
        for o in load.between(healed, float("inf")):
            run = run + 1 if o.kind in ("ok", "tie") else 0 if o.kind in ("failed", "refused", "hang", "wrong") else run
            if run == RECOVERED:
                recovered = o.end - healed
                break
    # Everybody is used again, not only enough to answer.
    deadline = time.monotonic() + 60
    while (missing := fault.cluster.missing()) and time.monotonic() < deadline:
        time.sleep(0.3)
    if missing:
        report.problem(f"{fault.name}: a minute after its end unused are {missing}")
    deadline = time.monotonic() + fault.notice_s
    while not seen and time.monotonic() < deadline:
        time.sleep(0.3)
        seen = fault.noticed() > count
    end = time.monotonic()
    kinds = Counter(o.kind for o in load.between(injected, end))
    report.rows.append((fault.name, rate(load.between(injected - before_s, injected), before_s),
                        rate(load.between(injected, healed), healed - injected),
                        rate(load.between(healed, end), max(end - healed, 0.1)), kinds, recovered, seen))
    print(format_row(report.rows[-1]), flush=True)
    if recovered is None:
        report.problem(f"{fault.name}: not {RECOVERED} answers in a row within 60 s of its end")
    if not seen:
        report.problem(f"{fault.name}: no counter shows it")


def format_row(row):
    name, before, during, after, kinds, recovered, seen = row
    outcome = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
    back = "-" if recovered is None else f"{recovered:.1f}"
    return f"| {name} | {before:.1f} | {during:.1f} | {after:.1f} | {outcome} | {back} | {'yes' if seen else 'NO'} |"


def schedule(args, cluster, rng):
    """One of each kind of fault and victim, or seeded random ones until the time is up."""
    def victim(kind):
        if kind in cluster.roles or kind == "etcd":
            return kind
        names = [n for n in cluster.roles if n.rsplit("-", 1)[0] == kind]
        if kind == "kvstore":  # one that somebody would miss
            names = [n for n in names if cluster[n].metric("oscarkv_kvstore_blocks", kind="page") > 0] or names
        return rng.choice(names)
    # The clocks first: what they leave behind, the others find.
    plan = [(ClockJump, n) for n in ("gateway", "attention-0", "prefill-0") if cluster.has_clock(n)]
    plan += [(Kill, "attention"), (Kill, "kvstore"), (Stop, "attention"), (Partition, "kvstore"), (Kill, "prefill"),
             (Reset, "kvstore"), (BitFlips, "kvstore"), (Kill, "gateway"), (Stall, "kvstore"), (Stop, "kvstore"), (Delay, "kvstore"),
             (Partition, "attention"), (Stop, "prefill"), (Slow, "kvstore"), (Partition, "prefill"), (DiskFlips, "kvstore")]
    if cluster.full_disks:
        plan.append((FullDisk, "kvstore"))
    else:
        print("no FullDisk: may not mount a tmpfs here", flush=True)
    if cluster.etcd:
        plan.append((EtcdPartition, "etcd"))
    if args.only:
        plan = [(f, k) for f, k in plan if f"{f.__name__}:{k}" in args.only.split(",")]
    if args.seconds is None:
        for fault, kind in plan[:args.faults]:
            yield fault(cluster, victim(kind))
        return
    end = time.monotonic() + args.seconds
    while True:
        for fault, kind in rng.sample(plan, len(plan)):
            if time.monotonic() >= end:
                return
            yield fault(cluster, victim(kind))


def check_baseline(cluster, grown, report):
    """What the load held is given back within the TTLs; what processes took has not grown without bound."""
    def quiet():
        kv, workers = ("kvstore",), ("attention", "prefill", "gateway")
        return {"pins": cluster.total(kv, "oscarkv_kvstore_pins"), "reserved": cluster.total(kv, "oscarkv_kvstore_reserved_bytes"),
                "quarantined": cluster.total(kv, "oscarkv_kvstore_quarantined_bytes"),
                "hand-over blocks": cluster.total(kv, "oscarkv_kvstore_blocks", kind="handover"),
                "running": cluster.total(workers, "oscarkv_attention_running_sequences")
                + cluster.total(workers, "oscarkv_prefill_running_prompts")
                + cluster.total(workers, "oscarkv_gateway_running_requests")}
    deadline = time.monotonic() + 3 * TTL_S + 30
    while any((held := quiet()).values()) and time.monotonic() < deadline:
        time.sleep(0.5)
    for what, value in held.items():
        if value:
            report.problem(f"{what} left behind: {value:.0f}")
    for name, role in cluster.roles.items():
        before, now = grown.get(role.process.pid), rss(role.process.pid)
        # A node's tier has up to three write buffers of 64 MiB.
        if before is not None and now > before * 1.25 + ((256 if name.startswith("kvstore") else 64) << 20):
            report.problem(f"{name} grew from {before >> 20} to {now >> 20} MiB")


def tokenize(text):
    out = subprocess.run([processes.BINARY, "tokenize", "--model", processes.MODEL, "--prompt", text], capture_output=True, text=True,
                         check=True).stdout
    return json.loads(out)


def write(args, report, outcomes, seconds, out):
    kinds = Counter(o.kind for o in outcomes)
    answers = kinds["ok"] + kinds["tie"] + kinds["wrong"]
    lines = ["| fault | answers/s before | during | after | requests that ended meanwhile | recovered after s | noticed |",
             "|---|---|---|---|---|---|---|", *map(format_row, report.rows), "",
             f"Seed {args.seed}; {len(report.rows)} faults in {seconds:.0f} s; {len(outcomes)} requests: "
             + ", ".join(f"{n} {k}" for k, n in sorted(kinds.items()))
             + f". Answers equal to the fault-free ones token for token: {kinds['ok']} of {answers}."]
    print("\n".join(lines), flush=True)
    if out:
        Path(out).write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, help="go on with random faults for so long; default: each fault of the plan once")
    parser.add_argument("--faults", type=int, help="only so many of the plan")
    parser.add_argument("--only", help="e.g. Kill:kvstore,Stop:attention")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--kvstores", type=int, default=5)
    parser.add_argument("--prefills", type=int, default=2)
    parser.add_argument("--attentions", type=int, default=3)
    parser.add_argument("--capacity", default="32MiB", help="memory of a KV node, so little that blocks go to its disk")
    parser.add_argument("--out")
    args = parser.parse_args()
    reason = why_not()
    if reason:
        print(f"skipped: {reason}")
        return 77
    rng, report, network = random.Random(args.seed), Report(), Network()
    cluster = None
    etcd = args.seconds is not None and shutil.which("etcd") is not None
    work = tempfile.TemporaryDirectory(prefix="oscarkv-chaos-")
    try:
        cluster = ChaosCluster(network, work.name, etcd, kvstores=args.kvstores, prefills=args.prefills, attentions=args.attentions,
                               capacity=args.capacity,
                               worker_args=["--deterministic", "--handover-ttl", f"{TTL_S}s", "--threads", "1"],
                               gateway_args=["--worker-silence", "3s", "--poll-timeout", "2s"])
        command = [processes.BINARY, "generate", "--gateway", cluster.gateway.address]
        tokens = tokenize(processes.words(9000))
        questions = conversations(command, tokens, args.seed, args.questions, max_tokens=48)
        print(f"{len(questions)} questions answered before any fault", flush=True)
        grown = {role.process.pid: rss(role.process.pid) for role in cluster.roles.values()}
        start = time.monotonic()
        load = cluster.load = Load(command, questions, tokens, args.seed, args.clients)
        try:
            for fault in schedule(args, cluster, rng):
                run_fault(fault, load, report, before_s=3.0 if args.seconds is None else 5.0)
        finally:
            outcomes = load.stop()
        seconds = time.monotonic() - start
        fresh = load.check_fresh()
        print(f"{len(fresh)} new questions asked again", flush=True)
        outcomes = [*outcomes, *(o for o in fresh if o.kind != "ok")]
        check_baseline(cluster, grown, report)
        for o in outcomes:
            if o.kind in ("wrong", "hang"):
                report.problem(f"{o.kind}: {o.detail}")
        # Workers are started --deterministic: without a fault or with it, an answer is the same.
        for o in outcomes:
            if o.kind == "tie":
                report.problem(f"differs at a near tie: {o.detail}")
        write(args, report, outcomes, seconds, args.out)
        for o in [o for o in outcomes if o.kind == "failed"][:5]:
            print("failed:", o.detail)
        if report.problems:
            print("\n".join(f"--- {name}\n{role.log()[-1500:]}" for name, role in cluster.roles.items()))
    except BaseException:
        if cluster is not None:
            print(cluster.logs())
        raise
    finally:
        if cluster is not None:
            cluster.close()
        network.close()
        work.cleanup()
    print(f"{len(report.problems)} problems" if report.problems else "all checks held")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
