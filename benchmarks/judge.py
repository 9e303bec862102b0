"""How many candidate requests the judge needs, against the least that any test with its false alarm rate can need. Seeded; under two minutes.

    python benchmarks/judge.py            prints the tables and writes them to benchmarks/RESULTS.md

A look is taken after every block of 1 candidate request and r stable ones (r = 1 at 50/50, 9 at 10/90). The steps of the e-processes come from the
judge's own functions, once for each outcome of a block; runs are then sums of them. "Bound" is log(1/alpha)/KL, with KL the information of a block.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import results
from numpy.typing import NDArray

from kfp_components.judge import batch, error_rate
from kfp_components.judge.counts import ArmCounts, Tick
from kfp_components.judge.verdict import BY_WEIGHT_SHARE, FAIL_SHARES, Judge
from kfp_components.request import JudgeRules
from kfp_components.router.ledger import LATENCY_BOUNDS_S

ALPHA_FAIL, ALPHA_PASS = 0.01, 0.05
Array = NDArray[np.float64]
Update = Callable[[int, int], list[float]]
Slow = Callable[[Array], Array]


def main() -> int:
    started = time.process_time()
    text = "\n\n".join([fail_table(), alarm_table(), pass_table(), latency_table(), *few_requests_tables(), speed_line()])
    text += f"\n\nSeeded, numpy {np.__version__}, {time.process_time() - started:.0f} s of one core."
    print(text)
    results.write("judge", f"## Judge\n\n{text}")
    return 0


def fail_table() -> str:
    rows = ["| failure rate | split | bound | median | p95 | mean / bound | failures served (median) |", "|---|---|---|---|---|---|---|"]
    cases = [(0.001, 0.01, 1), (0.005, 0.02, 1), (0.01, 0.05, 1), (0.01, 0.05, 9), (0.0, 1.0, 1), (0.0, 1.0, 9)]
    for stable, candidate, ratio in cases:
        rng = np.random.default_rng(7)
        needed = fail_times(rng, stable, candidate, ratio, runs=400 if candidate < 1 else 20, most=20_000 if candidate < 1 else 50)
        bound = np.log(1 / ALPHA_FAIL) / information(stable, candidate, ratio)
        rows.append(
            f"| {stable:.1%} to {candidate:.0%} | {split(ratio)} | {bound:.1f} | {np.median(needed):.0f} | {np.quantile(needed, 0.95):.0f} "
            f"| {needed.mean() / bound:.2f} | {np.median(needed * candidate):.1f} |"
        )
    return "**Error rate, FAIL** (candidate requests to the decision, looking after each)\n\n" + "\n".join(rows)


def alarm_table() -> str:
    rows = ["| failure rate of both | split | false alarms |", "|---|---|---|"]
    for rate in (0.001, 0.005, 0.01, 0.05):
        for ratio in (1, 9):
            needed = fail_times(np.random.default_rng(11), rate, rate, ratio, runs=2000, most=5_000)
            rows.append(f"| {rate:.1%} | {split(ratio)} | {np.isfinite(needed).mean():.2%} |")
    return "**Error rate, false alarms** (alpha 1 %, looking after each of 5,000 candidate requests, 2,000 runs)\n\n" + "\n".join(rows)


def pass_table() -> str:
    rows = [
        "| failure rate of both | margin | bound | median | p95 | mean / bound | false PASS with the truth on the margin |",
        "|---|---|---|---|---|---|---|",
    ]
    for rate, margin in ((0.001, 0.005), (0.005, 0.005), (0.01, 0.01)):
        needed = pass_times(np.random.default_rng(13), rate, rate, margin, runs=400, most=40_000)
        wrong = pass_times(np.random.default_rng(17), rate, rate + margin, margin, runs=1000, most=5_000)
        nearest = min(divergence(rate, a) + divergence(rate, a + margin) for a in np.geomspace(1e-6, 0.5 - margin, 20_000))
        bound = np.log(1 / ALPHA_PASS) / nearest
        rows.append(
            f"| {rate:.1%} | {margin:.1%} | {bound:.0f} | {np.median(needed):.0f} | {np.quantile(needed, 0.95):.0f} | {needed.mean() / bound:.2f} "
            f"| {np.isfinite(wrong).mean():.1%} |"
        )
    return "**Error rate, PASS** (candidate requests at 50/50)\n\n" + "\n".join(rows)


def latency_table(runs: int = 30) -> str:
    """Through the whole judge: 50 requests a second at 10/90, a look each second; warm-up and both metrics as in a release."""
    rows = ["| candidate | fail | pass | undecided after 10,000 | median candidate requests |", "|---|---|---|---|---|"]
    cases = [
        ("same as stable", 0.01, lambda s: s),
        ("5 % slower (inside the margin)", 0.01, lambda s: 1.05 * s),
        ("20 % slower", 0.01, lambda s: 1.2 * s),
        ("50 % slower", 0.01, lambda s: 1.5 * s),
        ("only the slowest 5 %: p99 is 50 % slower", 0.01, lambda s: stretched(s, 1.5)),
        ("only the slowest 5 %: p99 is 3 times slower", 0.01, lambda s: stretched(s, 3.0)),
        ("1 in 20 fails instead of 1 in 100", 0.05, lambda s: s),
        ("every request fails", 1.0, lambda s: s),
    ]
    for index, (name, failure_rate, slow) in enumerate(cases):
        ends = [whole_run(np.random.default_rng([19, index, run]), failure_rate, slow) for run in range(runs)]
        kinds = [kind for kind, _ in ends]
        decided = [requests for kind, requests in ends if kind in ("fail", "pass")]
        median = f"{np.median(decided):.0f}" if decided else "-"
        rows.append(f"| {name} | {kinds.count('fail')} | {kinds.count('pass')} | {kinds.count('inconclusive')} | {median} |")
    head = f"**The whole judge** (defaults; lognormal latency, sigma 0.4; 100 requests a second at 10/90, a look each second; {runs} runs)"
    return f"{head}\n\n" + "\n".join(rows)


def whole_run(rng: np.random.Generator, failure_rate: float, slow: Slow, most: int = 10_000) -> tuple[str, int]:
    judge = Judge(JudgeRules())
    while True:
        verdict = judge.observe(Tick(arm(rng, 90, 0.01, lambda s: s), arm(rng, 10, failure_rate, slow), LATENCY_BOUNDS_S), weight_percent=10)
        if verdict.kind != "inconclusive" or judge.candidate_requests >= most:
            return verdict.kind, judge.candidate_requests


def arm(rng: np.random.Generator, requests: int, failure_rate: float, slow: Slow) -> ArmCounts:
    seconds = slow(0.05 * rng.lognormal(0, 0.4, requests))
    buckets = np.bincount(np.searchsorted(LATENCY_BOUNDS_S, seconds), minlength=len(LATENCY_BOUNDS_S) + 1)
    return ArmCounts(requests, int(rng.binomial(requests, failure_rate)), tuple(map(int, buckets)))


def stretched(seconds: Array, times: float) -> Array:
    """The part above stable's p95 stretched so that p99 is so many times as long; p50 and p95 stay."""
    p95, p99 = 0.05 * np.exp(0.4 * 1.6449), 0.05 * np.exp(0.4 * 2.3263)
    return np.where(seconds > p95, p95 + (seconds - p95) * (times * p99 - p95) / (p99 - p95), seconds)


def few_requests_tables() -> list[str]:
    """Poisson arrivals, a look each second: most looks hold one request or none."""
    rows = ["| requests a second | 5 % | 10 % | 25 % | 50 % | 50 %, stable fails 1 % |", "|---|---|---|---|---|---|"]
    for rate in (0.1, 0.5, 1.0, 2.0):
        cells = []
        for weight, stable in ((0.05, 0.0), (0.1, 0.0), (0.25, 0.0), (0.5, 0.0), (0.5, 0.01)):
            needed = [each_second([29, run], rate, weight, 1.0, stable)[0] for run in range(100)]
            cells.append(f"{np.median(needed):.0f} / {np.quantile(needed, 0.95):.0f} / {max(needed):.0f}")
        rows.append(f"| {rate:g} | " + " | ".join(cells) + " |")
    hard = "**Few requests: every request of the candidate fails** (candidate requests to FAIL by weight: median / p95 / most of 100 runs)"
    small = ["| requests a second | weight | looks of a second | looks of 100 requests | ratio |", "|---|---|---|---|---|"]
    for rate, weight in ((0.1, 0.1), (1.0, 0.1), (0.1, 0.5), (1.0, 0.5)):
        runs = [each_second([31, run], rate, weight, 0.05, 0.01, compare=100) for run in range(16)]
        second, hundred = (float(np.median(found)) for found in zip(*runs, strict=True))
        small.append(f"| {rate:g} | {weight:.0%} | {second:.0f} | {hundred:.0f} | {second / hundred:.2f} |")
    same = "**Few requests: 5 % failures instead of 1 %** (median candidate requests to FAIL, 16 runs, the same requests in small and large looks)"
    return [f"{hard}\n\n" + "\n".join(rows), f"{same}\n\n" + "\n".join(small), few_requests_alarms()]


def few_requests_alarms(runs: int = 3000, looks: int = 1800) -> str:
    rows = ["| both versions | 10 % | 50 % |", "|---|---|---|"]
    for name, failures, refused, outage in (
        ("fail 1 %", 0.01, 0.0, False),
        ("fail 10 %", 0.1, 0.0, False),
        ("fail 1 %, refuse 10 % (4xx)", 0.01, 0.1, False),
        ("fail 1 %, and everything for 30 s", 0.01, 0.0, True),
    ):
        cells = [f"{alarms(np.random.default_rng(37), weight, failures, refused, outage, runs, looks):.2%}" for weight in (0.1, 0.5)]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    what = f"alpha 1 %; 1 request a second, a look each second, {looks // 60} minutes, {runs:,} runs, by weight"
    return f"**Few requests: false alarms** ({what}; the rates' tests, latency's evidence held at 1)\n\n" + "\n".join(rows)


def each_second(
    seed: list[int], rate: float, weight: float, candidate: float, stable: float, compare: int = 0, most: int = 3000
) -> tuple[float, ...]:
    """Candidate requests to FAIL in looks of a second; with ``compare`` also in looks of so many requests, the very same ones."""
    rng = np.random.default_rng(seed)
    total = int(most / weight) if compare else int(100 / weight)
    arms = rng.random(total) < weight
    failed = rng.random(total) < np.where(arms, candidate, stable)
    buckets = np.searchsorted(LATENCY_BOUNDS_S, 0.05 * rng.lognormal(0, 0.4, total))
    second = np.cumsum(rng.exponential(1 / rate, total)).astype(int)
    cuts = [np.nonzero(np.diff(second))[0] + 1] + ([np.arange(compare, total, compare)] if compare else [])
    found = []
    for cut in cuts:
        judge = Judge(JudgeRules())
        judge.observe(Tick(ArmCounts(), ArmCounts()), weight_percent=100 * weight)
        for look in np.split(np.arange(total), cut):
            both = [counted(buckets[picked], failed[picked]) for picked in (look[~arms[look]], look[arms[look]])]
            verdict = judge.observe(Tick(both[0], both[1], LATENCY_BOUNDS_S), weight_percent=100 * weight)
            if verdict.kind in ("fail", "error"):
                break
        found.append(float(judge.candidate_requests) if verdict.kind == "fail" else np.inf)
    return tuple(found)


def counted(buckets: NDArray[np.int64], failed: NDArray[np.bool_]) -> ArmCounts:
    if len(buckets) == 0:
        return ArmCounts()
    return ArmCounts(len(buckets), int(failed.sum()), tuple(np.bincount(buckets, minlength=len(LATENCY_BOUNDS_S) + 1).tolist()))


def alarms(rng: np.random.Generator, weight: float, failures: float, refused: float, outage: bool, runs: int, looks: int) -> float:
    """The part of the runs in which two equal versions are ever told apart. All runs at once: `batch.closes` and the tests' formulae for arrays."""
    kappas, (most, slack) = error_rate.KAPPAS, (batch.ENOUGH_REQUESTS, batch.SPLIT_SLACK)
    waiting = np.zeros((2, 3, runs), dtype=np.int64)  # stable, candidate; requests, failures, client errors
    counts_logs, weight_logs = (np.zeros((2, runs, len(kappas))) for _ in range(2))
    alarm = np.zeros(runs, dtype=bool)
    for look in range(looks):
        rate = 1.0 if outage and 600 <= look < 630 else failures
        n = rng.poisson([[1 - weight], [weight]], (2, runs))
        x = rng.binomial(n, rate)
        y = rng.binomial(n - x, refused)
        waiting += np.stack([n, x, y], axis=1)
        n_s, n_c = waiting[:, 0]
        closes = (n_s > 0) & (n_c > 0) & ((n_s + n_c >= most) | (n_s * weight >= slack * n_c * (1 - weight)))
        for index, bad in ((0, x), (1, y)):
            weight_logs[index] += bad[1][:, None] * np.log(kappas) - (bad[0] + bad[1])[:, None] * np.log1p(weight * (kappas - 1))
            x_s, x_c = waiting[:, 1 + index]
            total = np.maximum(n_c + n_s, 1)[:, None]
            step = x_c[:, None] * np.log(kappas) + (x_c + x_s)[:, None] * np.log(total / (kappas * n_c[:, None] + np.maximum(n_s, 1)[:, None]))
            counts_logs[index] += np.where(closes[:, None], step, 0.0)
        waiting[:, :, closes] = 0
        mixed = BY_WEIGHT_SHARE * np.exp(weight_logs).mean(axis=2) + (1 - BY_WEIGHT_SHARE) * np.exp(counts_logs).mean(axis=2)
        e_fail = FAIL_SHARES["errors"] * mixed[0] + FAIL_SHARES["client_errors"] * mixed[1] + FAIL_SHARES["latency"] + FAIL_SHARES["disconnects"]
        alarm |= e_fail >= 1 / ALPHA_FAIL
    return float(alarm.mean())


def speed_line() -> str:
    rng = np.random.default_rng(23)
    ticks = [Tick(arm(rng, 90, 0.01, lambda s: s), arm(rng, 10, 0.01, lambda s: s), LATENCY_BOUNDS_S) for _ in range(200)]
    judge = Judge(JudgeRules())
    started = time.process_time()
    for index in range(2000):
        judge.observe(ticks[index % len(ticks)], weight_percent=10)
    seconds = time.process_time() - started
    return f"**Speed**: {seconds / 2000 * 1000:.2f} ms a look; a million requests in looks of 100 take {seconds / 2000 * 10_000:.1f} s."


def fail_times(rng: np.random.Generator, stable: float, candidate: float, ratio: int, *, runs: int, most: int) -> Array:
    """Candidate requests until E >= 1/alpha in each run; inf where that never happens."""
    start = error_rate.fail_start()
    return stopping_times(rng, stable, candidate, ratio, lambda x_c, x_s: error_rate.fail_update(start, 1, ratio, x_c, x_s), ALPHA_FAIL, runs, most)


def pass_times(rng: np.random.Generator, stable: float, candidate: float, margin: float, *, runs: int, most: int) -> Array:
    start = error_rate.pass_start()
    return stopping_times(rng, stable, candidate, 1, lambda x_c, x_s: error_rate.pass_update(start, 1, 1, x_c, x_s, margin), ALPHA_PASS, runs, most)


def stopping_times(
    rng: np.random.Generator, stable: float, candidate: float, ratio: int, update: Update, alpha: float, runs: int, most: int
) -> Array:
    table = np.array([[update(x_c, x_s) for x_s in range(ratio + 1)] for x_c in (0, 1)])  # the step of each outcome of a block
    logs = np.zeros((runs, table.shape[-1]))
    found = np.full(runs, np.inf)
    alive = np.arange(runs)
    done = 0
    while done < most and len(alive):
        size = min(500, most - done)
        x_c = rng.binomial(1, candidate, (len(alive), size))
        x_s = rng.binomial(ratio, stable, (len(alive), size))
        paths = logs[alive][:, None, :] + np.cumsum(table[x_c, x_s], axis=1)
        top = paths.max(axis=2)
        evidence = top + np.log(np.exp(paths - top[..., None]).mean(axis=2))
        crossed = evidence >= np.log(1 / alpha)
        hit = crossed.any(axis=1)
        found[alive[hit]] = done + 1 + crossed.argmax(axis=1)[hit]
        logs[alive] = paths[:, -1]
        alive = alive[~hit]
        done += size
    return found


def information(stable: float, candidate: float, ratio: int) -> float:
    """Nats in a block, against the nearest pair of equal rates."""
    shared = (candidate + ratio * stable) / (1 + ratio)
    return divergence(candidate, shared) + ratio * divergence(stable, shared)


def divergence(p: float, q: float) -> float:
    parts = [x * np.log(x / y) for x, y in ((p, q), (1 - p, 1 - q)) if x > 0]
    return float(sum(parts))


def split(ratio: int) -> str:
    return "50/50" if ratio == 1 else "10/90"


if __name__ == "__main__":
    sys.exit(main())
