"""How much traffic the evidence allows: a step's weight is a ceiling, its length is decided by evidence."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kfp_components.judge.verdict import Verdict


def evidence_weight(w0_percent: float, e_fail: float, e_pass: float, w_max_percent: float) -> float:
    """``clip(w0 * E_pass / sqrt(E_fail), w0, w_max)`` in percent: it grows with the evidence that the candidate is not worse."""
    return min(w_max_percent, max(w0_percent, w0_percent * e_pass / math.sqrt(max(e_fail, 1.0))))


def may_advance(steps: Sequence[float], index: int, verdict: Verdict) -> bool:
    """Whether step ``index`` is over: the evidence allows the next step's weight. The last step, before the promotion, needs the verdict pass."""
    if verdict.kind in ("fail", "error"):
        return False
    if index + 1 >= len(steps):
        return verdict.kind == "pass"
    return evidence_weight(steps[0], verdict.e_fail, verdict.e_pass, steps[index + 1]) >= steps[index + 1]
