"""A cluster under mTLS and tokens: who is let in, as whom, and what tenants see of each other."""
import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import unittest
import urllib.error
import urllib.request
from pathlib import Path

from certificates import Certificates, new_token
from cluster import BINARY, ROOT, Cluster, GenerateError, words


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
        # The KV node also asks who it is, and grants its memory block by block.
        cls.token, line = new_token("--roles", "operator", "--name", "prometheus")
        auth = certs.write("auth", f"cert server roles=worker,operator\ncert client roles=operator\n{line}\n")
        asking = ["--auth-file", auth, "--metrics-auth", "operator", "--data-access", "granted"]
        cls.cluster = Cluster(kvstore_args=[*secure, *asking], worker_args=secure,
                              gateway_args=[*secure, "--http-listen", "127.0.0.1:0"])

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

    def https(self, port, path, name="client", ca="ca"):
        """What a client with that certificate (empty: none) gets."""
        context = ssl.create_default_context(cafile=self.certs.cert(ca))
        if name:
            context.load_cert_chain(self.certs.cert(name), self.certs.key(name))
        with urllib.request.urlopen(f"https://127.0.0.1:{port}{path}", timeout=60, context=context) as response:
            return response.read().decode()

    def test_http_and_metrics_speak_tls_only(self):
        gateway = self.cluster["gateway"]
        self.assertIn('"reference"', self.https(gateway.http_port, "/v1/models"))
        ports = {f"{name} metrics": (role.metrics_port, "/metrics") for name, role in self.cluster.roles.items()}
        ports["http"] = gateway.http_port, "/health"
        for what, (port, path) in ports.items():
            with self.subTest(what):
                self.assertTrue(self.https(port, path))
                for name, ca in (("", "ca"), ("stranger", "ca"), ("client", "other")):
                    with self.assertRaises(OSError, msg=name):
                        self.https(port, path, name, ca)
                with self.assertRaises((OSError, http.client.HTTPException)):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60)
        self.assertGreater(gateway.metric("oscarkv_gateway_http_refused_total", reason="tls"), 0)
        expires = gateway.metric("oscarkv_tls_certificate_expires_seconds", file="tls-cert")
        self.assertTrue(0 < expires <= 2 * 86400, expires)

    def test_blocks_travel_though_each_access_is_asked_for(self):
        args = self.certs.args("client")
        prompt = words(600, start=200)
        first = self.cluster.generate(prompt, "--max-tokens", 4, *args)["usage"]
        again = self.cluster.generate(prompt, "--max-tokens", 4, *args)["usage"]
        self.assertGreater(again["cached_tokens"], 0)
        self.assertEqual(first["lanes"], ["tcp"])
        for name, role in self.cluster.roles.items():
            self.assertEqual(role.metric("oscarkv_transport_refused_total"), 0, name)
            self.assertEqual(role.metric("oscarkv_transport_errors_total"), 0, name)

    @unittest.skipIf(shutil.which("prometheus") is None, "prometheus is not installed (./test installs it)")
    def test_the_real_prometheus_scrapes_it(self):
        """deploy/prometheus/prometheus-secure.yaml with this cluster's addresses: the operator's token at the node, a certificate elsewhere."""
        config = (ROOT / "deploy/prometheus/prometheus-secure.yaml").read_text()
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(ROOT / "deploy/prometheus/oscarkv.rules.yaml", folder)
            shutil.copy(self.certs.cert("ca"), Path(folder, "ca.crt"))
            Path(folder, "prometheus.token").write_text(self.token)
            for name, port in (("gateway", 9400), ("kvstore", 9401), ("prefill", 9402), ("attention", 9403)):
                config = config.replace(f"127.0.0.1:{port}", f"127.0.0.1:{self.cluster.of(name)[0].metrics_port}")
            # The other roles of this cluster want a certificate.
            cert = f"      cert_file: {self.certs.cert('client')}\n      key_file: {self.certs.key('client')}\n"
            Path(folder, "cert.yaml").write_text(config.replace("15s", "1s").replace("    authorization:", f"{cert}    authorization:"))
            Path(folder, "token.yaml").write_text(config.replace("15s", "1s"))
            for file, up in (("cert.yaml", 4), ("token.yaml", 1)):
                with socket.socket() as s:
                    s.bind(("127.0.0.1", 0))
                    port = s.getsockname()[1]
                process = subprocess.Popen(["prometheus", f"--config.file={folder}/{file}", f"--storage.tsdb.path={folder}/{file}.data",
                                            f"--web.listen-address=127.0.0.1:{port}"], stdout=subprocess.DEVNULL,
                                           stderr=subprocess.DEVNULL)

                def seen():
                    try:
                        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?query=up", timeout=10) as response:
                            result = json.load(response)["data"]["result"]
                    except OSError:
                        return False
                    return len(result) == 4 and sum(int(r["value"][1]) for r in result) == up
                try:
                    self.cluster.wait_for(f"{up} of 4 targets are scraped by {file}", seen, 60)
                finally:
                    process.terminate()
                    process.wait()

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
                           ("d", ["--tenant", "d"]),
                           ("op", ["--roles", "operator", "--name", "pager"]), ("worker", ["--roles", "worker"]),
                           ("old", ["--tenant", "a", "--name", "old", "--expires", "2020-01-01T00:00:00Z"])):
            cls.tokens[name], line = new_token(*args)
            lines.append(line)
            certs.write(f"{name}.token", cls.tokens[name] + "\n")
        lines += [f"tenant {tenant} max-running=1 tokens-per-second=20" for tenant in "cd"]
        cls.lines = lines
        secure = ["--auth-file", certs.write("auth", "\n".join(lines)), "--token-file", str(certs.folder / "worker.token")]
        cls.cluster = Cluster(kvstore_args=[*secure, "--metrics-auth", "operator"], worker_args=secure,
                              gateway_args=[*secure, "--http-listen", "127.0.0.1:0"])
        cls.cluster["kvstore-0"].scrape_token = cls.tokens["op"]

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

    def http(self, who, path="/v1/completions", headers=(), port=None, **fields):
        """(status, headers, body) of an HTTP request with that token."""
        request = urllib.request.Request(f"http://127.0.0.1:{port or self.cluster.gateway.http_port}{path}",
                                         json.dumps(fields).encode() if fields else None,
                                         {"Content-Type": "application/json", **dict(headers)})
        if who:
            request.add_header("Authorization", f"Bearer {self.tokens[who]}")
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.headers, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode()

    def test_a_prefix_is_not_shared_across_tenants_over_http(self):
        prompt = words(500, start=1000)
        cached = []
        for who in ("a", "a", "b"):
            status, _, body = self.http(who, prompt=prompt, max_tokens=2)
            self.assertEqual(status, 200, body)
            cached.append(json.loads(body)["usage"]["prompt_tokens_details"]["cached_tokens"])
        self.assertEqual((cached[0], cached[2]), (0, 0))
        self.assertGreater(cached[1], 0)

    def test_refusals_over_http(self):
        refused = self.cluster["gateway"].metric("oscarkv_auth_refused_total")
        for who, path, expected, fields in ((None, "/v1/models", 401, {}), ("old", "/v1/models", 401, {}),
                                            ("a", "/metrics", 403, {}), ("a", "/api/status", 403, {}),
                                            ("op", "/v1/completions", 403, {"prompt": "x", "max_tokens": 1})):
            with self.subTest(f"{who} {path}"):
                status, headers, body = self.http(who, path, **fields)
                self.assertEqual(status, expected, body)
                self.assertEqual(set(json.loads(body)["error"]), {"message", "type", "param", "code"})
                self.assertEqual("WWW-Authenticate" in headers, expected == 401)
                self.assertGreater(self.cluster["gateway"].metric("oscarkv_gateway_http_requests_total", code=str(expected)), 0)
        self.assertEqual(self.cluster["gateway"].metric("oscarkv_auth_refused_total"), refused + 5)
        self.assertEqual(self.http("op", "/metrics")[0], 200)

    def test_metrics_are_the_operators_where_asked(self):
        store = self.cluster["kvstore-0"]
        for who, expected in ((None, 401), ("a", 403), ("op", 200)):
            self.assertEqual(self.http(who, "/metrics", port=store.metrics_port)[0], expected, who)

    def test_limits_of_a_tenant_over_http(self):
        running = self.cluster.generate_process(words(300), "--max-tokens", 4000, "--ignore-eos", *self.as_("d"))
        try:
            self.assertTrue(running.stdout.read(1))
            for path, fields in (("/v1/completions", {"prompt": "Once"}),
                                 ("/v1/completions", {"prompt": "Once", "stream": True})):
                status, headers, body = self.http("d", path, max_tokens=2, **fields)
                self.assertEqual(status, 429, body)
                error = json.loads(body)["error"]
                self.assertEqual((error["type"], error["code"]), ("rate_limit_error", "rate_limit_exceeded"), error)
                self.assertIn("tenant 'd': limit max-running=1", error["message"])
                self.assertGreaterEqual(int(headers["Retry-After"]), 1)
            self.assertEqual(self.http("a", prompt="Once", max_tokens=2)[0], 200)
        finally:
            running.kill()
            running.communicate()
        self.cluster.wait_for("the request's end", lambda: self.cluster["gateway"].metric(
            "oscarkv_gateway_running_requests") == 0)
        status, headers, body = self.http("d", prompt="Once", max_tokens=2)
        self.assertEqual(status, 429, body)
        message = json.loads(body)["error"]["message"]
        seconds = float(re.search(r"tenant 'd': limit tokens-per-second=20: retry in ([\d.]+) ?s", message)[1])
        self.assertGreaterEqual(int(headers["Retry-After"]), seconds)
        self.assertGreater(self.cluster["gateway"].metric("oscarkv_gateway_http_requests_total", code="429"), 2)

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
