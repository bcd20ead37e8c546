"""A mixed load whose every answer is known: conversations of two turns over shared texts, some of them cancelled half way."""
import json
import random
import signal
import subprocess
import threading
import time

# Log probabilities closer than this may change places by rounding; see docs/operations.md.
NEAR_TIE = 0.05
DEADLINE_S = 30


class Question:
    def __init__(self, ids, max_tokens):
        self.ids, self.max_tokens = ids, max_tokens
        self.want = None  # the fault-free tokens
        self.gaps = None  # of each: how much likelier than the second best

    def args(self):
        return ["--prompt-ids", ",".join(map(str, self.ids)), "--max-tokens", str(self.max_tokens), "--ignore-eos", "--logprobs",
                "2", "--timeout", f"{DEADLINE_S}s", "--retries", "40"]


class Outcome:
    """ok, tie (differs first where two tokens were nearly as likely), wrong, refused, failed, cancelled, hang."""

    def __init__(self, kind, start, end, detail="", usage=None):
        self.kind, self.start, self.end, self.detail, self.usage = kind, start, end, detail, usage


def ask(command, question, cancel_after=None):
    start = time.monotonic()
    process = subprocess.Popen([*command, *question.args(), "--jsonl" if cancel_after else "--json"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    if cancel_after:
        for _ in range(cancel_after):
            if not process.stdout.readline():
                break
        process.send_signal(signal.SIGKILL)
    try:
        out, err = process.communicate(timeout=DEADLINE_S + 15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Outcome("hang", start, time.monotonic(), f"no end {DEADLINE_S + 15} s after the start")
    end = time.monotonic()
    if cancel_after:
        return Outcome("cancelled", start, end)
    if process.returncode != 0:
        message = err.strip().splitlines()[-1] if err.strip() else f"exit status {process.returncode}"
        return Outcome("refused" if "RESOURCE_EXHAUSTED" in message else "failed", start, end, message)
    answer = json.loads(out)
    return compare(question, answer, start, end)


def compare(question, answer, start, end):
    got = [t["id"] for t in answer["tokens"]]
    if question.want is None:
        question.want = got
        question.gaps = [t["top"][0]["logprob"] - t["top"][1]["logprob"] for t in answer["tokens"]]
    if got == question.want:
        return Outcome("ok", start, end, usage=answer["usage"])
    at = next((i for i, (a, b) in enumerate(zip(got, question.want)) if a != b), min(len(got), len(question.want)))
    if at < min(len(got), len(question.want)) and question.gaps[at] < NEAR_TIE:
        return Outcome("tie", start, end, f"token {at}, gap {question.gaps[at]:.4f}", answer["usage"])
    return Outcome("wrong", start, end, f"token {at} of {len(question.want)}: {got[at:at + 3]} for {question.want[at:at + 3]}",
                   answer["usage"])


def conversations(command, tokens, seed, count, max_tokens):
    """`count` first turns over a few shared texts, and a second turn for each; their answers are taken from the healthy cluster.

    Each is asked twice: the second answer comes from the cache and must be the same."""
    rng = random.Random(seed)
    starts = [rng.randrange(0, len(tokens) - 4000) for _ in range(max(2, count // 3))]
    questions = []
    for _ in range(count):
        start = rng.choice(starts)
        shared = tokens[start:start + rng.choice((330, 600, 900))]
        first = Question(shared + tokens[rng.randrange(0, len(tokens) - 64):][:rng.randrange(3, 60)], max_tokens)
        questions.append(first)
        for attempt in range(2):
            outcome = ask(command, first)
            if outcome.kind != "ok":
                raise AssertionError(f"before any fault, try {attempt}: {outcome.kind} {outcome.detail}")
        second = Question(first.ids + first.want + tokens[rng.randrange(0, len(tokens) - 64):][:20], max_tokens)
        outcome = ask(command, second)
        if outcome.kind != "ok":
            raise AssertionError(f"before any fault: {outcome.kind} {outcome.detail}")
        questions.append(second)
    return questions


class Load:
    """`clients` threads, each asking its next question when the last one ended, until stop(). A share `fresh_share` of them is new:
    what it should have been is asked when all is healthy again (check_fresh)."""

    def __init__(self, command, questions, tokens, seed, clients, cancel_share=0.1):
        self.outcomes, self._lock, self._stop = [], threading.Lock(), threading.Event()
        self._command, self._tokens, self.fresh_share, self._fresh = command, tokens, 0, []
        self._threads = [threading.Thread(target=self._client, args=(command, questions, random.Random(f"{seed}/{i}"), cancel_share))
                         for i in range(clients)]
        for t in self._threads:
            t.start()

    def _client(self, command, questions, rng, cancel_share):
        while not self._stop.is_set():
            if rng.random() < self.fresh_share:
                question = Question(rng.sample(self._tokens, 8) + self._tokens[rng.randrange(0, len(self._tokens) - 700):][:640], 8)
                outcome = ask(command, question)
                if outcome.kind == "ok":
                    self._fresh.append(question)
            else:
                outcome = ask(command, rng.choice(questions), rng.randrange(1, 8) if rng.random() < cancel_share else None)
            with self._lock:
                self.outcomes.append(outcome)
            if outcome.kind in ("refused", "failed"):
                self._stop.wait(0.2)  # a client that is told no does not hammer

    def check_fresh(self):
        """Outcomes of asking again what was new."""
        return [ask(self._command, question) for question in self._fresh]

    def between(self, begin, end):
        """Outcomes of requests that ended in this time."""
        with self._lock:
            return [o for o in self.outcomes if begin <= o.end < end]

    def stop(self):
        self._stop.set()
        for t in self._threads:
            t.join()
        return self.outcomes
