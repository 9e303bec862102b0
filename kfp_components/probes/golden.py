"""Golden sets: requests with the answers that are right, as JSON lines, one smoke case each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kfp_components import errors, uris
from kfp_components.probes import Prober, ProbeResult
from kfp_components.request import SmokeCase, SmokePace, parse_case

if TYPE_CHECKING:
    from kfp_components.quality import Heard
    from kfp_components.quality.score import Score

MOST_CASES = 100_000
KEPT_PROBLEMS = 5
DAY_S = 86_400.0
NOBODY = 20
"""After so many requests that nobody answered, and none that somebody did, there is nobody."""


def parse(text: str, where: str) -> tuple[SmokeCase, ...]:
    """The cases of a golden set that is at ``where``. Raises `RequestInvalid` naming the line that is none, and for an empty one."""
    cases = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):  # splitlines ends lines within JSON strings too
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            json.dumps(values, ensure_ascii=False, allow_nan=False).encode()  # it is to be sent
        except (ValueError, RecursionError) as error:
            raise errors.RequestInvalid(f"golden set {uris.shown(where)}, line {number}: not JSON ({error}); one smoke case in each line") from error
        cases.append(parse_case(values, f"golden set {uris.shown(where)}, line {number}"))
        if len(cases) > MOST_CASES:
            raise errors.RequestInvalid(f"golden set {uris.shown(where)}: more than {MOST_CASES:,} cases; give a sample of them")
    if not cases:
        raise errors.RequestInvalid(f"golden set {uris.shown(where)}: it holds no case")
    return tuple(cases)


@dataclass
class Answers:
    """What a sample of cases gave: how many were asked and failed, the seconds of each answer, and a few of the problems.

    ``unreachable`` were not answered by anybody, which says nothing about the version: they are in neither number. ``left_out`` were not sent.
    ``scores`` are those of cases with a reference, by name; an answer that is useless has failed.
    """

    requests: int = 0
    failures: int = 0
    unreachable: int = 0
    left_out: int = 0
    seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    scores: list[tuple[str, float]] = field(default_factory=list)

    def add(self, case: SmokeCase, result: ProbeResult | None, family: str | None = None) -> None:
        """Count one; None was not sent. Raises as `score`."""
        if result is None:
            self.left_out += 1
            return
        result, found = judged(case, result, family)
        if found is not None:
            self.scores.append((case.name, found.value))
        if result.unreachable:
            self.unreachable += 1
        else:
            self.requests += 1
            self.failures += result.problem is not None
            if result.seconds:  # of a connection that broke nobody knows
                self.seconds.append(result.seconds)
        if result.problem is not None and len(self.problems) < KEPT_PROBLEMS and result.problem not in self.problems:
            self.problems.append(result.problem)


def ask(
    prober: Prober,
    cases: Sequence[SmokeCase],
    concurrency: int,
    told: Callable[[int, int], None],
    go_on: Callable[[], bool] = lambda: True,
    *,
    rate_per_s: float | None = None,
    family: str | None = None,
) -> Answers:
    """What the cases give, ``concurrency`` at the same time. ``told`` hears how many are done of how many; none is sent once ``go_on`` says no.

    One that nobody answered is sent once more. Where nobody answers at all, the rest is not sent. Raises as `score`.
    """
    found = Answers()
    pace = SmokePace(concurrency=concurrency, rate_per_s=rate_per_s, budget_s=DAY_S)
    sent = prober.send(cases, pace, go_on=lambda: go_on() and not (found.unreachable >= NOBODY and not found.requests))
    for done, (number, result) in enumerate(sent, 1):
        found.add(cases[number], result, family)
        told(done, len(cases))
    return found


def judged(case: SmokeCase, result: ProbeResult, family: str | None) -> tuple[ProbeResult, Score | None]:
    """The score of a case with a reference, None for any other and where nobody answered; a useless answer is a problem. Raises as `score`."""
    if case.reference is None or result.unreachable:
        return result, None
    found = score(case, result, family)
    if found.garbage and result.problem is None:
        result = replace(result, problem=f"{case.name}: its answer is useless: {found.note}")
    return result, found


def score(case: SmokeCase, answer: ProbeResult, family: str | None, heard: Heard | None = None) -> Score:
    """How good an answer is: by the evaluator of the case's family (else ``family``) where it has a reference, else 1; useless where it is not as
    expected. ``heard`` hears the words of speech. Raises `RequestInvalid` where the evaluator cannot take the case, and what ``heard`` raises."""
    from kfp_components import quality  # numpy: only who scores pays for it

    if answer.problem is not None:
        return quality.garbage(answer.problem)
    return quality.Score(1.0) if case.reference is None else quality.score(case, answer.value, family, heard)
