"""oscarkv from Python: answers as they come, retried where they broke off.

    from oscarkv_client import Client
    with Client("127.0.0.1:7400") as client:
        answer = client.generate("The Wendigo is", max_tokens=40)
        for piece in answer:
            print(piece.text, end="", flush=True)
        print(answer.usage.cached_tokens, "prompt tokens came from the store; request", answer.request_id)

Needs grpcio and protobuf, and the messages, which generate.py makes beside this file. Errors are grpc.RpcError, whose details() name the
field that was wrong and what is allowed. A Client may be shared by threads; an Answer belongs to one.
"""
from __future__ import annotations

import random
import time
import uuid
from dataclasses import dataclass, field
from typing import Iterator, Sequence

import grpc

try:
    from oscarkv.v1 import gateway_pb2, worker_pb2
except ImportError as e:
    raise ImportError("the messages of oscarkv.v1 are not there: run generate.py, which lies beside oscarkv_client.py") from e

__all__ = ["Answer", "Client", "Piece", "Sampling"]

SERVICE = "/oscarkv.v1.Gateway/"
SHORT_CALL_S = 20.0
MAX_RESPONSE_BYTES = 64 << 20
# The stream broke, or its gateway goes: another attempt may do better. UNKNOWN is gRPC's word for some broken connections.
BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; the default is greedy. What is out of range the gateway refuses by name."""
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logprobs: int = 0

    def _message(self) -> worker_pb2.Sampling:
        return worker_pb2.Sampling(**vars(self))


@dataclass(frozen=True)
class Piece:
    """What came at once: text that is complete in characters, and its tokens."""
    text: str
    tokens: Sequence[worker_pb2.Token] = field(default_factory=tuple)


class Answer:
    """One answer's stream: iterate over it once. Its end leaves usage and finish_reason."""

    def __init__(self, client: Client, request: gateway_pb2.GenerateRequest, timeout_s: float, retries: int, traceparent: str | None):
        self.request_id: str = request.request_id
        self.usage: gateway_pb2.Usage | None = None  # behind the last piece
        self.finish_reason: str = ""  # "STOP_TOKEN", "STOP_STRING", "LENGTH", "CONTEXT"
        self.retried: int = 0
        self._client, self._request, self._retries, self._traceparent = client, request, retries, traceparent
        self._deadline = time.monotonic() + timeout_s
        self._call: grpc.Call | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """Stops the answer; may be called by another thread. The iteration ends with CANCELLED."""
        self._cancelled = True
        if self._call is not None:
            self._call.cancel()

    def text(self) -> str:
        """The whole of it."""
        return "".join(piece.text for piece in self)

    def __iter__(self) -> Iterator[Piece]:
        while True:
            try:
                yield from self._attempt()
                return
            except grpc.RpcError as error:
                left = self._deadline - time.monotonic()
                if error.code() not in BROKEN or self._cancelled or self.retried >= self._retries or left <= 0:
                    raise
            self.retried += 1
            time.sleep(min(left, 0.2 * self.retried * random.uniform(0.5, 1.0)))

    def _attempt(self) -> Iterator[Piece]:
        # With the tokens that came so far: the gateway goes on behind them, and the answer is that of an undisturbed stream.
        self._request.attempt = self.retried + 1
        self._call = self._client._generate(self._request, timeout=max(0.0, self._deadline - time.monotonic()), wait_for_ready=self.retried > 0,
                                            metadata=self._client._metadata(self._traceparent))
        try:
            for response in self._call:
                self._request.resume_tokens.extend(token.id for token in response.tokens)
                if response.text or response.tokens:
                    yield Piece(response.text, tuple(response.tokens))
                if response.HasField("usage"):
                    self.usage = response.usage
                    self.finish_reason = worker_pb2.FinishReason.Name(response.finish_reason).removeprefix("FINISH_REASON_")
        finally:
            self._call.cancel()  # whoever stops to iterate stops the answer; nothing, when it has ended


class Client:
    def __init__(self, target: str = "127.0.0.1:7400", *, token: str | None = None, ca: bytes | None = None, cert: bytes | None = None,
                 key: bytes | None = None, server_name: str | None = None):
        """`ca`: PEM, turns TLS on; with `cert` and `key` the client shows who it is. `token`: of `oscarkv token new`, without "Bearer"."""
        options = [("grpc.max_receive_message_length", MAX_RESPONSE_BYTES), ("grpc.keepalive_time_ms", 10_000),
                   ("grpc.keepalive_timeout_ms", 10_000), ("grpc.initial_reconnect_backoff_ms", 200),
                   ("grpc.max_reconnect_backoff_ms", 1000)]
        if server_name is not None:
            options.append(("grpc.ssl_target_name_override", server_name))
        if ca is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(ca, key, cert), options)
        self._token = token
        self._generate = self._channel.unary_stream(SERVICE + "Generate", gateway_pb2.GenerateRequest.SerializeToString,
                                                    gateway_pb2.GenerateResponse.FromString)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def generate(self, prompt: str | Sequence[int], *, max_tokens: int = 256, sampling: Sampling = Sampling(), stop: Sequence[str] = (),
                 stop_tokens: Sequence[int] = (), ignore_eos: bool = False, tenant: str = "", request_id: str | None = None,
                 timeout_s: float = 600.0, retries: int = 3, traceparent: str | None = None) -> Answer:
        """Asks when the answer is iterated over. `prompt`: text or token ids. `timeout_s` covers all attempts."""
        request = gateway_pb2.GenerateRequest(
            request_id=request_id or f"py-{uuid.uuid4().hex[:16]}", max_tokens=max_tokens, sampling=sampling._message(), stop=stop,
            stop_tokens=stop_tokens, ignore_eos=ignore_eos, tenant=tenant)
        if isinstance(prompt, str):
            request.prompt = prompt
        else:
            request.prompt_tokens.extend(prompt)
        return Answer(self, request, timeout_s, retries, traceparent)

    def tokenize(self, text: str) -> list[int]:
        return list(self._short("Tokenize", gateway_pb2.TokenizeRequest(text=text), gateway_pb2.TokenizeResponse).tokens)

    def model(self) -> gateway_pb2.GetModelResponse:
        return self._short("GetModel", gateway_pb2.GetModelRequest(), gateway_pb2.GetModelResponse)

    def status(self) -> gateway_pb2.GetStatusResponse:
        """For operators, where the gateway asks for tokens."""
        return self._short("GetStatus", gateway_pb2.GetStatusRequest(), gateway_pb2.GetStatusResponse)

    def trace(self, request_or_trace_id: str) -> gateway_pb2.GetTraceResponse:
        """Where a request's time went; for operators. NOT_FOUND: not one of the last 512 of this gateway."""
        return self._short("GetTrace", gateway_pb2.GetTraceRequest(id=request_or_trace_id), gateway_pb2.GetTraceResponse)

    def _short(self, method: str, request, response_type):
        call = self._channel.unary_unary(SERVICE + method, type(request).SerializeToString, response_type.FromString)
        return call(request, timeout=SHORT_CALL_S, metadata=self._metadata(None))

    def _metadata(self, traceparent: str | None) -> list[tuple[str, str]]:
        metadata = [] if self._token is None else [("authorization", f"Bearer {self._token}")]
        return metadata if traceparent is None else [*metadata, ("traceparent", traceparent)]
