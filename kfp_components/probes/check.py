"""Is the answer as the case expects? Pure: a case and an answer give one line, or None."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

from kfp_components.probes.answer import Answer, parsed
from kfp_components.request import ExpectedAudio, ExpectedStream, ExpectedTensor, ExpectedText, ExpectedVectors, SmokeCase

KINDS: dict[str, tuple[type, ...]] = {"BYTES": (str,), "BOOL": (bool,), "FP": (int, float), "BF": (int, float), "INT": (int,), "UINT": (int,)}
"""V2 datatype, without its bits -> what its values are in JSON."""

COLLAPSED = 0.9999
"""Cosine of vectors that are the same for whatever use they are of."""


def problem(case: SmokeCase, version: str | None, answer: Answer) -> str | None:
    """The first thing that is not as expected; None when all is. ``version`` is the one that was asked for, None: any."""
    try:
        wrong = next(_wrong(case, version, answer), None)
    except RecursionError:
        wrong = "expected an answer that can be read, it is nested too deep"
    if wrong is None or (answer.broken is not None and not answer.content):
        return wrong
    return f"{wrong}: {answer.told()}" if answer.status != case.expect_status else f"{wrong}; the answer: {answer.told()}"


def _wrong(case: SmokeCase, version: str | None, answer: Answer) -> Iterator[str]:
    if answer.broken is not None:
        yield answer.broken
    if answer.status != case.expect_status:
        yield f"expected status {case.expect_status}, got {answer.status}"
    if version not in (None, answer.version):
        yield f"asked for version {version}, and {answer.version or 'a server that does not say its version'} answered"
    if case.expect_stream is not None:
        yield from _stream(case.expect_stream, answer)
    if case.expect or case.expect_shape:
        yield from _values(case, answer)
    if case.expect_tensors is not None:
        yield from _tensors(case.expect_tensors, answer.value)
    if case.expect_text is not None:
        yield from _text(case.expect_text, answer.value)
    if case.expect_audio is not None:
        yield from _audio(case.expect_audio, answer)
    if case.expect_vectors is not None:
        yield from _vectors(case.expect_vectors, answer.value)
    if case.expect_within_s is not None and answer.seconds > case.expect_within_s:
        yield f"expected the whole answer within {case.expect_within_s:g} s, it took {answer.seconds:.3g} s"


def _stream(expected: ExpectedStream, answer: Answer) -> Iterator[str]:
    if not answer.ended:
        yield f"the stream stopped after {answer.pieces} piece(s): expected a finish_reason and [DONE] at its end"
    if answer.pieces < expected.min_pieces:
        yield f"expected a stream of at least {expected.min_pieces} piece(s), got {answer.pieces}"
    if expected.max_first_s is not None and (answer.first_s is None or answer.first_s > expected.max_first_s):
        took = "none says anything" if answer.first_s is None else f"it took {answer.first_s:.3g} s"
        yield f"expected the first piece within {expected.max_first_s:g} s, {took}"


def _values(case: SmokeCase, answer: Answer) -> Iterator[str]:
    value = answer.value
    if isinstance(value, str | bytes):
        try:
            value = parsed(answer.content)
        except ValueError:
            yield "expected JSON"
            return
    for pointer, wanted in case.expect.items():
        found = resolve(value, pointer)
        if not matches(found, wanted, case.tolerance):
            yield f"expected {pointer} = {_short(wanted)} (tolerance {case.tolerance:g}), got {_short(found)}"
    for pointer, lengths in case.expect_shape.items():
        found_shape = shape(resolve(value, pointer))
        if found_shape != lengths:
            yield f"expected {pointer} of shape {lengths}, got {found_shape}"


def _tensors(expected: dict[str, ExpectedTensor], value: Any) -> Iterator[str]:
    listed = value.get("outputs") if isinstance(value, dict) else None
    outputs = {str(output.get("name")): output for output in listed if isinstance(output, dict)} if isinstance(listed, list) else {}
    for name, tensor in expected.items():
        if name not in outputs:
            yield f"expected an output {name}, got {', '.join(outputs) or 'no outputs'}"
            return
        found, datatype, data = outputs[name].get("shape"), str(outputs[name].get("datatype")), outputs[name].get("data")
        if not isinstance(found, list) or not all(isinstance(length, int) for length in found) or not isinstance(data, list):
            yield f"expected output {name} to have a shape and data"
            return
        data = list(_flat(data))
        if tensor.datatype not in (None, datatype):
            yield f"expected output {name} of datatype {tensor.datatype}, got {datatype}"
        if tensor.shape is not None and (len(tensor.shape) != len(found) or any(a not in (-1, b) for a, b in zip(tensor.shape, found, strict=True))):
            yield f"expected output {name} of shape {tensor.shape}, got {found}"
        if len(data) != math.prod(found):
            yield f"output {name} says shape {found}, which is {math.prod(found)} value(s), but has {len(data)}"
        kinds = KINDS.get(datatype.rstrip("0123456789"))
        if kinds is None:
            yield f"output {name} has the unknown datatype {datatype}"
        elif odd := [item for item in data if not isinstance(item, kinds) or (isinstance(item, bool) and bool not in kinds)]:
            yield f"output {name} says datatype {datatype}, but holds {_short(odd[0])}"
        elif endless := [item for item in data if isinstance(item, float) and not math.isfinite(item)]:
            yield f"expected output {name} to be finite, but it holds {endless[0]}"


def _text(expected: ExpectedText, value: Any) -> Iterator[str]:
    from kfp_components.quality import asr
    from kfp_components.quality.score import text_of

    text = text_of(value)
    if text is None:
        yield "expected an answer that holds text"
        return
    if len(text.strip()) < expected.min_characters:
        yield f"expected a text of at least {expected.min_characters} character(s), got {_short(text)}"
    for part in expected.contains:
        if part.casefold() not in text.casefold():
            yield f"expected a text that contains {_short(part)}, got {_short(text)}"
    if expected.regex is not None and not re.search(expected.regex, text):
        yield f"expected a text in which {_short(expected.regex)} is found, got {_short(text)}"
    if expected.like is None:
        return
    wanted, found = asr.normalised(expected.like), asr.normalised(text)
    if expected.min_similarity is not None:
        ratio = difflib.SequenceMatcher(None, wanted, found, autojunk=False).ratio()
        if ratio < expected.min_similarity:
            yield f"expected a text like {_short(expected.like)} (similarity {expected.min_similarity:g}), got {_short(text)} ({ratio:.2f})"
    if expected.max_wer is not None and (rate := asr.rates(found, wanted)["wer"] if wanted else float(bool(found))) > expected.max_wer:
        yield f"expected {_short(expected.like)} with a word error rate of at most {expected.max_wer:g}, got {_short(text)} with {rate:.2f}"


def _audio(expected: ExpectedAudio, answer: Answer) -> Iterator[str]:
    from kfp_components.quality import tts

    try:
        audio = tts.read_wav(answer.content)
    except ValueError as error:
        yield f"expected a WAV file, got {answer.kind or 'no content type'}: {error}"
        return
    if not expected.min_s <= audio.duration_s <= expected.max_s:
        yield f"expected {expected.min_s:g} to {expected.max_s:g} s of audio, got {audio.duration_s:.2f} s"
    if audio.silence_share > expected.max_silence:
        yield f"expected audio that is silent for at most {expected.max_silence:.0%} of its time, got {audio.silence_share:.0%}"
    if expected.sample_rate_hz not in (None, audio.sample_rate_hz):
        yield f"expected {expected.sample_rate_hz} samples a second, got {audio.sample_rate_hz}"


def _vectors(expected: ExpectedVectors, value: Any) -> Iterator[str]:
    import numpy as np

    from kfp_components.quality.embedding import vectors_of

    vectors = vectors_of(value)
    if vectors is None:
        yield "expected vectors of one length"
        return
    count, dimensions = vectors.shape
    wanted = (expected.count or count, expected.dimensions or dimensions)
    if wanted != (count, dimensions):
        yield f"expected vectors of shape {list(wanted)}, got {[count, dimensions]}"
        return
    if not np.isfinite(vectors).all():
        yield "expected finite vectors"
        return
    lengths = np.linalg.norm(vectors, axis=1)
    if (lengths == 0).any():
        yield "expected vectors other than zero"
        return
    cosines = (vectors / lengths[:, None]) @ (vectors / lengths[:, None]).T
    if count > 1 and cosines.min() > COLLAPSED:
        yield "expected different vectors for different texts, they are all the same"
    if expected.unit_length and (abs(lengths - 1) > 1e-3).any():
        yield f"expected vectors of length 1, got {lengths[np.argmax(abs(lengths - 1))]:.4g}"
    if expected.nearest is not None and (expected.nearest >= count - 1 or int(np.argmax(cosines[0, 1:])) != expected.nearest):
        near = [round(float(one), 3) for one in cosines[0, 1:]]
        yield f"expected text {expected.nearest} after the first to be nearest to it, got cosines {near}"


class _Missing:
    def __repr__(self) -> str:
        return "nothing there"


MISSING = _Missing()


def resolve(body: Any, pointer: str) -> Any:
    """The value at a JSON pointer (RFC 6901), `MISSING` when there is none."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(body, list) and key.isascii() and key.isdecimal() and int(key) < len(body):
            body = body[int(key)]
        elif isinstance(body, dict) and key in body:
            body = body[key]
        else:
            return MISSING
    return body


def matches(found: Any, wanted: Any, tolerance: float) -> bool:
    """Equal, with ``tolerance`` (absolute) for numbers; a wanted dict may hold fewer keys; lists match element by element."""
    if isinstance(wanted, bool) or isinstance(found, bool):
        return found is wanted
    if isinstance(wanted, int | float) and isinstance(found, int | float):
        try:
            return abs(found - wanted) <= tolerance
        except OverflowError:  # an integer beyond every float
            return found == wanted
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(key in found and matches(found[key], item, tolerance) for key, item in wanted.items())
    if isinstance(wanted, list):
        same_length = isinstance(found, list) and len(found) == len(wanted)
        return same_length and all(matches(a, b, tolerance) for a, b in zip(found, wanted, strict=True))
    return bool(found == wanted)


def shape(value: Any) -> list[int]:
    """Lengths of nested lists: [] for a scalar, [2, 3] for two lists of three."""
    lengths = []
    while isinstance(value, list):
        lengths.append(len(value))
        value = value[0] if value else None
    return lengths


def _flat(data: list[Any]) -> Iterator[Any]:
    return itertools.chain.from_iterable(_flat(part) if isinstance(part, list) else (part,) for part in data)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
