"""The Debian package in a bare Debian 12: installs with what it depends on, its units' command lines start a cluster that does what README
and docs/operations.md say, an upgrade keeps what the operator changed, purging leaves nothing."""
import json
import os
import re
import shlex
import shutil
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
        self.walk()

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

    def walk(self):
        """README's and docs/operations.md's way from the installed package to an answer, without systemd: the unit's command lines with its
        user, environment and rights, the config files as they came, on the ports that they name (in a network of their own)."""
        readme, operations = (ROOT / "README.md").read_text(), (ROOT / "docs/operations.md").read_text()
        units = {re.search(r"^systemctl enable --now ([\w@ ]+\w)", text, re.M)[1] for text in (readme, operations)}
        self.assertEqual(units, {" ".join(f"oscarkv@{role}" for role in ROLES)})
        network = rootfs.NetworkNamespace(f"okvd-{os.getpid()}")
        self.addCleanup(network.close)
        units = Units(self.root, Path(self.folder.name), network.name)
        try:
            units.start(ROLES)
            units.run_until_done(self.root.command("oscarkv", "status", "--wait", "3m", network=network.name))
            typed = re.search(r"^systemctl enable .*?^```", operations, re.M | re.S)[0].splitlines()[1:-1]
            self.assertEqual([line.split()[0] for line in typed], ["oscarkv", "curl"])
            out = self.root.run("sh", "-c", typed[0], network=network.name)
            self.assertRegex(out, r"\d+ prompt tokens \(\d+ from the cache\), [1-9]\d* generated; TTFT")
            answer = json.loads(self.typed(network, typed[1] + " --silent --fail"))
            self.assertEqual(answer["usage"]["completion_tokens"], 20)
            self.assertTrue(answer["choices"][0]["text"])
            self.assertIn("<title>oscarkv</title>", self.typed(network, "curl --silent --fail http://127.0.0.1:7480/"))
            self.prometheus_watches(network, readme)
        finally:
            self.assertEqual(units.stop(), {role: 0 for role in ROLES}, units.logs())

    def typed(self, network, line):
        return subprocess.run(network.command("sh", "-c", line), check=True, capture_output=True, text=True).stdout

    def prometheus_watches(self, network, readme):
        """The files that README has copied, under a Prometheus of Debian's that is told nothing else."""
        etc = self.root.path / "etc/prometheus"
        etc.mkdir()
        for source, target in re.findall(r"cp (deploy/prometheus/\S+) (/etc/prometheus/\S*)", readme):
            shutil.copy(ROOT / source, self.root.path / target.lstrip("/"))
        process = subprocess.Popen(network.command("prometheus", f"--config.file={etc}/prometheus.yml",
                                                   f"--storage.tsdb.path={self.folder.name}/prometheus"),
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            ask = "curl --silent http://127.0.0.1:9090/api/v1/"
            deadline = time.monotonic() + 90
            up = []
            while sorted(up) != sorted(ROLES):
                self.assertLess(time.monotonic(), deadline, f"scraped are {up}")
                time.sleep(0.5)
                out = subprocess.run(network.command("sh", "-c", ask + "targets"), capture_output=True, text=True).stdout
                targets = json.loads(out)["data"]["activeTargets"] if out.startswith("{") else []
                up = [t["labels"]["component"] for t in targets if t["health"] == "up"]
            groups = json.loads(self.typed(network, ask + "rules"))["data"]["groups"]
            self.assertGreater(sum(len(g["rules"]) for g in groups), 30)
            self.assertEqual([r["name"] for g in groups for r in g["rules"] if r["state"] == "firing"], [])
        finally:
            process.terminate()
            process.wait(30)
            shutil.rmtree(etc)


class Units:
    """As much of systemd as oscarkv@.service asks for."""

    def __init__(self, root, folder, network):
        self.root, self.folder, self.network = root, folder, network
        lines = [line.partition("=")[::2] for line in (root.path / "lib/systemd/system/oscarkv@.service").read_text().splitlines()
                 if "=" in line and not line.startswith("#")]
        self.unit = dict(lines)
        self.environment = dict(value.partition("=")[::2] for name, value in lines if name == "Environment")
        passwd = dict(line.split(":", 1) for line in (root.path / "etc/passwd").read_text().splitlines())
        self.user = ":".join(passwd[self.unit["User"]].split(":")[1:3])
        self.processes = {}

    def start(self, roles):
        """All at once: who finds no KV node yet ends, and is started again."""
        for role in roles:
            self.start_one(role)

    def start_one(self, role):
        command = shlex.split(self.unit["ExecStart"].replace("%i", role))
        self.processes[role] = self.root.start(*command, log=self.folder / f"{role}.log", env=self.environment, user=self.user,
                                               read_only=self.unit["ProtectSystem"] == "strict", network=self.network)

    def run_until_done(self, command):
        """Restart=on-failure, RestartSec, RestartPreventExitStatus, while the command runs."""
        status = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while status.poll() is None:
            time.sleep(float(self.unit["RestartSec"]))
            for role, process in self.processes.items():
                if process.poll() is not None:
                    if process.returncode in (0, int(self.unit["RestartPreventExitStatus"])):
                        status.kill()
                        raise AssertionError(f"oscarkv@{role} ended with {process.returncode}\n{self.logs()}")
                    self.start_one(role)
        if status.returncode != 0:
            raise AssertionError(status.stdout.read() + self.logs())
        status.stdout.close()

    def stop(self):
        """{role: exit status}, gateway first."""
        for role, process in reversed(self.processes.items()):
            process.terminate()
            process.wait(60)
        return {role: process.returncode for role, process in self.processes.items()}

    def logs(self):
        return "\n".join(f"--- {p.name}\n{p.read_text()[-3000:]}" for p in sorted(self.folder.glob("*.log")))


if __name__ == "__main__":
    unittest.main(verbosity=2)
