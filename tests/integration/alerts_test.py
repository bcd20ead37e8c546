"""Alert rules provoked for real: a cluster is brought into the trouble that a rule is for, until the real Prometheus says "firing".

The rules are the deployed ones but for their waiting times (`for`). dashboards_test.py provokes OscarkvTargetDown, OscarkvNoUsableWorker,
OscarkvStoreNodeUnreachable and OscarkvGatewayAbsent. Minutes: labelled slow. Prints a table of what was done and what fired after how long.
"""
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request
from pathlib import Path

from certificates import Certificates
from cluster import BINARY, ROOT, Cluster, Role, words
from dashboards_test import Prometheus

sys.path.insert(0, str(ROOT / "tests/chaos"))
from faults import flip_blocks, flip_files  # noqa: E402
from hosts import Network, why_not  # noqa: E402

SEEN = []  # (alert, how, seconds)


class NoCommonLane(Cluster):
    """Workers on other lanes than the KV nodes."""

    def start(self, role, args, listen="127.0.0.1:0"):
        args = list(args)
        if "--ucx-lanes" in args:
            args[args.index("--ucx-lanes") + 1] = "shm" if role.startswith("kvstore") else "tcp"
        return super().start(role, args, listen)


class FarStore(Cluster):
    """The KV node is on a host of its own, to which the way can be made slow."""

    def __init__(self, network, **options):
        self.network = network
        super().__init__(lanes="tcp", **options)

    def start(self, role, args, listen="127.0.0.1:0"):
        if not role.startswith("kvstore"):
            return super().start(role, [*args, *(() if role == "gateway" else ("--ucx-devices", self.network.bridge))], listen)
        host = self.network.host(role)
        self.roles[role] = Role(self._folder.name, role, [*args, "--metrics-listen", f"{host.address}:0", "--ucx-devices", "eth0"],
                                f"{host.address}:0", host.prefix)
        return self.roles[role]

    def way(self, how, *rate):
        """how: add, with a rate towards the node, or del."""
        subprocess.run(["tc", "qdisc", how, "dev", self.network.hosts["kvstore-0"].port, "root", *rate], check=True)


@unittest.skipIf(shutil.which("prometheus") is None, "prometheus is not installed (./test installs it)")
class Alerts(unittest.TestCase):
    @classmethod
    def tearDownClass(cls):
        print("\n| alert | provoked by | firing after |\n|---|---|---|")
        for alert, how, seconds in sorted(SEEN):
            print(f"| {alert} | {how} | {seconds:.0f} s |")

    def start(self, cluster_class=Cluster, more=(), **options):
        """A cluster, and `more` roles, scraped twice, with no alert yet."""
        self.cluster = cluster_class(**options)
        self.addCleanup(self.cluster.stop)
        for role, args in more:
            self.cluster.start(role, args)
        self.prometheus = Prometheus(self.cluster.roles)
        self.addCleanup(self.prometheus.stop)
        self.cluster.wait_for("every target was scraped twice", lambda: self.prometheus.series(
            "min(count_over_time(up[1m]))") and self.prometheus.series("min(count_over_time(up[1m]))")[0][1] >= 2, 60)
        return self.cluster

    def expect(self, how, *alerts, timeout=60, meanwhile=lambda: None):
        begin, left = time.monotonic(), set(alerts)

        def all_fired():
            meanwhile()
            for alert in left & self.prometheus.firing():
                SEEN.append((alert, how, time.monotonic() - begin))
                left.discard(alert)
            return not left
        self.cluster.wait_for(f"{left} fire", all_fired, timeout)

    def ask(self, count=1, length=900, at=0, **options):
        for i in range(count):
            self.cluster.generate(words(length, at + 500 * i), "--max-tokens", options.get("tokens", 2),
                                  "--retries", options.get("retries", 0))

    def long_answers(self, count, tokens=20000, length=60):
        processes = [self.cluster.generate_process(words(length, 100 * i), "--max-tokens", tokens, "--ignore-eos") for i in range(count)]

        def end():
            for p in processes:
                p.kill()
                p.communicate()
        self.addCleanup(end)
        return processes

    @unittest.skipUnless(os.geteuid() == 0, "writes into another process's memory")
    def test_corrupt_memory_and_a_lost_store(self):
        c = self.start()
        self.assertEqual(self.prometheus.firing(), set())
        self.ask(tokens=8)
        self.assertGreater(flip_blocks(c["kvstore-0"].process.pid), 10)
        self.ask(tokens=8)
        self.expect("bits flipped in the blocks of a KV node, from outside; asked again", "OscarkvCorruptBlocks")
        c["kvstore-0"].kill()
        self.ask(count=5, length=1600, at=9000)
        self.expect("the only KV node killed, five prompts", "OscarkvBlocksNotStored")

    def test_answers_that_fail(self):
        c = self.start()
        answers = self.long_answers(8)
        c.wait_for("all decode", lambda: c["attention-0"].metric("oscarkv_attention_running_sequences") == 8)
        c["attention-0"].kill()
        for p in answers:
            p.communicate()
        self.expect("the only attention worker killed with eight answers under way", "OscarkvErrors", "OscarkvWorkerFails")

    def test_too_many_requests(self):
        # One decodes, one waits for it at the attention worker, one waits at the gateway, the others are refused.
        c = self.start(attention_args=["--max-batch", "1"], gateway_args=["--max-running", "2", "--max-waiting", "1"])
        answers = self.long_answers(2)
        c.wait_for("both run", lambda: c["gateway"].metric("oscarkv_gateway_running_requests") == 2)
        third, = self.long_answers(1, tokens=2)
        c.wait_for("one waits", lambda: c["gateway"].metric("oscarkv_gateway_waiting_requests") == 1)
        self.expect("more requests than may run and wait", "OscarkvRefusals",
                    meanwhile=lambda: self.long_answers(1)[0].communicate())
        self.expect("a request that waits behind long answers, at the gateway and at an attention worker with --max-batch 1",
                    "OscarkvQueueAge", "OscarkvAttentionQueueAge", timeout=90)
        for p in answers:
            p.kill()
        third.communicate(timeout=60)
        self.expect("the same, when its first token came", "OscarkvSlowFirstToken")

    def test_slow_tokens(self):
        c = self.start()
        self.ask()
        c["attention-0"].send(signal.SIGSTOP)
        answer, = self.long_answers(1, tokens=4)
        c.wait_for("it has been prefilled", lambda: c["prefill-0"].metric("oscarkv_prefill_requests_total", code="OK") == 2)
        time.sleep(5)  # what is provoked is a delay
        c["attention-0"].send(signal.SIGCONT)
        answer.communicate(timeout=60)
        self.expect("an attention worker stopped for 5 s before the second of four tokens", "OscarkvSlowTokens")

    def test_too_little_memory(self):
        c = self.start(capacity="8MiB", kvstore_args=["--slab", "1MiB"])
        self.ask(count=6)
        self.expect("prompts of thrice the store's size, one after the other", "OscarkvShortCacheLife")
        reader = subprocess.Popen([os.environ["OSCARKV_PINNED_READER"], c["kvstore-0"].address, "80", "65536"], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True)
        self.addCleanup(reader.communicate)
        self.assertEqual(reader.stdout.readline(), "pinned\n")
        numbers = iter(range(1000))
        self.expect("a reader that pins 80 blocks of 64 KiB in 8 MiB", "OscarkvPinnedMemory", "OscarkvPutsRefused",
                    meanwhile=lambda: self.ask(at=20 * next(numbers)))

    def test_preemptions(self):
        self.start(attention_args=["--page-pool", "3MiB"])
        self.long_answers(8, tokens=1500, length=300)
        self.expect("eight growing answers in a page pool of 3 MiB", "OscarkvPreemptions", timeout=120)

    def test_profiles_that_differ(self):
        c = self.start(prefills=2)  # the second one is restarted below with another profile, and serves its metrics where it did
        other = c["prefill-1"]
        other.terminate()
        other.args[other.args.index("--profile") + 1] = "bf16"
        other.args += ["--metrics-listen", f"127.0.0.1:{other.metrics_port}"]
        c.restart("prefill-1")
        self.expect("one of two prefill workers restarted with --profile bf16", "OscarkvProfilesDiffer")

    def test_lanes(self):
        self.start(NoCommonLane)
        self.expect("KV nodes with --ucx-lanes shm, workers with tcp", "OscarkvDataPathDegraded")

    def restart_with(self, role, args=(), prefix=()):
        """The role again, with more arguments, its metrics where Prometheus knows them."""
        role = self.cluster[role]
        role.terminate()
        role.args += [*args, "--metrics-listen", f"127.0.0.1:{role.metrics_port}"]
        role.prefix = list(prefix)
        return self.cluster.restart(role.role)

    @unittest.skipUnless(os.geteuid() == 0, "makes a namespace")
    def test_a_worker_without_shared_memory(self):
        self.start()
        self.restart_with("attention-0", prefix=("unshare", "--ipc"))
        self.expect("an attention worker restarted in an IPC namespace of its own, as in a container", "OscarkvSlowerLane",
                    meanwhile=lambda: self.ask(at=100, retries=40))  # the gateway finds it again within seconds

    def test_a_writer_that_hangs(self):
        c = self.start(capacity="8MiB", kvstore_args=["--slab", "1MiB"])
        writer = subprocess.Popen([os.environ["OSCARKV_PINNED_READER"], c["kvstore-0"].address, "40", "65536", "unfinished"],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(writer.communicate)
        self.assertEqual(writer.stdout.readline(), "reserved\n")
        self.expect("a writer that reserves 40 blocks of 64 KiB in 8 MiB and does not write", "OscarkvAbandonedPuts")

    def test_prompts_that_wait(self):
        self.start(prefill_args=["--max-active", "1"])
        self.long_answers(10, tokens=2, length=4000)
        self.expect("ten prompts of 4000 words for a prefill worker with --max-active 1", "OscarkvPrefillQueueAge", timeout=240)

    def test_damage_on_a_disk(self):
        with tempfile.TemporaryDirectory(prefix="oscarkv-ssd-") as folder:
            c = self.start(capacity="8MiB", kvstore_args=["--ssd-path", folder, "--ssd-capacity", "256MiB", "--ssd-admission", "always",
                                                          "--slab", "1MiB", "--ssd-scrub-rate", "64MiB"])
            self.ask(count=6)
            c.wait_for("blocks are on disk", lambda: flip_files(folder) > 0)
            self.expect("bits flipped in the files of the tier on disk, from outside; asked again", "OscarkvSsdCorruptBlocks",
                        meanwhile=lambda: self.ask(count=6), timeout=90)
            self.doCleanups()

    def test_a_copy_is_missing(self):
        c = self.start(kvstores=2, kvstore_args=["--repair-interval", "1s"])
        self.ask(count=2)
        c["kvstore-1"].kill()
        self.expect("one of two KV nodes killed", "OscarkvUnderReplicated")

    def test_transfers_that_fail(self):
        c = self.start(lanes="tcp", worker_args=["--store-timeout", "1s"])
        numbers = iter(range(1000))

        def interrupted():
            """A prompt whose blocks are under way when the node stands still, longer than a call to the store may take."""
            prompt = c.generate_process(words(3000, 40 * next(numbers)), "--max-tokens", 2)
            c.wait_for("it is computed", lambda: c["prefill-0"].metric("oscarkv_prefill_running_prompts") > 0)
            c["kvstore-0"].send(signal.SIGSTOP)
            time.sleep(2)  # what is provoked is a standstill
            c["kvstore-0"].send(signal.SIGCONT)
            prompt.communicate(timeout=60)
        self.expect("a KV node stopped for 2 s again and again while prompts are stored over TCP, --store-timeout 1s",
                    "OscarkvTransferErrors", timeout=120, meanwhile=interrupted)

    def lag(self, *attention_args, **cluster):
        """Eight answers whose blocks go to a KV node slower than they are computed."""
        network = Network("okva", "10.213.78")
        self.addCleanup(network.close)
        c = self.start(lambda **options: FarStore(network, **options), attention_args=attention_args, **cluster)
        answers = self.long_answers(8)
        c.wait_for("all decode", lambda: c["attention-0"].metric("oscarkv_attention_running_sequences") == 8, 60)
        # A page of 64 tokens has 88 KB; the store takes at most one of them in 1.4 s.
        c.way("add", "tbf", "rate", "512kbit", "burst", "16kb", "latency", "100ms")
        self.expect(" ".join(("eight long answers at once, and 512 kbit/s towards the KV node", *attention_args, *cluster.values())),
                    "OscarkvDroppedPuts", timeout=600)
        self.assertIsNone(c["attention-0"].process.poll(), c["attention-0"].log())
        for p in answers:
            p.kill()
        c.way("del")
        return c["attention-0"]

    @unittest.skipIf(why_not(), why_not())
    def test_a_store_that_lags(self):
        worker = self.lag("--store-timeout", "60s")
        self.assertGreater(worker.metric("oscarkv_attention_dropped_puts_total"), 100)

    @unittest.skipIf(why_not(), why_not())
    def test_a_store_that_is_late(self):
        """By gRPC: through so slow a network UCX 1.13 is no good (README, limits)."""
        worker = self.lag(data_path="grpc")
        self.assertGreater(worker.metric("oscarkv_worker_blocks_total", op="put", code="DEADLINE_EXCEEDED"), 0)

    def test_strangers_on_the_data_path(self):
        c = self.start()
        for what, count, how, alert in (
                ("other_version", 3, "a process that sends messages of another version over UCX", "OscarkvMalformedMessages"),
                ("ended_session", 40, "a process that says hello over UCX with the secret of a session that has ended",
                 "OscarkvDataPathRefused")):
            stranger = subprocess.Popen([os.environ["OSCARKV_DATA_PATH_STRANGER"], c["kvstore-0"].address, what, str(count)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.addCleanup(stranger.communicate)
            self.assertEqual(stranger.stdout.readline(), "sending\n")
            self.expect(how, alert)
        self.assertEqual(c["kvstore-0"].metric("oscarkv_transport_malformed_messages_total"), 3)
        self.assertEqual(c["kvstore-0"].metric("oscarkv_transport_refused_total", what="hello"), 40)
        self.ask()  # others are served

    def test_http_clients_that_never_end_their_headers(self):
        c = self.start(gateway_args=["--http-listen", "127.0.0.1:0"])
        port = c["gateway"].http_port
        for _ in range(450):
            client = socket.create_connection(("127.0.0.1", port), timeout=60)
            self.addCleanup(client.close)
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=60) as response:  # others are served
            self.assertEqual(response.status, 200)
        self.expect("450 HTTP connections whose headers never end (slowloris)", "OscarkvHttpLimits", timeout=90)
        self.assertEqual(c["gateway"].metric("oscarkv_gateway_http_refused_total", reason="slow"), 450)

    def test_certificates_that_end(self):
        certs = Certificates()
        certs.authority("ca")  # ends in two days
        certs.certificate("server", days=7)
        secure = [*certs.args("server"), "--no-metrics-tls"]
        self.start(kvstore_args=secure, worker_args=secure, gateway_args=secure)
        self.expect("roles with a certificate of seven days", "OscarkvCertificateEnds")
        self.expect("roles with an authority's certificate of two days", "OscarkvCertificateEndsNow")

    def test_strangers(self):
        with tempfile.NamedTemporaryFile("w", suffix=".auth") as auth:
            auth.write("")
            auth.flush()
            c = self.start()
            self.restart_with("gateway", ["--auth-file", auth.name])
            command = [BINARY, "status", "--gateway", c["gateway"].address]
            self.expect("somebody who asks a gateway with --auth-file again and again without a token", "OscarkvCallersRefused",
                        meanwhile=lambda: subprocess.run(command, capture_output=True, check=False), timeout=90)

    @unittest.skipUnless(os.geteuid() == 0, "mounts a small file system")
    def test_a_full_disk(self):
        with tempfile.TemporaryDirectory(prefix="oscarkv-ssd-") as folder:
            if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], check=False).returncode != 0:
                self.skipTest("may not mount")
            self.addCleanup(lambda: subprocess.run(["umount", folder], check=False))
            self.start(capacity="8MiB", kvstore_args=["--ssd-path", str(Path(folder) / "tier"), "--ssd-capacity", "256MiB",
                                                      "--ssd-admission", "always", "--slab", "1MiB"])
            numbers = iter(range(1000))
            self.expect("a disk that is full before --ssd-capacity is used", "OscarkvSsdErrors",
                        meanwhile=lambda: self.ask(at=300 * next(numbers)), timeout=90)
            self.doCleanups()


if __name__ == "__main__":
    unittest.main(verbosity=2)
