"""Failure rates: a conditional rate-ratio e-process for FAIL, a non-inferiority e-process for PASS.

An e-process is a product whose expectation is at most 1 while its null hypothesis holds, whenever one stops (Ville 1939): reaching 1/alpha has a
chance of at most alpha. Both are kept as logarithms per grid point and mixed (averaged) when read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

KAPPAS = np.array([1.25, 1.5, 2, 3, 4, 6, 10, 20, 50, 200])
"""Alternatives of FAIL: how many times more often the candidate fails."""

RATES = np.array([0.0002, 0.001, 0.003, 0.01, 0.03, 0.1])
"""Alternatives of PASS: the failure rate that both share."""

WIDE_RATES = np.array([*RATES, 0.2, 0.3, 0.5])
"""For outcomes that two healthy versions may well have often: client errors, clients that give up."""

Logs = NDArray[np.float64]


def fail_start() -> list[float]:
    """State at the beginning: log e-value of each kappa."""
    return [0.0] * len(KAPPAS)


def fail_update(logs: Sequence[float], n_c: int, n_s: int, x_c: int, x_s: int) -> list[float]:
    """One tick with ``n`` requests and ``x`` failures in candidate and stable.

    Null: the candidate does not fail more often. Given m failures in both arms, each is the candidate's with chance n_c/(n_c+n_s) at
    most, so ``kappa^x_c * ((n_c+n_s)/(kappa*n_c+n_s))^m`` has expectation 1 at most. Batches are valid, because the hypergeometric is
    dominated by the binomial in convex order (Hoeffding 1963). Related: Lindon & Malek, Anytime-valid inference for multinomial count
    data (NeurIPS 2022).
    """
    m = x_c + x_s
    if m == 0 or n_c == 0 or n_s == 0:
        return list(logs)
    step = x_c * np.log(KAPPAS) + m * np.log((n_c + n_s) / (KAPPAS * n_c + n_s))
    return list(map(float, np.asarray(logs) + step))


def weight_update(logs: Sequence[float], x_c: int, x_s: int, weight_percent: float) -> list[float]:
    """As `fail_update`, but against the weight by which the router chose, instead of the requests that were counted; starts as `fail_start`.

    Null: the candidate does not fail more often. Each request went to it with chance w whatever became of it, so each failure in both arms is its
    own with chance w at most: ``kappa^x_c / (1 + w*(kappa-1))^m``. It needs no request of stable's, and chance in how many there were costs it
    nothing: ten failures in a row suffice at 50/50, where the other test may need twenty.
    """
    w, m = weight_percent / 100, x_c + x_s
    if m == 0 or not 0 < w < 1:
        return list(logs)
    return list(map(float, np.asarray(logs) + x_c * np.log(KAPPAS) - m * np.log1p(w * (KAPPAS - 1))))


def pass_start(*, wide: bool = False) -> list[float]:
    """State at the beginning: log e-value of each shared rate, of `WIDE_RATES` if ``wide``."""
    return [0.0] * len(WIDE_RATES if wide else RATES)


def pass_update(logs: Sequence[float], n_c: int, n_s: int, x_c: int, x_s: int, margin: float, *, wide: bool = False) -> list[float]:
    """One tick for PASS. Null: the candidate's failure rate is higher by at least ``margin`` (a fraction).

    Likelihood ratio of a shared rate p against the null's nearest point (a, a+margin), the reverse information projection: Turner & Gruenwald, Exact
    anytime-valid confidence intervals for contingency tables (2023); Turner, Ly & Gruenwald, safe two-sample tests (2024).
    """
    if n_c + n_s == 0:
        return list(logs)
    p = WIDE_RATES if wide else RATES
    a = projection(n_c / (n_c + n_s), margin, wide)
    stable = x_s * np.log(p / a) + (n_s - x_s) * np.log((1 - p) / (1 - a))
    b = a + margin
    candidate = x_c * np.log(p / b) + (n_c - x_c) * np.log((1 - p) / (1 - b))
    return list(map(float, np.asarray(logs) + stable + candidate))


@lru_cache(maxsize=4096)
def projection(w: float, margin: float, wide: bool = False) -> Logs:
    """For each shared rate p the a that minimises (1-w)*KL(p||a) + w*KL(p||a+margin), which is convex: Newton's method, kept in bounds."""
    p = WIDE_RATES if wide else RATES
    low, high = np.full_like(p, 1e-12), np.full_like(p, 1 - margin - 1e-9)
    a = np.clip(p - w * margin, np.minimum(p / 10, high / 2), high)
    for _ in range(60):
        b = a + margin
        slope = (1 - w) * ((1 - p) / (1 - a) - p / a) + w * ((1 - p) / (1 - b) - p / b)
        curve = (1 - w) * ((1 - p) / (1 - a) ** 2 + p / a**2) + w * ((1 - p) / (1 - b) ** 2 + p / b**2)
        low, high = np.where(slope < 0, a, low), np.where(slope < 0, high, a)
        step = a - slope / curve
        following = np.where((step >= low) & (step <= high), step, (low + high) / 2)
        if np.all(np.abs(following - a) <= 1e-9 * a):
            break
        a = following
    a.flags.writeable = False  # it is shared by later calls
    return a


def mixed(logs: Sequence[float]) -> float:
    """The e-value: the average over the grid."""
    values = np.asarray(logs)
    top = float(values.max())
    return float(np.exp(min(top, 600.0)) * np.mean(np.exp(values - top)))
