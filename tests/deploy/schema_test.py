"""Every object of every overlay against the Kubernetes schemas and those of the Prometheus operator, by npm's kubernetes-models."""
import json
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import kustomize
from reference import ROOT

PACKAGES = ["kubernetes-models@5.1.0", "@kubernetes-models/prometheus-operator@6.0.0"]


class Schemas(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if shutil.which("npm") is None or shutil.which("node") is None:
            raise unittest.SkipTest("npm is not installed: the schemas come from its packages")
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        Path(cls.folder.name, "package.json").write_text("{}")
        shutil.copy(ROOT / "tests/deploy/schema_check.mjs", cls.folder.name)
        install = subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES], cwd=cls.folder.name,
                                 capture_output=True, text=True)
        if install.returncode != 0:
            raise unittest.SkipTest(f"npm cannot install {PACKAGES}: {install.stderr[-300:]}")

    def check(self, objects):
        path = Path(self.folder.name, "objects.json")
        path.write_text(json.dumps(objects))
        run = subprocess.run(["node", "schema_check.mjs", path], cwd=self.folder.name, capture_output=True, text=True)
        return run.returncode, run.stdout + run.stderr

    def test_overlays(self):
        for overlay in ("cpu", "cuda", "rdma", "dev", "secure"):
            with self.subTest(overlay=overlay):
                status, output = self.check(kustomize.build(ROOT / "deploy/k8s/overlays" / overlay))
                self.assertEqual(status, 0, output)

    def test_a_wrong_field_is_found(self):
        objects = kustomize.build(ROOT / "deploy/k8s/overlays/cpu")
        for kind, break_it in (("StatefulSet", lambda o: o["spec"].update(replicas="three")),
                               ("PodMonitor", lambda o: o["spec"].pop("selector")),
                               ("NetworkPolicy", lambda o: o["spec"].update(policyTypes="Ingress"))):
            broken = json.loads(json.dumps(next(o for o in objects if o["kind"] == kind)))
            break_it(broken)
            status, output = self.check([broken])
            self.assertEqual(status, 1, f"{kind}: {output}")
            self.assertIn("1 objects, 1 faults", output)


if __name__ == "__main__":
    unittest.main(verbosity=2)
