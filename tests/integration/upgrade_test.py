"""A rolling upgrade as docs/operations.md describes it: every process of a running cluster is stopped and started, one after the
other, KV nodes first and the gateway last, each time `oscarkv status --wait` says that it may go on. Clients ask all the time; every
answer is the one from before, none fails, and in the end the store has all that nobody asked for meanwhile, too.

From one version to another: OSCARKV_OLD_BINARY names the `oscarkv` of the version to come from, built from its tag (git worktree add
/tmp/old TAG; cmake --preset release there). The cluster is then upgraded and downgraded again. Without one it is restarted in this
version: the tree carries no binaries, and what a version may change of formats and protos is held by the golden bytes (tests/golden) and
by tests/unit/proto_compatibility.py, which run always.
"""
import os
import subprocess
import threading
import unittest

from cluster import BINARY, Cluster, tokens, words

OLD = os.environ.get("OSCARKV_OLD_BINARY", BINARY)
ORDER = ("kvstore-0", "kvstore-1", "kvstore-2", "prefill-0", "prefill-1", "attention-0", "attention-1", "gateway")
WORDS, CLIENTS, LENGTH = 400, 2, 40
ASKED, RESTING = range(5), range(5, 9)  # numbers of prompts


class OldCluster(Cluster):
    binary = OLD


class Load:
    """Clients that ask the same questions again and again until stop(), and compare the answers with those that are wanted."""

    def __init__(self, ask, want):
        self.answers, self.wrong = 0, []
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._client, args=(ask, want, i)) for i in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _client(self, ask, want, at):
        while not self._stop.is_set():
            at = (at + 1) % len(want)
            try:
                got = tokens(ask(at))
                problem = None if got == want[at] else f"prompt {at}: {got} for {want[at]}"
            except Exception as error:  # pylint: disable=broad-except  # whatever it is, the client has no answer
                problem = f"prompt {at}: {error}"
            with self._lock:
                self.answers += 1
                self.wrong += [problem] if problem else []

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()


class RollingUpgrade(unittest.TestCase):
    def setUp(self):
        # Deterministic: an answer is a function of its request alone, whatever was moved, lost or computed again.
        self.cluster = OldCluster(
            kvstores=3, prefills=2, attentions=2, capacity="96MiB", worker_args=["--deterministic"],
            kvstore_args=["--repair-interval", "300ms", "--drain-timeout", "30s"], attention_args=["--drain-timeout", "0s"])
        self.addCleanup(self.cluster.stop)

    def ask(self, i):
        return self.cluster.generate(words(WORDS, 700 * i), "--max-tokens", LENGTH, "--ignore-eos", "--retries", 100, "--timeout", "150s")

    def status(self, *args):
        return subprocess.run([BINARY, "status", "--gateway", self.cluster.gateway.address, *args], capture_output=True, text=True,
                              timeout=150)

    def wait_whole(self):
        status = self.status("--wait", "120s")
        self.assertEqual(status.returncode, 0, status.stdout + status.stderr + self.cluster.logs())

    def upgrade(self, role, binary):
        self.assertEqual(self.cluster[role].terminate(60), 0, self.cluster[role].log())
        restarted = self.cluster.restart(role, binary)
        if role == "gateway":
            self.cluster.gateway = restarted
        self.wait_whole()

    def found_in_store(self):
        """Tokens of prompts whose blocks were found, whatever became of them then: the recent window's copies live for minutes, and
        without them a deterministic worker computes the whole prompt."""
        return sum(worker.metric("oscarkv_prefill_prefix_tokens_total") for worker in self.cluster.of("prefill"))

    def test_nothing_is_lost_under_load(self):
        versions = [subprocess.run([b, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[:2] for b in (OLD, BINARY)]
        print(f"from {versions[0]} to {versions[1]}")
        first = {i: self.ask(i) for i in (*ASKED, *RESTING)}
        want = {i: tokens(answer) for i, answer in first.items()}
        stored = sum((answer["usage"]["prompt_tokens"] - 1) // 64 * 64 for i, answer in first.items() if i in RESTING)
        self.wait_whole()
        for binary in (BINARY,) if OLD == BINARY else (BINARY, OLD):
            load = Load(self.ask, [want[i] for i in ASKED])
            self.addCleanup(load.stop)
            for role in ORDER:
                with self.subTest(role=role, to=binary):
                    self.upgrade(role, binary)
            load.stop()
            print(f"{load.answers} answers meanwhile")
            self.assertEqual(load.wrong, [])
            self.assertGreaterEqual(load.answers, CLIENTS)
            self.assertEqual({role.binary for role in self.cluster.roles.values()}, {binary})
            self.assertEqual(sum(n.metric("oscarkv_kvstore_corrupt_blocks_total") for n in self.cluster.of("kvstore")), 0)
        found = self.found_in_store()
        for i in RESTING:
            self.assertEqual(tokens(self.ask(i)), want[i])
        self.assertGreaterEqual(self.found_in_store() - found, stored)

    def test_status_does_not_say_whole_while_something_is_away(self):
        self.cluster["attention-1"].terminate()
        status = self.status("--wait", "4s")
        self.assertEqual(status.returncode, 1)
        self.assertIn(f"attention worker {self.cluster['attention-1'].address} is down", status.stderr)
        self.cluster.restart("attention-1")
        self.cluster["kvstore-2"].kill()
        status = self.status("--wait", "4s")
        self.assertEqual(status.returncode, 1)
        self.assertIn(f"KV node {self.cluster['kvstore-2'].listen} is down", status.stderr)
        self.assertIn("attention", status.stdout)  # the table, too
        self.cluster.restart("kvstore-2")
        self.wait_whole()
        self.cluster.gateway.terminate()
        self.assertIn("no gateway answers", self.status("--wait", "2s").stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
