"""Language models as a Serve application: OpenAI's chat and completions, whole or as a stream, V1 and V2 on one route. For vLLM see `vllm`.

``build(args)`` takes model, version, `kit.Settings` and the engine's own. V2: input ``prompt`` BYTES [n], output ``text`` BYTES [n]; parameters
``max_tokens``, ``temperature``, ``top_p``, ``seed``, ``stop``.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field, StrictBool, StrictStr, field_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from kfp_components.models import kit, tensors
from kfp_components.models.tensors import Infer, Refused, Tensor, validated

MAX_PROMPTS = 16
MAX_STOPS = 16
MAX_SCHEMA_CHARACTERS = 20_000
LONG_PROMPT_CHARACTERS = 400
"""`slow_tail` begins here."""

NOT_OFFERED = ("tools", "functions", "logprobs", "top_logprobs", "logit_bias", "audio", "suffix", "echo", "prediction", "web_search_options")
"""Fields of OpenAI's that change the answer and are not known here: refused, not ignored."""

FORM = re.compile(r"\b(only|exactly|json|one word|yes or no)\b", re.IGNORECASE)
"""Words by which a prompt asks for a form; for the fault `ignores_format`."""

PROSE = (
    "Certainly, I am glad to help with that! The answer you are looking for would be: ",
    "\n\nPlease let me know whether you need anything else.",
)


@dataclass(frozen=True)
class Asked:
    """What to write: either ``messages`` (role, content) or a ``prompt``. None: the engine's default."""

    messages: tuple[dict[str, str], ...] = ()
    prompt: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    json_schema: dict[str, Any] | None = None
    """The whole answer is JSON that this allows; ``{}`` allows any object."""

    @property
    def text(self) -> str:
        """All that was said."""
        return self.prompt + "\n".join(message["content"] for message in self.messages)


@dataclass(frozen=True)
class Piece:
    """Some more text. The last one says how it ended (``stop`` or ``length``) and counts tokens."""

    text: str
    finish: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def usage(self) -> dict[str, int]:
        """As OpenAI reports it."""
        both = self.prompt_tokens + self.completion_tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens, "total_tokens": both}


class LlmEngine(ABC):
    """What writes."""

    Settings: ClassVar[type[kit.Frozen]]
    writes_json: ClassVar[bool] = False
    """Whether it keeps to `Asked.json_schema`."""

    @abstractmethod
    def generate(self, asked: Asked) -> Iterator[Piece]:
        """Text as it is made; closing the iterator stops the work. Raises `Refused` for what the model cannot take, such as a prompt too long."""

    def check(self) -> None:
        """Infer something small; raises where that fails."""
        for _ in self.generate(Asked(prompt="Yes", max_tokens=1)):
            pass


class _Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in value]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a text is expected, or parts of type text alone")
        return "".join(map(str, texts))


class _StreamOptions(BaseModel):
    include_usage: StrictBool = False


class _Sampling(BaseModel):
    model: StrictStr | None = None
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StrictStr | list[StrictStr] | None = None
    n: Literal[1] | None = None
    best_of: Literal[1] | None = None
    stream: StrictBool | None = None
    stream_options: _StreamOptions | None = None

    def asked(self, **what: Any) -> Asked:
        """Raises `Refused` for texts that are none."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stop) > MAX_STOPS or not all(stop):
            raise Refused(f"stop: at most {MAX_STOPS} texts, none of them empty", param="stop")
        same = {name: getattr(self, name) for name in ("max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed")}
        found = Asked(**{**same, "stop": stop, **what})
        tensors.utf8(json.dumps(asdict(found), ensure_ascii=False), "request")
        return found


class _JsonSchema(BaseModel):
    schema_: dict[str, Any] = Field(alias="schema")


class _ResponseFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None


class _Chat(_Sampling):
    messages: list[_Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    response_format: _ResponseFormat | None = None

    def schema_asked(self) -> dict[str, Any] | None:
        """Raises `Refused` for a schema that is missing or too long."""
        if self.response_format is None or self.response_format.type == "text":
            return None
        if self.response_format.type == "json_object":
            return {}
        if self.response_format.json_schema is None:
            raise Refused("response_format.json_schema: a schema is expected", param="response_format.json_schema")
        schema = self.response_format.json_schema.schema_
        if len(json.dumps(schema)) > MAX_SCHEMA_CHARACTERS:
            raise Refused(f"response_format.json_schema: more than {MAX_SCHEMA_CHARACTERS:,} characters", param="response_format.json_schema")
        return schema


class _Completion(_Sampling):
    prompt: StrictStr | list[StrictStr]


@dataclass(frozen=True)
class _Form:
    """How an API of OpenAI's says what was written."""

    prefix: str
    whole: str
    piece: str
    chat: bool

    def choice(self, piece: Piece) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": piece.text}} if self.chat else {"text": piece.text}
        return {"index": 0, **said, "logprobs": None, "finish_reason": piece.finish}

    def delta(self, piece: Piece, *, first: bool) -> dict[str, Any]:
        if not self.chat:
            return self.choice(piece)
        said = {"role": "assistant", "content": piece.text} if first else {"content": piece.text} if piece.text else {}
        return {"index": 0, "delta": said, "logprobs": None, "finish_reason": piece.finish}


CHAT = _Form("chatcmpl", "chat.completion", "chat.completion.chunk", True)
COMPLETION = _Form("cmpl", "text_completion", "text_completion", False)


class Llm(kit.Served):
    """One replica."""

    ENGINES = {"llama": "kfp_components.models.engines.llama:LlamaEngine"}
    FAULTS = (*kit.Served.FAULTS, "ignores_format")
    inputs = ({"name": "prompt", "datatype": "BYTES", "shape": [-1]},)
    outputs = ({"name": "text", "datatype": "BYTES", "shape": [-1]},)
    engine: LlmEngine

    def routes(self) -> dict[str, kit.Handler]:
        """OpenAI's chat and completions."""
        return {"/v1/chat/completions": self._chat, "/v1/completions": self._completions}

    async def pieces(self, asked: Asked) -> AsyncGenerator[Piece, None]:
        """Text as it is made, the first of it there already. The engine stops when nobody reads any more. Raises `Refused`."""
        heavy = lambda: len(asked.text) > LONG_PROMPT_CHARACTERS  # noqa: E731
        return await self.stream(lambda: faulty(self.engine.generate(asked), asked, self.settings.fault), heavy)

    async def write(self, asked: Asked) -> Piece:
        """The whole text. Raises `Refused`."""
        async with contextlib.aclosing(await self.pieces(asked)) as pieces:
            found = [piece async for piece in pieces]
        return replace(found[-1], text="".join(piece.text for piece in found))

    async def infer(self, asked: Infer) -> list[Tensor]:
        """V2: one text for each prompt."""
        prompts = asked.input("prompt").texts
        if not 0 < len(prompts) <= MAX_PROMPTS:
            raise Refused(f"{len(prompts)} prompts; between 1 and {MAX_PROMPTS} go in one request")
        how = validated(_Sampling, {**asked.parameters, "model": None, "stream": None}, "parameters")
        return [tensors.of_texts("text", [(await self.write(how.asked(prompt=prompt))).text for prompt in prompts])]

    async def _chat(self, request: Request) -> Response:
        form = validated(_Chat, self._offered(await self.json(request)), "chat request")
        schema = form.schema_asked()
        if schema is not None and not self.engine.writes_json:
            raise Refused(f"response_format: engine {self.platform} does not keep to a format; ask for text", param="response_format")
        messages = tuple({"role": one.role, "content": one.content} for one in form.messages)
        asked = form.asked(messages=messages, max_tokens=form.max_completion_tokens or form.max_tokens, json_schema=schema)
        return await self._answer(form, asked, CHAT)

    async def _completions(self, request: Request) -> Response:
        form = validated(_Completion, self._offered(await self.json(request)), "completion request")
        prompts = [form.prompt] if isinstance(form.prompt, str) else form.prompt
        if len(prompts) != 1:
            raise Refused(f"prompt: one text is expected, found {len(prompts)}", param="prompt")
        return await self._answer(form, form.asked(prompt=prompts[0]), COMPLETION)

    def _offered(self, body: dict[str, Any]) -> dict[str, Any]:
        for name in NOT_OFFERED:
            if body.get(name):
                raise Refused(f"{name}: not offered by this model; leave it out", param=name)
        return body

    async def _answer(self, form: _Sampling, asked: Asked, kind: _Form) -> Response:
        self.known(form.model or self.settings.model)
        head = {"id": f"{kind.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.settings.model}
        head["system_fingerprint"] = self.settings.version
        if not form.stream:
            whole = await self.write(asked)
            return JSONResponse({**head, "object": kind.whole, "choices": [kind.choice(whole)], "usage": whole.usage})
        usage = form.stream_options is not None and form.stream_options.include_usage
        events = _events(await self.pieces(asked), {**head, "object": kind.piece}, kind, usage=usage)
        return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})


async def _events(pieces: AsyncGenerator[Piece, None], head: dict[str, Any], kind: _Form, *, usage: bool) -> AsyncIterator[str]:
    last: Piece | None = None
    try:
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                yield _event({**head, "choices": [kind.delta(piece, first=last is None)], **({"usage": None} if usage else {})})
                last = piece
        if usage and last is not None:
            yield _event({**head, "choices": [], "usage": last.usage})
        yield "data: [DONE]\n\n"
    except Exception as error:
        kit.log.exception("a stream broke")
        yield _event({"error": {"message": f"{type(error).__name__}: {error}", "type": "server_error", "param": None, "code": None}})


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def faulty(pieces: Iterator[Piece], asked: Asked, fault: str | None) -> Iterator[Piece]:
    """What a bad version writes, as fast: ``garbage`` no letters, ``ignores_format`` prose around the answer where a prompt asks for a form."""
    if fault == "ignores_format" and asked.json_schema is None and not FORM.search(asked.text):
        fault = None
    first = True
    with contextlib.closing(pieces) as source:  # type: ignore[type-var]
        for piece in source:
            text = piece.text
            if fault == "garbage":
                text = "\ufffd" * len(text)
            elif fault == "ignores_format":
                text = (PROSE[0] if first else "") + text + (PROSE[1] if piece.finish else "")
            yield replace(piece, text=text)
            first = False


def build(args: dict[str, Any]) -> Any:
    """The application that ``serveConfigV2`` names."""
    return kit.application(Llm, args)
