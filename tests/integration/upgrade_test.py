"""A rolling upgrade: a cluster of the old version becomes one of the new version, process by process, while prompts are asked; then back.

OSCARKV_OLD_BINARY names the `oscarkv` of the version to come from, built from its tag (git worktree add /tmp/old TAG; cmake --preset release
there). Without one this skips: the tree carries no binaries, and what a version may change of formats and protos is held by the golden bytes
(tests/golden) and by tests/unit/proto_compatibility.py, which run always.
"""
import os
import subprocess
import unittest

from cluster import BINARY, Cluster, tokens, words

OLD = os.environ.get("OSCARKV_OLD_BINARY", "")
# KV nodes first, gateways last: docs/operations.md.
ORDER = ("kvstore-0", "kvstore-1", "kvstore-2", "prefill-0", "attention-0", "attention-1", "gateway")


class OldCluster(Cluster):
    binary = OLD


@unittest.skipUnless(OLD, "OSCARKV_OLD_BINARY is not set: the binary of the version to upgrade from")
class RollingUpgrade(unittest.TestCase):
    def test_forth_and_back(self):
        versions = [subprocess.run([b, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[:2] for b in (OLD, BINARY)]
        print(f"from {versions[0]} to {versions[1]}")
        c = OldCluster(kvstores=3, attentions=2, worker_args=["--deterministic"])  # an answer is then a function of its request alone
        self.addCleanup(c.stop)
        prompts = [words(900, 700 * i) for i in range(len(ORDER))]
        want = [tokens(c.generate(p, "--max-tokens", 12)) for p in prompts]
        for binary in (BINARY, OLD):
            for i, role in enumerate(ORDER):
                with self.subTest(role=role, to=binary):
                    self.assertEqual(c[role].terminate(60), 0, c[role].log())
                    c.gateway = c.restart(role, binary) if role == "gateway" else (c.restart(role, binary), c.gateway)[1]
                    c.wait_for("all see each other", lambda: c.gateway.metric("oscarkv_gateway_worker_up") == 3 and all(
                        r.metric("oscarkv_kvstore_client_node_up") == 3 for kind in ("prefill", "attention", "gateway") for r in c.of(kind)), 60)
                    # A prompt that is stored, one copy of it perhaps on a node of the other version, and one that is not.
                    for j in (i, (i + 3) % len(ORDER)):
                        answer = c.generate(prompts[j], "--max-tokens", 12)
                        self.assertEqual(tokens(answer), want[j])
                    self.assertEqual(sum(r.metric("oscarkv_kvstore_corrupt_blocks_total") for r in c.of("kvstore")), 0)
        # With two copies of each block on three nodes, nodes one at a time lose some hits, but not all of them.
        cached = [c.generate(p, "--max-tokens", 12)["usage"]["cached_tokens"] for p in prompts]
        self.assertGreater(sum(cached), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
