"""Does the candidate answer at all? A version that hangs has no failures and no latencies to count until its requests time out.

So the requests that wait at a look are compared: given those waiting in both arms, the candidate's part follows its weight while both answer equally
fast. The candidate is stuck when its part would be unlikely (`ALPHA`) even if its requests waited `TIMES` as long as stable's, look after look.

That takes many clients at once: a few, who wait for one answer before they ask again, all end up waiting for the candidate, and nothing happens any
more. So the time that its requests have waited is compared too, with the longest that any of stable's took.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def looks_hung(waits_c_s: Sequence[float], slowest_s: float | None, all_c: int, all_s: int) -> bool:
    """Whether so many of the candidate's requests wait so much longer than stable's slowest one took that the chance is below `ALPHA`.

    ``all_c`` and ``all_s`` are the requests of both so far. Which of them are the slowest is chance while both versions answer alike, or the
    candidate `TIMES` as slowly: that the k slowest are all the candidate's then has the chance of drawing k of ``all_c`` from all of them.
    """
    if slowest_s is None:
        return False
    longer = sum(wait_s > TIMES * slowest_s for wait_s in waits_c_s)
    return sum(math.log((all_c - drawn) / (all_c + all_s - drawn)) for drawn in range(min(longer, all_c))) <= math.log(ALPHA)
