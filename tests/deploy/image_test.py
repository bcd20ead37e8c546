"""The image's own steps, in debootstrap roots: the Dockerfile is carried out without a container engine, and its roles run as the pods run
them: not root, no capabilities, the root file system read-only."""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import rootfs
from reference import ROOT

VERSION = "0.1.0"


@unittest.skipIf(rootfs.possible(), rootfs.possible())
class Image(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="oscarkv-image-", dir=os.environ.get("TMPDIR"))
        cls.addClassCleanup(cls.folder.cleanup)
        path = Path(cls.folder.name)
        base = rootfs.debootstrap(path / "base")
        cls.file = rootfs.Dockerfile(ROOT, ROOT / "deploy/docker/Dockerfile", path, lambda p: rootfs.copy_root(base, p),
                                     {"BUILD_BASE": "debian:12-slim", "VERSION": VERSION}, rootfs.compiler_cache(), path / "log")
        cls.image = cls.file.stages["last"]
        cls.user = cls.file.kept["USER"]
        cls.processes = []
        cls.addClassCleanup(cls.stop)
        print("seconds:", json.dumps(cls.file.seconds, indent=1), file=sys.stderr)

    @classmethod
    def stop(cls):
        for process in reversed(cls.processes):
            if process.poll() is None:
                process.terminate()
                process.wait(30)

    def inside(self, *command):
        return self.image.run(*command, user=self.user, read_only=True)

    def test_it_is_small_and_has_no_build_tools(self):
        for tool in ("gcc", "c++", "cmake", "git", "protoc"):
            self.assertIsNone(shutil.which(tool, path=f"{self.image.path}/usr/bin"), tool)
        size = int(subprocess.run(["du", "-sxm", self.image.path], capture_output=True, text=True, check=True).stdout.split()[0])
        print(f"image: {size} MiB", file=sys.stderr)
        self.assertLess(size, 450)
        self.assertFalse((self.image.path / "steps").exists())

    def test_user_has_no_rights(self):
        self.assertEqual(self.inside("id", "-u").strip(), "10001")
        with self.assertRaisesRegex(AssertionError, "Read-only file system"):
            self.inside("sh", "-c", "touch /tmp/x")
        self.assertIn("CapEff:\t0000000000000000", self.inside("cat", "/proc/self/status"))
        found = subprocess.run(["find", self.image.path, "-xdev", "-uid", "10001"], capture_output=True, text=True, check=True).stdout
        self.assertEqual(found, "", "the user owns files of the image")

    def test_list_of_packages(self):
        sbom = json.loads((self.image.path / "usr/share/oscarkv/sbom.spdx.json").read_text())
        self.assertEqual(sbom["spdxVersion"], "SPDX-2.3")
        installed = self.image.run("dpkg-query", "-W", "-f", "${Package} ${Version}\\n").split("\n")[:-1]
        self.assertEqual(sorted(f"{p['name']} {p['versionInfo']}" for p in sbom["packages"]), sorted([*installed, f"oscarkv {VERSION}"]))
        self.assertEqual(len({p["SPDXID"] for p in sbom["packages"]}), len(sbom["packages"]))

    def test_version(self):
        text = self.inside("oscarkv", "--version")
        for word in (f"oscarkv {VERSION}", "compiler GNU 12", "UCX 1.13", "kernels "):
            self.assertIn(word, text)

    def role(self, name, *args):
        log = Path(self.folder.name, f"{name}.log")
        process = self.image.start("oscarkv", name, "--listen", "127.0.0.1:0", "--metrics-listen", "", "--log-level", "info", *args,
                                   log=log, user=self.user, read_only=True)
        self.processes.append(process)
        deadline = time.monotonic() + 60
        while " ready grpc_port=" not in log.read_text():
            self.assertIsNone(process.poll(), log.read_text())
            self.assertLess(time.monotonic(), deadline, log.read_text())
            time.sleep(0.05)
        return "127.0.0.1:" + log.read_text().split(" ready grpc_port=")[1].split()[0]

    def test_roles_answer(self):
        model = ["--model", "/usr/share/oscarkv/models/reference"]
        lanes = ["--ucx-lanes", "tcp"]
        node = self.role("kvstore", "--capacity", "256MiB", *lanes)
        workers = [*model, *lanes, "--nodes", node, "--threads", "1"]
        prefill, attention = self.role("prefill", *workers), self.role("attention", *workers)
        gateway = self.role("gateway", *model, "--nodes", node, "--prefill", prefill, "--attention", attention)
        answer = json.loads(self.inside("oscarkv", "generate", "--gateway", gateway, "--prompt", "The Wendigo is " * 60, "--max-tokens",
                                        "8", "--json").splitlines()[-1])
        self.assertEqual(answer["usage"]["generated_tokens"], 8)
        self.assertEqual(answer["usage"]["lanes"], ["tcp"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
