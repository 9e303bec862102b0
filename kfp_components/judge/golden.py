"""What the judge knows of the answers to a golden set: its margins, the tests of `quality` and the totals. The state is JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

from kfp_components.judge import quality
from kfp_components.judge.quality import Pair

ARMS = ("stable", "candidate")
UNFIT_PAIRS = 20
"""After so many pairs of which stable's own answer to half is useless, the golden set is no measure."""

WARM_UP_PAIRS = 3
"""The first ones' latency is not judged: the candidate has just started."""


class Margins(TypedDict):
    """How much worse the candidate may be: ``score`` and ``garbage`` of 1. ``cases`` is the digest of the golden set, ``of`` its size."""

    score: float
    garbage: float
    latency_percent: float
    cases: str
    of: int


class Answered(NamedTuple):
    """A pair, and why stable's answer was useless if it was."""

    pair: Pair
    why: str = ""


def start(margins: Margins) -> dict[str, Any]:
    """State at the beginning; the margins stay as they are."""
    return {"margins": dict(margins), "tests": quality.start(), "why": "", "timed": 0, "log_ratios": 0.0}


def update(state: Mapping[str, Any], answered: Sequence[Answered]) -> dict[str, Any]:
    """With more pairs. Raises `ValueError` as `quality.update`.

    A loss of the margin counts neither for nor against: of few cases, asked again and again, two versions that are equally good differ by chance, and
    without a margin that becomes a certainty (benchmarks/RESULTS.md).
    """
    if not answered:
        return dict(state)
    margins, seen = state["margins"], state["tests"]["pairs"]
    pairs = [one.pair if seen + index >= WARM_UP_PAIRS else one.pair._replace(stable_s=None) for index, one in enumerate(answered)]
    tests = quality.update(
        state["tests"],
        pairs,
        margin=margins["score"],
        fail_margin=margins["score"],
        garbage_margin=margins["garbage"],
        latency_margin_percent=margins["latency_percent"],
        latency_fail_margin_percent=margins["latency_percent"] / 2,
    )
    why = next((one.why for one in answered if one.pair.stable_garbage), "")
    ratios = [math.log(pair.candidate_s / pair.stable_s) for pair in pairs if pair.stable_s and pair.candidate_s]
    timed = {"timed": state["timed"] + len(ratios), "log_ratios": state["log_ratios"] + sum(ratios)}
    return {**state, "tests": tests, "why": state["why"] or why, **timed}


def evidence(state: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """``e_fail`` and ``e_pass`` of quality, garbage and paired_latency."""
    return quality.evidence(state["tests"])


def pairs(state: Mapping[str, Any]) -> int:
    """How many were judged."""
    return int(state["tests"]["pairs"])


def totals(state: Mapping[str, Any]) -> dict[str, Any]:
    """``pairs``, and of each version the mean score (of 1) and the number of useless answers."""
    number, sums = pairs(state), state["tests"]["sums"]
    scores = {arm: round(total / number, 6) for arm, total in zip(ARMS, sums[:2], strict=True)} if number else {}
    return {"pairs": number, "scores": scores, "garbage": {arm: int(total) for arm, total in zip(ARMS, sums[2:], strict=True)}}


def unfit(state: Mapping[str, Any]) -> str | None:
    """Why the golden set says nothing, where stable itself does not answer it: two versions that answer nothing right would be equally good."""
    number, useless = pairs(state), int(state["tests"]["sums"][2])
    if number < UNFIT_PAIRS or 2 * useless < number:
        return None
    told = f"stable's own answer to {useless:,} of {number:,} requests is useless ({state['why']})"
    return (
        f"the golden set does not fit: {told}; roll back, mend its cases and promote again, or give quality.max_pairs: 0 if stable is what is broken"
    )


def sentence(state: Mapping[str, Any]) -> str:
    """What was seen; empty without pairs."""
    found = totals(state)
    if not found["pairs"]:
        return ""
    scores, useless = found["scores"], found["garbage"]
    percent = 100 * (math.exp(state["log_ratios"] / state["timed"]) - 1) if state["timed"] else 0.0
    took = f", which take {abs(percent):.0f} % {'longer' if percent > 0 else 'less long'} (geometric mean)" if state["timed"] else ""
    asked = f"of {found['pairs']:,} golden requests ({state['margins']['of']:,} case{'' if state['margins']['of'] == 1 else 's'})"
    return (
        f"{asked} the candidate's mean score is {scores['candidate']:.4f}, stable's {scores['stable']:.4f}, and "
        f"{useless['candidate']:,} of its answers are useless, {useless['stable']:,} of stable's{took}"
    )


def margins_sentence(state: Mapping[str, Any], *, latency: bool) -> str:
    """The margins of PASS: ``1 point of 100 in the score of its answers, ...``."""
    margins = state["margins"]
    slow = f", {margins['latency_percent']:g} % in their median latency (p95 and p99 are not judged)" if latency else ""
    score, garbage = (f"{100 * margins[name]:g} point{'' if margins[name] == 0.01 else 's'}" for name in ("score", "garbage"))
    return f"{score} of 100 in the score of its answers, {garbage} in useless ones{slow}"
