"""Answers whose attention worker is killed, stopped or drained while they stream, and whose gateway is killed: token for token
the undisturbed ones. Prefill history is canonical and workers decode one sequence at a time, so that nothing but the fault differs."""
import json
import signal
import subprocess
import time
import unittest

from cluster import BINARY, MODEL, ClusterTest, tokens, words

GREEDY = ()
SEEDED = ("--temperature", 0.8, "--top-p", 0.95, "--seed", 11, "--repetition-penalty", 1.1)
LENGTH = 150


def prompt_ids(n, start=0):
    out = subprocess.run([BINARY, "tokenize", "--model", MODEL, "--prompt", words(n, start)], capture_output=True, text=True,
                         check=True).stdout
    return ",".join(map(str, json.loads(out)[:n]))


class Stream:
    """One answer read as it comes, with something done to its attention worker after the given number of tokens."""

    def __init__(self, cluster, args, at, fault):
        process = cluster.generate_process("", "--jsonl", *args)
        self.tokens, self.text, self.victim, self.end = [], "", None, None
        for line in process.stdout:
            message = json.loads(line)
            if "usage" in message:
                self.end = message
                break
            self.tokens += message["tokens"]
            self.text += message["text"]
            if self.victim is None and self.tokens:
                self.victim = self.find(cluster)
            if at is not None and len(self.tokens) >= at:
                self.at, at = len(self.tokens), None
                self.lost = time.monotonic()
                fault(self.victim)
        self.error = process.stderr.read()
        self.status = process.wait(60)
        process.stdout.close()
        process.stderr.close()

    @staticmethod
    def find(cluster):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for role in cluster.of("attention"):
                if role.process.poll() is None and role.metric("oscarkv_attention_running_sequences") > 0:
                    return role
        raise AssertionError("no attention worker runs the request\n" + cluster.logs())


class ResumeCase(ClusterTest):
    options = dict(kvstores=2, attentions=2, worker_args=["--prefill-history", "canonical"],
                   attention_args=["--drain-timeout", "0s"], gateway_args=["--worker-silence", "2s"])

    def undisturbed(self, *args):
        answer = self.cluster.generate("", *args)
        self.assertEqual(answer["usage"]["resumes"], 0)
        return answer

    def check(self, want, stream, resumes=1):
        self.assertEqual(stream.status, 0, stream.error + self.cluster.logs())
        self.assertEqual([t["id"] for t in stream.tokens], tokens(want))
        for got, expected in zip(stream.tokens, want["tokens"]):
            self.assertAlmostEqual(got["logprob"], expected["logprob"], places=3)
            self.assertEqual([t["id"] for t in got.get("top", [])], [t["id"] for t in expected.get("top", [])])
        self.assertEqual(stream.text, want["text"])
        self.assertEqual(stream.end["finish_reason"], want["finish_reason"])
        usage = stream.end["usage"]
        self.assertEqual(usage["generated_tokens"], want["usage"]["generated_tokens"])
        self.assertEqual(usage["prompt_tokens"], want["usage"]["prompt_tokens"])
        self.assertEqual(usage["kv_bytes_stored"], want["usage"]["kv_bytes_stored"])
        self.assertEqual(usage["resumes"], resumes)
        return usage

    def expect_no_leak(self):
        self.cluster.wait_for("no sequence runs", lambda: all(
            w.metric("oscarkv_attention_running_sequences") == 0 for w in self.cluster.of("attention")), timeout=20)
        self.cluster.wait_for("pins and reservations are gone", lambda: all(
            n.metric("oscarkv_kvstore_pins") == 0 and n.metric("oscarkv_kvstore_reserved_bytes") == 0
            for n in self.cluster.of("kvstore")), timeout=60)

    def wait_usable(self):
        gateway = self.cluster.gateway
        self.cluster.wait_for("both attention workers are usable",
                              lambda: gateway.metric("oscarkv_gateway_worker_up", role="attention") == 2)

    # prompt tokens, sampling, tokens of the answer at which the fault happens. 700 + 4 rows fill block 10, 68 more the next.
    PLACES = (
        ("mid block", 700, GREEDY, 40),
        ("before a boundary", 700, GREEDY, 66),
        ("behind a boundary", 700, GREEDY, 69),
        ("first tokens", 700, SEEDED, 2),
        ("mid block, seeded", 700, SEEDED, 40),
        ("inside the window", 10, GREEDY, 20),
        ("sink just full", 10, SEEDED, 55),
        ("far behind a short prompt", 10, GREEDY, 130),
    )

    def each_place(self, fault, heal, reason, places=PLACES):
        for name, prompt, sampling, at in places:
            with self.subTest(name):
                args = ("--prompt-ids", prompt_ids(prompt, 100 * at), "--max-tokens", LENGTH, "--ignore-eos", "--logprobs", 2,
                        *sampling)
                want = self.undisturbed(*args)
                before = self.cluster.gateway.metric("oscarkv_gateway_resumes_total", reason=reason)
                stream = Stream(self.cluster, args, at, fault)
                heal(stream.victim)
                usage = self.check(want, stream)
                self.assertEqual(self.cluster.gateway.metric("oscarkv_gateway_resumes_total", reason=reason), before + 1)
                self.assertNotEqual(usage["attention_worker"], stream.victim.address)
                self.wait_usable()
                self.recomputed(name, usage)
        self.expect_no_leak()

    def recomputed(self, name, usage):
        # The rows since the last full block, and those of a block whose put had not ended.
        self.assertLess(usage["recomputed_tokens"], 128, name)

    def restart(self, role):
        self.cluster.restart(role.role)


class Resume(ResumeCase):
    def test_kill(self):
        self.each_place(lambda w: w.send(signal.SIGKILL), self.restart, "failed")

    def test_stop(self):
        self.each_place(lambda w: w.send(signal.SIGSTOP), lambda w: w.send(signal.SIGCONT), "silent", self.PLACES[:1] + self.PLACES[4:6])

    def test_drain(self):
        def heal(role):
            self.assertEqual(role.process.wait(20), 0)
            self.restart(role)
        self.recomputed = lambda name, usage: self.assertEqual(usage["recomputed_tokens"], 0, name)
        self.each_place(lambda w: w.send(signal.SIGTERM), heal, "handed_over")

    def test_stop_string_across_workers(self):
        args = ("--prompt-ids", prompt_ids(300, 900), "--ignore-eos")
        free = self.undisturbed(*args, "--max-tokens", 60)
        # Text that first appears behind the fault.
        start = len(free["text"]) * 2 // 3
        stop = next(free["text"][i:i + 6] for i in range(start, len(free["text"]))
                    if free["text"].find(free["text"][i:i + 6]) == i)
        want = self.undisturbed(*args, "--max-tokens", 60, "--stop", stop)
        stream = Stream(self.cluster, (*args, "--max-tokens", 60, "--stop", stop), 15, lambda w: w.send(signal.SIGKILL))
        self.restart(stream.victim)
        self.check(want, stream)
        self.assertEqual(stream.end["finish_reason"], "stop_string")
        self.wait_usable()

    def test_many_resumes(self):
        """A worker after the other dies; the last resume that is allowed still answers."""
        args = ("--prompt-ids", prompt_ids(500, 2000), "--max-tokens", 700, "--ignore-eos", *SEEDED)
        want = self.undisturbed(*args)
        process = self.cluster.generate_process("", "--jsonl", *args)
        got, kills, end = [], 0, None
        for line in process.stdout:
            message = json.loads(line)
            end = message.get("usage")
            if end:
                break
            got += [t["id"] for t in message["tokens"]]
            if kills < 3 and len(got) > 50 * kills + 30:
                victim = Stream.find(self.cluster)
                victim.kill()
                kills += 1
                self.restart(victim)
                self.wait_usable()
        self.assertEqual(process.wait(60), 0, process.stderr.read())
        process.stdout.close()
        process.stderr.close()
        self.assertEqual(got, tokens(want))
        self.assertEqual(end["resumes"], 3)
        self.wait_usable()

    def test_gateway_killed_and_client_retries(self):
        for sampling in (GREEDY, SEEDED):
            args = ("--prompt-ids", prompt_ids(300, 3000), "--max-tokens", LENGTH, "--ignore-eos", "--logprobs", 2, *sampling)
            want = self.undisturbed(*args)

            def fault(_):
                self.cluster.gateway.kill()
                self.cluster.gateway = self.cluster.restart("gateway")
            stream = Stream(self.cluster, (*args, "--retries", 20), 40, fault)
            self.check(want, stream, resumes=0)
            self.assertGreaterEqual(self.cluster.gateway.metric("oscarkv_gateway_client_retries_total"), 1)
            self.wait_usable()
        self.expect_no_leak()

    def test_gateway_drained_and_client_retries(self):
        args = ("--prompt-ids", prompt_ids(300, 3000), "--max-tokens", 1200, "--ignore-eos")
        want = self.undisturbed(*args)

        def fault(_):
            self.assertEqual(self.cluster.gateway.terminate(), 0)
            self.cluster.gateway = self.cluster.restart("gateway")
        stream = Stream(self.cluster, (*args, "--retries", 20), 40, fault)
        self.check(want, stream, resumes=0)
        self.wait_usable()


class OneOfEach(ResumeCase):
    """With one worker of each role there is nobody to go to: requests wait for it to come back, whoever else goes meanwhile."""
    options = dict(ResumeCase.options, attentions=1, gateway_args=["--worker-silence", "2s", "--poll-timeout", "30s", "--resume-wait", "60s"])

    def args(self, start, *sampling):
        return ("--prompt-ids", prompt_ids(300, start), "--max-tokens", LENGTH, "--ignore-eos", "--logprobs", 2, *sampling)

    def expect_waited(self, before):
        self.assertEqual(self.cluster.gateway.metric("oscarkv_gateway_worker_waits_total", outcome="came_back"), before + 1)

    def waited(self):
        return self.cluster.gateway.metric("oscarkv_gateway_worker_waits_total", outcome="came_back")

    def hold_prefill(self, client_args):
        """A request whose prefill is under way at a stopped worker."""
        self.cluster["prefill-0"].send(signal.SIGSTOP)
        client = self.cluster.generate_process("", "--json", *client_args)
        self.cluster.wait_for("the request runs", lambda: self.cluster.gateway.metric("oscarkv_gateway_running_requests") == 1)
        return client

    def finish(self, client, want):
        out, err = client.communicate(timeout=60)
        self.assertEqual(client.returncode, 0, err + self.cluster.logs())
        got = json.loads(out)
        self.assertEqual(tokens(got), tokens(want))
        self.assertEqual(got["text"], want["text"])
        self.assertEqual(got["usage"]["generated_tokens"], want["usage"]["generated_tokens"])

    def test_attention_worker(self):
        for sampling in (GREEDY, SEEDED):
            args, before = self.args(5000, *sampling), self.waited()
            want = self.undisturbed(*args)

            def fault(role):
                role.kill()
                self.restart(role)
            self.check(want, Stream(self.cluster, args, 40, fault))
            self.expect_waited(before)
        self.expect_no_leak()

    def test_prefill_worker(self):
        args, before = self.args(5500), self.waited()
        want = self.undisturbed(*args)
        client = self.hold_prefill(args)
        self.cluster["prefill-0"].kill()
        self.cluster.restart("prefill-0")
        self.finish(client, want)
        self.expect_waited(before)
        self.expect_no_leak()

    def test_gateway_before_the_first_token(self):
        args = self.args(6000, *SEEDED)
        want = self.undisturbed(*args)
        client = self.hold_prefill((*args, "--retries", 20))
        self.cluster.gateway.kill()
        self.cluster["prefill-0"].send(signal.SIGCONT)
        self.cluster.gateway = self.cluster.restart("gateway")
        self.finish(client, want)
        self.expect_no_leak()

    def test_gateway_and_attention_worker(self):
        args = self.args(6500)
        want = self.undisturbed(*args)

        def fault(role):
            role.kill()
            self.cluster.gateway.kill()
            self.cluster.gateway = self.cluster.restart("gateway")
            # The client is back, and waits for what is not there.
            self.cluster.wait_for("the retry has come", lambda: self.cluster.gateway.metric("oscarkv_gateway_running_requests") == 1)
            self.restart(role)
        self.check(want, Stream(self.cluster, (*args, "--retries", 20), 40, fault), resumes=0)
        self.expect_waited(0)
        self.expect_no_leak()


class ExpiredHandover(ResumeCase):
    """The window's bf16 copies are gone when the next worker wants them: its tokens are computed again over the stored pages."""
    options = dict(ResumeCase.options, attention_args=["--handover-ttl", "1s"], prefill_args=["--handover-ttl", "1s"],
                   gateway_args=["--worker-silence", "5s"])

    def recomputed(self, name, usage):
        self.assertGreater(usage["recomputed_tokens"], 256, name)

    def check(self, want, stream, resumes=1):
        """What prefill computes again is equal up to rounding: the first token that differs may do so only at a near tie."""
        self.assertEqual(stream.status, 0, stream.error + self.cluster.logs())
        usage = stream.end["usage"]
        self.assertEqual(usage["resumes"], resumes)
        self.assertEqual(len(stream.tokens), LENGTH)
        for i, (got, expected) in enumerate(zip(stream.tokens, want["tokens"])):
            best, second = (t["logprob"] for t in expected["top"])
            if got["id"] != expected["id"]:
                self.assertLess(best - second, 0.1, f"token {i} differs, and the best two were not close")
                break
            self.assertAlmostEqual(got["logprob"], expected["logprob"], delta=0.2, msg=f"token {i}")
        return usage

    def test_stop(self):
        self.each_place(lambda w: w.send(signal.SIGSTOP), lambda w: w.send(signal.SIGCONT), "silent", self.PLACES[:1])


if __name__ == "__main__":
    unittest.main(verbosity=2)
