"""Lost copies come back by themselves: after kill -9, a standstill and damage in memory, and before a node leaves. What is read
much gets more copies."""
import signal
import subprocess
import sys
import unittest

from cluster import BINARY, ROOT, ClusterTest, tokens, words

sys.path.insert(0, str(ROOT / "tests/chaos"))
from faults import flip_blocks  # noqa: E402

UNDER = "oscarkv_kvstore_under_replicated_blocks"


class RepairTest(ClusterTest):
    # Canonical: what is computed again behind a prefix hit has the same numbers. TCP: the arena is mapped once, and flipped once.
    options = dict(kvstores=3, attentions=1, capacity="96MiB", lanes="tcp", worker_args=["--prefill-history", "canonical"],
                   kvstore_args=["--repair-interval", "300ms", "--repair-grace", "3s", "--scrub-rate", "1GiB",
                                 "--drain-timeout", "15s"])

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.asked = {}

    def setUp(self):
        for i in range(3):
            if self.cluster[f"kvstore-{i}"].process.poll() is not None:
                self.cluster.restart(f"kvstore-{i}")
        self.wait_known()
        self.wait_whole()

    def wait_known(self):
        """Until all who ask know which nodes are up: right after two deaths a question may miss what the third node has."""
        self.cluster.wait_for("who is up is known", lambda: all(
            role.metric("oscarkv_kvstore_client_node_up") == len(self.alive())
            for kind in ("gateway", "prefill", "attention") for role in self.cluster.of(kind)))

    def alive(self):
        return [n for n in self.cluster.of("kvstore") if n.process.poll() is None]

    def under(self, state="waiting"):
        return sum(n.metric(UNDER, state=state) for n in self.alive())

    def wait_whole(self, timeout=30):
        """Blocks younger than five seconds are their writer's, so no block is under-replicated only when nothing else is stored."""
        def whole():
            return self.blocks() >= 2 * self.distinct() and self.under() == 0
        self.cluster.wait_for("all copies are there", whole, timeout)

    def blocks(self):
        return sum(n.metric("oscarkv_kvstore_blocks", kind=kind) for n in self.alive() for kind in ("page", "bf16"))

    def distinct(self):
        """Blocks of the prompts that were asked; what was generated filled no block."""
        return sum(answer["usage"]["prompt_tokens"] // 64 for answer in self.asked.values())

    def ask(self, start):
        self.asked[start] = self.cluster.generate(words(700, start), "--max-tokens", 4)
        return self.asked[start]

    def expect_full_hits(self):
        self.wait_known()
        for start, first in self.asked.items():
            with self.subTest(start=start):
                second = self.cluster.generate(words(700, start), "--max-tokens", 4)
                # Hand-over blocks are not repaired: without them the window is computed again, four blocks and the rest.
                self.assertGreaterEqual(second["usage"]["cached_tokens"], (first["usage"]["prompt_tokens"] // 64 - 4) * 64)
                self.assertEqual(tokens(second), tokens(first))

    def restored(self):
        return sum(n.metric("oscarkv_kvstore_repair_copies_total", outcome="restored") for n in self.alive())


class Deaths(RepairTest):
    def test_a_second_death_loses_nothing(self):
        for start in (0, 3000, 6000):
            self.ask(start)
        self.wait_whole()
        victim = max(self.alive(), key=lambda n: n.metric("oscarkv_kvstore_blocks", kind="page"))
        victim.kill()
        before = self.restored()
        # An idle machine may bring a few copies between two looks at the gauge.
        self.cluster.wait_for("the loss is known", lambda: self.under() > 0 or self.restored() > before)
        self.wait_whole()
        status = subprocess.run([BINARY, "status", "--gateway", self.cluster.gateway.address], capture_output=True, text=True,
                                check=True).stdout
        self.assertIn("under-replicated blocks: 0", status)
        max(self.alive(), key=lambda n: n.metric("oscarkv_kvstore_blocks", kind="page")).kill()
        self.expect_full_hits()
        self.cluster.wait_for("one node cannot hold two copies", lambda: self.under("no_node") > 0)

    def test_a_node_that_stops_leaves_its_copies(self):
        self.ask(12000)
        victim = max(self.alive(), key=lambda n: n.metric("oscarkv_kvstore_blocks", kind="page"))
        self.assertEqual(victim.terminate(30), 0)
        # The gauges follow within a tenth of a second.
        self.cluster.wait_for("its copies are elsewhere", lambda: self.blocks() >= 2 * self.distinct(), 5)
        max(self.alive(), key=lambda n: n.metric("oscarkv_kvstore_blocks", kind="page")).kill()
        self.expect_full_hits()

    def test_copies_heal_after_a_standstill(self):
        self.ask(15000)
        self.wait_whole()
        victim = max(self.alive(), key=lambda n: n.metric("oscarkv_kvstore_blocks", kind="page"))
        victim.send(signal.SIGSTOP)
        others = [n for n in self.alive() if n is not victim]
        try:
            self.ask(18000)
            self.cluster.wait_for("the others do without it", lambda: all(
                n.metric("oscarkv_kvstore_silent_peers") == 1 and n.metric(UNDER, state="waiting") == 0 for n in others))
        finally:
            victim.send(signal.SIGCONT)
        self.cluster.wait_for("it is back", lambda: all(n.metric("oscarkv_kvstore_silent_peers") == 0 for n in others))
        self.wait_whole()
        self.expect_full_hits()


class Damage(RepairTest):
    """A cluster of its own: each block is on two nodes, and what the scrubber erases is restored one for one."""

    def test_flipped_bits_are_found_and_repaired(self):
        self.ask(9000)
        self.wait_whole()
        victim = max(self.alive(), key=lambda n: n.metric("oscarkv_kvstore_blocks", kind="page"))
        stored = sum(victim.metric("oscarkv_kvstore_blocks", kind=kind) for kind in ("page", "bf16"))
        restored = self.restored()
        self.assertGreaterEqual(flip_blocks(victim.process.pid), stored)
        self.cluster.wait_for("the scrubber finds them", lambda: victim.metric(
            "oscarkv_kvstore_corrupt_blocks_total", found="scrub") >= stored)
        self.cluster.wait_for("good copies replace them", lambda: self.restored() >= restored + stored)
        for other in self.alive():
            self.wait_whole()
            if other is not victim:
                other.kill()  # what is left in the end is what was repaired
        self.expect_full_hits()


class HotTest(ClusterTest):
    options = dict(kvstores=3, attentions=1, capacity="96MiB", worker_args=["--prefill-history", "canonical"],
                   kvstore_args=["--hot-reads", "0.1"])  # one client, on a slow machine too

    def nodes(self, name, **labels):
        return sum(n.metric(name, **labels) for n in self.cluster.of("kvstore"))

    def test_what_is_read_much_gets_an_extra_copy_that_is_read(self):
        question = (words(700), "--max-tokens", 4)
        first = self.cluster.generate(*question)

        def read():
            self.assertEqual(tokens(self.cluster.generate(*question)), tokens(first))
            return self.nodes("oscarkv_kvstore_extra_reads_total") > 0
        self.cluster.wait_for("an extra copy is read", read, 120)
        self.assertGreater(self.nodes("oscarkv_kvstore_hot_copies_total", outcome="made"), 0)
        self.assertGreater(self.nodes("oscarkv_kvstore_extra_bytes"), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
