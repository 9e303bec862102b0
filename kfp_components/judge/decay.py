"""A version in use against its own record from its promotion, run after run, for ever: did it decay?

Each run (a night's re-validation) gives counts; each test is an e-process over the runs: whatever happened before, the chance that it *ever* reaches
1/alpha is alpha at most while the version is as it was (Ville 1939). So one may look every night for years.

*One run.* Null: a share of at most ``b`` of the answers counts against it (failed, or too slow). With x of n such answers,

    g(kappa) = kappa^x / (1 + b*(kappa - 1))^n

has expectation 1 at most (the binomial moment bound; as in `error_rate.weight_update`), for each odds ratio kappa > 1, also where the share changes from
run to run and stays below b. A run is not n independent answers: a minute of a broken network fails fifty at once, and a busy hour slows them all. So
g is cut at `MOST_PER_RUN`: a smaller g is still valid, and no single run can accuse.

*The record is an estimate.* The bound b is the share p0 of the version as it was promoted, plus the margin, and of p0 only a sample is known. So there
are several bounds: `levels` u_0 < u_1 < ... where the chance of so good a sample with p0 >= u_j is at most beta_j = `BETAS`[j] (Chernoff 1952: n*KL(x/n ||
u_j) = log(1/beta_j)). The evidence is the least over j of a_j * E_j: E_j tests against u_(j+1) + margin, and a_j is what the sample itself says against p0 >=
u_j, a p-value made an e-value: a_j = s_j/(beta_j - beta_(j+1)) with shares s_j that sum to 1 (a calibrator: Shafer, Shen, Vereshchagin & Vovk, Test
martingales, Bayes factors and p-values, 2011). For the true p0 one of these products has expectation 1 at most, so the least of them has. A small sample
makes the test slow, not wrong. Latency: the bound of the quantile is itself from the sample, the k-th of n sorted; the share above it is beta distributed,
and at most as the p-value with x = n - k says (order statistics; whatever the distribution).

*When did it begin?* Good years must not hide a fault, so e-processes that start with run k are mixed with weights 1/(k(k+1)), which sum to 1; what
has not started counts 1. A fault that begins with run k costs log(k(k+1)) of evidence, not the years before (the mixture over change points of Shiryaev
and Roberts as an e-process: Shin, Ramdas & Rinaldo, E-detectors, 2024). An e-detector without weights is a bit faster and has its false alarms at a
rate: one in so many runs; here there is to be none. The start with the most evidence (Page's CUSUM 1954) tells people since when.

*Several tests, many models.* The average of the tests' e-values is one. With N models an accusation takes N/alpha: so none of N good ones is ever accused,
in any run, except with chance alpha (Bonferroni with Ville). e-BH (Wang & Ramdas 2022) asks for less where many decayed, but bounds a share of false
accusations at one time of stopping only, and lets the number of another team's broken models decide about this one.
"""

from __future__ import annotations

import bisect
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from kfp_components.judge.alone import upper_bound
from kfp_components.judge.counts import ArmCounts

Array = NDArray[np.float64]

BETAS = 10.0 ** (-1.5 * np.arange(9))
"""The levels at which the record's own uncertainty is cut."""

KAPPAS = np.array([1.25, 1.5, 2, 3, 5, 10, 30, 100])
"""Alternatives: how many times higher the odds of a failure, or of a slow answer, are."""

LAMBDAS = np.array([0.05, 0.15, 0.3, 0.5, 0.75, 0.95])
"""Alternatives of scores: the part of the wealth that is bet on each answer."""

SHARES = np.array([*(2.0 ** -np.arange(1, len(BETAS))), 2.0 ** (1 - len(BETAS))])
"""The part of each level, most of it for a true share near the one that was seen; they sum to 1."""

LEVEL_LOGS = np.log(SHARES / (BETAS - np.append(BETAS[1:], 0.0)))
"""log a_j."""

QUANTILES = {"p50": 0.5, "p95": 0.95}
"""No p99: a night's hundred answers hold one that is slower."""

MOST_PER_RUN = {"errors": math.log(1000), "scores": math.log(1000), **dict.fromkeys(QUANTILES, math.log(20))}
"""Log evidence that one run can add at most. A night of slow answers is the surroundings' more often than the version's: of those it takes more in a row."""

ERROR_MARGIN = 0.01
"""A version may fail so much more of its requests than in its canary, for ever. Half of the greatest margin of a promotion."""

LATENCY_MARGIN = 0.5
"""A quantile may become so much longer. In a canary it is 10 to 30 %: there both versions run side by side at the same time. From month to month the
nodes, their neighbours and the requests change, and a tenth or a third of that is nothing to accuse a version of; what users notice is about twice."""

SCORE_MARGIN = 0.02
"""The mean score may fall so much."""

SUSPECT = 20.0
"""Evidence from which a version is no longer called healthy; an accusation needs far more."""

ENOUGH = 100
"""Requests since the promotion before a version is called healthy."""

Kind = Literal["healthy", "decayed", "not enough"]


class Climb(BaseModel):
    """One alternative's best start: log evidence since then, when it was, and what was seen since."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log: float = 0.0
    since_unix_s: float = 0.0
    of: int = 0
    against: float = 0.0


class Evidence(BaseModel):
    """State of one test: the sample of the record, how it is counted, and log e-values per level of the record and alternative (none before a run).

    ``against`` of ``of`` are the failures or slow requests of the record; the answers slower than ``limit_s`` count now, where it is set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: int
    against: int
    margin: float
    was_s: float | None = None
    limit_s: float | None = None
    runs: int = 0
    seen: int = 0
    seen_against: float = 0.0
    logs: tuple[tuple[float, ...], ...] = ()
    climbs: tuple[Climb, ...] = ()


class State(BaseModel):
    """What is kept with a version: JSON of less than 4,000 characters, however many the runs were. Immutable; `advance` gives the next one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tests: dict[str, Evidence]


@dataclass(frozen=True)
class Run:
    """What one re-validation saw: counts of live requests or probes, and pairs (score then, score now) of the golden set, each from 0 to 1."""

    at_unix_s: float
    counts: ArmCounts = ArmCounts()
    bounds_s: tuple[float, ...] = ()
    scores: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """``e`` is the evidence for a decay over all tests, ``bound`` what an accusation needs, ``metrics`` the evidence of each test.

    ``test`` is the one that says most and ``since_unix_s`` the run with which that began, where there is something to say.
    """

    kind: Kind
    sentence: str
    e: float
    bound: float
    metrics: Mapping[str, float]
    test: str | None = None
    since_unix_s: float | None = None


# --- the statistics, for one version or for many at once (leading axes) ---------------------------------------------------------------


@lru_cache(maxsize=4096)
def levels(against: int, of: int) -> Array:
    """Upper bounds of the share of which ``against`` in ``of`` were seen: for each of `BETAS` but the first, then 1. Shape (levels,)."""
    found = np.array([*(upper_bound(against, of, float(beta)) for beta in BETAS[1:]), 1.0])
    found.flags.writeable = False  # it is shared by later calls
    return found


def rate_gains(bounds: Array, against: Array | float, of: Array | float, most: float) -> Array:
    """Log evidence of one run per level and alternative, shape (..., levels, kappas), against shares of at most ``bounds``, shape (..., levels)."""
    x, n = (np.asarray(value, dtype=np.float64)[..., None, None] for value in (against, of))
    return np.asarray(np.minimum(x * np.log(KAPPAS) - n * np.log1p(bounds[..., None] * (KAPPAS - 1)), most))


def score_gains(pairs: Sequence[tuple[float, float]], margin: float, most: float) -> Array:
    """The same for scores, shape (1, lambdas). Null: independent answers whose score fell by at most ``margin`` in the mean.

    ``prod (1 + lambda*(d - margin)/(1 + margin))``, d the score then minus now (betting on a bounded mean: Waudby-Smith & Ramdas, JRSS-B 2024). Cases may
    differ: of factors with a given mean the product is greatest when all are alike.
    """
    then, now = np.asarray(pairs, dtype=np.float64).reshape(-1, 2).T
    gained = (np.clip(then - now, -1, 1) - margin) / (1 + margin)
    return np.asarray(np.minimum(np.log1p(LAMBDAS[:, None] * gained).sum(axis=1), most)[None, :])


def mix(logs: Array | None, gains: Array, run: int) -> Array:
    """After run number ``run``: what has started, and what starts with it, times the run's gains."""
    begins = -math.log(run * (run + 1))
    return gains + (begins if logs is None else np.logaddexp(logs, begins))


def log_e(logs: Array, runs: int) -> Array:
    """Log e-value, shape (...): the average over the alternatives, 1 for each start that is still to come; the least over the record's levels."""
    top = np.maximum(logs.max(axis=-1, keepdims=True), 0.0)
    mean = np.exp(logs - top).mean(axis=-1) + np.exp(-top[..., 0]) / (runs + 1)
    found = np.log(mean) + top[..., 0]
    return np.asarray((found + (LEVEL_LOGS if found.shape[-1] > 1 else 0.0)).min(axis=-1))


# --- one version ----------------------------------------------------------------------------------------------------------------------


def start(
    record: ArmCounts,
    bounds_s: Sequence[float] = (),
    *,
    error_margin: float = ERROR_MARGIN,
    latency_margin: float = LATENCY_MARGIN,
    score_margin: float | None = None,
) -> State:
    """The state of a version that was promoted, from its requests in its own canary: no evidence yet.

    With ``score_margin`` scores are tested too. The scores *then* are taken as they are: where answers differ from time to time, their own error comes
    on top of the margin.
    """
    tests = {"errors": Evidence(of=record.requests, against=record.failures, margin=error_margin)}
    if of := sum(record.latency_counts):
        tests |= {name: _latency(record.latency_counts, bounds_s, quantile, of, latency_margin) for name, quantile in QUANTILES.items()}
    if score_margin is not None:
        tests["scores"] = Evidence(of=0, against=0, margin=score_margin)
    return State(tests=tests)


def advance(state: State, run: Run) -> State:
    """The state after one run. A test of which the run saw nothing stays as it was."""
    return State(tests={name: _advanced(name, test, run) for name, test in state.tests.items()})


def decide(state: State, version: str, *, alpha: float = 0.01, models: int = 1) -> Outcome:
    """What the runs so far say. ``models`` are re-validated together: ``alpha`` is the chance that any one that is as it was is ever accused."""
    logs = {name: float(log_e(np.array(test.logs), test.runs)) if test.logs else 0.0 for name, test in state.tests.items()}
    metrics = {name: math.exp(min(log, 600.0)) for name, log in logs.items()}
    e, bound = sum(metrics.values()) / len(metrics), models / alpha
    worst = max(metrics, key=lambda name: metrics[name])
    test = state.tests[worst]
    climb = max(test.climbs, key=lambda one: one.log, default=Climb())
    evidence = f"evidence {e:,.3g}, an accusation needs {bound:,.0f}"
    seen = max(test.seen for test in state.tests.values())
    if e >= SUSPECT and climb.of:
        kind: Kind = "decayed" if e >= bound else "not enough"
        verb = "decayed" if kind == "decayed" else "may have decayed, which is not sure yet"
        return Outcome(kind, f"{version} {verb}: {_told(worst, test, climb)}; {evidence}", e, bound, metrics, worst, climb.since_unix_s)
    if seen < ENOUGH:
        return Outcome("not enough", f"{version}: {seen:,} requests since its promotion, at least {ENOUGH} are needed", e, bound, metrics)
    errors = state.tests["errors"]
    now = f"{errors.seen_against:,.0f} of {errors.seen:,} requests failed since its promotion, {errors.against:,.0f} of {errors.of:,} in its canary"
    return Outcome("healthy", f"{version} is as it was promoted: {now}; {evidence}", e, bound, metrics)


def _latency(latency_counts: Sequence[int], bounds_s: Sequence[float], quantile: float, of: int, margin: float) -> Evidence:
    """The quantile's bucket, known by its upper edge; n - k of the record's requests count as slower, or more where that edge is the last one."""
    k = math.ceil(quantile * of)
    edge = min(bisect.bisect_left(list(itertools.accumulate(latency_counts)), k), len(bounds_s) - 1)
    slower = max(of - k, sum(latency_counts[edge + 1 :]))
    return Evidence(of=of, against=slower, margin=0.0, was_s=bounds_s[edge], limit_s=bounds_s[edge] * (1 + margin))


def _advanced(name: str, test: Evidence, run: Run) -> Evidence:
    if name == "scores":
        of, against = len(run.scores), sum(then - now for then, now in run.scores)
    elif test.limit_s is not None:
        of, against = sum(run.counts.latency_counts), slower_than(run.counts.latency_counts, run.bounds_s, test.limit_s)
    else:
        of, against = run.counts.requests, run.counts.failures
    if of == 0:
        return test
    if name == "scores":
        gains = score_gains(run.scores, test.margin, MOST_PER_RUN[name])
    else:
        bounds = np.minimum(levels(test.against, test.of) + test.margin, 1.0)
        gains = rate_gains(bounds, against, of, MOST_PER_RUN[name])
    logs = mix(np.array(test.logs) if test.logs else None, gains, test.runs + 1)
    climbs = test.climbs or (Climb(),) * gains.shape[-1]
    return test.model_copy(
        update={
            "runs": test.runs + 1,
            "seen": test.seen + of,
            "seen_against": round(test.seen_against + against, 6),
            "logs": tuple(tuple(map(float, np.floor(row * 1000) / 1000)) for row in logs),  # downwards: still valid, and small
            "climbs": tuple(_climbed(climb, float(gain), run.at_unix_s, of, against) for climb, gain in zip(climbs, gains[0], strict=True)),
        }
    )


def slower_than(latency_counts: Sequence[int], bounds_s: Sequence[float], limit_s: float) -> int:
    """Requests that certainly took longer than ``limit_s``; what is above the last bound took too long always."""
    first = bisect.bisect_left(bounds_s, limit_s * (1 - 1e-9))
    return sum(latency_counts[min(first + 1, len(bounds_s)) :])


def _climbed(climb: Climb, gain: float, at_unix_s: float, of: int, against: float) -> Climb:
    """Page's CUSUM (Continuous inspection schemes, 1954): what is below zero begins anew with the next run."""
    before = climb if climb.log > 0 else Climb(since_unix_s=at_unix_s)
    return Climb(log=round(before.log + gain, 3), since_unix_s=before.since_unix_s, of=before.of + of, against=round(before.against + against, 6))


def _told(name: str, test: Evidence, climb: Climb) -> str:
    since = time.strftime("%Y-%m-%d", time.gmtime(climb.since_unix_s))
    if name == "scores":
        return f"its scores are lower by {climb.against / climb.of:.3f} in the mean of {climb.of:,} answers since {since}"
    now = f"{climb.against / climb.of:.1%} of {climb.of:,} requests since {since}"
    was = f"{test.against / test.of:.1%} of {test.of:,} in its canary" if test.of else "nothing is known of its canary"
    if test.limit_s is None:
        return f"it fails {now}, {was}"
    return (
        f"{now} took longer than {test.limit_s:.3g} s, which is {test.limit_s / (test.was_s or test.limit_s) - 1:.0%} above its {name} in its canary"
    )
