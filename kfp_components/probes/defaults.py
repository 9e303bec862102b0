"""What a model of a family is asked when a request brings no cases of its own: whether its answers have the right form, and some sense."""

from __future__ import annotations

import base64
import io
import math
import wave
from array import array
from collections.abc import Callable, Iterable, Mapping

from kfp_components.probes.check import resolve
from kfp_components.probes.http import NAMING_THE_MODEL
from kfp_components.request import (
    OWN_APPLICATION,
    ExpectedAudio,
    ExpectedStream,
    ExpectedTensor,
    ExpectedText,
    ExpectedVectors,
    Media,
    PromoteRequest,
    SmokeCase,
)

SAMPLE_RATE_HZ = 16_000
SENTENCE = "The quick brown fox jumps over the lazy dog."
DOCUMENTS = (
    "A kitten naps on the couch.",
    "The central bank raised interest rates again.",
    "The team scored twice in the second half of the match.",
    "Simmer the tomatoes with garlic and basil.",
    "The spacecraft entered the orbit of Mars.",
    "Heavy rain flooded the streets of the town.",
)
PETS, MONEY, FOOD = (
    ("A cat is sleeping on the sofa.", 0),
    ("Borrowing money has become more expensive.", 1),
    ("How do I cook a sauce for pasta?", 3),
)
"""Query -> number of the document that is nearest. Garbage is right in all three once in 216 times."""

RAY_SERVE_LLM = "/llm_configs/0/model_loading_config/model_id"
"""Where `ray.serve.llm:build_openai_app` is told how clients call the model, in its arguments."""

PATIENCE_S = 120.0
"""A first answer may load kernels."""


def cases(request: PromoteRequest) -> tuple[SmokeCase, ...]:
    """Of the request's family; () for another one.

    Of an application of this library all its forms are asked, and the sense of its answers counts; of any other one its family's OpenAI API, and only
    the form of its answers.
    """
    made = CASES.get(request.family or "")
    return as_called(request, made(OWN_APPLICATION.fullmatch(request.import_path) is not None) if made else ())


def as_called(request: PromoteRequest, cases: Iterable[SmokeCase]) -> tuple[SmokeCase, ...]:
    """With the name by which clients call a model of ``ray.serve.llm``, where its arguments say another than the request, and the case none."""
    called = resolve(request.options.args, RAY_SERVE_LLM)

    def named(case: SmokeCase) -> SmokeCase:
        if not isinstance(called, str) or case.protocol not in NAMING_THE_MODEL or not isinstance(case.body, dict) or "model" in case.body:
            return case
        return case.model_copy(update={"body": {**case.body, "model": called}})

    return tuple(named(case) for case in cases)


def tone(seconds: float = 1.0, pitch_hz: float = 440.0) -> bytes:
    """A WAV file of a sine at half of full scale: 16 bits, one channel, 16 kHz. Nothing is said in it."""
    made = io.BytesIO()
    samples = array("h", (round(16_384 * math.sin(2 * math.pi * pitch_hz * n / SAMPLE_RATE_HZ)) for n in range(round(seconds * SAMPLE_RATE_HZ))))
    with wave.open(made, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(samples.tobytes())
    return made.getvalue()


def _embedding(own: bool) -> tuple[SmokeCase, ...]:
    count = 1 + len(DOCUMENTS)
    openai = SmokeCase(
        name="embedding: OpenAI",
        protocol="openai_embeddings",
        body={"input": [MONEY[0], *DOCUMENTS]},
        expect_vectors=ExpectedVectors(count=count, nearest=MONEY[1] if own else None),
        timeout_s=PATIENCE_S,
    )
    if not own:
        return (openai,)
    v2 = SmokeCase(
        name="embedding: V2",
        protocol="v2",
        body={"inputs": [{"name": "text", "shape": [count], "datatype": "BYTES", "data": [PETS[0], *DOCUMENTS]}]},
        expect_tensors={"embedding": ExpectedTensor(datatype="FP32", shape=[count, -1])},
        expect_vectors=ExpectedVectors(count=count, nearest=PETS[1]),
        timeout_s=PATIENCE_S,
    )
    rerank = SmokeCase(
        name="embedding: rerank",
        protocol="rerank",
        body={"query": FOOD[0], "documents": list(DOCUMENTS)},
        expect={"/results/0/index": FOOD[1]},
        timeout_s=PATIENCE_S,
    )
    return v2, openai, rerank


def _asr(_own: bool) -> tuple[SmokeCase, ...]:
    media = Media(uri=f"data:audio/wav;base64,{base64.b64encode(tone()).decode()}", media_type="audio/wav")
    any_text = ExpectedText(min_characters=0)  # nobody says anything in it
    return (SmokeCase(name="asr: a tone", protocol="openai_transcription", media=media, expect_text=any_text, timeout_s=PATIENCE_S),)


def _tts(_own: bool) -> tuple[SmokeCase, ...]:
    body = {"input": SENTENCE, "voice": "alloy", "response_format": "wav"}
    heard = ExpectedAudio(min_s=1, max_s=30)
    return (SmokeCase(name="tts: a sentence", protocol="openai_speech", body=body, expect_audio=heard, timeout_s=PATIENCE_S),)


def _llm(_own: bool) -> tuple[SmokeCase, ...]:
    body = {"messages": [{"role": "user", "content": "Name three colours."}], "max_tokens": 16, "temperature": 0}
    said = ExpectedText()
    return (
        SmokeCase(name="llm: chat", protocol="openai_chat", body=body, expect_text=said, timeout_s=PATIENCE_S),
        SmokeCase(name="llm: stream", protocol="openai_chat", body=body, expect_text=said, expect_stream=ExpectedStream(), timeout_s=PATIENCE_S),
    )


CASES: Mapping[str, Callable[[bool], tuple[SmokeCase, ...]]] = {"embedding": _embedding, "asr": _asr, "tts": _tts, "llm": _llm}
"""Family -> its cases, given whether the application is one of this library."""
