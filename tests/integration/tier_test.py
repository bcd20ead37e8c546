"""The tier on disk with real processes: what memory had no room for is found again, also after kill -9, and a full disk stops nobody."""
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

from cluster import BINARY, Cluster, ClusterTest, tokens, words

ARGS = ["--ssd-capacity", "256MiB", "--ssd-admission", "always", "--slab", "1MiB"]
WORKERS = ["--prefill-history", "canonical", "--handover-ttl", "2s"]  # a hit and a miss give the same tokens
PROMPT_WORDS = 900


def ask(cluster, number):
    return cluster.generate(words(PROMPT_WORDS, number * PROMPT_WORDS), "--max-tokens", 6)


def settled(node):
    return node.metric("oscarkv_kvstore_ssd_queued_bytes") == 0 and node.metric("oscarkv_kvstore_ssd_unflushed_bytes") == 0


class Tiered(ClusterTest):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="oscarkv-ssd-")
        cls.options = dict(kvstores=1, capacity="12MiB", worker_args=WORKERS,
                           kvstore_args=["--ssd-path", cls.folder.name + "/tier", *ARGS])
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.folder.cleanup()

    def test_blocks_come_back_from_disk_also_after_kill(self):
        node = self.cluster["kvstore-0"]
        first = ask(self.cluster, 0)
        # All but the recent window, whose hand-over blocks have expired.
        stored = (first["usage"]["prompt_tokens"] - 256) // 64 * 64
        self.assertEqual(first["usage"]["cached_tokens"], 0)
        for number in range(1, 9):
            ask(self.cluster, number)
        self.cluster.wait_for("everything evicted is on disk", lambda: settled(node))
        self.assertGreater(node.metric("oscarkv_kvstore_ssd_demotions_total", outcome="written"), 20)
        self.assertGreater(node.metric("oscarkv_kvstore_blocks", tier="ssd"), 20)

        again = ask(self.cluster, 0)
        self.assertGreaterEqual(again["usage"]["cached_tokens"], stored)
        self.assertEqual(tokens(again), tokens(first))
        self.assertGreater(node.metric("oscarkv_kvstore_ssd_promotions_total", outcome="ok"), 5)
        self.assertGreater(node.metric("oscarkv_kvstore_ssd_bytes_total", direction="promoted"), 100_000)

        self.cluster.wait_for("all is flushed", lambda: settled(node))
        on_disk = node.metric("oscarkv_kvstore_blocks", tier="ssd")
        node.kill()
        node = self.cluster.restart("kvstore-0")
        self.assertEqual(node.metric("oscarkv_kvstore_ssd_adopted_blocks"), on_disk)
        self.cluster.wait_for("the others found the node again", lambda: all(
            role.metric("oscarkv_kvstore_client_reconnects_total") >= 1 for kind in ("prefill", "attention", "gateway")
            for role in self.cluster.of(kind)))
        self.assertEqual(node.metric("oscarkv_kvstore_blocks", tier="memory"), 0)
        after = ask(self.cluster, 0)
        self.assertGreaterEqual(after["usage"]["cached_tokens"], stored)
        self.assertEqual(tokens(after), tokens(first))
        self.assertGreater(node.metric("oscarkv_kvstore_ssd_promotions_total", outcome="ok"), 5)
        self.assertEqual(node.metric("oscarkv_kvstore_ssd_corrupt_blocks_total"), 0)

        status = subprocess.run([BINARY, "status", "--gateway", self.cluster.gateway.address], capture_output=True, text=True,
                                check=True).stdout
        self.assertRegex(status, rf"SSD TIER +STATE(.|\n)*{node.address} +up +256.00 MiB")


class FullDisk(unittest.TestCase):
    @unittest.skipUnless(os.geteuid() == 0, "mounts a small file system")
    def test_a_full_disk_stops_nobody(self):
        with tempfile.TemporaryDirectory(prefix="oscarkv-ssd-") as folder:
            if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], check=False).returncode != 0:
                self.skipTest("may not mount")
            try:
                cluster = Cluster(kvstores=1, capacity="8MiB", worker_args=WORKERS,
                                  kvstore_args=["--ssd-path", str(Path(folder) / "tier"), *ARGS])
                try:
                    node = cluster["kvstore-0"]
                    for number in range(12):
                        answer = ask(cluster, number)
                        self.assertEqual(answer["usage"]["generated_tokens"], 6)
                    cluster.wait_for("the disk was full", lambda: node.metric("oscarkv_kvstore_ssd_errors_total") > 0)
                    cluster.wait_for("what did not fit was counted", lambda: node.metric(
                        "oscarkv_kvstore_ssd_drops_total", reason="disk_error") > 0)
                    ask(cluster, 12)
                finally:
                    statuses = cluster.stop()
                self.assertEqual(set(statuses.values()), {0}, cluster.last_logs)
            finally:
                subprocess.run(["umount", folder], check=True)


if __name__ == "__main__":
    unittest.main(verbosity=2)
