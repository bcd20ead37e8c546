"""A cluster under mTLS and tokens: who is let in, as whom, and what tenants see of each other."""
import re
import socket
import subprocess
import unittest

from certificates import Certificates, new_token
from cluster import BINARY, Cluster, GenerateError, words


class MutualTls(unittest.TestCase):
    """Every port asks for a certificate; each role presents its own."""

    @classmethod
    def setUpClass(cls):
        cls.certs = certs = Certificates()
        for name in ("ca", "other"):
            certs.authority(name)
        for name in ("server", "client"):
            certs.certificate(name)
        certs.certificate("stranger", "other")
        certs.certificate("old", days=-1)
        certs.certificate("elsewhere", names="DNS:elsewhere.example")
        secure = [*certs.args("server"), "--tls-client-auth", "require"]
        cls.cluster = Cluster(kvstore_args=secure, worker_args=secure, gateway_args=secure)

    @classmethod
    def tearDownClass(cls):
        statuses = cls.cluster.stop()
        assert not any(statuses.values()), cls.cluster.last_logs

    def ask(self, *args):
        return self.cluster.generate(words(200), "--max-tokens", 4, *args)

    def test_a_prompt_is_answered(self):
        answer = self.ask(*self.certs.args("client"))
        self.assertEqual(answer["usage"]["generated_tokens"], 4)
        self.assertGreater(answer["usage"]["bytes_put"] + answer["usage"]["bytes_got"], 0)

    def test_who_is_not_let_in_hears_why(self):
        certs = self.certs
        for what, args, part in (
                ("plain text", [], "no gateway answers"),
                ("no certificate", ["--tls-ca", certs.cert("ca")], "no gateway answers|certificate required"),
                ("of another authority", certs.args("stranger"), "no gateway answers|unknown ca"),
                ("server of another authority", certs.args("client", "other"), "certificate verify failed"),
                ("expired", certs.args("old"), "the certificate expired on"),
                ("no such file", ["--tls-ca", "/nonexistent"], "--tls-ca=/nonexistent"),
                ("key of another", ["--tls-cert", certs.cert("client"), "--tls-key", certs.key("server"), "--tls-ca",
                                    certs.cert("ca")], "the private key is not the certificate's")):
            with self.subTest(what), self.assertRaisesRegex(GenerateError, part):
                self.ask(*args)

    def test_the_name_of_the_server_is_checked(self):
        with self.assertRaises(GenerateError):
            self.ask(*self.certs.args("client"), "--tls-peer-name", "elsewhere.example")

    def test_health_of_every_port(self):
        for role in self.cluster.roles.values():
            out = subprocess.run([BINARY, "health", "--address", role.address, *self.certs.args("client")],
                                 capture_output=True, text=True)
            self.assertEqual((out.returncode, out.stdout), (0, "SERVING\n"), role.role + out.stderr)
            plain = subprocess.run([BINARY, "health", "--address", role.address], capture_output=True, text=True)
            self.assertEqual(plain.returncode, 1, role.role)

    def test_an_expired_certificate_does_not_start(self):
        command = [BINARY, "kvstore", "--capacity", "16MiB", *self.certs.args("old")]
        out = subprocess.run(command, capture_output=True, text=True, timeout=60)
        self.assertEqual(out.returncode, 2, out.stderr)
        self.assertIn("the certificate expired on", out.stderr)

    def test_a_connection_that_says_nothing_is_closed(self):
        """Slowloris: some that never begin the handshake, some in its middle; others are served meanwhile."""
        silent = []
        for role in self.cluster.roles.values():
            host, port = role.address.split(":")
            for opening in (b"", b"\x16\x03\x01\x02\x00\x01"):
                connection = socket.create_connection((host, int(port)), timeout=60)
                connection.sendall(opening)
                silent.append((role.role, connection))
        self.assertEqual(self.ask(*self.certs.args("client"))["usage"]["generated_tokens"], 4)
        for role, connection in silent:
            with connection:
                self.assertEqual(connection.recv(1024), b"", role)  # the other side closes it, in 10 s; 60 s fail

    def test_wide_open_is_said_loudly(self):
        from cluster import Role
        role = Role(self.certs.folder, "kvstore-9", ["--capacity", "16MiB", "--ucx-lanes", "tcp"], listen="0.0.0.0:0")
        try:
            self.assertIn("NO TLS", role.log())
            self.assertIn("NO AUTHENTICATION", role.log())
        finally:
            role.terminate()
        for role in self.cluster.roles.values():
            self.assertNotIn("NO TLS", role.log())


class Tenants(unittest.TestCase):
    """Tokens: two tenants with one prompt, an operator, the processes of the cluster."""

    @classmethod
    def setUpClass(cls):
        cls.certs = certs = Certificates()
        cls.tokens = {}
        lines = []
        for name, args in (("a", ["--tenant", "a"]), ("b", ["--tenant", "b"]), ("c", ["--tenant", "c"]),
                           ("op", ["--roles", "operator", "--name", "pager"]), ("worker", ["--roles", "worker"]),
                           ("old", ["--tenant", "a", "--name", "old", "--expires", "2020-01-01T00:00:00Z"])):
            cls.tokens[name], line = new_token(*args)
            lines.append(line)
            certs.write(f"{name}.token", cls.tokens[name] + "\n")
        lines.append("tenant c max-running=1 tokens-per-second=20")
        cls.lines = lines
        secure = ["--auth-file", certs.write("auth", "\n".join(lines)), "--token-file", str(certs.folder / "worker.token")]
        cls.cluster = Cluster(kvstore_args=secure, worker_args=secure, gateway_args=secure)

    @classmethod
    def tearDownClass(cls):
        statuses = cls.cluster.stop()
        assert not any(statuses.values()), cls.cluster.last_logs
        for token in cls.tokens.values():  # secrets are in no log
            assert token not in cls.cluster.last_logs

    def as_(self, who):
        return ("--token-file", str(self.certs.folder / f"{who}.token"))

    def ask(self, prompt, who, *args):
        return self.cluster.generate(prompt, "--max-tokens", 4, *self.as_(who), *args)

    def test_a_prefix_is_not_shared_across_tenants(self):
        prompt = words(800)
        gateway, store = self.cluster["gateway"], self.cluster["kvstore-0"]
        first = self.ask(prompt, "a")
        again = self.ask(prompt, "a")
        self.assertEqual(first["usage"]["cached_tokens"], 0)
        self.assertGreater(again["usage"]["cached_tokens"], 0)
        hits = store.metric("oscarkv_kvstore_lookups_total", result="hit")
        cached = gateway.metric("oscarkv_gateway_cached_tokens_total")
        reads = store.metric("oscarkv_kvstore_calls_total", call="GetStart")
        other = self.ask(prompt, "b")
        # The path of a miss: nothing was found, nothing was read, all was computed and stored anew.
        self.assertEqual(other["usage"]["cached_tokens"], 0)
        self.assertEqual(other["usage"]["bytes_put"], first["usage"]["bytes_put"])
        self.assertEqual(store.metric("oscarkv_kvstore_lookups_total", result="hit"), hits)
        self.assertEqual(gateway.metric("oscarkv_gateway_cached_tokens_total"), cached)
        prefill_reads = store.metric("oscarkv_kvstore_calls_total", call="GetStart") - reads
        self.assertLessEqual(prefill_reads, 1, "the attention worker's hand-over only")
        used = {re.search('tenant="([^"]*)"', series).group(1) for series, value in store.metrics().items()
                if series.startswith("oscarkv_kvstore_tenant_used_bytes") and value > 0}
        self.assertTrue({"a", "b"} <= used, used)

    def test_the_tenant_is_the_tokens(self):
        self.assertEqual(self.ask("Once", "a", "--tenant", "a")["usage"]["generated_tokens"], 4)
        with self.assertRaisesRegex(GenerateError, 'PERMISSION_DENIED.*may not act for tenant "b"'):
            self.ask("Once", "a", "--tenant", "b")

    def test_who_is_refused_hears_why(self):
        self.certs.write("wrong.token", "okv_wrong\n")
        for who, part in (("wrong", "UNAUTHENTICATED.*unknown bearer token"),
                          ("old", "UNAUTHENTICATED.*'old' have expired"),
                          ("op", "PERMISSION_DENIED.*has the role operator"),
                          ("worker", "PERMISSION_DENIED.*has the role worker")):
            with self.subTest(who), self.assertRaisesRegex(GenerateError, part):
                self.ask("Once", who)
        with self.assertRaisesRegex(GenerateError, "UNAUTHENTICATED.*no credentials"):
            self.cluster.generate("Once")
        self.assertGreater(self.cluster["gateway"].metric("oscarkv_auth_refused_total"), 0)

    def status(self, who, address):
        return subprocess.run([BINARY, "status", "--gateway", address, *self.as_(who)], capture_output=True, text=True)

    def test_status_is_the_operators(self):
        out = self.status("op", self.cluster.gateway.address)
        self.assertEqual(out.returncode, 0, out.stderr)
        self.assertIn("attention", out.stdout)
        self.assertIn("PERMISSION_DENIED", self.status("a", self.cluster.gateway.address).stderr)

    def test_limits_of_a_tenant(self):
        running = self.cluster.generate_process(words(300), "--max-tokens", 4000, "--ignore-eos", *self.as_("c"))
        try:
            self.assertTrue(running.stdout.read(1))
            with self.assertRaisesRegex(GenerateError, "RESOURCE_EXHAUSTED.*tenant 'c': limit max-running=1"):
                self.ask("Once", "c")
            self.ask("Once", "a")
        finally:
            running.kill()
            running.communicate()
        self.cluster.wait_for("the request's end", lambda: self.cluster["gateway"].metric(
            "oscarkv_gateway_running_requests") == 0)
        with self.assertRaisesRegex(GenerateError, "tenant 'c': limit tokens-per-second=20: retry in"):
            self.ask("Once", "c")

    def test_a_new_token_and_a_revoked_one(self):
        token, line = new_token("--tenant", "a")
        self.certs.write("new.token", token)
        with self.assertRaisesRegex(GenerateError, "UNAUTHENTICATED"):
            self.ask("Once", "new")
        self.certs.write("auth", "\n".join([*self.lines, line]))

        def let_in():
            try:
                return bool(self.ask("Once", "new"))
            except GenerateError:
                return False
        self.cluster.wait_for("the new token is good", let_in)
        self.certs.write("auth", "\n".join(self.lines))
        self.cluster.wait_for("it is not any more", lambda: not let_in())


class Secrets(unittest.TestCase):
    def test_help_shows_no_secret(self):
        for command in ("serve", "gateway", "kvstore", "prefill", "attention", "generate", "status"):
            text = subprocess.run([BINARY, command, "--help"], capture_output=True, text=True, check=True).stdout
            self.assertIn("--token-file", text)
            # Secrets come in files: no option takes one on the command line, where other users see it.
            self.assertNotRegex(text, r"--(token|password|secret|key) ")

    def test_a_wrong_auth_file_is_named_not_shown(self):
        certs = Certificates()
        path = certs.write("auth", "token okv_verysecret tenant=a\n")
        out = subprocess.run([BINARY, "kvstore", "--capacity", "16MiB", "--auth-file", path], capture_output=True, text=True,
                             timeout=60)
        self.assertEqual(out.returncode, 2, out.stderr)
        self.assertIn("line 1: expected token sha256:", out.stderr)
        self.assertNotIn("verysecret", out.stdout + out.stderr)

    def test_bad_new_tokens(self):
        for args in (["--roles", "root"], ["--tenant", "a b"], ["--expires", "soon"]):
            out = subprocess.run([BINARY, "token", "new", *args], capture_output=True, text=True)
            self.assertEqual((out.returncode, out.stdout), (2, ""), args)


if __name__ == "__main__":
    unittest.main(verbosity=2)
