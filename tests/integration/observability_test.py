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
