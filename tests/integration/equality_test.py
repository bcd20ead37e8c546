"""The disaggregated run with bf16 pages answers token for token like a single process; prompts around every block border."""
import json
import subprocess
import unittest

from cluster import BINARY, MODEL, Cluster, ClusterTest, tokens, words

LENGTHS = (1, 63, 64, 65, 319, 320, 321, 383, 384, 385)


def prompts():
    """Token id prompts of the lengths that matter, and longer ones."""
    process = subprocess.run([BINARY, "tokenize", "--model", MODEL, "--prompt", words(1500)], capture_output=True,
                             text=True, check=True)
    ids = json.loads(process.stdout)
    return [ids[:n] for n in (*LENGTHS, 1000)]


def local(prompt, profile, *args):
    process = subprocess.run([BINARY, "generate", "--model", MODEL, "--profile", profile, "--json", "--max-tokens", "40",
                              "--ignore-eos", "--prompt-ids", ",".join(map(str, prompt)), *args],
                             capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


class Bf16Equality(ClusterTest):
    options = dict(profile="bf16", kvstores=2)

    def test_token_for_token(self):
        for prompt in prompts():
            with self.subTest(tokens=len(prompt)):
                want = tokens(local(prompt, "bf16"))
                got = self.cluster.generate("", "--max-tokens", 40, "--ignore-eos", "--prompt-ids",
                                            ",".join(map(str, prompt)))
                self.assertEqual(tokens(got), want)
                self.assertEqual(len(want), 40)


class OscarEquality(ClusterTest):
    """Canonical history: the prompts share prefixes, and a token's KV does not depend on what was found in the store."""
    options = dict(profile="oscar", kvstores=2, worker_args=["--prefill-history", "canonical"])

    def test_token_for_token(self):
        for prompt in prompts():
            with self.subTest(tokens=len(prompt)):
                want = tokens(local(prompt, self.options["profile"], "--prefill-history", "canonical"))
                got = self.cluster.generate("", "--max-tokens", 40, "--ignore-eos", "--prompt-ids",
                                            ",".join(map(str, prompt)))
                self.assertEqual(tokens(got), want)


class ShapedSymEquality(OscarEquality):
    """Pages of another size, without offset planes."""
    options = dict(OscarEquality.options, profile="shaped-sym")


class GrpcDataPath(ClusterTest):
    options = dict(profile="oscar", kvstores=2, data_path="grpc")

    def test_answers_and_lane(self):
        prompt = words(900)
        first = self.cluster.generate(prompt, "--max-tokens", 20)
        self.assertEqual(first["usage"]["lanes"], ["grpc"])
        again = self.cluster.generate(prompt, "--max-tokens", 20)
        self.assertEqual(tokens(first), tokens(again))
        self.assertGreater(again["usage"]["cached_tokens"], 0)


class TcpLane(ClusterTest):
    """As between hosts: no shared memory, active messages over TCP."""
    options = dict(profile="oscar", kvstores=2, lanes="tcp", worker_args=["--prefill-history", "canonical"])

    def moved(self, role, direction, **labels):
        return sum(r.metric("oscarkv_transport_bytes_total", direction=direction, **labels) for r in self.cluster.of(role))

    def test_answers_and_every_byte_over_tcp(self):
        for prompt in prompts()[-3:]:
            want = tokens(local(prompt, "oscar", "--prefill-history", "canonical"))
            for attempt in ("computed", "prefix hit"):
                with self.subTest(tokens=len(prompt), attempt=attempt):
                    got = self.cluster.generate("", "--max-tokens", 40, "--ignore-eos", "--prompt-ids",
                                                ",".join(map(str, prompt)))
                    self.assertEqual(tokens(got), want)
                    self.assertEqual(got["usage"]["lanes"], ["tcp"])
            self.assertGreater(got["usage"]["cached_tokens"], 0)
        self.assertGreater(self.moved("prefill", "written", lane="tcp"), 0)
        read = self.moved("attention", "read", lane="tcp")
        self.assertGreater(read, 0)
        self.assertGreaterEqual(self.moved("kvstore", "served_read", lane="tcp"), read)
        for role in ("kvstore", "prefill", "attention"):
            for lane in ("shm", "rdma"):
                for direction in ("read", "written", "served_read", "served_written"):
                    self.assertEqual(self.moved(role, direction, lane=lane), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
