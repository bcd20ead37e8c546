"""gateway/clients/python against a running cluster: its answers are those of `oscarkv generate`, its retries lose and repeat nothing.

Itself it runs anywhere; the client runs in an interpreter that has grpcio, Debian's when this one has not.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from cluster import ROOT, ClusterTest, tokens, words

CLIENT = ROOT / "gateway/clients/python"


def interpreter():
    for python in (sys.executable, "/usr/bin/python3"):
        if shutil.which(python) and subprocess.run([python, "-c", "import grpc, google.protobuf"], capture_output=True).returncode == 0:
            return python
    return None


# What the client's process does; arguments and result are JSON.
DRIVER = """
import json, sys, threading
import grpc
from oscarkv_client import Client, Sampling
spec = json.loads(sys.stdin.readline())
with Client(spec["target"]) as client:
    try:
        out = {}
        if spec["do"] == "generate":
            answer = client.generate(spec["prompt"], sampling=Sampling(**spec.get("sampling", {})), **spec["options"])
            ids, text = [], []
            for piece in answer:
                ids += [t.id for t in piece.tokens]
                text.append(piece.text)
                print(len(ids), flush=True)
                if spec.get("cancel_after") and len(ids) >= spec["cancel_after"]: answer.cancel()
            out = {"ids": ids, "text": "".join(text), "pieces": len(text), "id": answer.request_id, "retried": answer.retried,
                   "finish": answer.finish_reason, "generated": answer.usage.generated_tokens, "cached": answer.usage.cached_tokens}
        elif spec["do"] == "tools":
            out = {"tokens": client.tokenize("The Wendigo"), "model": client.model().name, "nodes": len(client.status().nodes),
                   "phases": [p.name for p in client.trace(spec["id"]).phases]}
    except grpc.RpcError as e:
        out = {"code": e.code().name, "details": e.details()}
print(json.dumps(out))
"""


@unittest.skipIf(interpreter() is None, "python3-grpcio is not installed (./test installs it)")
class PythonClient(ClusterTest):
    options = dict(attentions=2)

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="oscarkv-python-")
        cls.addClassCleanup(cls.folder.cleanup)
        subprocess.run([interpreter(), str(CLIENT / "generate.py"), cls.folder.name], check=True, cwd="/")
        super().setUpClass()

    def start(self, do, **spec):
        environment = dict(os.environ, PYTHONPATH=f"{CLIENT}:{self.folder.name}")
        process = subprocess.Popen([interpreter(), "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        process.stdin.write(json.dumps({"do": do, "target": self.cluster.gateway.address, **spec}) + "\n")
        process.stdin.flush()
        return process

    def result(self, process):
        out = process.communicate(timeout=120)[0]
        self.assertEqual(process.returncode, 0, out)
        return json.loads(out.splitlines()[-1])

    def ask(self, do, **spec):
        return self.result(self.start(do, **spec))

    def test_the_answer_is_that_of_the_command_line(self):
        prompt = words(200)
        want = self.cluster.generate(prompt, "--max-tokens", 20, "--temperature", "0.8", "--seed", 5)
        got = self.ask("generate", prompt=prompt, sampling={"temperature": 0.8, "seed": 5}, options={"max_tokens": 20, "request_id": "py-1"})
        self.assertEqual((got["ids"], got["text"], got["id"]), (tokens(want), want["text"], "py-1"))
        self.assertEqual((got["finish"], got["generated"], got["retried"]), ("LENGTH", 20, 0))
        self.assertGreater(got["pieces"], 5, "it streams")
        ids = self.ask("tools", id="py-1")
        self.assertEqual((ids["model"], ids["nodes"], ids["phases"][-1]), ("reference", 1, "decoding"))
        same = self.ask("generate", prompt=ids["tokens"], options={"max_tokens": 3})
        self.assertEqual(same["text"], self.cluster.generate("The Wendigo", "--max-tokens", 3)["text"])

    def test_errors_say_what_was_wrong(self):
        got = self.ask("generate", prompt="x", options={"max_tokens": 99999})
        self.assertEqual(got["code"], "INVALID_ARGUMENT")
        self.assertIn("max_tokens 99999", got["details"])
        self.assertEqual(self.ask("tools", id="nobody")["code"], "NOT_FOUND")
        got = self.ask("generate", prompt="x", cancel_after=5, options={"max_tokens": 20000, "ignore_eos": True})
        self.assertEqual(got["code"], "CANCELLED")

    def test_a_gateway_that_dies_costs_no_token(self):
        options = {"max_tokens": 300, "ignore_eos": True, "retries": 20}
        prompt = words(120, 900)
        want = self.cluster.generate(prompt, "--max-tokens", 300, "--ignore-eos")
        process = self.start("generate", prompt=prompt, options=options)
        while int(process.stdout.readline()) < 30:
            pass
        self.cluster.gateway.kill()
        self.cluster.gateway = self.cluster.restart("gateway")
        got = self.result(process)
        self.assertEqual((got["ids"], got["text"]), (tokens(want), want["text"]))
        self.assertGreaterEqual(got["retried"], 1)


if __name__ == "__main__":
    unittest.main(verbosity=2)
