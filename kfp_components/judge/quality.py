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
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kfp_components.judge.error_rate import mixed

METRICS = ("quality", "garbage", "paired_latency")

BETS = np.array([0.01, 0.03, 0.07, 0.15, 0.3, 0.5, 0.75, 0.95])
"""Of FAIL, as a part of the stake: small ones find small losses, large ones an obvious fault in a dozen pairs."""

PASS_BETS = np.array([0.15, 0.5, 0.99])
"""Of PASS, where best is margin/variance: all of the stake while answers differ by less than 0.1."""

LATENCY_BETS = np.array([0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9])
"""Best is 2p - 1, with p the chance that the candidate is the slower one of a pair."""

BOUND = 0.1
"""Largest difference that a pair counts for in FAIL: one strange answer must not decide, and a loss of 2 % is found five times sooner."""

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
    """State at the beginning: no pairs, log e-values of each bet."""
    return {
        "pairs": 0,
        "sums": [0.0, 0.0, 0, 0],
        "quality": {"fail": [0.0] * len(BETS), "pass": [0.0] * len(PASS_BETS)},
        "garbage": {"fail": [0.0] * len(BETS), "pass": [0.0] * len(PASS_BETS)},
        "paired_latency": {"fail": [0.0] * len(LATENCY_BETS), "pass": [0.0] * len(LATENCY_BETS)},
    }


def update(
    state: dict[str, Any],
    pairs: Sequence[Pair],
    *,
    margin: float = MARGIN,
    garbage_margin: float = MARGIN,
    latency_margin_percent: float = 10.0,
    latency_fail_margin_percent: float = 5.0,
) -> dict[str, Any]:
    """Add pairs, one or many: the result is the same. Margins of scores and garbage are fractions of 1.

    Raises `ValueError` for a score outside [0, 1] and for seconds that are not above zero; the state is then as it was.
    """
    scores = np.array([pair[:2] for pair in pairs], dtype=np.float64).reshape(-1, 2)
    for index in np.flatnonzero(~((scores >= 0) & (scores <= 1)).all(axis=1)):
        raise ValueError(f"pair {index}: scores {scores[index].tolist()} are not within [0, 1]")
    spoilt = np.array([pair[2:4] for pair in pairs], dtype=np.float64).reshape(-1, 2)
    seconds = np.array([pair[4:] for pair in pairs if None not in pair[4:]], dtype=np.float64).reshape(-1, 2)
    if not np.all(np.isfinite(seconds) & (seconds > 0)):
        raise ValueError("a latency is a finite number of seconds above zero")
    return {
        "pairs": state["pairs"] + len(pairs),
        "sums": [float(total) for total in _added(state["sums"], np.hstack([scores, spoilt]))],
        "quality": {
            "fail": fail_update(state["quality"]["fail"], scores[:, 0] - scores[:, 1]),
            "pass": pass_update(state["quality"]["pass"], scores[:, 0] - scores[:, 1], margin=margin),
        },
        "garbage": {
            "fail": fail_update(state["garbage"]["fail"], spoilt[:, 1] - spoilt[:, 0], bound=1.0),
            "pass": pass_update(state["garbage"]["pass"], spoilt[:, 1] - spoilt[:, 0], margin=garbage_margin),
        },
        "paired_latency": {
            "fail": latency_update(state["paired_latency"]["fail"], seconds, margin_percent=latency_fail_margin_percent),
            "pass": latency_update(state["paired_latency"]["pass"], seconds[:, ::-1], margin_percent=-latency_margin_percent),
        },
    }


def evidence(state: dict[str, Any]) -> dict[str, dict[str, float]]:
    """``e_fail`` and ``e_pass`` of each of the `METRICS`, as `Verdict.metrics` holds them; 1 is none."""
    return {name: {f"e_{side}": mixed(logs) for side, logs in state[name].items()} for name in METRICS}


def fail_update(logs: Sequence[float], lost: ArrayLike, *, bound: float = BOUND) -> list[float]:
    """``prod(1 + bet * d/B)``, d clipped to [-B, B]. Null: the clipped loss has a mean of 0 at most.

    Versions that are alike obey it whatever the scores, as d is then symmetric. Clipping asks for the usual answer, not the mean: many small
    losses are not made up for by a few large gains.
    """
    return _bet(logs, BETS, np.clip(lost, -bound, bound) / bound)


def pass_update(logs: Sequence[float], lost: ArrayLike, *, margin: float = MARGIN) -> list[float]:
    """``prod(1 + bet * (M-d)/(1-M))``. Null: the mean loss is the margin M or more.

    Nothing is clipped, as the null is about the mean. What it costs: no test can exclude, at 5 %, a loss of 1 on 1 % of the answers in fewer than
    299 pairs.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin {margin} is not within (0, 1)")
    return _bet(logs, PASS_BETS, (margin - np.asarray(lost, dtype=np.float64)) / (1 - margin))


def latency_update(logs: Sequence[float], seconds: ArrayLike, *, margin_percent: float) -> list[float]:
    """``prod(1 + bet * s)``, s the sign of ``second - first * (1 + margin)`` of each pair; ties are no evidence.

    Null: the second, made shorter by the margin, is the longer one of half the pairs that differ, or fewer. FAIL gives (stable, candidate); PASS
    gives (candidate, stable) and a negative margin -m, which stands for ``1 / (1 + m)``.
    """
    first, second = np.asarray(seconds, dtype=np.float64).reshape(-1, 2).T
    factor = 1 + margin_percent / 100 if margin_percent >= 0 else 1 / (1 - margin_percent / 100)
    return _bet(logs, LATENCY_BETS, np.sign(second - first * factor))


def smallest_pass(margin: float, alpha: float) -> int:
    """Pairs that PASS needs of scores or garbage when no answer differs at all."""
    gains = np.log1p(PASS_BETS * margin / (1 - margin))
    pairs = math.ceil(math.log(1 / alpha) / float(gains.max()))
    while mixed(list(pairs * gains)) < 1 / alpha:
        pairs += 1
    return pairs


def _bet(logs: Sequence[float], bets: NDArray[np.float64], gains: NDArray[np.float64]) -> list[float]:
    """Log wealth of each bet after one pair after the other."""
    return [float(log) for log in _added(logs, np.log1p(np.multiply.outer(gains, bets)))]


def _added(start: Sequence[float], steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """From left to right, so that a batch equals its pairs one by one to the last bit."""
    found: NDArray[np.float64] = np.add.accumulate(np.vstack([np.asarray(start, dtype=np.float64)[None, :], steps]), axis=0)[-1]
    return found
