"""What the package ships beside the binary: --version, manual page, completion, config files, the systemd unit."""
import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import rootfs
from reference import ROOT, config_lines, options, seconds

BINARY = os.environ.get("OSCARKV_BINARY", str(ROOT / "build/release/cli/oscarkv"))
ROLES = ("kvstore", "prefill", "attention", "gateway")


def oscarkv(*args):
    return subprocess.run([BINARY, *args], capture_output=True, text=True)


def page(name):
    return oscarkv("docs", "--page", name).stdout


class Shipped(unittest.TestCase):
    def test_version(self):
        text = oscarkv("--version").stdout
        version = re.search(r"project\(oscarkv VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())[1]
        self.assertRegex(text, rf"^oscarkv {version}\ncommit \S+\ncompiler \w+ [\d.]+\nUCX [\d.]+\nkernels \w+ \(of [\w, ]+\)\n$")

    def test_an_empty_value_is_a_value(self):
        """As `--nodes=$(NODES)` of a manifest is with an empty list: the next argument is not its value."""
        run = oscarkv("kvstore", "--nodes=", "--capacity=much")
        self.assertEqual(run.returncode, 2)
        self.assertIn("--capacity", run.stderr)

    def test_manual_page_has_every_option(self):
        text = page("man").replace("\\-", "-")
        for command, rows in options().items():
            self.assertIn(f'.SS "oscarkv {command}"', text)
            section = text.split(f'.SS "oscarkv {command}"')[1].split("\n.SS")[0]
            for option, row in rows.items():
                self.assertIn(f".B --{option}", section)
                if row["default"]:
                    self.assertIn(f"Default: {row['default']}.", section)

    def test_manual_page_is_valid_roff(self):
        groff = shutil.which("groff")
        if groff is None:
            self.skipTest("groff is not installed")
        run = subprocess.run([groff, "-man", "-ww", "-z", "-Tutf8"], input=page("man"), capture_output=True, text=True)
        self.assertEqual((run.returncode, run.stderr), (0, ""))

    def complete(self, *words):
        with tempfile.NamedTemporaryFile("w", suffix=".bash") as script:
            script.write(page("completion"))
            script.flush()
            command = ('source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _oscarkv; printf "%s\\n" "${COMPREPLY[@]}"')
            run = subprocess.run(["bash", "-c", command, "-", script.name, "oscarkv", *words], capture_output=True, text=True)
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        return run.stdout.split()

    def test_completion(self):
        self.assertEqual(self.complete("kv"), ["kvstore"])
        self.assertIn("model", self.complete(""))
        self.assertEqual(self.complete("model", ""), ["check"])
        self.assertEqual(self.complete("codec", ""), ["show", "convert"])
        self.assertEqual(self.complete("bench", ""), ["decode", "prefill"])
        self.assertEqual(self.complete("model", "check", "--gol"), ["--golden"])
        self.assertEqual(self.complete("prefill", "--profile", ""), ["oscar", "shaped", "shaped-sym", "bf16"])
        for command, rows in options().items():
            offered = self.complete(*command.split(), "--")
            self.assertLessEqual({f"--{o}" for o in rows}, set(offered), command)

    def test_config_files_set_known_options_and_list_all(self):
        for role in ROLES:
            template = page(f"config-{role}")
            self.assertEqual(config_lines(template), {})
            listed = re.findall(r"^#([\w-]+) = ", template, re.M)
            self.assertEqual(listed, list(options()[role]))
            shipped = config_lines((ROOT / f"deploy/config/{role}.conf").read_text())
            self.assertLessEqual(set(shipped), set(listed))
            with tempfile.NamedTemporaryFile("w") as file:  # the binary reads it: only the last line is refused
                file.write((ROOT / f"deploy/config/{role}.conf").read_text() + template + "\nno-such-option = 1\n")
                file.flush()
                run = oscarkv(role, "--config", file.name)
                self.assertEqual(run.returncode, 2)
                self.assertIn("unknown option 'no-such-option'", run.stderr)

    def test_ports_of_config_files_fit_together(self):
        conf = {r: config_lines((ROOT / f"deploy/config/{r}.conf").read_text()) for r in ROLES}
        self.assertEqual(conf["gateway"]["prefill"], conf["prefill"]["listen"])
        self.assertEqual(conf["gateway"]["attention"], conf["attention"]["listen"])
        for role in ("prefill", "attention", "gateway"):
            self.assertEqual(conf[role]["nodes"], conf["kvstore"]["listen"])
        listens = [v for c in conf.values() for k, v in c.items() if k.endswith("listen")]
        self.assertEqual(len(listens), 2 * len(ROLES) + 1)  # and the gateway's HTTP
        self.assertEqual(len(set(listens)), len(listens))
        scraped = (ROOT / "deploy/prometheus/prometheus.yaml").read_text()
        for role in ROLES:
            self.assertRegex(scraped, rf'"{re.escape(conf[role]["metrics-listen"])}"\]\n +labels: {{component: {role}}}')

    def test_what_is_installed_is_in_the_images_context(self):
        installed = re.findall(r"\$\{CMAKE_SOURCE_DIR\}/([^\s)]+)", (ROOT / "cmake/Packaging.cmake").read_text())
        context = rootfs.context_files(ROOT)
        self.assertIn("README.md", installed)
        for path in (p for p in installed if "${" not in p):
            self.assertTrue(any(f == path or f.startswith(path + "/") for f in context), f".dockerignore keeps {path} from the image's build")

    def test_unit(self):
        unit = ROOT / "deploy/systemd/oscarkv@.service"
        stop = int(re.search(r"^TimeoutStopSec=(\d+)$", unit.read_text(), re.M)[1])
        longest = max(seconds(options()[r].get("drain-timeout", {"default": "0s"})["default"]) for r in ROLES)
        self.assertGreater(stop, longest)
        analyze = shutil.which("systemd-analyze")
        if analyze is None:
            self.skipTest("systemd-analyze is not installed")
        with tempfile.TemporaryDirectory() as folder:
            text = unit.read_text().replace("/usr/bin/oscarkv", BINARY).replace("Documentation=man:oscarkv(1)\n", "")
            path = Path(folder, "oscarkv@kvstore.service")
            path.write_text(text)
            run = subprocess.run([analyze, "verify", path], capture_output=True, text=True)
        faults = [line for line in run.stderr.splitlines() if "oscarkv@" in line]
        self.assertEqual(faults, [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
