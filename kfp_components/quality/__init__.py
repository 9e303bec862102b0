"""How good is an answer? One evaluator for each model family, and own ones; pure, nothing here asks a model or decides.

An evaluator is anything with ``score(answer, reference) -> Score``, and ``check(reference)``, which raises for a reference that it cannot take, where
it has one: a module, as ours are, or an object. Own ones are entry points of the group `ENTRY_POINTS`, by the name of their family::

    [project.entry-points."kfp_serving.evaluators"]
    translation = "my_package.quality"

The answer is what the case's protocol gave: parsed JSON, text or bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, cast

from kfp_components import errors
from kfp_components.quality import asr, embedding, llm, tts
from kfp_components.quality.examples import Compared, examples
from kfp_components.quality.score import Score, garbage

__all__ = [
    "ENTRY_POINTS",
    "EVALUATORS",
    "Case",
    "Compared",
    "Evaluator",
    "Heard",
    "Score",
    "assert_references",
    "evaluator",
    "examples",
    "garbage",
    "score",
]

ENTRY_POINTS = "kfp_serving.evaluators"


class Evaluator(Protocol):
    """What compares an answer with a reference."""

    def score(self, answer: Any, reference: Any, /) -> Score:
        """The score; `garbage` for an answer in the wrong form, `RequestInvalid` for a reference that is."""


class Case(Protocol):
    """What is read of a `SmokeCase`: its name, its family where it is not the release's, and what a good answer is."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def family(self) -> str | None:
        """Whose evaluator takes the reference."""

    @property
    def reference(self) -> Any:
        """None where the case is not scored."""


EVALUATORS: Mapping[str, Evaluator] = {"asr": asr, "embedding": embedding, "llm": llm, "tts": tts}


@lru_cache(maxsize=32)  # looking through what is installed takes longer than a score
def evaluator(family: str) -> Evaluator:
    """The evaluator of a family: ours, or an installed package's.

    Raises `RequestInvalid` that lists the known families; also where two packages claim one, or one that cannot be loaded or scores nothing.
    """
    own = entry_points(group=ENTRY_POINTS)
    points = [point for point in own if point.name == family]
    if points and (family in EVALUATORS or len({point.value for point in points}) > 1):
        whose = "a family of this library; rename it" if family in EVALUATORS else "more than one package; uninstall all but one"
        raise errors.RequestInvalid(f"evaluator {family!r}: {_sources(points)} claims the name of {whose}")
    if family in EVALUATORS:
        return EVALUATORS[family]
    if not points:
        known = ", ".join(sorted({*EVALUATORS, *(point.name for point in own)}))
        raise errors.RequestInvalid(f"evaluator {family!r} is not known; there are {known}; others are entry points of the group {ENTRY_POINTS}")
    try:
        found = points[0].load()
    except Exception as error:  # a foreign module may raise anything when it is imported
        raise errors.RequestInvalid(f"evaluator {family!r}: {points[0].value} cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(getattr(found, "score", None)):
        raise errors.RequestInvalid(f"evaluator {family!r}: {points[0].value} has no function score(answer, reference)")
    return cast(Evaluator, found)


Heard = Callable[[bytes], str]
"""What is said in a sound file, as a model for speech hears it; raises `Unreachable` where that does not tell."""


def score(case: Case, answer: Any, family: str | None = None, heard: Heard | None = None) -> Score:
    """The score of an answer to a case with a reference, by the case's family, else ``family``; None is no answer, which is garbage.

    With ``heard`` the words count too, of speech. Raises `RequestInvalid` that names the case, also for an evaluator that fails, and what ``heard``
    raises: neither says anything about a version.
    """
    judged_by, whose = _evaluator_of(case, family)
    if answer is None:
        return garbage("no answer")
    found = _tried(case, whose, lambda: judged_by.score(answer, case.reference))
    if not isinstance(found, Score):
        raise errors.RequestInvalid(f"case {case.name!r}: evaluator {whose!r} returned {type(found).__name__}, not a Score")
    sound = tts.audio_of(answer) if heard is not None and whose == "tts" and not found.garbage else None
    return tts.with_words(found, heard(sound), case.reference) if heard is not None and sound is not None else found


def assert_references(cases: Iterable[Case], family: str | None = None) -> None:
    """Raise `RequestInvalid` naming the first case whose family is not known or whose reference its evaluator does not take."""
    for case in cases:
        if case.reference is not None:
            judged_by, whose = _evaluator_of(case, family)
            check = getattr(judged_by, "check", None)
            if callable(check):
                _tried(case, whose, lambda check=check, case=case: check(case.reference))  # type: ignore[misc]


def _evaluator_of(case: Case, family: str | None) -> tuple[Evaluator, str]:
    whose = case.family or family
    if whose is None:
        raise errors.RequestInvalid(f"case {case.name!r}: nobody knows who scores its reference; give it a family, or options.provenance.family")
    try:
        return evaluator(whose), whose
    except errors.RequestInvalid as error:
        raise errors.RequestInvalid(f"case {case.name!r}: {error}") from error


def _tried(case: Case, family: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except errors.RequestInvalid as error:
        raise errors.RequestInvalid(f"case {case.name!r}: its reference of family {family}: {error}") from error
    except Exception as error:  # a foreign evaluator may raise anything
        raise errors.RequestInvalid(f"case {case.name!r}: evaluator {family!r}: {type(error).__name__}: {error}") from error


def _sources(points: Iterable[EntryPoint]) -> str:
    return " and ".join(sorted(f"{point.dist.name if point.dist else '?'} ({point.value})" for point in points))
