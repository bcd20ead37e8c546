"""Clients of the web against a real cluster: see run.sh."""
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))
from cluster import ClusterTest  # noqa: E402
from http_test import model_with_template  # noqa: E402

HERE = Path(__file__).resolve().parent
FOLDER = [str(Path(f).resolve()) for f in sys.argv[1:2]]  # for screenshots


class Web(ClusterTest):
    options = dict(kvstores=2, attentions=2, model=model_with_template(), gateway_args=["--http-listen", "127.0.0.1:0"])

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        shutil.rmtree(Path(cls.options["model"]).parent)

    def node(self, script, *args):
        url = f"http://127.0.0.1:{self.cluster.gateway.http_port}"
        done = subprocess.run(["node", str(HERE / script), url, *args], capture_output=True, text=True, timeout=300)
        print(done.stdout, end="")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_the_openai_package(self):
        self.node("openai_test.mjs", "chatty")

    def test_the_console(self):
        chromium = shutil.which("chromium")
        if chromium is None:
            self.skipTest("chromium is not installed: apt-get install chromium")
        self.node("console_test.mjs", chromium, *FOLDER)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
