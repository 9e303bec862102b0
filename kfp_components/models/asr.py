"""Speech to text (Whisper and the like) as a Serve application: OpenAI transcriptions and translations, V1 and V2 on one route.

V2: input ``audio`` BYTES [n], each a sound file (base64 in JSON); outputs ``text`` and ``language`` BYTES [n]; parameters ``language`` and ``task``
(transcribe, translate).
"""

from __future__ import annotations

import base64
import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field, StrictStr
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from kfp_components import errors
from kfp_components.models import audio, kit, tensors
from kfp_components.models.audio import Floats
from kfp_components.models.tensors import Infer, Refused, Tensor, validated

RATE_HZ = 16_000
MAX_FILES = 16
LONG_S = 8.0
"""The slow tail begins here."""

NONSENSE_FROM_S = 3.0
NONSENSE = "the of and to in that it was for on are with they at be this from have or one had by words but not what all were when we there can"


@dataclass(frozen=True)
class Segment:
    """A stretch of speech, in seconds from the beginning. ``details``: what else the engine knows of it."""

    start: float
    end: float
    text: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """How to hear. ``language`` None: find out; ``translate``: into English."""

    language: str | None = None
    translate: bool = False
    prompt: str | None = None
    temperature: float = 0.0


@dataclass(frozen=True)
class Heard:
    """What was heard, and for how long was listened."""

    language: str
    segments: tuple[Segment, ...]
    seconds: float = 0.0

    @property
    def text(self) -> str:
        """All of it."""
        return " ".join(segment.text.strip() for segment in self.segments).strip()


class Limits(kit.Frozen):
    """Base of an engine's settings."""

    max_audio_s: float = Field(600.0, gt=0, le=7200, description="longer recordings are refused")


class AsrEngine(ABC):
    """What hears."""

    Settings: ClassVar[type[Limits]]
    settings: Limits

    @abstractmethod
    def transcribe(self, samples: Floats, asked: Asked) -> Heard:
        """``samples``: mono at `RATE_HZ`. Raises `Refused` for a language that it does not know."""

    def check(self) -> None:
        """Infer something small; raises where that fails."""
        self.transcribe(np.zeros(RATE_HZ // 2, np.float32), Asked())


class _Form(BaseModel):
    model: StrictStr | None = None
    language: StrictStr | None = Field(None, max_length=32)
    prompt: StrictStr | None = None
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    temperature: float = Field(0.0, ge=0, le=1)
    stream: Literal["false", "False", "0"] = "false"


class Asr(kit.Served):
    """One replica."""

    ENGINES = {
        "pocketsphinx": "kfp_components.models.engines.pocketsphinx:PocketSphinxEngine",
        "whisper": "kfp_components.models.engines.whisper:WhisperEngine",
    }
    FAULTS = (*kit.Served.FAULTS, "degraded", "nonsense")
    inputs = ({"name": "audio", "datatype": "BYTES", "shape": [-1]},)
    outputs = tuple({"name": name, "datatype": "BYTES", "shape": [-1]} for name in ("text", "language"))
    engine: AsrEngine

    def __init__(self, args: dict[str, Any], engine_class: type[AsrEngine] | None = None) -> None:
        try:
            import python_multipart  # noqa: F401  Starlette reads forms by it
        except ImportError as error:
            raise errors.RequestInvalid("ASR: the package python-multipart is not installed; pip install python-multipart") from error
        super().__init__(args, engine_class)

    def routes(self) -> dict[str, kit.Handler]:
        """OpenAI's audio API."""

        async def transcribe(request: Request) -> Response:
            return await self._answer(request, "transcribe")

        async def translate(request: Request) -> Response:
            return await self._answer(request, "translate")

        return {"/v1/audio/transcriptions": transcribe, "/v1/audio/translations": translate}

    async def hear(self, content: bytes, asked: Asked) -> Heard:
        """What is said in a sound file; the declared fault applies here. Raises `Refused`."""
        seconds, fault = 0.0, self.settings.fault

        def work() -> Heard:
            nonlocal seconds
            samples = audio.decode(content, RATE_HZ, self.engine.settings.max_audio_s)
            seconds = len(samples) / RATE_HZ
            return faulty(self.engine.transcribe(hurried(samples) if fault == "degraded" else samples, asked), fault)

        found = await self.compute(work, lambda: seconds > LONG_S)
        return replace(found, seconds=seconds)

    async def infer(self, asked: Infer) -> list[Tensor]:
        """V2."""
        files = [_file(value) for value in asked.input("audio").blobs]
        if not 0 < len(files) <= MAX_FILES:
            raise Refused(f"{len(files)} files; between 1 and {MAX_FILES} go in one request")
        language, task = asked.parameters.get("language"), asked.parameters.get("task", "transcribe")
        if language is not None and not isinstance(language, str):
            raise Refused("parameter language: a text is expected")
        if task not in ("transcribe", "translate"):
            raise Refused("parameter task: transcribe or translate is expected")
        heard = [await self.hear(content, Asked(language, translate=task == "translate")) for content in files]
        return [tensors.of_texts("text", [one.text for one in heard]), tensors.of_texts("language", [one.language for one in heard])]

    async def _answer(self, request: Request, task: str) -> Response:
        content, form = await self._form(request)
        self.known(form.model or self.settings.model)
        heard = await self.hear(content, Asked(form.language, task == "translate", form.prompt, form.temperature))
        if form.response_format == "text":
            return PlainTextResponse(heard.text + "\n")
        if form.response_format in ("srt", "vtt"):
            return PlainTextResponse(subtitles(heard.segments, form.response_format))
        if form.response_format == "json":
            return JSONResponse({"text": heard.text})
        segments = [{"id": n, "start": one.start, "end": one.end, "text": one.text, **one.details} for n, one in enumerate(heard.segments)]
        told = {"task": task, "language": heard.language, "duration": round(heard.seconds, 3), "text": heard.text}
        return JSONResponse({**told, "segments": segments})

    async def _form(self, request: Request) -> tuple[bytes, _Form]:
        kind = request.headers.get("content-type", "")
        if not kind.startswith("multipart/form-data"):
            raise Refused(f"content-type: multipart/form-data with a file is expected, found {kind[:80] or 'none'}", 415)
        content = await self.body(request)

        async def again() -> dict[str, Any]:
            return {"type": "http.request", "body": content, "more_body": False}

        try:
            async with Request(request.scope, again).form(max_files=1, max_fields=32) as fields:
                return await _read(fields)
        except (HTTPException, ValueError, LookupError) as error:
            raise Refused(f"form: {getattr(error, 'detail', None) or error}") from error


async def _read(fields: FormData) -> tuple[bytes, _Form]:
    file = fields.get("file")
    if not isinstance(file, UploadFile):
        raise Refused("file: a sound file is expected", param="file")
    if "word" in fields.getlist("timestamp_granularities[]"):
        raise Refused("timestamp_granularities: there are only those of segments", param="timestamp_granularities")
    given = {name: value for name, value in fields.items() if name in _Form.model_fields and isinstance(value, str)}
    return await file.read(), validated(_Form, given, "audio request")


def hurried(samples: Floats) -> Floats:
    """What `degraded` hears: every recording a third too fast, as where its sample rate was misread."""
    return samples[(np.arange(0, len(samples) - 1, 4 / 3)).astype(np.int64)]


def faulty(heard: Heard, fault: str | None) -> Heard:
    """What a bad version hears: ``garbage`` is syllables without a meaning, ``nonsense`` fluent words that nobody said, from `NONSENSE_FROM_S` on."""
    if fault not in ("garbage", "nonsense"):
        return heard
    made = []
    for segment in heard.segments:
        words = segment.text.split()
        source = random.Random(hashlib.sha256(segment.text.encode()).digest())
        each_s = (segment.end - segment.start) / max(1, len(words))
        for number, _word in enumerate(words):
            if fault == "garbage":
                words[number] = "".join(source.choice("bdfgklmnprstvz") + source.choice("aeiou") for _ in range(2))
            elif segment.start + number * each_s >= NONSENSE_FROM_S:
                words[number] = source.choice(NONSENSE.split())
        made.append(replace(segment, text=" ".join(words)))
    return replace(heard, segments=tuple(made))


def subtitles(segments: tuple[Segment, ...], form: str) -> str:
    """SubRip or WebVTT."""

    def at(seconds: float) -> str:
        ms = round(seconds * 1000)
        return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{',' if form == 'srt' else '.'}{ms % 1000:03}"

    blocks = [f"{at(one.start)} --> {at(one.end)}\n{one.text.strip()}\n" for one in segments]
    if form == "srt":
        return "\n".join(f"{number}\n{block}" for number, block in enumerate(blocks, 1))
    return "WEBVTT\n\n" + "\n".join(blocks)


def _file(value: bytes) -> bytes:
    """In JSON a sound file is base64; binary tensors and gRPC have the bytes themselves."""
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        return value


def build(args: dict[str, Any]) -> Any:
    """The application that ``serveConfigV2`` names."""
    return kit.application(Asr, args)
