"""KV nodes that register in a real etcd: join, kill -9, leave; etcd killed and back; everything goes on meanwhile."""
import shutil
import socket
import subprocess
import tempfile
import time
import unittest

from cluster import BINARY, Cluster, tokens, words


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Etcd:
    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="oscarkv-etcd-")
        self.port, self.peer_port = free_port(), free_port()
        self.start()

    def start(self):
        client, peer = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.peer_port}"
        self.process = subprocess.Popen(
            ["etcd", "--data-dir", self.folder.name + "/data", "--listen-client-urls", client, "--advertise-client-urls", client,
             "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
             "--log-level", "error"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("etcd does not listen")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.kill()
        self.folder.cleanup()


@unittest.skipIf(shutil.which("etcd") is None, "etcd is not installed (./test installs it)")
class EtcdCluster(unittest.TestCase):
    def setUp(self):
        self.etcd = Etcd()
        etcd = ["--etcd", f"127.0.0.1:{self.etcd.port}", "--etcd-prefix", "/test/"]
        self.cluster = Cluster(kvstores=2, kvstore_args=[*etcd, "--zone", "west"], etcd=etcd)

    def tearDown(self):
        statuses = self.cluster.stop()
        self.etcd.stop()
        self.assertFalse({n: s for n, s in statuses.items() if s != 0}, self.cluster.last_logs)

    def members(self, count, timeout=30):
        self.cluster.wait_for(f"{count} members", lambda: all(
            r.metric("oscarkv_kvstore_client_members") == count and r.metric("oscarkv_kvstore_client_node_up") >= count
            for kind in ("gateway", "prefill", "attention") for r in self.cluster.of(kind)), timeout)

    def status(self):
        return subprocess.run([BINARY, "status", "--gateway", self.cluster.gateway.address], capture_output=True, text=True,
                              check=True).stdout

    def test_life(self):
        prompt = words(900)
        first = self.cluster.generate(prompt, "--max-tokens", 8)
        full = first["usage"]["prompt_tokens"] // 64 * 64
        self.assertIn("2 nodes (etcd)", self.status())

        # A third node joins: it is used, and what was stored before is found.
        third = self.cluster.start("kvstore-2", self.cluster.kvstore_args)
        self.members(3)
        again = self.cluster.generate(prompt, "--max-tokens", 8)
        self.assertGreaterEqual(again["usage"]["cached_tokens"], full - 64)
        self.assertIn(third.address, self.status())

        # etcd dies: the last view serves on; a node that dies meanwhile too.
        self.etcd.kill()
        self.cluster.wait_for("etcd is missed", lambda: self.cluster.gateway.metric(
            "oscarkv_kvstore_client_membership_connected") == 0, 30)
        self.assertIn("MEMBERSHIP NOT REACHABLE", self.status())
        self.assertEqual(tokens(self.cluster.generate(prompt, "--max-tokens", 8)), tokens(again))
        self.cluster["kvstore-0"].kill()
        self.assertGreaterEqual(self.cluster.generate(prompt, "--max-tokens", 8)["usage"]["cached_tokens"], full - 64)

        # etcd comes back: registrations go on, the dead node's ends with its lease.
        self.etcd.start()
        self.cluster.wait_for("nodes registered again", lambda: all(
            self.cluster[f"kvstore-{i}"].metric("oscarkv_kvstore_registered") == 1 for i in (1, 2)), 30)
        self.cluster.wait_for("etcd is there", lambda: self.cluster.gateway.metric(
            "oscarkv_kvstore_client_membership_connected") == 1, 30)
        self.members(2, 60)
        self.assertGreaterEqual(self.cluster.generate(prompt, "--max-tokens", 8)["usage"]["cached_tokens"], full - 64)

        # A new process at the dead node's address is another incarnation, and is used.
        self.cluster.restart("kvstore-0")
        self.members(3)
        # One that stops in good order leaves at once.
        self.assertEqual(third.terminate(), 0)
        self.cluster.wait_for("it has left", lambda: self.cluster.gateway.metric("oscarkv_kvstore_client_members") == 2, 10)
        self.cluster.generate(prompt, "--max-tokens", 4)


if __name__ == "__main__":
    unittest.main(verbosity=2)
