"""What a fault means: one table of error and phase, read from top to bottom.

===============  ====================================================================================================================
stand aside      nothing is written: another run is in charge, or nothing was begun
take back        the candidate's own fault: all traffic to stable, then its traces go                    (exit 4)
hold             nothing is proven: all traffic to stable, the candidate stays deployed, evidence kept   (exit 5 or 6)
leave            the surroundings' fault: a canary's traffic goes to stable, everything stays as it is, the same command goes on   (exit 3, 128+n)
===============  ====================================================================================================================

Nothing but the candidate's own fault ever removes a candidate.
"""

from __future__ import annotations

from typing import Literal

from kfp_components import errors
from kfp_components.phases import Phase

Action = Literal["stand aside", "take back", "hold", "leave"]

ANY: tuple[Phase, ...] = ()
TABLE: tuple[tuple[type[BaseException], tuple[Phase, ...], Action], ...] = (
    (errors.ReleaseHeld, ANY, "stand aside"),
    (errors.StepOutOfOrder, ANY, "stand aside"),
    (errors.KfpServingError, ("rolling_back",), "take back"),
    (errors.RolledBack, ANY, "take back"),
    (errors.NotApproved, ("smoked", "canary", "held"), "hold"),
    (errors.Inconclusive, ("canary",), "hold"),
    (errors.MeterBroken, ("canary",), "hold"),
    (BaseException, ANY, "leave"),
)


def decide(error: BaseException, phase: Phase, *, on_inconclusive: str = "hold") -> Action:
    """The first row that fits. ``on_inconclusive`` is the request's option; with ``roll_back`` too little evidence takes the candidate back."""
    if isinstance(error, errors.Inconclusive) and not isinstance(error, errors.NotApproved) and on_inconclusive == "roll_back":
        return "take back"
    return next(action for kind, phases, action in TABLE if isinstance(error, kind) and (not phases or phase in phases))
