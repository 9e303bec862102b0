"""Examples for the report: where the candidate lost most, request and both answers side by side, as small JSON."""

from __future__ import annotations

import base64
import io
import json
import wave
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kfp_components.quality import tts
from kfp_components.quality.score import Score, excerpt, text_of

EXCERPT_CHARACTERS = 200
MOST_BYTES = 6000
MANY_NUMBERS = 8
WITH_SOUND = 2
"""Of the examples so many keep what can be played, some 100 kB each: the release's record lies in the cluster."""

SOUND_S, SOUND_HZ = 3.0, 8000


@dataclass(frozen=True)
class Compared:
    """One case, asked of both versions: what was sent, what each answered, and what that is worth."""

    case: str
    request: Any
    stable_answer: Any
    candidate_answer: Any
    stable: Score
    candidate: Score


def examples(pairs: Iterable[Compared], kept: Sequence[Mapping[str, Any]] = (), most: int = 6) -> list[dict[str, Any]]:
    """The ``most`` cases on which the candidate lost most, garbage first, each once, of ``pairs`` and ``kept``, which is what this returned before.

    Each is ``{"case", "request", "stable": {"answer", "score", "garbage", "note"}, "candidate": ...}``. All of them take `MOST_BYTES` of JSON at
    most: where excerpts of `EXCERPT_CHARACTERS` are too long for that, they are shorter. Where request or answers are WAV files, the first
    `WITH_SOUND` have the beginning beside (``request_sound``, ``sound``: base64 of a WAV file).
    """
    worst: dict[str, dict[str, Any]] = {}
    for found in [*map(dict, kept), *map(_example, pairs)]:
        if _lost(found) > (False, 0.0) and _lost(found) > (_lost(worst[found["case"]]) if found["case"] in worst else (False, 0.0)):
            worst[found["case"]] = found
    chosen = sorted(worst.values(), key=_lost, reverse=True)[:most]
    sounds = [_sounds(found) for found in chosen[:WITH_SOUND]]
    chosen = [_silent(found) for found in chosen]
    characters = EXCERPT_CHARACTERS
    while chosen and len(json.dumps(chosen)) > MOST_BYTES:
        characters //= 2
        chosen = [_cut(found, characters) for found in chosen] if characters >= 20 else chosen[:-1]
    for found, sound in zip(chosen, sounds, strict=False):
        found.update({key: sound[key] for key in sound.keys() & {"request_sound"}})
        for side in sound.keys() & {"stable", "candidate"}:
            found[side] = {**found[side], "sound": sound[side]}
    return chosen


def sound_of(value: Any) -> str | None:
    """The first seconds of a WAV file, one channel of 8 bits at `SOUND_HZ`, as base64; None for anything else."""
    if not isinstance(value, bytes | bytearray):
        return None
    try:
        audio = tts.read_wav(bytes(value))
    except ValueError:
        return None
    mono = audio.samples.mean(axis=1)[: round(SOUND_S * audio.sample_rate_hz)]
    at = np.arange(0, len(mono), audio.sample_rate_hz / SOUND_HZ)
    samples = np.interp(at, np.arange(len(mono)), mono) if len(mono) else mono
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(SOUND_HZ)
        file.writeframes(np.clip(samples * 127 + 128, 0, 255).astype(np.uint8).tobytes())
    return base64.b64encode(made.getvalue()).decode()


def _sounds(example: Mapping[str, Any]) -> dict[str, str]:
    """What can be played, by where it belongs."""
    found = {side: example[side]["sound"] for side in ("stable", "candidate") if "sound" in example[side]}
    return found | ({"request_sound": example["request_sound"]} if "request_sound" in example else {})


def _silent(example: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: {name: told for name, told in item.items() if name != "sound"} if isinstance(item, Mapping) else item
        for key, item in example.items()
        if key != "request_sound"
    }


def shown(value: Any) -> str:
    """A request or an answer in a line: a text as it is, many numbers as how many and the first two, bytes as how many."""
    if value is None:
        return "no answer"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value):,} bytes, first {bytes(value[:8])!r}"
    text = text_of(value)
    return excerpt(json.dumps(_few(value), ensure_ascii=False, default=str) if text is None else text, EXCERPT_CHARACTERS)


def _few(value: Any) -> Any:
    """With lists of numbers told in words."""
    if isinstance(value, Mapping):
        return {str(key): _few(item) for key, item in value.items()}
    if not isinstance(value, list | tuple):
        return value
    if len(value) >= MANY_NUMBERS and all(isinstance(item, int | float) for item in value):
        return f"{len(value):,} numbers, first {value[0]:g}, {value[1]:g}"
    return [_few(item) for item in value]


def _example(pair: Compared) -> dict[str, Any]:
    sides = (("stable", pair.stable_answer, pair.stable), ("candidate", pair.candidate_answer, pair.candidate))
    told: dict[str, dict[str, Any]] = {
        side: {"answer": shown(answer), "score": round(score.value, 4), "garbage": score.garbage, "note": excerpt(score.note, EXCERPT_CHARACTERS)}
        for side, answer, score in sides
    }
    for side, answer, _ in sides:
        if (sound := sound_of(answer)) is not None:
            told[side]["sound"] = sound
    heard = sound_of(pair.request)
    request = {"request": "none" if pair.request is None else shown(pair.request), **({"request_sound": heard} if heard is not None else {})}
    return {"case": excerpt(pair.case), **request, **told}


def _lost(example: Mapping[str, Any]) -> tuple[bool, float]:
    stable, candidate = example["stable"], example["candidate"]
    return candidate["garbage"] and not stable["garbage"], stable["score"] - candidate["score"]


def _cut(example: Mapping[str, Any], characters: int) -> dict[str, Any]:
    return {
        key: excerpt(item, characters) if isinstance(item, str) and key != "case" else _cut(item, characters) if isinstance(item, Mapping) else item
        for key, item in example.items()
    }
