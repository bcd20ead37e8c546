"""The gateway's HTTP API with Python's http.client: OpenAI's endpoints, streams, limits, disconnects; the answers are gRPC's."""
import http.client
import json
import os
import re
import shutil
import socket
import tempfile
import unittest
from pathlib import Path

from cluster import MODEL, ClusterTest, words


class HttpTest(ClusterTest):
    def ask(self, method, path, body=None, headers=None, timeout=60):
        """(status, headers, body as text)"""
        connection = http.client.HTTPConnection("127.0.0.1", self.cluster.gateway.http_port, timeout=timeout)
        try:
            if isinstance(body, dict):
                body, headers = json.dumps(body), {"Content-Type": "application/json", **(headers or {})}
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read().decode()
        finally:
            connection.close()

    def complete(self, path="/v1/completions", **fields):
        status, _, body = self.ask("POST", path, fields)
        self.assertEqual(status, 200, body)
        return json.loads(body)

    def stream(self, path="/v1/completions", **fields):
        """The objects of a stream, which must end with [DONE]."""
        status, headers, body = self.ask("POST", path, {**fields, "stream": True})
        self.assertEqual(status, 200, body)
        self.assertIn("text/event-stream", headers["Content-Type"])
        events = body.split("\n\n")
        self.assertEqual(events[-2:], ["data: [DONE]", ""])
        return [json.loads(e.removeprefix("data: ")) for e in events[:-2]]

    def error(self, method, path, body=None, headers=None):
        status, headers, text = self.ask(method, path, body, headers)
        error = json.loads(text)["error"]
        self.assertEqual(set(error), {"message", "type", "param", "code"})
        return status, error, headers


class Completions(HttpTest):
    options = dict(gateway_args=["--http-listen", "127.0.0.1:0", "--http-max-body", "1MiB"])

    def test_the_answer_is_that_of_grpc(self):
        prompt = words(200)
        grpc = self.cluster.generate(prompt, "--max-tokens", 24)
        whole = self.complete(prompt=prompt, max_tokens=24, temperature=0)
        self.assertEqual(whole["choices"][0]["text"], grpc["text"])
        self.assertEqual(whole["choices"][0]["finish_reason"], "length")
        self.assertEqual(whole["usage"]["prompt_tokens"], grpc["usage"]["prompt_tokens"])
        self.assertEqual(whole["usage"]["completion_tokens"], 24)
        chunks = self.stream(prompt=prompt, max_tokens=24, temperature=0, stream_options={"include_usage": True})
        self.assertEqual("".join(c["choices"][0]["text"] for c in chunks if c["choices"]), grpc["text"])
        self.assertGreater(len(chunks), 5, "it streams")
        self.assertEqual(chunks[-1]["usage"]["total_tokens"], whole["usage"]["total_tokens"])

    def test_cached_tokens_and_bytes_are_told(self):
        prompt = words(1000, 2000)
        first = self.complete(prompt=prompt, max_tokens=4)
        again = self.complete(prompt=prompt, max_tokens=4)
        self.assertEqual(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
        self.assertGreater(again["usage"]["prompt_tokens_details"]["cached_tokens"], 900)
        self.assertLess(again["oscarkv"]["kv_bytes_stored"], again["oscarkv"]["kv_bytes_bf16"] / 2)

    def test_seeds_stop_strings_and_log_probabilities(self):
        fields = dict(prompt=words(80, 500), max_tokens=16, temperature=0.9, seed=7)
        first, second = (self.complete(**fields)["choices"][0]["text"] for _ in range(2))
        self.assertEqual(first, second)
        free = [self.complete(**{**fields, "seed": None})["choices"][0]["text"] for _ in range(3)]
        self.assertGreater(len({first, *free}), 1, "without a seed answers differ")
        stop = first[len(first) // 2:len(first) // 2 + 4]
        cut = self.complete(**fields, stop=[stop], logprobs=2)["choices"][0]
        self.assertEqual((cut["text"], cut["finish_reason"]), (first[:first.index(stop)], "stop"))
        self.assertEqual(len(cut["logprobs"]["tokens"]), len(cut["logprobs"]["token_logprobs"]))
        self.assertLessEqual(max(map(len, cut["logprobs"]["top_logprobs"])), 2)
        self.assertTrue("".join(cut["logprobs"]["tokens"]).startswith(cut["text"]))

    def test_prompts_of_token_ids(self):
        whole = self.complete(prompt=[5, 6, 7], max_tokens=2, temperature=0)
        self.assertEqual(whole["usage"]["prompt_tokens"], 3)

    def test_models_health_metrics(self):
        models = json.loads(self.ask("GET", "/v1/models")[2])
        self.assertEqual([m["id"] for m in models["data"]], ["reference"])
        self.assertEqual(json.loads(self.ask("GET", "/v1/models/reference")[2])["object"], "model")
        self.assertEqual(self.error("GET", "/v1/models/other")[0], 404)
        self.assertEqual(self.ask("GET", "/health")[0], 200)
        self.assertEqual(self.ask("GET", "/health/live")[0], 200)
        self.assertEqual(self.ask("HEAD", "/health")[0::2], (200, ""))
        self.complete(prompt="x", max_tokens=1)
        status, headers, text = self.ask("GET", "/metrics")
        self.assertEqual(status, 200)
        self.assertTrue(headers["Content-Type"].startswith("text/plain; version=0.0.4"))
        self.assertRegex(text, r'oscarkv_gateway_http_requests_total{route="/v1/completions",code="200"} [1-9]')

    def test_the_console_and_what_it_shows(self):
        status, headers, page = self.ask("GET", "/")
        self.assertEqual(status, 200)
        self.assertIn("default-src 'none'", headers["Content-Security-Policy"])
        for path in set(re.findall(r'(?:href|src)="(/[^"]*)"', page)):
            self.assertEqual(self.ask("GET", path)[0], 200, path)
        self.assertNotRegex(page, "https?://|<style|onclick| style=")
        self.assertEqual(self.ask("GET", "/console/../../etc/passwd")[0], 404)
        trace = "4bf92f3577b34da6a3ce929d0e0e4736"
        body = json.dumps({"prompt": words(300, 4000), "max_tokens": 5})
        status, headers, _ = self.ask("POST", "/v1/completions", body, {"Content-Type": "application/json",
                                                                      "traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
        self.assertEqual(status, 200)
        for name in (trace, headers["X-Request-Id"]):
            record = json.loads(self.ask("GET", f"/api/requests/{name}")[2])
            self.assertEqual((record["trace_id"], record["code"], record["tokens"]), (trace, "OK", 5))
            self.assertEqual([p["name"] for p in record["phases"]], [
                "tokenising the prompt", "waiting for other requests to end", "asking the store for the prompt's prefix", "in prefill",
                "loading for decoding", "decoding"])
            self.assertAlmostEqual(sum(p["ms"] for p in record["phases"]), record["ms"], places=3)
            parts = [[part["name"] for part in p["parts"]] for p in record["phases"]]
            self.assertEqual(parts, [[], [], [], ["queue", "fetch", "compute", "put"], ["queue", "fetch", "recompute"], []])
        for role in ("gateway", "prefill-0", "attention-0"):
            self.cluster.wait_for(f"the trace in the log of {role}", lambda: f"trace={trace}" in self.cluster[role].log())
        self.assertEqual(self.error("GET", "/api/requests/none")[0], 404)
        status = json.loads(self.ask("GET", "/api/status")[2])
        node = self.cluster["kvstore-0"]
        self.assertEqual([n["endpoint"] for n in status["nodes"]], [node.address])
        self.assertGreater(status["nodes"][0]["page_bytes"], 0)
        self.assertTrue(all(w["usable"] for w in status["workers"]))
        self.assertEqual(status["requests"]["latest"][0]["trace_id"], trace)
        self.assertGreater(sum(status["ttft_seconds"]["counts"]), 0)

    def test_errors_have_openais_shape(self):
        ok = {"prompt": "x"}
        cases = [
            ("POST", "/v1/completions", {**ok, "model": "gpt-9"}, 404, "model", "only \"reference\""),
            ("POST", "/v1/completions", {}, 400, "prompt", "missing"),
            ("POST", "/v1/completions", {**ok, "n": 2}, 400, "n", "one answer"),
            ("POST", "/v1/completions", {**ok, "temperature": -1}, 400, None, "temperature"),
            ("POST", "/v1/completions", {**ok, "max_tokens": 40000}, 400, None, "context"),
            ("POST", "/v1/completions", {"prompt": ""}, 400, None, "prompt is empty"),
            ("POST", "/v1/completions", {"prompt": [9000]}, 400, None, "allowed are 0..8191"),
            ("GET", "/v1/completions", None, 405, None, "takes POST"),
            ("GET", "/nowhere", None, 404, None, "there is no GET /nowhere"),
            ("POST", "/v1/completions/../x", ok, 404, None, "there is no"),
        ]
        for method, path, body, expected, param, says in cases:
            with self.subTest(path=path, body=body):
                status, error, _ = self.error(method, path, body)
                self.assertEqual((status, error["param"]), (expected, param))
                self.assertIn(says, error["message"])
        self.assertEqual(self.error("POST", "/v1/completions", json.dumps(ok))[0], 415)
        self.assertEqual(self.error("POST", "/v1/completions", "{", {"Content-Type": "application/json"})[0], 400)
        status, error, _ = self.error("POST", "/v1/completions", {"prompt": "x" * (2 << 20)})
        self.assertEqual((status, error["code"]), (413, "http_413"))
        deep = "[" * 5000 + "]" * 5000
        self.assertIn("deeper", self.error("POST", "/v1/completions", deep, {"Content-Type": "application/json"})[1]["message"])

    def test_a_model_without_a_template_has_no_chat(self):
        status, error, _ = self.error("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
        self.assertEqual(status, 501)
        self.assertIn("no chat template", error["message"])

    def test_a_client_that_leaves_stops_its_answer(self):
        for streaming in (True, False):
            body = json.dumps({"prompt": words(400, 6000), "max_tokens": 20000, "ignore_eos": True, "stream": streaming})
            client = socket.create_connection(("127.0.0.1", self.cluster.gateway.http_port))
            client.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                           f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
            if streaming:
                client.recv(100)
            self.cluster.wait_for("it decodes", lambda: self.cluster["attention-0"].metric(
                "oscarkv_attention_running_sequences") == 1)
            client.close()
            self.cluster.wait_for("no sequence runs", lambda: self.cluster["attention-0"].metric(
                "oscarkv_attention_running_sequences") == 0, timeout=5)
        self.cluster.wait_for("no pins", lambda: self.cluster["kvstore-0"].metric("oscarkv_kvstore_pins") == 0, timeout=5)
        self.assertEqual(self.cluster.gateway.metric("oscarkv_gateway_http_requests_total", code="499"), 2)


TEMPLATE = """{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if messages[0].role == 'tool' %}{{ raise_exception('no tools first') }}{% endif %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% if short is defined %}{{- 'Well' }}{% endif %}{% endif %}"""


def model_with_template():
    """A copy of the reference model by links, with a chat template."""
    folder = Path(tempfile.mkdtemp(prefix="oscarkv-model-"), "chatty")
    folder.mkdir()
    for file in Path(MODEL).iterdir():
        os.symlink(file, folder / file.name)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return str(folder)


class Chat(HttpTest):
    model = model_with_template()
    options = dict(model=model, gateway_args=["--http-listen", "127.0.0.1:0"])

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        shutil.rmtree(Path(cls.model).parent)

    def test_a_chat_is_its_rendered_prompt(self):
        messages = [{"role": "system", "content": "Brief."}, {"role": "user", "content": [{"type": "text", "text": "Who was it?"}]}]
        prompt = "<|im_start|>system\nBrief.<|im_end|>\n<|im_start|>user\nWho was it?<|im_end|>\n<|im_start|>assistant\n"
        completion = self.complete(prompt=prompt, max_tokens=12, temperature=0, model="chatty")
        chat = self.complete("/v1/chat/completions", messages=messages, max_completion_tokens=12, temperature=0, model="chatty")
        self.assertEqual(chat["object"], "chat.completion")
        self.assertEqual(chat["choices"][0]["message"], {"role": "assistant", "content": completion["choices"][0]["text"], "refusal": None})
        self.assertEqual(chat["usage"]["prompt_tokens"], completion["usage"]["prompt_tokens"])
        chunks = self.stream("/v1/chat/completions", messages=messages, max_tokens=12, temperature=0)
        self.assertEqual(chunks[0]["choices"][0]["delta"], {"role": "assistant", "content": ""})
        self.assertEqual("".join(c["choices"][0]["delta"].get("content", "") for c in chunks), completion["choices"][0]["text"])
        self.assertEqual(chunks[-1]["choices"][0]["finish_reason"], chat["choices"][0]["finish_reason"])
        more = self.complete("/v1/chat/completions", messages=messages, max_tokens=1, chat_template_kwargs={"short": True})
        self.assertGreater(more["usage"]["prompt_tokens"], chat["usage"]["prompt_tokens"])

    def test_what_the_template_refuses_is_the_clients_error(self):
        body = {"messages": [{"role": "tool", "content": "x"}]}
        status, error, _ = self.error("POST", "/v1/chat/completions", body)
        self.assertEqual(status, 400)
        self.assertIn("chat template: line 4: no tools first", error["message"])


class Overload(HttpTest):
    options = dict(gateway_args=["--http-listen", "127.0.0.1:0", "--max-running", "1", "--max-waiting", "0"])

    def test_a_full_gateway_says_429(self):
        running = self.cluster.generate_process(words(300), "--max-tokens", 20000, "--ignore-eos")
        running.stdout.read(20)
        status, error, headers = self.error("POST", "/v1/completions", {"prompt": "x"})
        self.assertEqual((status, error["type"], headers["Retry-After"]), (429, "rate_limit_error", "1"))
        running.kill()
        running.communicate()


class Broken(HttpTest):
    options = dict(gateway_args=["--http-listen", "127.0.0.1:0"])

    def test_a_stream_whose_worker_dies_ends_with_an_error(self):
        body = json.dumps({"prompt": words(400), "max_tokens": 20000, "ignore_eos": True, "stream": True})
        connection = http.client.HTTPConnection("127.0.0.1", self.cluster.gateway.http_port, timeout=60)
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        self.assertEqual(response.status, 200)
        for _ in range(20):
            response.readline()
        self.cluster["attention-0"].kill()
        events = response.read().decode().strip().split("\n\n")
        error = json.loads(events[-1].removeprefix("data: "))["error"]
        self.assertRegex(error["message"], "attention worker .* failed after [0-9]+ tokens")
        self.assertEqual(error["code"], "unavailable")
        connection.close()
        self.cluster.wait_for("not healthy", lambda: self.ask("GET", "/health")[0] == 503)
        status, error, headers = self.error("POST", "/v1/completions", {"prompt": "x"})
        self.assertEqual((status, headers["Retry-After"]), (503, "1"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
