"""``Score``, what every evaluator returns, and what references have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from kfp_components import errors

UNREADABLE = (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError, StopIteration)
"""What reading an answer in another form raises."""


@dataclass(frozen=True)
class Score:
    """How good an answer is.

    ``value`` is in [0, 1], 1 is best; anything else raises `ValueError`. ``garbage``: of no use to anybody, whatever the value; how often that
    happens is judged apart. ``note`` says in one line, for people, what the value is made of.
    """

    value: float
    garbage: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and 0 <= self.value <= 1):
            raise ValueError(f"score {self.value!r} is not within [0, 1]")


def garbage(note: str) -> Score:
    """The score of an answer that is of no use: 0."""
    return Score(0.0, garbage=True, note=note)


class ReferenceModel(BaseModel):
    """What a case expects of an answer. Frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


Reference = TypeVar("Reference", bound=ReferenceModel)


def checked(kind: type[Reference], reference: Any, short: str | None = None) -> Reference:
    """A reference as its model; a bare value is that of the field ``short``. Raises `RequestInvalid`: the case is wrong, not the answer."""
    if short is not None and not isinstance(reference, Mapping):
        reference = {short: reference}
    try:
        return kind.model_validate(reference)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, item['loc'])) or 'it'}: {item['msg'].removeprefix('Value error, ')}" for item in error.errors()[:5]]
        raise errors.RequestInvalid("; ".join(wrong)) from error


def text_of(answer: Any) -> str | None:
    """The text of an answer, None where there is none.

    Read are a text itself, ``{"text": ...}`` (OpenAI transcriptions), ``{"choices": [...]}`` (OpenAI chat and completions) and V2's ``outputs``: the
    first text of the first that holds BYTES.
    """
    if isinstance(answer, str):
        return answer
    if not isinstance(answer, Mapping):
        return None
    try:
        if "text" in answer:
            found = answer["text"]
        elif "choices" in answer:
            choice = answer["choices"][0]
            found = choice["message"]["content"] if "message" in choice else choice["text"]
        else:
            found = first_bytes(answer)
    except UNREADABLE:
        return None
    return found if isinstance(found, str) else None


def first_bytes(answer: Mapping[str, Any]) -> Any:
    """What the first BYTES output of a V2 answer begins with; raises one of `UNREADABLE` where there is none."""
    found = next((output["data"] for output in answer["outputs"] if output.get("datatype", "BYTES") == "BYTES"), [None])
    while isinstance(found, list):
        found = found[0]
    return found


def excerpt(value: Any, most: int = 60) -> str:
    """What was found, for a note: short, on one line."""
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text[: 4 * most].split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def keys_of(answer: Any) -> str:
    """What an answer is, where it is not what it should be: its keys, or its type."""
    if isinstance(answer, Mapping):
        return "an object with " + (excerpt(", ".join(map(str, answer))) or "no keys")
    return "no answer" if answer is None else f"{type(answer).__name__} {excerpt(answer)}"
