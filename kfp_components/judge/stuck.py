"""Does the candidate answer at all? A version that hangs has no failures and no latencies to count until its requests time out.

So the requests that wait at a look are compared: given those waiting in both arms, the candidate's part follows its weight while both answer equally
fast. The candidate is stuck when its part would be unlikely (`ALPHA`) even if its requests waited `TIMES` as long as stable's, look after look.
"""

from __future__ import annotations

import math

TIMES = 4.0
"""A tolerance far above any latency margin: slower than that by so much is for the latency test to see."""

ALPHA = 1e-6
"""Small, because every look is a new question here: this is no e-process."""

PERSISTENCE_S = 5.0
"""How long it must look so: a cold start or a pause for garbage collection is over by then."""


def looks_stuck(waiting_c: int, waiting_s: int, weight_percent: float) -> bool:
    """Whether so many of the waiting requests being the candidate's has a chance below `ALPHA`; binomial tail by Chernoff's bound."""
    total = waiting_c + waiting_s
    w = weight_percent / 100
    if total == 0 or not 0 < w < 1:
        return False
    expected = TIMES * w / (TIMES * w + 1 - w)
    found = waiting_c / total
    if found <= expected:
        return False
    divergence = found * math.log(found / expected) + (0.0 if found == 1 else (1 - found) * math.log((1 - found) / (1 - expected)))
    return total * divergence >= math.log(1 / ALPHA)
