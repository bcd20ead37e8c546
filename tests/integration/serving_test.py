"""A cluster under use: prefix hits, lanes, cancellation, overload, bad input, killed processes, eviction, corruption."""
import contextlib
import os
import re
import signal
import subprocess
import unittest
from pathlib import Path

from cluster import Cluster, ClusterTest, GenerateError, tokens, words


def listening(pid):
    """(address, port) of every TCP port that the process listens on; the address as /proc writes it."""
    sockets = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            sockets.add(os.readlink(fd))
    rows = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()]
    return [tuple(row[1].split(":")) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]


class Serving(ClusterTest):
    options = dict(kvstores=2, attentions=2, attention_args=["--handover-ttl", "5s"], prefill_args=["--handover-ttl", "5s"])

    def test_nobody_else_reaches_any_port(self):
        """Without --listen, --nodes on this machine: gRPC, metrics and what UCX opens."""
        for name, role in self.cluster.roles.items():
            ports = listening(role.process.pid)
            self.assertGreaterEqual(len(ports), 2 if name == "gateway" else 3, (name, ports))
            for address, port in ports:  # 127.0.0.1, ::ffff:127.0.0.1, ::1
                self.assertIn(address, ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"), (name, port))

    def test_prefix_hit_ships_over_shared_memory(self):
        prompt = words(1500)
        first = self.cluster.generate(prompt, "--max-tokens", 8)
        second = self.cluster.generate(prompt + " And then", "--max-tokens", 8)
        self.assertEqual(first["usage"]["cached_tokens"], 0)
        n = first["usage"]["prompt_tokens"]
        self.assertGreaterEqual(second["usage"]["cached_tokens"], n // 64 * 64 - 64)
        for usage in (first["usage"], second["usage"]):
            self.assertTrue(set(usage["lanes"]) & {"posix", "sysv"}, usage["lanes"])
        self.assertLess(first["usage"]["kv_bytes_stored"], first["usage"]["kv_bytes_bf16"] / 2)

    def test_question_after_the_handover_ttl(self):
        prompt = words(700, 3000)
        self.cluster.generate(prompt, "--max-tokens", 4)
        self.cluster.wait_for("hand-over blocks expired", lambda: sum(
            n.metric("oscarkv_kvstore_bytes", kind="handover") for n in self.cluster.of("kvstore")) == 0, timeout=30)
        again = self.cluster.generate(prompt, "--max-tokens", 4)
        self.assertGreater(again["usage"]["cached_tokens"], 0)
        self.assertEqual(again["usage"]["generated_tokens"], 4)

    def test_sampling_is_reproducible(self):
        args = ("--max-tokens", 16, "--temperature", 0.9, "--top-p", 0.95, "--seed", 7)
        first, second = (self.cluster.generate(words(80, 500), *args) for _ in range(2))
        self.assertEqual(tokens(first), tokens(second))
        other = self.cluster.generate(words(80, 500), *args[:-1], 8)
        self.assertNotEqual(tokens(first), tokens(other))

    def test_stop_string(self):
        free = self.cluster.generate(words(120, 900), "--max-tokens", 30)["text"]
        stop = free[len(free) // 2:len(free) // 2 + 4]
        cut = self.cluster.generate(words(120, 900), "--max-tokens", 30, "--stop", stop)
        self.assertEqual(cut["text"], free[:free.index(stop)])
        self.assertEqual(cut["finish_reason"], "stop_string")

    def test_bad_input_is_refused_with_the_reason(self):
        for args, part in ((("--temperature", "-1"), "temperature"), (("--max-tokens", 40000), "context"),
                           (("--top-p", 0), "top-p")):
            with self.subTest(args=args), self.assertRaisesRegex(GenerateError, part):
                self.cluster.generate("hello", *args)
        with self.assertRaisesRegex(GenerateError, "prompt"):
            self.cluster.generate("")

    def test_cancel_frees_everything(self):
        process = self.cluster.generate_process(words(400, 6000), "--max-tokens", 20000, "--ignore-eos")
        process.stdout.read(20)  # the answer is under way
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.cluster.wait_for("no sequence runs", lambda: all(
            w.metric("oscarkv_attention_running_sequences") == 0 for w in self.cluster.of("attention")), timeout=5)
        self.cluster.wait_for("no pins", lambda: all(
            n.metric("oscarkv_kvstore_pins") == 0 for n in self.cluster.of("kvstore")), timeout=5)


class Overload(ClusterTest):
    options = dict(gateway_args=["--max-running", "1", "--max-waiting", "1"])

    def test_full_queue_is_shed(self):
        running = [self.cluster.generate_process(words(300, 50 * i), "--max-tokens", 400, "--ignore-eos") for i in range(5)]
        ends = [(p.communicate(timeout=180)[1], p.returncode) for p in running]
        refused = [err for err, status in ends if status != 0]
        self.assertTrue(refused)
        self.assertLess(len(refused), 5)
        for err in refused:
            self.assertIn("RESOURCE_EXHAUSTED", err)


class KilledAttentionWorker(ClusterTest):
    """The only one; with two of them: resume_test.py."""
    options = dict(attentions=1, gateway_args=["--resume-wait", "0s"])

    def test_stream_ends_unavailable_and_nothing_leaks(self):
        process = self.cluster.generate_process(words(400), "--max-tokens", 20000, "--ignore-eos")
        process.stdout.read(20)
        self.cluster["attention-0"].kill()
        _, err = process.communicate(timeout=30)
        self.assertNotEqual(process.returncode, 0)
        self.assertIn("UNAVAILABLE", err)
        self.assertRegex(err, "attention worker .* failed after [0-9]+ tokens: .*no attention worker is available")
        node = self.cluster["kvstore-0"]
        self.cluster.wait_for("the dead session's pins and reservations are gone", lambda: (
            node.metric("oscarkv_kvstore_pins") == 0 and node.metric("oscarkv_kvstore_reserved_bytes") == 0), timeout=60)


class KilledPrefillWorker(ClusterTest):
    options = dict(prefills=2)

    def test_retried_on_the_other(self):
        process = self.cluster.generate_process(words(4000), "--max-tokens", 4, "--json")
        workers = self.cluster.of("prefill")

        def busy():
            return [w for w in workers if w.metric("oscarkv_prefill_running_prompts") > 0]

        self.cluster.wait_for("a worker computes the prompt", busy)
        busy()[0].kill()
        out, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, err + self.cluster.logs())
        self.assertEqual(self.cluster.gateway.metric("oscarkv_gateway_retries_total", stage="prefill"), 1)
        self.assertTrue(self.cluster.generate(words(50), "--max-tokens", 2)["tokens"])


class SmallStore(ClusterTest):
    options = dict(capacity="16MiB")

    def test_pinned_blocks_survive_eviction_under_pressure(self):
        node = self.cluster["kvstore-0"]
        reader = subprocess.Popen([os.environ["OSCARKV_PINNED_READER"], node.address, "64", "65536"], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(reader.kill)
        self.assertEqual(reader.stdout.readline(), "pinned\n")
        for i in range(6):
            answer = self.cluster.generate(words(1200, 1500 * i), "--max-tokens", 4)
            self.assertEqual(answer["usage"]["generated_tokens"], 4)
        self.assertGreater(node.metric("oscarkv_kvstore_evictions_total"), 0)
        self.assertLessEqual(node.metric("oscarkv_kvstore_bytes"), 16 << 20)
        self.assertGreaterEqual(node.metric("oscarkv_kvstore_pins"), 64)
        out, err = reader.communicate("read\n", timeout=30)
        self.assertEqual(out, "intact\n", err)
        self.assertEqual(reader.returncode, 0, err)
        self.cluster.wait_for("no pins", lambda: node.metric("oscarkv_kvstore_pins") == 0, timeout=10)


class Quota(ClusterTest):
    options = dict(kvstore_args=["--tenant-quota", "4MiB"])

    def test_requests_go_on_without_caching(self):
        answer = self.cluster.generate(words(2500), "--max-tokens", 4)
        self.assertEqual(answer["usage"]["generated_tokens"], 4)
        self.assertLessEqual(self.cluster["kvstore-0"].metric("oscarkv_kvstore_bytes"), 4 << 20)


class CorruptedBlock(ClusterTest):
    """Flips a bit of every stored 2-bit block in the node's memory, from outside. Deterministic: whoever meets the damage first, and computes
    what is missing, computes the same numbers."""
    options = dict(worker_args=["--deterministic"])

    @staticmethod
    def flip_stored_blocks(pid):
        flipped = 0
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "r+b", 0) as memory:
            for line in maps:
                span, access = line.split()[:2]
                begin, end = (int(x, 16) for x in span.split("-"))
                if access != "rw-s" or end - begin < 16 << 20:
                    continue
                memory.seek(begin)
                data = memory.read(end - begin)
                at = data.find(b"OSCARKVB")
                while at >= 0:
                    memory.seek(begin + at + 3000)
                    memory.write(bytes([data[at + 3000] ^ 4]))
                    flipped += 1
                    at = data.find(b"OSCARKVB", at + 4)
        return flipped

    def test_detected_counted_recomputed(self):
        prompt = words(1000)
        want = tokens(self.cluster.generate(prompt, "--max-tokens", 8))
        node = self.cluster["kvstore-0"]
        self.assertGreater(self.flip_stored_blocks(node.process.pid), 10)
        got = self.cluster.generate(prompt, "--max-tokens", 8)
        self.assertEqual(tokens(got), want)
        self.assertGreater(node.metric("oscarkv_kvstore_corrupt_blocks_total"), 0)
        # The node's lines name the trace of the request that met the damage.
        trace = re.findall(r" request done .* trace=([0-9a-f]{32}) ", self.cluster["gateway"].log())[-1]
        self.assertRegex(node.log(), f" corrupt block reported and erased .* trace={trace}\n")
        again = self.cluster.generate(prompt, "--max-tokens", 8)
        self.assertEqual(tokens(again), want)


class KilledKvNode(ClusterTest):
    options = dict(kvstores=2)

    def test_requests_go_on(self):
        prompt = words(900)
        want = tokens(self.cluster.generate(prompt, "--max-tokens", 6))
        self.cluster["kvstore-1"].kill()
        for _ in range(2):
            got = self.cluster.generate(prompt, "--max-tokens", 6, timeout=90)
            self.assertEqual(got["usage"]["generated_tokens"], 6)
        self.assertEqual(len(want), 6)


if __name__ == "__main__":
    unittest.main(verbosity=2)
