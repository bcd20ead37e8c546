"""Starts the real processes of a cluster on 127.0.0.1 with free ports, for the integration tests.

Standard library only. Everything started here is stopped at exit; logs are printed when a test fails.
"""
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import unittest
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = os.environ.get("OSCARKV_BINARY", str(ROOT / "build/release/cli/oscarkv"))
MODEL = str(ROOT / "models/reference")
START_TIMEOUT_S = 60


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


class Role:
    """One process of the cluster."""

    def __init__(self, folder, role, args, listen="127.0.0.1:0", prefix=(), env=(), binary=BINARY):
        """`prefix`: a command that runs the process elsewhere (ip netns exec NAME); `env`: more of its environment."""
        self.binary = binary
        self.role = role
        self.args = list(args)
        self.prefix, self.env = list(prefix), dict(env)
        self.host = listen.rsplit(":", 1)[0]
        self.log_path = Path(folder) / f"{role}.log"
        ready = Path(folder) / f"{role}.ready"
        command = [*self.prefix, binary, re.sub(r"-\d+$", "", role), "--listen", listen, "--ready-file", str(ready)] + args
        env = dict(os.environ, OMP_WAIT_POLICY="passive", **self.env)
        ready.unlink(missing_ok=True)
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{role} did not start: {' '.join(command)}\n{self.log()}")
            time.sleep(0.02)
        values = dict(line.split("=", 1) for line in ready.read_text().split())
        self.listen = self.address = f"{self.host}:{values['grpc']}"
        self.metrics_port = int(values["metrics"])
        self.http_port = int(values.get("http", 0))
        given = dict(zip(args, [*args[1:], ""]))
        self.tls, self.scrape_token = None, ""
        if "--tls-cert" in given:  # asked with its own certificate: tests' certificates are good for both sides
            self.tls = ssl.create_default_context(cafile=given["--tls-ca"])
            self.tls.load_cert_chain(given["--tls-cert"], given["--tls-key"])

    def log(self):
        return self.log_path.read_text(errors="replace")

    def metrics(self, timeout=10):
        """{'name{labels}': value} of a scrape."""
        scheme = "http" if self.tls is None else "https"
        request = urllib.request.Request(f"{scheme}://{self.host}:{self.metrics_port}/metrics")
        if self.scrape_token:
            request.add_header("Authorization", f"Bearer {self.scrape_token}")
        with urllib.request.urlopen(request, timeout=timeout, context=self.tls) as response:
            lines = response.read().decode().splitlines()
        return {name: float(value) for name, value in
                (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))}

    def metric(self, name, **labels):
        """The sum of the series of this name whose labels include these."""
        total = 0.0
        for series, value in self.metrics().items():
            base, _, rest = series.partition("{")
            if base == name and all(f'{k}="{v}"' in rest for k, v in labels.items()):
                total += value
        return total

    def send(self, signal_number):
        if self.process.poll() is None:
            self.process.send_signal(signal_number)

    def kill(self):
        self.send(signal.SIGKILL)
        self.process.wait()

    def terminate(self, timeout=20):
        """SIGTERM; returns the exit status."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.role} did not stop within {timeout} s of SIGTERM\n{self.log()}")


class Cluster:
    def __init__(self, kvstores=1, prefills=1, attentions=1, profile="oscar", capacity="256MiB", kvstore_args=(),
                 prefill_args=(), attention_args=(), gateway_args=(), worker_args=(), store_args=(), zones=(), etcd=(), model=MODEL,
                 data_path="ucx", lanes="auto", fetch_min_wait="30s", peers=True):
        """`fetch_min_wait`: so long that what a test finds in the store does not depend on how busy the machine is.
        `peers`: KV nodes know each other and restore each other's lost copies."""
        self._folder = tempfile.TemporaryDirectory(prefix="oscarkv-test-")
        self.roles = {}
        self.kvstore_args = ["--capacity", capacity, "--ucx-lanes", lanes, *kvstore_args]
        self.worker_args = ["--model", model, "--profile", profile, "--data-path", data_path, "--ucx-lanes", lanes,
                            *worker_args]
        try:
            nodes = self.start_nodes(kvstores, zones, peers and not etcd, store_args)
            self.nodes = ",".join(nodes)
            store_args = [*(etcd or ["--nodes", self.nodes]), *store_args]
            self.worker_args += store_args
            prefill_args = ["--fetch-min-wait", fetch_min_wait, *prefill_args]
            prefill = [self.start(f"prefill-{i}", [*self.worker_args, *prefill_args]).address for i in range(prefills)]
            attention = [self.start(f"attention-{i}", [*self.worker_args, *attention_args]).address
                         for i in range(attentions)]
            self.gateway = self.start("gateway", ["--model", model, "--prefill", ",".join(prefill),
                                                  "--attention", ",".join(attention), *store_args, *gateway_args])
        except Exception:
            self.stop()
            raise

    binary = BINARY  # of those that start

    def start_nodes(self, count, zones, peers, store_args):
        """With several nodes each is told of all of them, so that they restore each other's copies."""
        if not peers or count == 1:
            nodes = [self.start(f"kvstore-{i}", self.kvstore_args).address for i in range(count)]
            return [f"{node}@{zone}" for node, zone in zip(nodes, zones)] if zones else nodes
        listen = [f"127.0.0.1:{port}" for port in free_ports(count)]
        nodes = [f"{node}@{zone}" for node, zone in zip(listen, zones)] if zones else listen
        self.kvstore_args += ["--nodes", ",".join(nodes)]
        if "--replicas" in store_args:
            self.kvstore_args += ["--replicas", store_args[store_args.index("--replicas") + 1]]
        for i in range(count):
            self.start(f"kvstore-{i}", self.kvstore_args, listen[i])
        return nodes

    def start(self, role, args, listen="127.0.0.1:0"):
        self.roles[role] = Role(self._folder.name, role, list(args), listen, binary=self.binary)
        return self.roles[role]

    def restart(self, role, binary=None):
        """The same role again at the same address, after its process ended; perhaps of another version."""
        ended = self.roles[role]
        ended.process.wait(30)
        self.roles[role] = Role(self._folder.name, role, ended.args, ended.listen, ended.prefix, ended.env,
                                binary or ended.binary)
        self.roles[role].address = ended.address
        return self.roles[role]

    def __getitem__(self, role):
        return self.roles[role]

    def of(self, kind):
        return [r for name, r in self.roles.items() if name.startswith(kind)]

    def generate_process(self, prompt, *args, **popen):
        path = Path(self._folder.name) / f"prompt-{time.monotonic_ns()}"
        path.write_text(prompt)
        return subprocess.Popen([BINARY, "generate", "--gateway", self.gateway.address, "--prompt-file", str(path),
                                 *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen)

    def generate(self, prompt, *args, timeout=180):
        """The JSON of `oscarkv generate --json`; raises GenerateError with its stderr."""
        process = self.generate_process(prompt, "--json", *args)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError("generate hangs\n" + self.logs())
        if process.returncode != 0:
            raise GenerateError(err.strip())
        return json.loads(out)

    def logs(self):
        return "\n".join(f"--- {name}\n{role.log()[-4000:]}" for name, role in self.roles.items())

    def stop(self):
        statuses = {}
        for name, role in reversed(list(self.roles.items())):
            if role.process.poll() is None:
                statuses[name] = role.terminate()
        self.last_logs = self.logs()
        self._folder.cleanup()
        return statuses

    def wait_for(self, what, condition, timeout=20):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if condition():
                return
            time.sleep(0.05)
        raise AssertionError(f"not within {timeout} s: {what}\n{self.logs()}")


class GenerateError(Exception):
    pass


class ClusterTest(unittest.TestCase):
    """A test case with one cluster per class; `options` are Cluster's arguments."""
    options = {}
    cluster_class = Cluster

    @classmethod
    def setUpClass(cls):
        cls.cluster = cls.cluster_class(**cls.options)

    @classmethod
    def tearDownClass(cls):
        statuses = cls.cluster.stop()
        bad = {name: status for name, status in statuses.items() if status != 0}
        assert not bad, f"exit statuses after SIGTERM: {bad}\n{cls.cluster.last_logs}"

    def run(self, result=None):
        before = len(result.failures) + len(result.errors)
        super().run(result)
        if len(result.failures) + len(result.errors) > before:
            print(self.cluster.logs())


def tokens(answer):
    return [t["id"] for t in answer["tokens"]]


def book(name="wendigo"):
    return (ROOT / f"tests/data/{name}.txt").read_text()


def words(n, start=0, name="wendigo"):
    """An excerpt of n words."""
    return " ".join(book(name).split()[start:start + n])
