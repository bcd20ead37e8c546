"""Clients of the web against a real cluster: see run.sh."""
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))
from cluster import Cluster, ClusterTest  # noqa: E402
from http_test import model_with_template  # noqa: E402

HERE = Path(__file__).resolve().parent
FOLDER = [str(Path(f).resolve()) for f in sys.argv[1:2]]  # for screenshots


class DiskCluster(Cluster):
    """Each KV node with a small memory and a folder of its own on disk."""

    def start(self, role, args, listen="127.0.0.1:0"):
        if role.startswith("kvstore"):
            args = [*args, "--ssd-path", f"{self._folder.name}/{role}-disk", "--ssd-capacity", "64MiB", "--ssd-admission", "always"]
        return super().start(role, args, listen)


class Web(ClusterTest):
    cluster_class = DiskCluster
    options = dict(kvstores=2, attentions=2, capacity="8MiB", model=model_with_template(), gateway_args=["--http-listen", "127.0.0.1:0"],
                   kvstore_args=["--slab", "1MiB"])

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

    def test_the_example_for_node(self):
        script = HERE.parents[1] / "gateway/clients/node/generate.mjs"
        prompt = "The Wendigo is a story of the woods, and"
        done = subprocess.run(["node", str(script), self.cluster.gateway.address, prompt, "12"], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, self.cluster.generate(prompt, "--max-tokens", 12)["text"])
        self.assertRegex(done.stderr, r"12 generated; first token after [\d.]+ ms; FINISH_REASON_LENGTH; request ")
        failed = subprocess.run(["node", str(script), self.cluster.gateway.address, prompt, "99999"], capture_output=True, text=True, timeout=60)
        self.assertEqual(failed.returncode, 1)
        self.assertIn("INVALID_ARGUMENT: max_tokens 99999", failed.stderr)

    def test_the_console(self):
        chromium = shutil.which("chromium")
        if chromium is None:
            self.skipTest("chromium is not installed: apt-get install chromium")
        self.node("console_test.mjs", chromium, *FOLDER)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
