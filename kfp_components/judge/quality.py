"""Pairs of answers to the same request: is the candidate's worse, garbage more often, or slower? Betting e-processes for FAIL and for PASS.

A pair is one request answered by both versions, each answer scored in [0, 1]; ``d = stable - candidate`` is what was lost. Scores say how much
worse, but where most answers are alike a few that are useless barely move the mean; so "garbage or not" is a metric of its own. A request's own
difficulty is the same for both, so a small slowdown of every request is seen sooner than in the latencies of different requests.

With ``e`` the factor of a pair, the null hypothesis makes ``E[e | past] <= 1``, so the product is a test martingale for each bet and so is the
average over bets, whenever one stops: Ville 1939; Waudby-Smith & Ramdas, Estimating means of bounded random variables by betting (JRSS-B 86, 2024).
Pairs need not be alike or independent, only their conditional mean has to obey the null: draw the cases at random, with replacement, and which
version is asked first as well (the second finds warm caches). What is tested is then the mean over the cases that one has. The state is JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kfp_components.judge.error_rate import mixed

Floats = NDArray[np.float64]


class Bets(NamedTuple):
    """What is mixed: each bet's size, as a part of its stake, its weight, and the largest difference that it counts."""

    sizes: Floats
    weights: Floats
    bounds: Floats


def _bets(*bets: tuple[float, float, float]) -> Bets:
    sizes, weights, bounds = np.array(bets).T
    return Bets(sizes, weights / weights.sum(), bounds)


SIGN = 1e-6
"""A bound so small that only the sign of a difference counts."""

BETS: Mapping[str, Mapping[str, Bets]] = {
    "quality": {
        "fail": _bets(
            *((0.1, 0.1, 0.1), (0.25, 0.12, 0.1), (0.5, 0.15, 0.1), (0.95, 0.25, 0.1)),
            *((0.1, 0.08, 1.0), (0.3, 0.1, 1.0), (0.6, 0.08, 1.0), (0.95, 0.12, 1.0)),
        ),
        "pass": _bets((0.1, 0.08, 1.0), (0.25, 0.12, 1.0), (0.5, 0.15, 1.0), (0.99, 0.65, 1.0)),
    },
    "garbage": {
        "fail": _bets((0.15, 0.1, 1.0), (0.4, 0.15, 1.0), (0.65, 0.2, 1.0), (0.85, 0.25, 1.0), (0.97, 0.3, 1.0)),
        "pass": _bets((0.1, 0.08, 1.0), (0.25, 0.12, 1.0), (0.5, 0.15, 1.0), (0.99, 0.65, 1.0)),
    },
    "paired_latency": {
        "fail": _bets(
            *((0.1, 0.1, SIGN), (0.2, 0.1, SIGN), (0.4, 0.1, SIGN), (0.85, 0.2, SIGN)),
            *((0.15, 0.1, 0.5), (0.3, 0.15, 0.5), (0.5, 0.1, 0.5), (0.9, 0.15, 0.5)),
        ),
        "pass": _bets((0.15, 0.2, 0.5), (0.35, 0.3, 0.5), (0.6, 0.2, 0.5), (0.95, 0.3, 0.5)),
    },
}
"""Metric -> side -> bets, as benchmarks/quality.py compares them.

FAIL of scores counts differences up to 0.1 in its larger part, so that one strange answer does not decide and a loss of 2 % of every score is found
five times sooner; in the smaller in full, for scores that are 0 or 1. PASS has most on all of the stake, which is best while the variance of
differences is below the margin; bets that adapt to what was seen are no better there, and are ruined by one answer that was much worse. Of latency
counts the logarithm of candidate / stable, up to 0.5: signs alone need up to twice as many pairs where latencies vary, and are quicker only where
they hardly do; PASS does without them, since they miss what is slow for a third of the requests.
"""

MARGIN = 0.01
"""How much worse the mean score, and how much higher the share of garbage, may be."""


class Pair(NamedTuple):
    """Scores in [0, 1], whether the answers are garbage, and the seconds they took, None where that is not to be judged."""

    stable: float
    candidate: float
    stable_garbage: bool = False
    candidate_garbage: bool = False
    stable_s: float | None = None
    candidate_s: float | None = None


def start() -> dict[str, Any]:
    """State at the beginning: no pairs; the sums of what a `Pair` begins with; log e-values of each bet."""
    logs = {name: {side: [0.0] * len(bets.sizes) for side, bets in sides.items()} for name, sides in BETS.items()}
    return {"pairs": 0, "sums": [0.0] * 4, **logs}


def update(
    state: dict[str, Any],
    pairs: Sequence[Pair],
    *,
    margin: float = MARGIN,
    fail_margin: float | None = None,
    garbage_margin: float = MARGIN,
    latency_margin_percent: float = 10.0,
    latency_fail_margin_percent: float = 5.0,
) -> dict[str, Any]:
    """Add pairs, one or many: the result is the same. Margins of scores and garbage are fractions of 1.

    ``fail_margin`` (default half of ``margin``) is the loss that does not count against the candidate: on few cases two versions that are equally
    good differ by chance, and asking the same cases again makes that certain. Raises `ValueError` for a score outside [0, 1], a margin outside (0, 1)
    and seconds that are not above zero; the state is then as it was.
    """
    scores = np.array([pair[:2] for pair in pairs], dtype=np.float64).reshape(-1, 2)
    for index in np.flatnonzero(~((scores >= 0) & (scores <= 1)).all(axis=1)):
        raise ValueError(f"pair {index}: scores {scores[index].tolist()} are not within [0, 1]")
    spoilt = np.array([pair[2:4] for pair in pairs], dtype=np.float64).reshape(-1, 2)
    seconds = np.array([pair[4:] for pair in pairs if None not in pair[4:]], dtype=np.float64).reshape(-1, 2)
    if not np.all(np.isfinite(seconds) & (seconds > 0)):
        raise ValueError("a latency is a finite number of seconds above zero")
    lost, worse = scores[:, 0] - scores[:, 1], spoilt[:, 1] - spoilt[:, 0]
    steps = {
        "quality": {"fail": fail_steps(lost, BETS["quality"]["fail"], margin / 2 if fail_margin is None else fail_margin)},
        "garbage": {"fail": fail_steps(worse, BETS["garbage"]["fail"], 0.0)},
        "paired_latency": {"fail": latency_steps(seconds, BETS["paired_latency"]["fail"], latency_fail_margin_percent)},
    }
    steps["quality"]["pass"] = pass_steps(lost, BETS["quality"]["pass"], margin)
    steps["garbage"]["pass"] = pass_steps(worse, BETS["garbage"]["pass"], garbage_margin)
    steps["paired_latency"]["pass"] = -latency_steps(seconds, BETS["paired_latency"]["pass"], latency_margin_percent)
    logs = {
        name: {side: _added(state[name][side], np.log1p(bets.sizes * steps[name][side])) for side, bets in sides.items()}
        for name, sides in BETS.items()
    }
    return {"pairs": state["pairs"] + len(pairs), "sums": _added(state["sums"], np.hstack([scores, spoilt])), **logs}


def evidence(state: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """``e_fail`` and ``e_pass`` of each metric, as `Verdict.metrics` holds them; 1 is none."""
    return {name: {f"e_{side}": mixture(state[name][side], bets) for side, bets in sides.items()} for name, sides in BETS.items()}


def mixture(logs: Sequence[float], bets: Bets) -> float:
    """The e-value: the average of the bets by their weights."""
    return mixed(list(np.asarray(logs) + np.log(len(bets.weights) * bets.weights)))


def fail_steps(lost: ArrayLike, bets: Bets, margin: float) -> Floats:
    """``(clip(d, -B, B) - m) / (B + m)`` of each pair and bet, which is -1 or more. Null: the clipped loss has a mean of m at most.

    Versions that are alike obey it whatever the scores, as d is then symmetric. Clipping asks for the usual answer, not the mean: many small losses
    are not made up for by a few large gains.
    """
    if not 0 <= margin < 1:
        raise ValueError(f"margin {margin} is not within [0, 1)")
    d = np.asarray(lost, dtype=np.float64)[:, None]
    return np.asarray((np.clip(d, -bets.bounds, bets.bounds) - margin) / (bets.bounds + margin))


def pass_steps(lost: ArrayLike, bets: Bets, margin: float) -> Floats:
    """``(M - d) / (1 - M)`` of each pair and bet, which is -1 or more. Null: the mean loss is the margin M or more.

    Nothing is clipped, as the null is about the mean: a loss of 1 on M of the answers must be excluded, for which any test at 5 % needs
    ``log(0.05) / log(1 - M)`` pairs, 299 at one point, 59 at five.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin {margin} is not within (0, 1)")
    d = np.asarray(lost, dtype=np.float64)[:, None]
    return np.repeat((margin - d) / (1 - margin), len(bets.sizes), axis=1)


def latency_steps(seconds: ArrayLike, bets: Bets, margin_percent: float) -> Floats:
    """``clip(log(candidate / stable / (1 + margin)), -B, B) / B`` of each pair and bet; ties are no evidence.

    Null of FAIL: its mean is 0 at most, as it is where the versions differ by the margin at most and chance treats both alike. Of PASS, for which it
    is negated: 0 at least.
    """
    stable, candidate = np.asarray(seconds, dtype=np.float64).reshape(-1, 2).T
    ratio = np.log(candidate / stable) - math.log1p(margin_percent / 100)
    return np.asarray(np.clip(ratio[:, None], -bets.bounds, bets.bounds) / bets.bounds)


def smallest_pass(margin: float, alpha: float) -> int:
    """Pairs that PASS needs of scores or garbage when no answer differs at all."""
    bets = BETS["quality"]["pass"]
    gains = np.log1p(bets.sizes * margin / (1 - margin))
    pairs = math.ceil(math.log(1 / alpha) / float(gains.max()))
    while mixture(list(pairs * gains), bets) < 1 / alpha:
        pairs += 1
    return pairs


def _added(start: Sequence[float], steps: Floats) -> list[float]:
    """From left to right, so that a batch equals its pairs one by one to the last bit."""
    return [float(total) for total in np.add.accumulate(np.vstack([np.asarray(start, dtype=np.float64)[None, :], steps]), axis=0)[-1]]
