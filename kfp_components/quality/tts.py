"""Text to speech: is the audio sound: duration, silence, clipping, sample rate? Whether its words are right, a model for speech has to hear."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kfp_components.quality import asr
from kfp_components.quality.score import UNREADABLE, ReferenceModel, Score, checked, first_bytes, garbage, keys_of

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
FRAME_S = 0.02
SILENCE_DBFS = -50.0
"""Level of a frame, root mean square against full scale, below which nothing is heard; room noise is at -60, quiet speech at -40."""

CLIPPED = 0.999
CHARACTERS_PER_S = (6.0, 30.0)
"""Slowest and fastest speech that is taken for such, where the reference names no duration."""

FREE_SILENCE = 0.4
"""Share of pauses that costs nothing where the reference names none."""

GARBAGE_SILENCE, GARBAGE_CLIPPING, GARBAGE_DURATION = 0.95, 0.2, 3.0


class TtsReference(ReferenceModel):
    """The text to be spoken, and what is known of a good recording of it."""

    text: str = Field(min_length=1)
    duration_s: float | None = Field(None, gt=0, description="of a good recording; else from the text's length")
    sample_rate_hz: int | None = Field(None, gt=0, description="what clients rely on")
    silence_share: float = Field(FREE_SILENCE, ge=0, lt=1, description="of a good recording; more costs")


@dataclass(frozen=True)
class Audio:
    """``samples`` of shape (frames, channels) in [-1, 1]."""

    samples: NDArray[np.float64]
    sample_rate_hz: int

    @property
    def duration_s(self) -> float:
        """Seconds of sound."""
        return len(self.samples) / self.sample_rate_hz

    @property
    def silence_share(self) -> float:
        """Share of frames of 20 ms below `SILENCE_DBFS`; 1 where there is no frame."""
        size = max(1, round(FRAME_S * self.sample_rate_hz))
        whole = len(self.samples) // size
        if whole == 0:
            return 1.0
        power = (self.samples[: whole * size] ** 2).mean(axis=1).reshape(whole, size).mean(axis=1)
        return float((power < 10 ** (SILENCE_DBFS / 10)).mean())

    @property
    def clipped_share(self) -> float:
        """Share of samples at full scale that have a neighbour there too: a single peak is no clipping."""
        if len(self.samples) < 2:
            return 0.0
        full = np.abs(self.samples) >= CLIPPED
        pair = full[1:] & full[:-1]
        beside = np.zeros_like(full)
        beside[1:] |= pair
        beside[:-1] |= pair
        return float(beside.mean())


def read_wav(content: bytes) -> Audio:
    """A WAV file of integers (8 to 32 bits) or floats (32, 64), also in the extensible form and with the unknown length of a stream.

    Raises `ValueError` that says what is wrong. (The standard library's ``wave`` reads no floats, which several speech servers send.)
    """
    if len(content) < 12 or content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise ValueError(f"not a WAV file, for which OpenAI's API is asked by response_format: it begins with {content[:12]!r}")
    form, at = None, 12
    while at + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, at)
        body = content[at + 8 : at + 8 + size]  # a stream says 0 or 2**32-1 for the data, which comes last
        if name == b"fmt ":
            if len(body) < 16:
                raise ValueError("its fmt chunk is cut short")
            form = body
        elif name == b"data":
            if form is None:
                raise ValueError("it has data before their format")
            return _samples(form, body if size else content[at + 8 :])
        at += 8 + size + size % 2
    raise ValueError("it has no data")


def _samples(form: bytes, data: bytes) -> Audio:
    kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", form)
    if kind == EXTENSIBLE and len(form) >= 26:
        (kind,) = struct.unpack_from("<H", form, 24)
    width = bits // 8
    if channels == 0 or rate == 0 or (kind, bits) not in {(PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)}:
        raise ValueError(f"format {kind} of {bits} bits, {channels} channels and {rate} Hz is not known; 8 to 32 bit integers and floats are")
    data = data[: len(data) // (width * channels) * (width * channels)]
    if kind == FLOAT:
        values = np.frombuffer(data, dtype=f"<f{width}").astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("it holds samples that are not numbers")
    elif bits == 8:
        values = (np.frombuffer(data, dtype=np.uint8).astype(np.float64) - 128) / 128
    else:
        widened = np.zeros((len(data) // width, 4), dtype=np.uint8)  # three bytes are no numpy type
        widened[:, 4 - width :] = np.frombuffer(data, dtype=np.uint8).reshape(-1, width)
        values = widened.reshape(-1).view("<i4").astype(np.float64) / 2**31
    return Audio(values.reshape(-1, channels), rate)


def check(reference: Any) -> None:
    """Raises `RequestInvalid` for a reference that `score` would not take."""
    checked(TtsReference, reference, short="text")


def score(answer: Any, reference: Any) -> Score:
    """The product of duration, silence, clipping and sample rate, each in [0, 1].

    ``answer``: see `audio_of`; ``reference``: the text, or `TtsReference`'s fields. Duration: how far it is from the reference's, or from what the
    text can take. Silence: the speech that is left of what there should be. Sample rate: 0 where it is not the reference's. Garbage: no WAV, (nearly)
    silent, a fifth clipped, three times too long or too short.
    """
    expected = checked(TtsReference, reference, short="text")
    content = audio_of(answer)
    if content is None:
        return garbage(f"neither a WAV file nor one in base64, but {keys_of(answer)}")
    try:
        audio = read_wav(content)
    except ValueError as error:
        return garbage(str(error))
    length = _duration_part(audio.duration_s, expected)
    speech = min(1.0, (1 - audio.silence_share) / (1 - expected.silence_share))
    rate = 1.0 if expected.sample_rate_hz in (None, audio.sample_rate_hz) else 0.0
    useless = audio.silence_share >= GARBAGE_SILENCE or audio.clipped_share >= GARBAGE_CLIPPING or length <= 1 / GARBAGE_DURATION
    note = f"{audio.duration_s:.1f} s at {audio.sample_rate_hz} Hz, {audio.silence_share:.0%} silent, {audio.clipped_share:.0%} clipped"
    return Score(length * speech * (1 - audio.clipped_share) * rate, garbage=useless, note=note)


def with_words(sound: Score, heard: str, reference: Any) -> Score:
    """The score of the sound times that of what was heard in it (`asr`); garbage where either is."""
    told = asr.score(heard, checked(TtsReference, reference, short="text").text)
    return Score(sound.value * told.value, garbage=sound.garbage or told.garbage, note=f"{sound.note}; heard with {told.note}")


def audio_of(answer: Any) -> bytes | None:
    """The bytes of an answer, None where there are none: bytes themselves, base64 in ``{"audio": ...}`` or in the first BYTES output of V2."""
    if isinstance(answer, bytes | bytearray | memoryview):
        return bytes(answer)
    if not isinstance(answer, Mapping):
        return None
    try:
        return base64.b64decode(answer["audio"] if "audio" in answer else first_bytes(answer), validate=True)
    except UNREADABLE:
        return None


def _duration_part(duration_s: float, expected: TtsReference) -> float:
    """1 where the duration is as expected, else the shorter over the longer."""
    slowest, fastest = CHARACTERS_PER_S
    shortest = expected.duration_s or len(expected.text) / fastest
    longest = expected.duration_s or len(expected.text) / slowest + 1  # a short text has its pauses too
    if duration_s <= 0:
        return 0.0
    return min(1.0, duration_s / shortest, longest / duration_s)
