"""Plain HTTP: JSON, KServe's V1 and V2, OpenAI's API with its streams and forms, rerank."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from kfp_components import errors, names
from kfp_components.cluster import Endpoint
from kfp_components.probes import tensors
from kfp_components.probes.answer import Answer, late, parsed
from kfp_components.probes.check import resolve
from kfp_components.request import Media, SmokeCase

if TYPE_CHECKING:
    import httpx

MOST_BYTES = 2**28
"""Of one answer: a stream that never ends is not kept whole."""

PATHS: Mapping[str, Callable[[SmokeCase, str], str]] = {
    "json": lambda case, _model: case.path,
    "v1": lambda _case, model: f"/v1/models/{model}:predict",
    "v2": lambda _case, model: f"/v2/models/{model}/infer",
    "openai_chat": lambda _case, _model: "/v1/chat/completions",
    "openai_completions": lambda _case, _model: "/v1/completions",
    "openai_embeddings": lambda _case, _model: "/v1/embeddings",
    "openai_transcription": lambda _case, _model: "/v1/audio/transcriptions",
    "openai_speech": lambda _case, _model: "/v1/audio/speech",
    "rerank": lambda _case, _model: "/v1/rerank",
}
"""Protocol -> path below the public route."""

NAMING_THE_MODEL = ("openai_chat", "openai_completions", "openai_embeddings", "openai_transcription", "openai_speech", "rerank")
EVENTS = ("openai_chat", "openai_completions")


class Http:
    """All protocols of `PATHS`, by one client that several threads may use."""

    def __init__(self, endpoint: Endpoint, model: str, prefix: str, version: str | None, transport: httpx.BaseTransport | None) -> None:
        import httpx  # its import brings rich and click: a step that sends nothing need not pay for it

        self._errors = ((httpx.ConnectError, httpx.ConnectTimeout), httpx.TimeoutException, httpx.HTTPError)
        self._endpoint, self._model, self._prefix = endpoint, model, prefix
        headers = {"host": endpoint.host} | ({names.VERSION_HEADER: version} if version else {})
        verify = endpoint.base_url.startswith("https:")  # else the certificates would be loaded for nothing, which takes longer than all else
        self._client = httpx.Client(base_url=endpoint.base_url, headers=headers, trust_env=False, transport=transport, verify=verify)

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def path(self, case: SmokeCase) -> str:
        """Where the case is sent."""
        return self._prefix + PATHS[case.protocol](case, self._model)

    def request(self, case: SmokeCase) -> str:
        """Method and path."""
        return f"{case.method} {self.path(case)}"

    def ask(self, case: SmokeCase) -> Answer:
        """One request, its answer read to the end."""
        answer = Answer()
        sent = _content(case, self._model)
        began = time.perf_counter()
        try:
            with answer.timed(), self._client.stream(case.method, self.path(case), timeout=case.timeout_s, **sent) as response:
                answer.status, answer.version = response.status_code, response.headers.get(names.VERSION_HEADER)
                answer.kind = response.headers.get("content-type", "").lower()
                if case.protocol in EVENTS and case.expect_stream is not None and response.status_code == 200:
                    _read_events(response, answer, began, case)
                else:
                    _read(response, answer, began, case)
                length = response.headers.get(tensors.HEAD_LENGTH)
        except self._errors[0] as error:
            where = f"{self._endpoint.base_url} cannot be reached ({' -> '.join(self._endpoint.path)})"
            return Answer(broken=f"{where}: {error}", unreachable=True)
        except self._errors[1]:
            answer.broken, answer.seconds = late(case.timeout_s), case.timeout_s
        except self._errors[2] as error:
            answer.broken, answer.seconds = f"{type(error).__name__}: {error}", 0.0
        if answer.broken is None and answer.value is None:
            answer.value = _value(answer)
            if case.binary and answer.status == 200:
                tensors.read(answer, length)
        return answer


def _content(case: SmokeCase, model: str) -> dict[str, Any]:
    """What httpx sends: a form with a file, tensors as bytes, or JSON."""
    if case.method != "POST":
        return {}
    named = {"model": model} if case.protocol in NAMING_THE_MODEL else {}
    body = {**named, **case.body} if isinstance(case.body, dict) else case.body
    if case.media is not None:
        file = (f"media.{case.media.media_type.rpartition('/')[2].removeprefix('x-')}", media_bytes(case.media, case.name), case.media.media_type)
        fields = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (body or named).items()}
        return {"data": fields, "files": {"file": file}}
    if case.binary:
        content, length = tensors.request(model, case).to_rest()
        return {"content": content, "headers": {"content-type": "application/octet-stream", tensors.HEAD_LENGTH: str(length)}}
    if case.protocol in EVENTS and case.expect_stream is not None:
        body = {**body, "stream": True}
    return {"json": body}


def media_bytes(media: Media, case: str) -> bytes:
    """The bytes of ``data:``. Raises `RequestInvalid` for another URI: who sends the case reads it before."""
    head, comma, text = media.uri.removeprefix("data:").partition(",")
    if not media.uri.startswith("data:") or not comma:
        raise errors.RequestInvalid(f"smoke case {case}: media {media.uri[:60]}: it is no data: URI, and was not read before it was sent")
    content = unquote_to_bytes(text)
    try:
        return base64.b64decode(content, validate=True) if head.endswith(";base64") else content
    except ValueError as error:
        raise errors.RequestInvalid(f"smoke case {case}: media data:{head}: it is no base64: {error}") from error


def _read(response: httpx.Response, answer: Answer, began: float, case: SmokeCase) -> None:
    pieces = []
    try:
        for piece in _in_time(response.iter_bytes(), answer, began, case):
            answer.pieces += 1
            answer.first_s = answer.first_s or time.perf_counter() - began
            pieces.append(piece)
    finally:  # as far as it came
        answer.content = b"".join(pieces)


def _read_events(response: httpx.Response, answer: Answer, began: float, case: SmokeCase) -> None:
    """Server-sent events (WHATWG HTML 9.2.6), as far as OpenAI's streams use them: the data of each event is JSON, the last one is [DONE]."""
    if "text/event-stream" not in answer.kind:
        _read(response, answer, began, case)
        answer.broken = f"expected a stream (text/event-stream), got {answer.kind or 'no content type'}"
        return
    text, last, finish, done = "", dict[str, Any](), None, False
    where = "/choices/0/delta/content" if case.protocol == "openai_chat" else "/choices/0/text"
    for line in _in_time(response.iter_lines(), answer, began, case):
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        answer.content += data.encode() + b"\n"
        done = data == "[DONE]"
        try:
            event = None if done else parsed(data.encode())
        except ValueError:
            answer.broken = f"the stream holds an event that is no JSON: {data[:60]}"
            return
        answer.pieces += not done
        if not isinstance(event, dict):
            continue
        last = event
        piece, told = resolve(event, where), resolve(event, "/choices/0/finish_reason")
        if isinstance(piece, str) and piece:
            answer.first_s = answer.first_s or time.perf_counter() - began
            text += piece
        finish = told if isinstance(told, str) else finish
    said = {"message": {"role": "assistant", "content": text}} if case.protocol == "openai_chat" else {"text": text}
    answer.value = {**last, "choices": [{"index": 0, **said, "finish_reason": finish}]}
    answer.ended = done and finish is not None


def _in_time(pieces: Iterable[Any], answer: Answer, began: float, case: SmokeCase) -> Iterable[Any]:
    """The pieces, until they are too many or it is too late: httpx limits the time between two of them only."""
    size = 0
    for piece in pieces:
        yield piece
        size += len(piece)
        if size > MOST_BYTES:
            answer.broken = f"more than {MOST_BYTES:,} bytes came, the rest was not read"
            return
        if time.perf_counter() - began > case.timeout_s:
            answer.broken = late(case.timeout_s)
            return


def _value(answer: Answer) -> Any:
    """Parsed JSON, text or bytes, by what the answer says it is; JSON where it says nothing, if it is any."""
    if not answer.kind or "json" in answer.kind:
        try:
            return parsed(answer.content)
        except ValueError:
            pass
    if not answer.kind or "json" in answer.kind or answer.kind.startswith("text/"):
        return answer.content.decode(errors="replace")
    return answer.content
