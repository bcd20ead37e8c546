"""Every role serves its metrics; names agree with docs/metrics.md; the real Prometheus scrapes them; generated pages are current."""
import json
import re
import shutil
import subprocess
import tempfile
import time
import unittest
import urllib.parse
import urllib.request
from pathlib import Path

from cluster import BINARY, ROOT, ClusterTest, words


def documented():
    return set(re.findall(r"^\| `(oscarkv_\w+)`", (ROOT / "docs/metrics.md").read_text(), re.M))


class Pages(unittest.TestCase):
    def test_generated_pages_are_current(self):
        for page in ("options", "metrics"):
            text = subprocess.run([BINARY, "docs", "--page", page], capture_output=True, text=True, check=True).stdout
            self.assertEqual(text, (ROOT / f"docs/{page}.md").read_text(),
                             f"docs/{page}.md is not current: oscarkv docs --page {page} > docs/{page}.md")


class Metrics(ClusterTest):
    options = dict(kvstores=2, attentions=2)

    def test_names_are_documented(self):
        self.cluster.generate(words(600), "--max-tokens", 4)
        for role in self.cluster.roles.values():
            names = {re.sub(r"_(bucket|sum|count)$", "", s.partition("{")[0]) if s.partition("{")[0].endswith(
                ("_bucket", "_sum", "_count")) else s.partition("{")[0] for s in role.metrics()}
            own = {n for n in names if n.startswith("oscarkv_")}
            self.assertTrue(own, role.role)
            self.assertLessEqual(own, documented(), role.role)

    def trace(self, *args):
        return subprocess.run([BINARY, "trace", *args, "--gateway", self.cluster.gateway.address], capture_output=True, text=True)

    def test_where_a_requests_time_went(self):
        # A word of the client's own, of the form that gRPC's metadata and HTTP's header share.
        self.cluster.generate(words(700, 3000), "--max-tokens", 6, "--request-id", "traced-1")
        run = self.trace("traced-1")
        self.assertEqual(run.returncode, 0, run.stderr)
        trace = re.search(r"^request traced-1   trace ([0-9a-f]{32})   tenant \(default\)$", run.stdout, re.M)
        self.assertTrue(trace, run.stdout)
        lines = [re.split(r" {2,}", line.strip()) for line in run.stdout.split("WORKER")[1].split("\n\n")[0].splitlines()[1:]]
        self.assertEqual([line[2] for line in lines], [
            "tokenising the prompt", "waiting for other requests to end", "asking the store for the prompt's prefix",
            "in prefill", "queue", "fetch", "compute", "put", "loading for decoding", "queue", "fetch", "recompute", "decoding"])
        self.assertEqual(lines[3][-1], self.cluster["prefill-0"].address)
        self.assertIn(lines[-1][-1], [r.address for r in self.cluster.of("attention")])
        for line in lines:
            self.assertRegex(line[3], r"^\.*#+\.*$")
            self.assertEqual(len(line[3]), 40)
        self.assertRegex(run.stdout, r"LASTED(.|\n)*first token after [\d.]+ m?s\n(.|\n)*6 generated")
        # By the trace's id, too; and the parts fit into the prefill, by the worker's own clock.
        self.assertEqual(self.trace(trace[1]).stdout, run.stdout)
        in_ms = lambda text: float(text.split()[0]) * {"us": 1e-3, "ms": 1, "s": 1e3}[text.split()[1]]
        self.assertLessEqual(sum(in_ms(line[1]) for line in lines[4:8]), in_ms(lines[3][1]) * 1.02 + 0.2)
        for role in ("gateway", "prefill-0"):
            self.cluster.wait_for(f"the trace in the log of {role}", lambda: f"trace={trace[1]}" in self.cluster[role].log())

    def test_a_request_that_runs_and_one_that_failed(self):
        process = self.cluster.generate_process(words(100), "--max-tokens", 20000, "--ignore-eos", "--request-id", "traced-2")
        try:
            self.cluster.wait_for("it decodes", lambda: "decoding" in self.trace("traced-2").stdout)
            self.assertRegex(self.trace("traced-2").stdout, r"so far [\d.]+ m?s   running")
        finally:
            process.kill()
            process.communicate()
        self.cluster.wait_for("it has ended", lambda: re.search(r"lasted .* CANCELLED: the client cancelled", self.trace("traced-2").stdout))

    def test_an_id_that_nobody_knows(self):
        run = self.trace("no-such-request")
        self.assertEqual(run.returncode, 1)
        self.assertIn('no request "no-such-request" is under way at this gateway or among the last 512 that ended here', run.stderr)
        run = subprocess.run([BINARY, "trace", "--gateway", self.cluster.gateway.address], capture_output=True, text=True)
        self.assertEqual((run.returncode, run.stderr.strip()), (2, "oscarkv: INVALID_ARGUMENT: no id given: oscarkv trace ID"))

    def test_the_real_prometheus_scrapes_every_role(self):
        prometheus = shutil.which("prometheus")
        if prometheus is None:
            self.skipTest("prometheus is not installed (./test installs it)")
        with tempfile.TemporaryDirectory() as folder:
            targets = [f"127.0.0.1:{r.metrics_port}" for r in self.cluster.roles.values()]
            Path(folder, "p.yml").write_text(json.dumps({"scrape_configs": [
                {"job_name": "oscarkv", "scrape_interval": "1s", "static_configs": [{"targets": targets}]}]}))
            import socket
            with socket.socket() as s:
                s.bind(("127.0.0.1", 0))
                port = s.getsockname()[1]
            process = subprocess.Popen([prometheus, f"--config.file={folder}/p.yml", f"--storage.tsdb.path={folder}/data",
                                        f"--web.listen-address=127.0.0.1:{port}"], stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
            try:
                self.cluster.wait_for("all targets up in Prometheus", lambda: query(port, "sum(up)") == len(targets), 40)
                self.cluster.generate(words(600, 100), "--max-tokens", 4)
                self.cluster.wait_for("stored bytes in Prometheus",
                                      lambda: query(port, "sum(oscarkv_kvstore_bytes)") > 0, 20)
            finally:
                process.terminate()
                process.wait()


def query(port, expression):
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            result = json.load(response)["data"]["result"]
    except OSError:
        return -1
    return float(result[0]["value"][1]) if result else -1


if __name__ == "__main__":
    unittest.main(verbosity=2)
