"""Two copies of each block: what is acknowledged survives any one KV node, at kill -9, standstill and corruption."""
import signal
import subprocess
import unittest

from cluster import BINARY, Cluster, ClusterTest, tokens, words


class Replicas(ClusterTest):
    options = dict(kvstores=3, attentions=1, zones=("east", "west", "north"))

    def ask(self, start, suffix=""):
        return self.cluster.generate(words(900, start) + suffix, "--max-tokens", 8)

    def failovers(self):
        return sum(role.metric("oscarkv_kvstore_client_failovers_total") for kind in ("gateway", "prefill", "attention")
                   for role in self.cluster.of(kind))

    def expect_full_hit(self, first, second):
        prompt = first["usage"]["prompt_tokens"]
        self.assertGreaterEqual(second["usage"]["cached_tokens"], prompt // 64 * 64, "a block is lost")
        self.assertEqual(second["usage"]["recomputed_tokens"], 0)
        self.assertEqual(second["usage"]["resumes"], 0)

    def wait_up(self):
        nodes = len(self.cluster.of("kvstore"))
        self.cluster.wait_for("all nodes are connected", lambda: all(
            role.metric("oscarkv_kvstore_client_node_up") == nodes
            for kind in ("gateway", "prefill", "attention") for role in self.cluster.of(kind)))

    def blocks(self):
        return [n.metric("oscarkv_kvstore_blocks", kind="page") for n in self.cluster.of("kvstore")]

    def test_each_block_is_on_two_nodes(self):
        # Only what this test writes counts: a block written while another test's node stood still may have one copy.
        self.wait_up()
        before = self.blocks()
        first = self.ask(0)
        pages = first["usage"]["prompt_tokens"] // 64 - 4

        def two_copies_of_each():
            written = [now - then for now, then in zip(self.blocks(), before)]
            return sum(written) >= 2 * pages and sum(written) % 2 == 0 and max(written) <= sum(written) / 2
        self.assertGreater(pages, 0)
        self.assertEqual(len(before), 3)
        self.cluster.wait_for("two copies of each block", two_copies_of_each)
        status = subprocess.run([BINARY, "status", "--gateway", self.cluster.gateway.address], capture_output=True, text=True,
                                check=True).stdout
        self.assertIn("copies of each block: 2", status)
        for zone in ("east", "west", "north"):
            self.assertIn(zone, status)

    def ask_where_first(self, node, start):
        """Asks new questions until one has blocks whose first replica is on this node: it is asked when they are looked up."""
        for i in range(20):
            before = node.metric("oscarkv_kvstore_lookups_total")
            answer = self.ask(start + 40 * i)
            if node.metric("oscarkv_kvstore_lookups_total") > before:
                return start + 40 * i, answer
        raise AssertionError(f"{node.role} is the first replica of nothing")

    def test_kill_any_one_node(self):
        for i, start in enumerate((5000, 7000, 9000)):
            with self.subTest(node=i):
                self.wait_up()
                start, first = self.ask_where_first(self.cluster[f"kvstore-{i}"], start)
                before = self.failovers()
                self.cluster[f"kvstore-{i}"].kill()
                second = self.ask(start, " And then")
                self.expect_full_hit(first, second)
                self.assertGreater(self.failovers(), before)
                self.assertEqual(tokens(second), tokens(self.ask(start, " And then")))
                self.cluster.restart(f"kvstore-{i}")
        self.wait_up()

    def test_a_node_that_stands_still(self):
        self.wait_up()
        first = self.ask(4000)
        victim = max(self.cluster.of("kvstore"), key=lambda n: n.metric("oscarkv_kvstore_blocks"))
        victim.send(signal.SIGSTOP)
        try:
            second = self.ask(4000, " And then")
            self.expect_full_hit(first, second)
        finally:
            victim.send(signal.SIGCONT)
        self.wait_up()


class OneCopy(unittest.TestCase):
    """The counter-test: without replicas the same fault does lose blocks."""

    def test_kill_loses(self):
        cluster = Cluster(kvstores=2, store_args=["--replicas", "1"])
        try:
            prompt = words(2600)
            first = cluster.generate(prompt, "--max-tokens", 4)
            # The ports are random, and with them the placement: one node may hold nothing.
            max(cluster.of("kvstore"), key=lambda n: n.metric("oscarkv_kvstore_blocks", kind="page")).kill()
            second = cluster.generate(prompt, "--max-tokens", 4)
            self.assertLess(second["usage"]["cached_tokens"], first["usage"]["prompt_tokens"] // 64 * 64)
        finally:
            cluster.stop()


if __name__ == "__main__":
    unittest.main(verbosity=2)
