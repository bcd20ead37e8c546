"""KV nodes that register in a real etcd: join, kill -9, leave; etcd killed and back; everything goes on meanwhile."""
import base64
import json
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import unittest
import urllib.request

from certificates import Certificates
from cluster import BINARY, MODEL, Cluster, tokens, words


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Etcd:
    def __init__(self, certs=None):
        """certs: with TLS, to clients that show a certificate."""
        self.certs = certs
        self.folder = tempfile.TemporaryDirectory(prefix="oscarkv-etcd-")
        self.port, self.peer_port = free_port(), free_port()
        self.start()

    def start(self):
        scheme, secure = ("http", []) if self.certs is None else ("https", [
            "--cert-file", self.certs.cert("server"), "--key-file", self.certs.key("server"), "--client-cert-auth",
            "--trusted-ca-file", self.certs.cert("ca")])
        client, peer = f"{scheme}://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.peer_port}"
        self.process = subprocess.Popen(
            ["etcd", "--data-dir", self.folder.name + "/data", "--listen-client-urls", client, "--advertise-client-urls", client,
             "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
             "--log-level", "error", "--bcrypt-cost", "4", *secure], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("etcd does not listen")

    def call(self, method, **fields):
        """By etcd's JSON gateway."""
        context = ssl.create_default_context(cafile=self.certs.cert("ca"))
        context.load_cert_chain(self.certs.cert("client"), self.certs.key("client"))
        url = f"https://127.0.0.1:{self.port}/v3/{method}"
        with urllib.request.urlopen(url, json.dumps(fields).encode(), timeout=20, context=context) as response:
            return json.load(response)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.kill()
        self.folder.cleanup()


@unittest.skipIf(shutil.which("etcd") is None, "etcd is not installed (./test installs it)")
class EtcdCluster(unittest.TestCase):
    def setUp(self):
        self.etcd = Etcd()
        etcd = ["--etcd", f"127.0.0.1:{self.etcd.port}", "--etcd-prefix", "/test/"]
        self.cluster = Cluster(kvstores=2, kvstore_args=[*etcd, "--zone", "west"], etcd=etcd)

    def tearDown(self):
        statuses = self.cluster.stop()
        self.etcd.stop()
        self.assertFalse({n: s for n, s in statuses.items() if s != 0}, self.cluster.last_logs)

    def members(self, count, timeout=30):
        self.cluster.wait_for(f"{count} members", lambda: all(
            r.metric("oscarkv_kvstore_client_members") == count and r.metric("oscarkv_kvstore_client_node_up") >= count
            for kind in ("gateway", "prefill", "attention") for r in self.cluster.of(kind)), timeout)

    def status(self):
        return subprocess.run([BINARY, "status", "--gateway", self.cluster.gateway.address], capture_output=True, text=True,
                              check=True).stdout

    def test_life(self):
        prompt = words(900)
        first = self.cluster.generate(prompt, "--max-tokens", 8)
        full = first["usage"]["prompt_tokens"] // 64 * 64
        self.assertIn("2 nodes (etcd)", self.status())

        # A third node joins: it is used, and what was stored before is found.
        third = self.cluster.start("kvstore-2", self.cluster.kvstore_args)
        self.members(3)
        again = self.cluster.generate(prompt, "--max-tokens", 8)
        self.assertGreaterEqual(again["usage"]["cached_tokens"], full - 64)
        self.assertIn(third.address, self.status())

        # etcd dies: the last view serves on; a node that dies meanwhile too.
        self.etcd.kill()
        self.cluster.wait_for("etcd is missed", lambda: self.cluster.gateway.metric(
            "oscarkv_kvstore_client_membership_connected") == 0, 30)
        self.assertIn("MEMBERSHIP NOT REACHABLE", self.status())
        self.assertEqual(tokens(self.cluster.generate(prompt, "--max-tokens", 8)), tokens(again))
        self.cluster["kvstore-0"].kill()
        self.assertGreaterEqual(self.cluster.generate(prompt, "--max-tokens", 8)["usage"]["cached_tokens"], full - 64)

        # etcd comes back: registrations go on, the dead node's ends with its lease.
        self.etcd.start()
        self.cluster.wait_for("nodes registered again", lambda: all(
            self.cluster[f"kvstore-{i}"].metric("oscarkv_kvstore_registered") == 1 for i in (1, 2)), 30)
        self.cluster.wait_for("etcd is there", lambda: self.cluster.gateway.metric(
            "oscarkv_kvstore_client_membership_connected") == 1, 30)
        self.members(2, 60)
        self.assertGreaterEqual(self.cluster.generate(prompt, "--max-tokens", 8)["usage"]["cached_tokens"], full - 64)

        # A new process at the dead node's address is another incarnation, and is used.
        self.cluster.restart("kvstore-0")
        self.members(3)
        # One that stops in good order leaves at once.
        self.assertEqual(third.terminate(), 0)
        self.cluster.wait_for("it has left", lambda: self.cluster.gateway.metric("oscarkv_kvstore_client_members") == 2, 10)
        self.cluster.generate(prompt, "--max-tokens", 4)


@unittest.skipIf(shutil.which("etcd") is None, "etcd is not installed (./test installs it)")
class SecuredEtcd(unittest.TestCase):
    """TLS both ways, and a user who may write below one prefix."""

    def setUp(self):
        self.certs = Certificates()
        for name in ("ca", "other"):
            self.certs.authority(name)
        for name in ("server", "client"):
            self.certs.certificate(name)
        self.password = self.certs.write("password", "open sesame\n")
        self.etcd = Etcd(self.certs)
        key, end = (base64.b64encode(k).decode() for k in (b"/test/", b"/test0"))
        for user, password in (("root", "r"), ("oscarkv", "open sesame")):
            self.etcd.call("auth/user/add", name=user, password=password)
            self.etcd.call("auth/role/add", name=user)
            self.etcd.call("auth/user/grant", user=user, role=user)
        self.etcd.call("auth/role/grant", name="oscarkv", perm={"permType": "READWRITE", "key": key, "range_end": end})
        self.etcd.call("auth/enable")

    def tearDown(self):
        self.etcd.stop()

    def args(self, ca="ca", cert="client", user="oscarkv", password=None, prefix="/test/"):
        args = ["--etcd", f"127.0.0.1:{self.etcd.port}", "--etcd-prefix", prefix]
        args += ["--etcd-ca", self.certs.cert(ca)] if ca else []
        args += ["--etcd-cert", self.certs.cert(cert), "--etcd-key", self.certs.key(cert)] if cert else []
        return args + (["--etcd-user", user, "--etcd-password-file", password or self.password] if user else [])

    def start(self, *args):
        """What a worker says that must not start."""
        out = subprocess.run([BINARY, "prefill", "--model", MODEL, "--listen", "127.0.0.1:0", *args], capture_output=True,
                             text=True, timeout=60)
        self.assertNotEqual(out.returncode, 0, out.stderr)
        self.assertNotIn("open sesame", out.stdout + out.stderr)
        return out.returncode, out.stderr

    def test_nodes_register_and_are_found(self):
        etcd = self.args()
        cluster = Cluster(kvstores=2, kvstore_args=etcd, etcd=etcd)
        try:
            self.assertEqual(cluster.generate(words(300), "--max-tokens", 4)["usage"]["generated_tokens"], 4)
            registered = lambda: all(n.metric("oscarkv_kvstore_registered") == 1 for n in cluster.of("kvstore"))
            cluster.wait_for("registered", registered)
            # An etcd that was started again knows no token of before: all log in anew.
            self.etcd.kill()
            cluster.wait_for("etcd is missed", lambda: cluster.gateway.metric(
                "oscarkv_kvstore_client_membership_connected") == 0, 30)
            self.etcd.start()
            cluster.wait_for("logged in again", lambda: registered() and cluster.gateway.metric(
                "oscarkv_kvstore_client_membership_connected") == 1, 60)
            self.assertGreater(cluster.generate(words(300), "--max-tokens", 4)["usage"]["cached_tokens"], 0)
        finally:
            statuses = cluster.stop()
        self.assertEqual(set(statuses.values()), {0}, cluster.last_logs)
        self.assertNotIn("open sesame", cluster.last_logs)

    def test_who_is_not_let_in_says_why(self):
        wrong = self.certs.write("wrong", "wrong")
        for what, args, part in (("plain text", self.args(ca="", cert="", user=""), "etcd 127.0.0.1"),
                                 ("another authority", self.args(ca="other"), "etcd 127.0.0.1"),
                                 ("no certificate", self.args(cert=""), "etcd 127.0.0.1"),
                                 ("no user", self.args(user=""), "etcd 127.0.0.1"),
                                 ("wrong password", self.args(password=wrong), "authentication failed"),
                                 ("another prefix", self.args(prefix="/other/"), "permission denied")):
            with self.subTest(what):
                self.assertIn(part, self.start(*args)[1])

    def test_options_that_do_not_belong_together(self):
        empty = self.certs.write("empty", "\n")
        for args, part in ((self.args(ca=""), "need --etcd-ca"),
                           ([*self.args(user=""), "--etcd-user", "oscarkv"], "--etcd-password-file is missing"),
                           (self.args(password=empty), "expected the password in the first line"),
                           (self.args(password="/nonexistent"), "--etcd-password-file=/nonexistent"),
                           ([*self.args(cert=""), "--etcd-cert", self.certs.cert("client")], "--etcd-key is missing"),
                           ([*self.args(cert=""), "--etcd-cert", self.certs.cert("client"), "--etcd-key", self.certs.key("server")],
                            "the private key is not the certificate's")):
            with self.subTest(part):
                status, text = self.start(*args)
                self.assertEqual(status, 2, text)
                self.assertIn(part, text)


if __name__ == "__main__":
    unittest.main(verbosity=2)
