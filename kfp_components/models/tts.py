"""Text to speech (XTTS and the like) as a Serve application: OpenAI speech, whole or sentence by sentence, V1 and V2 on one route.

V2: input ``text`` BYTES [n], output ``audio`` BYTES [n], each a WAV file (base64 in JSON); parameters ``voice``, ``language`` and ``speed``.
"""

from __future__ import annotations

import base64
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field, StrictStr
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from kfp_components.models import audio, kit, tensors
from kfp_components.models.audio import Floats
from kfp_components.models.tensors import Infer, Refused, Tensor, validated

MAX_CHARACTERS = 4096
"""OpenAI's limit."""

MAX_TEXTS = 16
PCM_RATE_HZ = 24_000
"""Of OpenAI's pcm, which names no rate."""

LONG_CHARACTERS = 120
"""The slow tail begins here."""

SILENT_FROM_S = 2.0


@dataclass(frozen=True)
class Asked:
    """What to say and how; None: the engine's default."""

    text: str
    voice: str | None = None
    language: str | None = None
    speed: float = 1.0


class TtsEngine(ABC):
    """What speaks."""

    Settings: ClassVar[type[kit.Frozen]]
    rate_hz: int

    @abstractmethod
    def speak(self, asked: Asked) -> Iterator[Floats]:
        """Mono sound at ``rate_hz``, in pieces as they are made. A voice that it does not know is its default one: OpenAI's clients must name one.

        Raises `Refused` for a language that it does not speak.
        """

    def check(self) -> None:
        """Infer something small; raises where that fails."""
        for _ in self.speak(Asked("Yes.")):
            pass


class _Speech(BaseModel):
    input: StrictStr
    model: StrictStr | None = None
    voice: StrictStr | None = Field(None, max_length=256)
    language: StrictStr | None = Field(None, max_length=32)
    response_format: Literal["wav", "pcm"] = "wav"
    speed: float = Field(1.0, ge=0.25, le=4.0)
    stream_format: Literal["audio"] | None = None


class Tts(kit.Served):
    """One replica."""

    ENGINES = {
        "piper": "kfp_components.models.engines.piper:PiperEngine",
        "xtts": "kfp_components.models.engines.xtts:XttsEngine",
    }
    FAULTS = (*kit.Served.FAULTS, "silent")
    inputs = ({"name": "text", "datatype": "BYTES", "shape": [-1]},)
    outputs = ({"name": "audio", "datatype": "BYTES", "shape": [-1]},)
    engine: TtsEngine

    def routes(self) -> dict[str, kit.Handler]:
        """OpenAI's speech."""
        return {"/v1/audio/speech": self._speech}

    async def pieces(self, asked: Asked) -> AsyncGenerator[Floats, None]:
        """The sound as it is made; the declared fault applies here. Raises `Refused` for nothing to say, and for too much."""
        tensors.utf8(asked.text, "input")
        if len(asked.text) > MAX_CHARACTERS:
            raise Refused(f"input: {len(asked.text)} characters; at most {MAX_CHARACTERS} in one request", param="input")
        if not any(letter.isalnum() for letter in asked.text):
            raise Refused("input: there is nothing to say in it", param="input")
        rate_hz, fault = self.engine.rate_hz, self.settings.fault
        return await self.stream(lambda: faulty(self.engine.speak(asked), rate_hz, fault), lambda: len(asked.text) > LONG_CHARACTERS)

    async def wav(self, asked: Asked) -> bytes:
        """The whole sound as a file."""
        async with contextlib.aclosing(await self.pieces(asked)) as made:
            samples = [audio.pcm(piece) async for piece in made]
        if not any(samples):
            raise Refused("input: there is nothing to say in it", param="input")
        return audio.wav_head(self.engine.rate_hz, sum(map(len, samples))) + b"".join(samples)

    async def infer(self, asked: Infer) -> list[Tensor]:
        """V2."""
        return [tensors.of_texts("audio", await self._sounds(asked.input("text").texts, asked.parameters))]

    async def predict(self, instances: list[Any], parameters: dict[str, Any]) -> list[Any]:
        """V1: an instance is a text, a prediction ``{"b64": ...}``."""
        if not all(isinstance(one, str) for one in instances):
            raise Refused("each instance must be a text")
        return [{"b64": base64.b64encode(sound).decode()} for sound in await self._sounds(instances, parameters)]

    async def _sounds(self, texts: list[str], parameters: Any) -> list[bytes]:
        if not 0 < len(texts) <= MAX_TEXTS:
            raise Refused(f"{len(texts)} texts; between 1 and {MAX_TEXTS} go in one request")
        given = {name: parameters[name] for name in ("voice", "language", "speed") if name in parameters}
        how = validated(_Speech, {"input": "-", **given}, "parameters")
        return [await self.wav(Asked(text, how.voice, how.language, how.speed)) for text in texts]

    async def _speech(self, request: Request) -> Response:
        form = validated(_Speech, await self.json(request), "speech request")
        self.known(form.model or self.settings.model)
        asked = Asked(form.input, form.voice, form.language, form.speed)
        if form.response_format == "wav" and form.stream_format is None:
            return Response(await self.wav(asked), media_type="audio/wav")
        rate_hz = self.engine.rate_hz
        made = await self.pieces(asked)

        async def sent() -> AsyncGenerator[bytes, None]:
            head = audio.wav_head(rate_hz, None) if form.response_format == "wav" else b""
            async with contextlib.aclosing(made):
                async for piece in made:
                    yield head + audio.pcm(piece if form.response_format == "wav" else audio.resampled(piece, rate_hz, PCM_RATE_HZ))
                    head = b""

        return StreamingResponse(sent(), media_type=f"audio/{form.response_format}")


def faulty(pieces: Iterator[Floats], rate_hz: int, fault: str | None) -> Iterator[Floats]:
    """What a bad version says: ``silent`` nothing from `SILENT_FROM_S` on, for as long as there was to say, ``garbage`` noise as loud as speech."""
    said = 0
    for piece in pieces:
        if fault == "garbage":
            piece = np.random.default_rng(len(piece)).normal(0, 0.1, len(piece)).astype(np.float32)
        elif fault == "silent":
            piece = np.where(np.arange(said, said + len(piece)) < SILENT_FROM_S * rate_hz, piece, 0).astype(np.float32)
        said += len(piece)
        yield piece


def build(args: dict[str, Any]) -> Any:
    """The application that ``serveConfigV2`` names."""
    return kit.application(Tts, args)
