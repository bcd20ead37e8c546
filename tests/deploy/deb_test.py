"""The Debian package in a bare Debian 12: installs with what it depends on, its config files start a cluster, an upgrade keeps what the
operator changed, purging leaves nothing."""
import json
import os
import re
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

import rootfs
from reference import ROOT

BUILD = Path(os.environ.get("OSCARKV_BUILD", ROOT / "build/release"))
ROLES = ("kvstore", "prefill", "attention", "gateway")


@unittest.skipIf(rootfs.possible(), rootfs.possible())
class Deb(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        subprocess.run(["cmake", "--build", BUILD, "--target", "deb"], check=True, capture_output=True)
        cls.deb, = (BUILD / "package").glob("oscarkv_*_*.deb")
        cls.folder = tempfile.TemporaryDirectory(prefix="oscarkv-deb-")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.root = rootfs.debootstrap(Path(cls.folder.name, "root"))
        cls.root.run("apt-get", "update")

    def install(self, deb):
        target = self.root.path / "tmp" / deb.name
        target.write_bytes(deb.read_bytes())
        return self.root.run("apt-get", "install", "-y", "--no-install-recommends", "-o", "Dpkg::Options::=--force-confold",
                             f"/tmp/{deb.name}", env={"DEBIAN_FRONTEND": "noninteractive"})

    def newer(self):
        """The same package, one version up, with a changed config file."""
        folder = Path(self.folder.name, "newer")
        subprocess.run(["dpkg-deb", "-R", self.deb, folder], check=True)
        control = folder / "DEBIAN/control"
        control.write_text(re.sub(r"^Version: (.*)$", r"Version: \1+1", control.read_text(), flags=re.M))
        for role in ("kvstore", "prefill"):
            with open(folder / f"etc/oscarkv/{role}.conf", "a") as f:
                f.write("# of the newer version\n")
        target = Path(self.folder.name, "oscarkv_newer.deb")
        subprocess.run(["dpkg-deb", "--root-owner-group", "-b", folder, target], check=True, capture_output=True)
        return target

    def test_life_of_the_package(self):
        self.install(self.deb)
        fields = subprocess.run(["dpkg-deb", "-f", self.deb, "Depends"], capture_output=True, text=True, check=True).stdout
        needed = {re.split(r"[ (]", d.strip())[0].removesuffix("-fmt9") for d in fields.split(",")}  # spdlog's virtual name
        listed = {line.split()[1] for line in (ROOT / "packages.txt").read_text().splitlines() if line.startswith("runtime ")}
        base = {"libc6", "libgcc-s1", "adduser"}
        self.assertEqual(needed - base, listed, "packages.txt: the stage runtime")
        self.assertIn("oscarkv:x:", (self.root.path / "etc/passwd").read_text())
        for path in ("usr/bin/oscarkv", "usr/share/man/man1/oscarkv.1.gz", "usr/share/bash-completion/completions/oscarkv",
                     "lib/systemd/system/oscarkv@.service"):
            self.assertTrue((self.root.path / path).is_file(), path)
        conffiles = self.root.run("dpkg-query", "-W", "-f", "${Conffiles}", "oscarkv")
        self.assertEqual(set(re.findall(r"/etc/\S+", conffiles)), {f"/etc/oscarkv/{r}.conf" for r in ROLES})
        self.cluster_answers()

        mine = self.root.path / "etc/oscarkv/kvstore.conf"
        mine.write_text(mine.read_text().replace("capacity = 1GiB", "capacity = 2GiB"))
        self.install(self.newer())
        self.assertIn("capacity = 2GiB", mine.read_text())
        self.assertNotIn("# of the newer version", mine.read_text())
        self.assertIn("# of the newer version", (self.root.path / "etc/oscarkv/prefill.conf").read_text())
        self.assertIn("+1", self.root.run("dpkg-query", "-W", "-f", "${Version}", "oscarkv"))

        self.root.run("apt-get", "purge", "-y", "oscarkv")
        left = subprocess.run(["find", self.root.path, "-xdev", "-ipath", "*oscarkv*", "-not", "-path", "*/tmp/*", "-not", "-path",
                               "*/var/log/*", "-not", "-path", "*/var/cache/*"], capture_output=True, text=True, check=True).stdout
        self.assertEqual([p for p in left.splitlines() if p.removeprefix(str(self.root.path)) and
                          "oscarkv" in p.removeprefix(str(self.root.path))], [])

    def cluster_answers(self):
        """The four roles by the packaged config files as their user; ports are changed so that the test can run anywhere."""
        uid = self.root.run("sh", "-c", "echo $(id -u oscarkv):$(id -g oscarkv)").strip()
        processes, logs = [], []
        changed = {"kvstore": ["--ucx-lanes", "tcp"]}
        try:
            addresses = {}
            for role in ROLES:
                if role != "kvstore":
                    changed[role] = ["--nodes", addresses["kvstore"]] + (["--ucx-lanes", "tcp"] if role != "gateway" else
                                    ["--prefill", addresses["prefill"], "--attention", addresses["attention"]])
                log = Path(self.folder.name, f"{role}.log")
                logs.append(log)
                if role == "gateway":
                    changed[role] += ["--http-listen", "127.0.0.1:0"]
                processes.append(self.root.start("oscarkv", role, "--config", f"/etc/oscarkv/{role}.conf", "--listen", "127.0.0.1:0",
                                                 "--metrics-listen", "", *changed[role], log=log, user=uid))
                deadline = time.monotonic() + 60
                while " ready grpc_port=" not in log.read_text():
                    self.assertIsNone(processes[-1].poll(), log.read_text())
                    self.assertLess(time.monotonic(), deadline, log.read_text())
                    time.sleep(0.05)
                addresses[role] = "127.0.0.1:" + log.read_text().split(" ready grpc_port=")[1].split()[0]
            out = self.root.run("oscarkv", "generate", "--gateway", addresses["gateway"], "--prompt", "The Wendigo", "--max-tokens", "4",
                                "--json", user=uid)
            self.assertEqual(json.loads(out.splitlines()[-1])["usage"]["generated_tokens"], 4)
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait(30)


if __name__ == "__main__":
    unittest.main(verbosity=2)
