"""A stand-in for a model that speaks every protocol, on loopback: V1, V2 by REST and gRPC, OpenAI's API, rerank, JSON.

It knows no model: texts get vectors by their first letters, audio is transcribed as SPOKEN, speech is a tone. ``fault`` makes it answer wrongly.
"""

import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as services
from standins.loopback import Answering, served

from kfp_components import names
from kfp_components.cluster import Endpoint
from kfp_components.probes import defaults

MODEL, VERSION = "m", "v2"
APPLICATION = names.application(MODEL, VERSION)
SPOKEN = "The quick brown fox jumps over the lazy dog."
WORDS = ("Red", ", green", " and", " blue", ".")
TEXTS = [defaults.PETS[0], *defaults.DOCUMENTS[:2]]


def vector(text: str, fault: str | None = None) -> list[float]:
    if fault == "collapsed":
        return [0.5, 0.5, 0.5, 0.5]
    if fault == "endless":
        return [float("nan"), 0.0, 0.0, 1.0]
    found = {"A ": [0.0, 1.0, 0.001 * len(text), 0.0]}.get(text[:2], [1.0, 0.0, 0.0, 0.1])
    found = [number / sum(one * one for one in found) ** 0.5 for number in found]
    return found[:3] if fault == "shape" else [2 * number for number in found] if fault == "long" else found


@dataclass
class State:
    """What a test sets and sees. ``pause_s`` is before each answer; whatever hangs goes on when ``let_go`` is set."""

    fault: str | None = None
    version: str = VERSION
    pause_s: float = 0.0
    seen: list[dict[str, str]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    let_go: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def output(self, texts: list[str]) -> dict[str, Any]:
        vectors = [vector(text, self.fault) for text in texts]
        data: list[Any] = [number for one in vectors for number in one]
        lengths = [len(texts), 5 if self.fault == "lies" else len(vectors[0])]
        data = [str(number) for number in data] if self.fault == "kind" else data
        return {"name": "embedding", "datatype": "FP64" if self.fault == "datatype" else "FP32", "shape": lengths, "data": data}


class Handler(Answering):
    state: State
    wbufsize = -1

    def do_GET(self) -> None:
        self.asked()

    def do_POST(self) -> None:
        self.asked()

    def asked(self) -> None:
        state = self.state
        self.content = self.rfile.read(int(self.headers.get("content-length") or 0))
        with state.lock:
            state.seen.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
            state.in_flight += 1
            state.most_in_flight = max(state.most_in_flight, state.in_flight)
        try:
            time.sleep(state.pause_s)
            if state.fault == "hangs":
                state.let_go.wait(60)
            if state.fault == "error":
                self.say({"error": "out of memory,\n\ntwo lines below"}, 500)
            else:
                ROUTES[self.path.removeprefix(names.version_route(MODEL, VERSION)).removeprefix(f"/{MODEL}")](self)
        finally:
            with state.lock:
                state.in_flight -= 1

    def say(self, value: Any, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        body = value if isinstance(value, bytes) else value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.answer(status, body, kind, **{names.VERSION_HEADER: self.state.version, **headers})

    def pieces(self, pieces: Iterator[bytes], kind: str) -> None:
        self.send_response(200)
        for name, value in (("content-type", kind), ("transfer-encoding", "chunked"), (names.VERSION_HEADER, self.state.version)):
            self.send_header(name, value)
        self.end_headers()
        for piece in pieces:
            if piece == b"":  # breaks
                self.close_connection = True
                return
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    @property
    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.content)
        return found

    def plain(self) -> None:
        if self.state.fault == "no json":
            self.say("<html>\n  gateway\n</html>", kind="text/html")
        elif self.state.fault == "stalls":

            def half() -> Iterator[bytes]:
                yield b'{"sum": '
                self.state.let_go.wait(60)

            self.pieces(half(), "application/json")
        else:
            numbers = self.body["numbers"] if self.command == "POST" else []
            self.say({"sum": sum(numbers) + (self.state.fault == "wrong"), "parts": [[1, 2, 3], [4, 5, 6]], "host": self.headers["host"]})

    def predict(self) -> None:
        self.say({"predictions": [2 * number + (self.state.fault == "wrong") for number in self.body["instances"]]})

    def infer(self) -> None:
        length = self.headers.get("inference-header-content-length")
        head = json.loads(self.content[: int(length)] if length else self.content)
        if "inputs" not in head:
            self.say({"error": "inputs are missing"}, 400)
            return
        output = self.state.output(head["inputs"][0].get("data") or list(strings(self.content[int(length or 0) :])))
        answer = {"model_name": MODEL, "model_version": self.state.version, "outputs": [output]}
        if self.state.fault == "no outputs":
            self.say({"model_name": MODEL, "predictions": [1]})
        elif not (head.get("parameters") or {}).get("binary_data_output"):
            self.say(answer)
        else:
            raw = struct.pack(f"<{len(output['data'])}f", *output.pop("data"))
            told = json.dumps({**answer, "outputs": [{**output, "parameters": {"binary_data_size": len(raw)}}]}).encode()
            self.say(told + raw, kind="application/octet-stream", **{"inference-header-content-length": str(len(told))})

    def chat(self) -> None:
        assert self.body["messages"][0]["role"] == "user"
        self.said(lambda piece: {"delta": {"content": piece}}, {"message": {"role": "assistant", "content": self.text}})

    def completions(self) -> None:
        self.said(lambda piece: {"text": piece}, {"text": self.text})

    @property
    def text(self) -> str:
        return "" if self.state.fault == "wrong" else "".join(WORDS)

    def said(self, piece: Callable[[str], dict[str, Any]], whole: dict[str, Any]) -> None:
        head = {"id": "c-1", "created": 1, "model": self.body["model"]}
        fault = self.state.fault
        if not self.body.get("stream") or fault == "no stream":
            self.say({**head, "choices": [{"index": 0, "finish_reason": "stop", **whole}]})
            return

        def event(text: str, finish: str | None = None) -> bytes:
            return f"data: {json.dumps({**head, 'choices': [{'index': 0, 'finish_reason': finish, **piece(text)}]})}\n\n".encode()

        def events() -> Iterator[bytes]:
            yield event("")  # the role comes first
            if fault == "odd events":
                yield from (f"data: {json.dumps(odd)}\n\n".encode() for odd in (5, {"choices": 5}, {"choices": [{"delta": "x", "text": {}}]}, []))
                return
            if fault == "begins late":
                time.sleep(0.1)
            for number, word in enumerate(WORDS):
                yield b"data: {half\n\n" if fault == "garbled" else event(word)
                if number == 2 and fault == "half":
                    return
                if number == 2 and fault == "breaks":
                    yield b""
            yield event("", "stop")
            yield b"data: [DONE]\n\n"

        self.pieces(events(), "text/event-stream")

    def embeddings(self) -> None:
        entries = [{"index": index, "embedding": vector(text, self.state.fault)} for index, text in enumerate(self.body["input"])]
        self.say({"object": "list", "data": entries, "model": self.body["model"]})

    def rerank(self) -> None:
        documents = self.body["documents"]
        order = sorted(range(len(documents)), key=lambda index: "tomatoes" not in documents[index], reverse=self.state.fault == "wrong")
        self.say({"model": self.body["model"], "results": [{"index": index, "relevance_score": 1 / (1 + at)} for at, index in enumerate(order)]})

    def transcribe(self) -> None:
        assert b'name="file"; filename="media.wav"' in self.content and b"RIFF" in self.content
        assert b'name="model"\r\n\r\nm\r\n' in self.content
        self.say({"text": "Something else entirely." if self.state.fault == "wrong" else SPOKEN})

    def speech(self) -> None:
        content = defaults.tone(0.2 if self.state.fault == "short" else 2.0, pitch_hz=0.0 if self.state.fault == "silent" else 440.0)
        if self.state.fault == "no json":
            self.say("no audio", kind="text/plain")
            return
        parts = (content[at : at + 16_000] for at in range(0, len(content), 16_000))
        self.pieces(iter([next(parts), b""]) if self.state.fault == "breaks" else parts, "audio/wav")


ROUTES: dict[str, Callable[[Handler], None]] = {
    **{path: lambda handler: handler.say({"ready": True}) for path in ("/v2/health/live", "/v2/health/ready", f"/v2/models/{MODEL}/ready")},
    "/plain": Handler.plain,
    f"/v1/models/{MODEL}:predict": Handler.predict,
    f"/v2/models/{MODEL}/infer": Handler.infer,
    "/v1/chat/completions": Handler.chat,
    "/v1/completions": Handler.completions,
    "/v1/embeddings": Handler.embeddings,
    "/v1/rerank": Handler.rerank,
    "/v1/audio/transcriptions": Handler.transcribe,
    "/v1/audio/speech": Handler.speech,
}


class Servicer(services.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, state: State) -> None:
        self.state = state

    def ModelInfer(self, asked: Any, context: Any) -> Any:
        state = self.state
        application = dict(context.invocation_metadata()).get("application")
        if application != APPLICATION:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no application {application}")
        if state.fault == "hangs":
            state.let_go.wait(60)
        if state.fault == "error":
            context.abort(grpc.StatusCode.INTERNAL, "out of memory")
        if state.fault == "away":
            context.abort(grpc.StatusCode.UNAVAILABLE, "no replica")
        output = state.output([item.decode() for item in asked.inputs[0].contents.bytes_contents])
        data = output.pop("data")
        tensor = pb.ModelInferResponse.InferOutputTensor(**output, contents=pb.InferTensorContents(fp32_contents=data))
        return pb.ModelInferResponse(model_name=MODEL, model_version=state.version, outputs=[tensor])


@dataclass(frozen=True)
class Model:
    """Where it listens, and its state."""

    state: State
    endpoint: Endpoint
    grpc: Endpoint


@contextmanager
def model() -> Iterator[Model]:
    """It, while the block runs."""
    state = State()
    server = grpc.server(ThreadPoolExecutor(4))
    services.add_GRPCInferenceServiceServicer_to_server(Servicer(state), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with served(type("Handler", (Handler,), {"state": state})) as address:
            host = names.service_host(names.alias(MODEL), "ai-ml")
            at = f"127.0.0.1:{port}"
            yield Model(state, Endpoint(f"http://{address}", host, ("Service ai-ml/m-predictor",)), Endpoint(f"http://{at}", host, (at,)))
            state.let_go.set()
    finally:
        server.stop(None).wait()


def strings(raw: bytes) -> Iterator[str]:
    """BYTES of a binary tensor: each with its length before it."""
    at = 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        yield raw[at + 4 : at + 4 + length].decode()
        at += 4 + length
