"""Every panel of every dashboard returns data from the real Prometheus that scrapes the real cluster under load; alerts fire for real."""
import json
import math
import shutil
import socket
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from cluster import ROOT, ClusterTest, words

RULES = ROOT / "deploy/prometheus/oscarkv.rules.yaml"


class Prometheus:
    """The real one. Alert rules are the deployed ones, but for their waiting times."""

    def __init__(self, roles):
        self._folder = tempfile.TemporaryDirectory(prefix="oscarkv-prometheus-")
        folder = Path(self._folder.name)
        rules = "".join("        for: 1s\n" if line.strip().startswith("for: ") else line
                        for line in RULES.read_text().splitlines(keepends=True))
        (folder / "rules.yaml").write_text(rules)
        jobs = [{"targets": [f"{role.host}:{role.metrics_port}"], "labels": {"component": name.partition("-")[0]}}
                for name, role in roles.items()]
        (folder / "p.yaml").write_text(json.dumps({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": ["rules.yaml"],
            "scrape_configs": [{"job_name": "oscarkv", "static_configs": jobs}]}))
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.process = subprocess.Popen(
            [shutil.which("prometheus"), f"--config.file={folder}/p.yaml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address=127.0.0.1:{self.port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self._folder.cleanup()

    def get(self, path, **parameters):
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?" + urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:  # it listens, but is not ready
                return {}
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error
        except OSError:
            return {}  # not up yet

    def series(self, expression):
        """[(labels, value)] now, without those that are not numbers."""
        result = self.get("query", query=expression).get("result", [])
        return [(r["metric"], float(r["value"][1])) for r in result if not math.isnan(float(r["value"][1]))]

    def firing(self):
        return {a["labels"]["alertname"] for a in self.get("alerts").get("alerts", []) if a["state"] == "firing"}


def queries():
    for file in sorted((ROOT / "deploy/grafana").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                expression = target["expr"].replace("$namespace", ".*").replace("$__rate_interval", "2m")
                yield f"{file.stem}: {panel['title']}: {target['legendFormat']}", expression


@unittest.skipIf(shutil.which("prometheus") is None, "prometheus is not installed (./test installs it)")
class Dashboards(ClusterTest):
    # A small store, so that blocks are evicted.
    options = dict(kvstores=2, attentions=2, capacity="24MiB")

    def setUp(self):
        self.prometheus = Prometheus(self.cluster.roles)
        self.addCleanup(self.prometheus.stop)
        self.cluster.wait_for("all targets up", lambda: self.prometheus.series("sum(up)") == [({}, len(self.cluster.roles))], 40)

    def test_panels_and_alerts(self):
        # The load: prompts that repeat (hits) and more of them than the store holds (evictions).
        # These nodes have no tier on disk, and so no series of it; tier_test.py reads those.
        missing = {what: q for what, q in dict(queries()).items() if "ssd" not in q}
        deadline, n = time.monotonic() + 240, 0
        while missing and time.monotonic() < deadline:
            for start in (0, 700 * (n % 6 + 1)):
                self.cluster.generate(words(700, start), "--max-tokens", 80 if n == 0 else 4)
            n += 1
            missing = {what: q for what, q in missing.items() if not self.prometheus.series(q)}
        self.assertFalse(missing, f"no data after {n} rounds")
        self.alerts_fire_and_end()

    def alerts_fire_and_end(self):
        """A KV node and the only prefill worker die; the alerts that are for this fire, no other critical one."""
        before = self.prometheus.firing()
        self.assertFalse(before & {"OscarkvTargetDown", "OscarkvNoUsableWorker", "OscarkvStoreNodeUnreachable", "OscarkvGatewayAbsent",
                                   "OscarkvCorruptBlocks", "OscarkvMalformedMessages", "OscarkvErrors"}, before)
        self.cluster["kvstore-1"].kill()
        want = {"OscarkvTargetDown", "OscarkvStoreNodeUnreachable"}
        self.cluster.wait_for(f"{want} fire", lambda: want <= self.prometheus.firing(), 60)
        self.assertNotIn("OscarkvNoUsableWorker", self.prometheus.firing())
        self.cluster["prefill-0"].kill()
        self.cluster.wait_for("OscarkvNoUsableWorker fires", lambda: "OscarkvNoUsableWorker" in self.prometheus.firing(), 60)
        self.assertNotIn("OscarkvGatewayAbsent", self.prometheus.firing())
        self.cluster["gateway"].kill()
        self.cluster.wait_for("OscarkvGatewayAbsent fires", lambda: "OscarkvGatewayAbsent" in self.prometheus.firing(), 60)


if __name__ == "__main__":
    unittest.main(verbosity=2)
