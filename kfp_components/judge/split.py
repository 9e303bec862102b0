"""Is the meter right? The observed split tested against the intended weight; a wrong split is an `error`, not a bad model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

THETAS = np.array([0.0, 0.25, 0.5, 2.0, 4.0])
"""Alternatives: the candidate gets so many times the odds it should. Small deviations (slow answers counted later) do not grow."""


def start() -> list[float]:
    """State at the beginning: log e-value of each alternative."""
    return [0.0] * len(THETAS)


def update(logs: Sequence[float], n_c: int, n_s: int, weight_percent: float) -> list[float]:
    """One tick: ``theta^n_c / (w*theta + 1-w)^(n_c+n_s)``, the likelihood ratio of shifted odds against the intended weight w."""
    w = weight_percent / 100
    if not 0 < w < 1 or n_c + n_s == 0:
        return list(logs)
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.where(n_c > 0, n_c * np.log(THETAS), 0.0)
        step = gain - (n_c + n_s) * np.log(w * THETAS + 1 - w)
    return [float(max(-700.0, value)) for value in np.asarray(logs) + step]
