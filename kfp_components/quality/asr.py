"""Speech to text: word and character error rates, by jiwer.

Both texts are normalised alike before they are compared: Unicode NFKC, lower case, hyphens, dashes and slashes to spaces, all other punctuation
removed (so "don't" is "dont"), runs of white space to one. Numbers stay as they are written: "20" is not "twenty". Choose ``cer`` for languages that
are written without spaces.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any, Literal

from kfp_components import errors
from kfp_components.quality.score import ReferenceModel, Score, checked, excerpt, garbage, keys_of, text_of

DASHES = re.compile(r"[-\u2010-\u2015\u2212/]")

GARBAGE_CER = 0.8
"""Unrelated sentences in one language differ in some 75 to 85 % of their characters; above this nothing is left of what was said."""

RUNAWAY_TIMES, RUNAWAY_WORDS = 3, 20
"""An answer so many times as long as the reference, and by so many words: a decoder that repeats itself or hears things."""


class AsrReference(ReferenceModel):
    """What was said. An empty text is silence."""

    text: str
    metric: Literal["wer", "cer"] = "wer"


def check(reference: Any) -> None:
    """Raises `RequestInvalid` for a reference that `score` would not take, and where jiwer is not installed."""
    checked(AsrReference, reference, short="text")
    rates("a", "a")


def score(answer: Any, reference: Any) -> Score:
    """``1 - min(1, rate)``. ``answer``: see `text_of`; ``reference``: the text that was said, or `AsrReference`'s fields.

    Garbage: no text, nothing heard, something heard in silence, a runaway answer, a character error rate of `GARBAGE_CER` or more.
    """
    expected = checked(AsrReference, reference, short="text")
    text = text_of(answer)
    if text is None:
        return garbage(f"no text, but {keys_of(answer)}")
    heard, said = normalised(text), normalised(expected.text)
    if not said:
        return garbage(f"it heard something in silence: {excerpt(heard)}") if heard else Score(1.0, note="silence, heard as silence")
    if not heard:
        return garbage("it heard nothing")
    words, spoken = len(heard.split()), len(said.split())
    if words > RUNAWAY_TIMES * spoken and words > spoken + RUNAWAY_WORDS:
        return garbage(f"{words} words where {spoken} were said: {excerpt(heard)}")
    found = rates(heard, said)
    note = f"WER {found['wer']:.3f}, CER {found['cer']:.3f}"
    return Score(max(0.0, 1 - found[expected.metric]), garbage=found["cer"] >= GARBAGE_CER, note=note)


def normalised(text: str) -> str:
    """The form in which texts are compared, see above."""
    spaced = DASHES.sub(" ", unicodedata.normalize("NFKC", text).lower())
    return " ".join("".join(letter for letter in spaced if not unicodedata.category(letter).startswith("P")).split())


def rates(heard: str, said: str) -> dict[str, float]:
    """``wer`` and ``cer`` of two normalised texts, neither empty: edits over the length of what was said, so above 1 where much was added."""
    try:
        import jiwer
    except ImportError as error:
        raise errors.RequestInvalid("jiwer is not installed; install kfp-serving-components[quality]") from error
    return {"wer": float(jiwer.wer(said, heard)), "cer": float(jiwer.cer(said, heard))}
