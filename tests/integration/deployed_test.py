"""The manifests' own arguments and config files start a cluster that answers: the overlay `dev`, on 127.0.0.1 instead of in pods."""
import json
import re
import sys
import tempfile
import unittest
import urllib.request
from pathlib import Path

from cluster import MODEL, ROOT, Cluster, words

sys.path.insert(0, str(ROOT / "tests/deploy"))
import kustomize  # noqa: E402


class DeployedCluster(Cluster):
    """Each role's arguments as in the overlay, but for the addresses."""

    def __init__(self, overlay, model):
        objects = kustomize.build(ROOT / "deploy/k8s/overlays" / overlay)
        self._config = tempfile.TemporaryDirectory(prefix="oscarkv-config-")
        maps = {o["metadata"]["name"]: o["data"] for o in objects if o["kind"] == "ConfigMap"}
        for name, text in maps["oscarkv-config"].items():
            Path(self._config.name, name).write_text(text)
        self._containers = {c["name"]: c for o in objects for c in kustomize.containers(o)}
        self._variables = {"POD_NAME": "a-pod", "MODEL": model}
        super().__init__()

    def start(self, role, args):
        """`args` are those that Cluster would give: only what tells addresses is taken from them."""
        kind = re.sub(r"-\d+$", "", role)
        given = dict(zip(args[::2], args[1::2]))
        for option, variable in (("--nodes", "NODES"), ("--prefill", "PREFILL"), ("--attention", "ATTENTION")):
            self._variables[variable] = given.get(option, "")
        if kind == "kvstore":
            self._variables["NODES"] = "a-pod.oscarkv-kvstore:7401"  # itself, by the name that it advertises
        deployed = [re.sub(r"\$\((\w+)\)", lambda m: self._variables[m[1]], a).replace("/etc/oscarkv", self._config.name)
                    for a in self._containers[kind]["args"][1:]]
        return super().start(role, [*deployed, "--metrics-listen", "127.0.0.1:0",
                                    *(["--http-listen", "127.0.0.1:0"] if kind == "gateway" else [])])

    def stop(self):
        statuses = super().stop()
        self._config.cleanup()
        return statuses


class Deployed(unittest.TestCase):
    def test_dev_overlay_answers(self):
        cluster = DeployedCluster("dev", MODEL)
        try:
            answer = cluster.generate(words(300), "--max-tokens", 4)
            self.assertEqual(answer["usage"]["generated_tokens"], 4)
            self.assertEqual(answer["usage"]["lanes"], ["tcp"])
            body = json.dumps({"prompt": words(300), "max_tokens": 4, "temperature": 0}).encode()
            url = f"http://127.0.0.1:{cluster.gateway.http_port}"
            ask = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(ask, timeout=60) as response:
                self.assertEqual(json.load(response)["choices"][0]["text"], answer["text"])
            with urllib.request.urlopen(f"{url}/", timeout=60) as response:
                self.assertIn(b"<title>oscarkv</title>", response.read())
            kvstore = cluster["kvstore-0"]
            self.assertEqual(kvstore.metric("oscarkv_kvstore_capacity_bytes", node="a-pod"), 512 << 20)
            # The node sets this gauge in its maintenance rounds.
            cluster.wait_for("blocks are stored", lambda: kvstore.metric("oscarkv_kvstore_blocks") > 0)
            self.assertEqual(sum(r.metric("oscarkv_transport_degraded_connections_total") for r in cluster.roles.values()), 0)
        finally:
            statuses = cluster.stop()
        self.assertEqual(set(statuses.values()), {0}, cluster.last_logs)


if __name__ == "__main__":
    unittest.main(verbosity=2)
