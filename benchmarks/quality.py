"""How many pairs of answers the quality tests need, and how often they are wrong. Seeded; about a minute.

    python benchmarks/quality.py          prints the tables and writes them to benchmarks/RESULTS.md

A look is taken after every pair. The steps come from the judge's own functions. "Bound" is log(1/alpha) over the growth of the best single bet, known
beforehand. Scores are in points of 100; a loss has a deviation of 5 points from pair to pair unless another one is named.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable

import numpy as np
import results
from numpy.typing import NDArray

from kfp_components.judge import quality
from kfp_components.judge.quality import BETS, Bets

ALPHA_FAIL, ALPHA_PASS = 0.01, 0.05
Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, int]], Array]

EIGHT = np.array([0.01, 0.03, 0.07, 0.15, 0.3, 0.5, 0.75, 0.95])
EQUAL_FAIL = Bets(EIGHT, np.full(8, 1 / 8), np.full(8, 0.1))
EQUAL_PASS = Bets(np.array([0.15, 0.5, 0.99]), np.full(3, 1 / 3), np.ones(3))
"""What was there before: equal weights, and for FAIL differences up to 0.1 only."""


def normal(mean: float, deviation: float = 0.05) -> Draw:
    return lambda rng, shape: np.clip(rng.normal(mean, deviation, shape), -1, 1)


def flips(lost: float, won: float, size: float = 1.0) -> Draw:
    """Answers that were right and are wrong, and the other way round: shares of all."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
        u = rng.random(shape)
        return np.where(u < lost, size, np.where(u < lost + won, -size, 0.0))

    return draw


def garbage(stable: float, candidate: float) -> Draw:
    return lambda rng, shape: (rng.random(shape) < candidate).astype(float) - (rng.random(shape) < stable)


def main() -> int:
    started = time.process_time()
    tables = [fail_table(), alarm_table(), pass_table(), wrong_pass_table(), garbage_table(), latency_table(), few_cases_table()]
    text = "\n\n".join(tables) + f"\n\nSeeded, numpy {np.__version__}, {time.process_time() - started:.0f} s of one core."
    print(text)
    results.write("quality", f"## Quality: pairs of answers\n\n{text}")
    return 0


def fail_table() -> str:
    ours = BETS["quality"]["fail"]
    rows = []
    for name, draw, known in (
        ("0.5 points", normal(0.005), "1485 / 2637"),
        ("2 points", normal(0.02), "82 / 209"),
        ("10 points", normal(0.1), "12 / 16"),
        ("100 points", normal(1.0, 0.0), "-"),
        ("2 of 100 answers are wrong that were right", flips(0.02, 0.0), "-"),
        ("10 of 100 are wrong that were right, 5 the other way", flips(0.1, 0.05), "-"),
    ):
        cells = [
            needed_by(draw, lambda lost, bets=bets, margin=margin: quality.fail_steps(lost, bets, margin), bets, ALPHA_FAIL)
            for bets, margin in ((EQUAL_FAIL, 0.0), (ours, 0.0), (ours, 0.005))
        ]
        rows.append((name, known, *map(told, cells)))
    head = ("the candidate loses", "JUDGE.md", "equal bets, clip 0.1", "no margin", "margin of half a point (default)")
    return table("Scores, FAIL (pairs to the decision, median / p95; alpha 1 %)", head, rows)


def alarm_table() -> str:
    bets, rows = BETS["quality"]["fail"], []
    draws = (
        ("deviation 5 points", normal(0.0)),
        ("deviation 20 points", normal(0.0, 0.2)),
        ("10 of 100 flip", flips(0.05, 0.05)),
        ("all the same", flips(0, 0)),
    )
    for name, draw in draws:
        found = [
            needed_by(draw, lambda lost, margin=margin: quality.fail_steps(lost, bets, margin), bets, ALPHA_FAIL, runs=2000, most=2000)
            for margin in (0.0, 0.005)
        ]
        rows.append((name, *(f"{np.isfinite(one).mean():.2%}" for one in found)))
    rows.append(("both 0.1 % garbage", alarms_of_garbage(0.001), "-"))
    rows.append(("both 5 % garbage", alarms_of_garbage(0.05), "-"))
    head = ("the versions are alike", "no margin", "margin of half a point (default)")
    return table("False alarms (alpha 1 %; 2,000 pairs, 2,000 runs; for garbage there is no margin)", head, rows)


def alarms_of_garbage(rate: float) -> str:
    bets = BETS["garbage"]["fail"]
    found = needed_by(garbage(rate, rate), lambda lost: quality.fail_steps(lost, bets, 0.0), bets, ALPHA_FAIL, runs=2000, most=2000)
    return f"{np.isfinite(found).mean():.2%}"


def pass_table() -> str:
    ours, rows = BETS["quality"]["pass"], []
    for margin in (0.01, 0.02, 0.05):
        for name, draw in (
            ("all answers alike", flips(0, 0)),
            ("deviation 5 points", normal(0.0)),
            ("deviation 10 points", normal(0.0, 0.1)),
            ("2 of 100 flip", flips(0.01, 0.01)),
            ("6 of 100 flip", flips(0.03, 0.03)),
        ):
            lost = draw(np.random.default_rng(1), (1, 200_000))[0]
            grid = np.linspace(0.001, 0.999, 200)
            growth = max(np.log1p(bet * (margin - lost) / (1 - margin)).mean() for bet in grid)
            old, new = (
                needed_by(draw, lambda d, bets=bets, margin=margin: quality.pass_steps(d, bets, margin), bets, ALPHA_PASS, most=6000)
                for bets in (EQUAL_PASS, ours)
            )
            adaptive = adapting(draw, margin, most=6000)
            rows.append((f"{100 * margin:g}", name, f"{np.log(1 / ALPHA_PASS) / growth:.0f}", told(old), told(new), told(adaptive)))
    head = ("margin, points", "equally good versions", "bound", "equal bets", "bets by weight", "bets that adapt (aGRAPA)")
    return table("Scores, PASS (pairs to the decision, median / p95; alpha 5 %)", head, rows)


def adapting(draw: Draw, margin: float, runs: int = 300, most: int = 3000) -> Array:
    """Waudby-Smith & Ramdas' aGRAPA: each bet is mean / second moment of what was seen before it, at most 0.99 of the stake."""
    gains = (margin - draw(np.random.default_rng(7), (runs, most))) / (1 - margin)
    count = np.arange(1, most + 1)
    mean = (np.cumsum(gains, axis=1) + margin) / (count + 1)
    second = (np.cumsum(gains**2, axis=1) + 0.0025) / (count + 1)
    first = np.full((runs, 1), margin / 0.0025)
    bets = np.clip(np.hstack([first, (mean / second)[:, :-1]]), 0, 0.99)
    return reached(np.cumsum(np.log1p(bets * gains), axis=1), ALPHA_PASS)


def wrong_pass_table() -> str:
    bets, rows = BETS["quality"]["pass"], []
    for margin in (0.01, 0.05):
        for name, draw in (
            ("a little on every answer", normal(margin)),
            (f"half the score on {200 * margin:g} of 100 answers", flips(2 * margin, 0.0, 0.5)),
            (f"all of it on {100 * margin:g} of 100 answers (as garbage)", flips(margin, 0.0)),
        ):
            found = needed_by(
                draw, lambda lost, margin=margin: quality.pass_steps(lost, bets, margin), bets, ALPHA_PASS, runs=1000, most=round(30 / margin)
            )
            rows.append((f"{100 * margin:g}", name, f"{np.isfinite(found).mean():.1%}"))
    head = ("margin, points", "the candidate loses the margin", "false PASS")
    return table("False PASS with the truth on the margin (alpha 5 %; 3,000 and 600 pairs, 1,000 runs)", head, rows)


def garbage_table() -> str:
    ours, rows = BETS["garbage"]["fail"], []
    old = Bets(EIGHT, np.full(8, 1 / 8), np.ones(8))
    for stable, candidate in ((0.001, 0.01), (0.0, 0.05), (0.01, 0.05), (0.2, 0.3), (0.0, 1.0)):
        cells = [
            needed_by(garbage(stable, candidate), lambda lost, bets=bets: quality.fail_steps(lost, bets, 0.0), bets, ALPHA_FAIL, most=6000)
            for bets in (old, ours)
        ]
        rows.append((f"{stable:.1%} to {candidate:.0%}", *map(told, cells)))
    passing = BETS["garbage"]["pass"]
    for rate in (0.0, 0.001, 0.01):
        cells = [
            needed_by(garbage(rate, rate), lambda lost, margin=margin: quality.pass_steps(lost, passing, margin), passing, ALPHA_PASS, most=6000)
            for margin in (0.01, 0.05)
        ]
        rows.append((f"both {rate:.1%}: PASS, margin 1 and 5 points", *map(told, cells)))
    return table("Garbage (pairs, median / p95)", ("garbage answers", "equal bets", "bets by weight"), rows)


def latency_table() -> str:
    """What both answers share, the request's own difficulty, falls out; each has noise of its own."""
    rows, (ours_fail, ours_pass) = [], BETS["paired_latency"].values()
    sizes = np.array([0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9])
    signs = Bets(sizes, np.full(7, 1 / 7), np.full(7, quality.SIGN))
    for noise in (0.02, 0.1, 0.25, 0.4):
        for name, slower in (("as fast", 1.0), ("5 % slower (the margin of FAIL)", 1.05), ("10 % slower (of PASS)", 1.1), ("20 % slower", 1.2)):

            def draw(rng: np.random.Generator, shape: tuple[int, int], slower: float = slower, noise: float = noise) -> Array:
                return np.log(slower) + rng.normal(0, noise, shape) - rng.normal(0, noise, shape)

            cells = []
            for fail, passing in ((signs, signs), (ours_fail, ours_pass)):
                failed = needed_by(draw, lambda ratio, bets=fail: latency(ratio, bets, 5.0), fail, ALPHA_FAIL, most=2000)
                passed = needed_by(draw, lambda ratio, bets=passing: -latency(ratio, bets, 10.0), passing, ALPHA_PASS, most=2000)
                cells += [told(failed), told(passed)]
            rows.append((f"{noise:g}", name, *cells))
    head = ("noise (sigma)", "candidate", "signs only: FAIL", "PASS", "logarithms: FAIL", "PASS")
    return table("Paired latency (pairs, median / p95, or how many of 300 runs end so within 2,000 pairs; margins 5 and 10 %)", head, rows)


def latency(ratio: Array, bets: Bets, margin_percent: float) -> Array:
    return quality.latency_steps(np.stack([np.ones_like(ratio), np.exp(ratio)], axis=-1), bets, margin_percent)


def few_cases_table(runs: int = 300, most: int = 3000) -> str:
    """Cases whose losses are always the same, drawn with replacement: chance made some sets favour one version."""
    sides, rows = BETS["quality"], []
    for margin in (0.01, 0.02, 0.05):
        for cases in (20, 50, 200, 1000):
            cells = []
            for draw in (normal(0.0), flips(0.02, 0.02)):
                rng = np.random.default_rng(5)
                lost = np.take_along_axis(draw(rng, (runs, cases)), rng.integers(0, cases, (runs, most)), axis=1)
                passed = needed(lost, lambda d, margin=margin: quality.pass_steps(d, sides["pass"], margin), sides["pass"], ALPHA_PASS)
                for fail_margin in (0.0, margin / 2):
                    failed = needed(lost, lambda d, m=fail_margin: quality.fail_steps(d, sides["fail"], m), sides["fail"], ALPHA_FAIL)
                    cells.append(f"{(failed < passed).mean():.1%} / {(passed < failed).mean():.0%}")
            rows.append((f"{100 * margin:g}", f"{cases:,}", *cells))
    head = ("margin, points", "cases", "deviation 5 points, no margin for FAIL", "half", "4 of 100 flip, no margin for FAIL", "half")
    what = "failed / passed within 3,000 pairs; each case answered the same way each time, 300 sets drawn"
    return table(f"Equally good versions on few cases ({what})", head, rows)


def needed_by(draw: Draw, steps: Callable[[Array], Array], bets: Bets, alpha: float, *, runs: int = 300, most: int = 4000) -> Array:
    return needed(draw(np.random.default_rng(7), (runs, most)), steps, bets, alpha)


def needed(lost: Array, steps: Callable[[Array], Array], bets: Bets, alpha: float, at_once: int = 50) -> Array:
    """Pairs of each run until E >= 1/alpha; inf where that never happens."""
    found = []
    for part in (lost[first : first + at_once] for first in range(0, len(lost), at_once)):
        gains = steps(part.reshape(-1)).reshape(*part.shape, -1)
        logs = np.cumsum(np.log1p(bets.sizes * gains), axis=1)
        top = logs.max(axis=2)
        found.append(reached(top + np.log(np.exp(logs - top[..., None]) @ bets.weights), alpha))
    return np.concatenate(found)


def reached(evidence: Array, alpha: float) -> Array:
    crossed = evidence >= np.log(1 / alpha)
    return np.where(crossed.any(axis=1), crossed.argmax(axis=1) + 1.0, np.inf)


def told(found: Array) -> str:
    if np.isfinite(found).mean() < 0.5:
        return f"{np.isfinite(found).mean():.0%} of runs"
    high = np.sort(found)[int(np.ceil(0.95 * len(found))) - 1]
    return f"{np.median(found):.0f} / {'more' if np.isinf(high) else f'{high:.0f}'}"


def table(title: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), ["---"] * len(list(head)), *map(list, rows)]
    return f"**{title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
