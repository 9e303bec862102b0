"""A version in use against its own record, run after run, for ever: did it decay? The record is what its first look found.

Each run (a night's re-validation) gives counts: of n answers x count against the version, because they failed, were too slow, or lost part of their
score. Each such test is an e-process over the runs: while the version is as it was, the chance that it *ever* reaches 1/alpha is alpha at most
(Ville 1939), so one may look every night for years.

*One run.* Null: the share that counts against it is at most b in the mean. Then for each odds ratio kappa > 1

    g(kappa) = kappa^x / (1 + b*(kappa - 1))^n

has expectation 1 at most, also where the share changes from run to run and stays below b, and where answers count in part (convexity of kappa^x:
Hoeffding 1963); the same as in `error_rate.weight_update`. A run is not n independent answers: one minute of a broken network fails fifty at once,
a busy hour slows them all. So x is cut to what says at most `MOST_PER_RUN`; g grows with x, so that is valid. And a single run never accuses
(`FEWEST_RUNS`).

*The record is a sample.* b is the share p0 of the version when it was recorded, plus the margin, and of p0 only x0 in n0 is known. The evidence is
the least, over all p0, of A(p0) * E(p0 + margin), where A is what the sample itself says against p0: its p-value exp(-l), l = n0*KL(x0/n0 || p0)
(Chernoff 1952, Hoeffding 1963), made an e-value by A = exp(min(l, L))/(1 + L) (a calibrator: Shafer, Shen, Vereshchagin & Vovk, Test martingales,
Bayes factors and p-values, 2011). At the true p0 the product has expectation 1 at most, so the least has. A small sample makes the test slow, not
wrong. Latency: the quantile is itself taken from the sample, the k-th of n0 sorted; how much lies above it is beta distributed, whatever the
distribution, and the p-value with x0 = n0 - k holds (order statistics).

*When did it begin?* Good years must not hide a fault, so e-processes that start with run k are mixed with weights c/((k+c-1)(k+c)), c = `SOON`,
which sum to 1; what has not started counts 1. A fault that begins with run k costs minus log of that weight, not the years before (the mixture over
change points of Shiryaev and Roberts as an e-process: Shin, Ramdas & Rinaldo, E-detectors, 2024). Without weights it would be a bit faster and
accuse at a rate, one good version in so many runs; here there is to be none. Each start needs the sums since then only. Of older runs neighbours
are put together (`MOST_BLOCKS`): that drops starts, which only lowers the evidence. The start that is most likely (Page, Continuous inspection
schemes, 1954) tells people since when.

*Several tests, many models.* The average of the tests' e-values is one. With N models an accusation takes N/alpha: so none of N good ones is ever
accused, in any run, except with chance alpha (Bonferroni with Ville). e-BH (Wang & Ramdas 2022) asks for less where many decayed, but bounds a
share of false accusations, at one time of stopping, and would let the models of other teams decide about this one.
"""

from __future__ import annotations

import bisect
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from kfp_components.judge.alone import divergence, upper_bound
from kfp_components.judge.counts import ArmCounts

Array = NDArray[np.float64]

MOST_OF_RECORD = 25.0
"""L: log evidence that the record can add at most."""

CUTS = np.arange(0.0, MOST_OF_RECORD + 1)
"""Values of l at which p0 is tried. Between two of them the weaker A and the higher bound hold."""

RECORD_LOGS = CUTS - math.log(1 + MOST_OF_RECORD)
"""log A at each of them."""

KAPPAS = np.array([1.25, 1.5, 2, 3, 5, 10, 30, 100])
"""Alternatives: how many times higher the odds of a failure, or of a slow answer, are."""

LEAST_SLOWER_S = 0.01
"""A quantile that is longer by less is never too long: nobody notices, and a busy machine alone does that to answers of a millisecond."""

QUANTILES = {"p50": 0.5, "p95": 0.95}
"""No p99: of a night's hundred answers one is slower."""

MOST_PER_RUN = {"errors": math.log(100), "scores": math.log(100), **dict.fromkeys(QUANTILES, math.log(5))}
"""Log evidence of one run, at most, against the share at `CUT_AT`. A slow night is more often the surroundings' than the version's: it takes more."""

CUT_AT = 14
"""Which of `CUTS`: about what an accusation among 200 models takes. Against a lower share a cut run would hold the evidence down for ever."""

FEWEST_RUNS = 2
"""Since the likely start, that found more than is usual, before an accusation, whatever the evidence."""

ERROR_MARGIN = 0.005
"""So much more of its requests a version may fail than in its record: the least margin of a promotion. How little the record knows comes on top."""

LATENCY_MARGIN = 0.5
"""So much longer a quantile may become. In a canary it is 10 to 30 %: there both versions run at the same time, side by side. From month to month
nodes, their neighbours and the requests change, and a tenth or a third is nothing to accuse a version of; what its users notice is about twice."""

SCORE_MARGIN = 0.02
"""So much more of its score an answer may lose in the mean."""

SCORE_RANGE = 0.2
"""An answer that loses so much has lost all: the wider the range, the more answers a small loss takes (the same finding as for canaries)."""

SUSPECT = 20.0
"""Evidence from which a version is no longer called healthy; an accusation needs far more."""

ENOUGH = 100
"""Requests in the record, and since then, before a version is called healthy."""

SOON = 10
"""c of the weights of the starts: half of them lie in the first ten runs."""

HOUR_S = 3600

MOST_BLOCKS = 28
"""The last runs one by one, and the older, the coarser."""

Kind = Literal["healthy", "decayed", "not enough"]


class Block(NamedTuple):
    """One run, or neighbours put together: the first run's number and hour (since 1970), what was counted, ``weighed`` as it was cut in each run."""

    run: int
    hour: int
    of: int
    against: int | float
    weighed: int | float


class Evidence(BaseModel):
    """State of one test: ``against`` in ``of`` of the record, and the runs since.

    Where ``limit_s`` is set, slower answers count against the version; ``was_s`` is the record's quantile.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: int = Field(ge=0)
    against: int | float = Field(ge=0)
    margin: float
    was_s: float | None = None
    limit_s: float | None = None
    runs: int = 0
    blocks: tuple[Block, ...] = ()


class State(BaseModel):
    """What is kept with a version: JSON of less than 4,000 characters, however many the runs were. Immutable; `advance` gives the next one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tests: dict[str, Evidence]

    @model_validator(mode="after")
    def _known(self) -> State:
        """Raise ValueError for what no version of this module wrote that this one can read."""
        if "errors" not in self.tests or not set(self.tests) <= set(MOST_PER_RUN):
            raise ValueError(f"its tests are {', '.join(self.tests) or 'none'}; known are {', '.join(MOST_PER_RUN)}")
        if wrong := next((name for name, test in self.tests.items() if test.against > test.of), None):
            raise ValueError(f"{wrong}: {self.tests[wrong].against:g} of {self.tests[wrong].of} answers")
        return self


@dataclass(frozen=True)
class Run:
    """What one re-validation saw: counts of live requests or probes, and pairs (score then, score now) of the golden set, each from 0 to 1."""

    at_unix_s: float
    counts: ArmCounts = field(default_factory=ArmCounts)
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


def start(
    record: ArmCounts,
    bounds_s: Sequence[float] = (),
    *,
    scores: Sequence[tuple[float, float]] | None = None,
    error_margin: float = ERROR_MARGIN,
    latency_margin: float = LATENCY_MARGIN,
    score_margin: float = SCORE_MARGIN,
) -> State:
    """The state of a version from what its record counted: no evidence yet.

    ``scores`` are pairs of the golden set's scores, asked twice for the record: how much an answer loses by itself. Runs compare with the first of
    each.
    """
    tests = {"errors": Evidence(of=record.requests, against=record.failures, margin=error_margin)}
    if sum(record.latency_counts):
        tests |= {name: _latency(record.latency_counts, bounds_s, quantile, latency_margin) for name, quantile in QUANTILES.items()}
    if scores is not None:
        tests["scores"] = Evidence(of=len(scores), against=math.ceil(100 * _lost(scores)) / 100, margin=score_margin / SCORE_RANGE)
    return State(tests=tests)


def advance(state: State, run: Run, *, apart_s: float = 0.0) -> State:
    """The state after one run. A test of which the run saw nothing stays as it was. Raises ValueError for counts that cannot be.

    One that comes within ``apart_s`` of the last one's beginning is counted with it, as one run: who looks again and again during one outage has seen
    one. (They are cut together; a hint of that is no more than one run says.)
    """
    return State(tests={name: _advanced(name, test, run, apart_s) for name, test in state.tests.items()})


def decide(state: State, version: str, *, alpha: float = 0.01, models: int = 1) -> Outcome:
    """What the runs so far say. ``models`` are re-validated together: ``alpha`` is the chance that any that is as it was is ever accused.

    A last run that was cut is no sign of health either: "not enough".
    """
    metrics = {name: math.exp(log_evidence(test)) for name, test in state.tests.items()}
    e, bound = sum(metrics.values()) / len(metrics), models / alpha
    worst = max(metrics, key=lambda name: metrics[name])
    evidence = f"evidence {e:,.3g}, an accusation needs {bound:,.0f}"
    one_night = next((name for name, test in state.tests.items() if test.blocks and test.blocks[-1].weighed < test.blocks[-1].against), None)
    if e >= SUSPECT or one_night:
        named = worst if e >= SUSPECT or one_night is None else one_night
        since = likely_start(state.tests[named])
        enough = e >= bound and runs_against(state.tests[named], since) >= FEWEST_RUNS
        kind: Kind = "decayed" if enough else "not enough"
        verb = "decayed" if kind == "decayed" else "may have decayed, which is not sure yet"
        if kind != "decayed" and e >= bound:
            verb += " (one run alone, or one that follows close on another, never accuses)"
        return Outcome(
            kind, f"{version} {verb}: {_told(named, state.tests[named], since)}; {evidence}", e, bound, metrics, named, since.hour * HOUR_S
        )
    record = state.tests["errors"]
    of, failed = (sum(getattr(block, name) for block in record.blocks) for name in ("of", "against"))
    if min(of, record.of) < ENOUGH:
        seen = f"{of:,} requests since it was recorded and {record.of:,} then"
        return Outcome("not enough", f"{version}: {seen}, at least {ENOUGH} of both are needed; {evidence}", e, bound, metrics)
    last = record.blocks[-1]
    told = f"{failed:,.0f} of {of:,} requests failed since it was recorded, {record.against:,.0f} of {record.of:,} then"
    within = max(failed / of, last.against / last.of) <= usual(record)
    verb = "is as it was recorded" if within else "shows no evidence of a decay yet"
    return Outcome("healthy", f"{version} {verb}: {told}; last {last.against:,.0f} of {last.of:,}; {evidence}", e, bound, metrics)


def log_evidence(test: Evidence) -> float:
    """Log e-value of one test: the average over starts and alternatives, the least over what the record may have been."""
    if not test.blocks:
        return 0.0
    of, against = np.array([[block.of, block.weighed] for block in reversed(test.blocks)], dtype=np.float64).cumsum(axis=0)[::-1].T
    begins = np.array([math.log(SOON / (block.run + SOON - 1) / (block.run + SOON)) for block in test.blocks])
    logs = begins[:, None, None] + rate_gains(limits(test.against, test.of, test.margin), against, of)
    waiting = np.full((1, len(CUTS)), math.log(SOON / (test.runs + SOON)))
    started = np.logaddexp.reduce(logs, axis=2) - math.log(len(KAPPAS))
    return float((np.logaddexp.reduce(np.concatenate([started, waiting]), axis=0) + RECORD_LOGS).min())


def runs_against(test: Evidence, since: Block) -> int:
    """How many runs since then found more than is usual: a good one after a bad one says nothing against it."""
    share = usual(test)
    ends = [block.run for block in test.blocks[1:]] + [test.runs + 1]
    return sum(end - block.run for block, end in zip(test.blocks, ends, strict=True) if block.run >= since.run and block.against > share * block.of)


def usual(test: Evidence) -> float:
    """The share that is nothing to accuse it of, as far as the record says."""
    return min(1.0, (test.against / test.of if test.of else 1.0) + test.margin)


def likely_start(test: Evidence) -> Block:
    """What was counted since the most likely start, with that one's number and time."""
    share = np.array([usual(test)])
    found, best = test.blocks[-1], -math.inf
    of, against = 0, 0.0
    for block in reversed(test.blocks):
        of, against = of + block.of, against + block.against
        log = float(rate_gains(share, np.array(against), np.array(of)).max())
        if log > best:
            found, best = Block(block.run, block.hour, of, against, against), log
    return found


@lru_cache(maxsize=4096)
def limits(against: float, of: int, margin: float) -> Array:
    """The share to test against for each of `CUTS`: the upper bound of p0 at the next one (after the last: 1), plus the margin."""
    found = np.array([*(upper_bound(against, of, math.exp(-cut)) for cut in CUTS[1:]), 1.0])
    limit = np.minimum(found + margin, 1.0)
    limit.flags.writeable = False  # it is shared by later calls
    return limit


def rate_gains(share: Array, against: Array, of: Array) -> Array:
    """log g of ``against`` in ``of`` answers, for each share and alternative: shape (*of, *share, kappas)."""
    x, n = (counted.reshape(*counted.shape, *(1 for _ in range(share.ndim + 1))) for counted in (against, of))
    return np.asarray(x * np.log(KAPPAS) - n * np.log1p(share[..., None] * (KAPPAS - 1)))


def cut(against: int | float, of: int, share: float, most: float) -> int | float:
    """At most as many that n*KL(x/n || share) <= ``most``: so much log evidence has one run."""
    if share >= 1 or against <= share * of or of * divergence(against / of, share) <= most:
        return against
    low, high = share, against / of
    for _ in range(40):
        rate = (low + high) / 2
        low, high = (rate, high) if of * divergence(rate, share) <= most else (low, rate)
    return math.floor(low * of) if isinstance(against, int) else math.floor(100 * low * of) / 100


def slower_than(latency_counts: Sequence[int], bounds_s: Sequence[float], limit_s: float) -> int:
    """Requests that certainly took longer than ``limit_s``; what is above the last bound took too long always."""
    first = bisect.bisect_left(bounds_s, limit_s * (1 - 1e-9))
    return sum(latency_counts[min(first + 1, len(bounds_s)) :])


def _latency(latency_counts: Sequence[int], bounds_s: Sequence[float], quantile: float, margin: float) -> Evidence:
    """The quantile is taken as the upper edge of its bucket. What lies above the k-th counts, or above the last edge where that is more."""
    of = sum(latency_counts)
    k = math.ceil(quantile * of)
    edge = min(bisect.bisect_left(list(itertools.accumulate(latency_counts)), k), len(bounds_s) - 1)
    slower = max(of - k, sum(latency_counts[edge + 1 :]))
    return Evidence(
        of=of, against=slower, margin=0.0, was_s=bounds_s[edge], limit_s=max(bounds_s[edge] * (1 + margin), bounds_s[edge] + LEAST_SLOWER_S)
    )


def _lost(pairs: Sequence[tuple[float, float]]) -> float:
    """What the answers lost of their scores, in `SCORE_RANGE` each. One that became better does not make up for another."""
    return sum(min(1.0, max(0.0, then - now) / SCORE_RANGE) for then, now in pairs)


def _advanced(name: str, test: Evidence, run: Run, apart_s: float) -> Evidence:
    against: int | float
    if name == "scores":
        of, against = len(run.scores), math.floor(100 * _lost(run.scores)) / 100
    elif test.limit_s is not None:
        of, against = sum(run.counts.latency_counts), slower_than(run.counts.latency_counts, run.bounds_s, test.limit_s)
    else:
        of, against = run.counts.requests, run.counts.failures
    if not 0 <= against <= of:
        raise ValueError(f"{name}: {against:g} of {of} answers")
    if of == 0:
        return test
    number, hour, before = test.runs + 1, int(run.at_unix_s // HOUR_S), test.blocks
    if before and (hour - before[-1].hour) * HOUR_S < apart_s:
        number, hour, of, against, before = test.runs, before[-1].hour, of + before[-1].of, against + before[-1].against, before[:-1]
    share = float(limits(test.against, test.of, test.margin)[CUT_AT])
    block = Block(number, hour, of, against, cut(against, of, share, MOST_PER_RUN[name]))
    return test.model_copy(update={"runs": number, "blocks": _thinned((*before, block))})


def _thinned(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """At most `MOST_BLOCKS`: the two neighbours are put together that span the least for their age."""
    if len(blocks) <= MOST_BLOCKS:
        return blocks
    following = blocks[-1].run + 1
    at = min(range(len(blocks) - 2), key=lambda i: (blocks[i + 2].run - blocks[i].run) / (following - blocks[i].run))
    one, two = blocks[at : at + 2]
    both = Block(one.run, one.hour, one.of + two.of, round(one.against + two.against, 2), round(one.weighed + two.weighed, 2))
    return (*blocks[:at], both, *blocks[at + 2 :])


def _told(name: str, test: Evidence, since: Block) -> str:
    begun = time.strftime("%Y-%m-%d", time.gmtime(since.hour * HOUR_S))
    now, was = since.against / since.of, test.against / test.of if test.of else 1.0
    if name == "scores":
        lost, usual = now * SCORE_RANGE, was * SCORE_RANGE
        seen = f"its answers lose {lost:.3f} of their score in the mean of {since.of:,} since {begun}, {usual:.3f} in its record"
        return f"{seen} (of one answer {SCORE_RANGE:g} counts at most)"
    if test.limit_s is None or test.was_s is None:
        return f"{now:.1%} of {since.of:,} requests failed since {begun}, {was:.1%} of {test.of:,} in its record"
    return f"{now:.1%} of {since.of:,} requests since {begun} took longer than {test.limit_s:.3g} s; in its record its {name} was {test.was_s:.3g} s"
