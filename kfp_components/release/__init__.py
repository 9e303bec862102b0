"""``Release``: the state of one promotion, kept in the cluster, so that any process can go on where another one stopped.

A ConfigMap ``{model}-release`` is changed by compare-and-swap, along `kfp_components.phases`; what the canary measured lies apart, in
``{model}-release-canary``. A Lease named as the record keeps a second run out; the record's epoch refuses the writes of one that wakes late.
"""

from collections.abc import Callable

from kfp_components.phases import FINAL, FORWARD, TRANSITIONS, Phase
from kfp_components.release.commands import Command
from kfp_components.release.lease import Lease, local_holder
from kfp_components.release.record import (
    SCHEMA_VERSION,
    Adoption,
    Approved,
    Event,
    Evidence,
    Failure,
    Held,
    JudgeState,
    NamesBefore,
    PastRelease,
    Paused,
    Point,
    Previous,
    Release,
    Rollback,
    Waits,
)
from kfp_components.release.store import ReleaseStore, records

Watcher = Callable[[Release], None]
"""Is told the record whenever it changes; one that raises is told nothing more."""

__all__ = [
    "FINAL",
    "FORWARD",
    "SCHEMA_VERSION",
    "TRANSITIONS",
    "Adoption",
    "Approved",
    "Command",
    "Event",
    "Evidence",
    "Failure",
    "Held",
    "JudgeState",
    "Lease",
    "NamesBefore",
    "PastRelease",
    "Paused",
    "Phase",
    "Point",
    "Previous",
    "Release",
    "ReleaseStore",
    "Rollback",
    "Waits",
    "Watcher",
    "local_holder",
    "records",
]
