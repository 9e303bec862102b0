"""``Release``: the state of one promotion, kept in the cluster, so that any process can go on where another one stopped.

A ConfigMap ``{model}-release`` is changed by compare-and-swap, along `kfp_components.phases`; what the canary measured lies apart, in
``{model}-release-canary``. A Lease named as the record keeps a second run out; the record's epoch refuses the writes of one that wakes late.
"""

from kfp_components.phases import FINAL, FORWARD, TRANSITIONS, Phase
from kfp_components.release.commands import Command
from kfp_components.release.lease import Lease, local_holder
from kfp_components.release.record import (
    SCHEMA_VERSION,
    Approved,
    Event,
    Evidence,
    Failure,
    Held,
    JudgeState,
    PastRelease,
    Paused,
    Point,
    Release,
    Rollback,
    Waits,
)
from kfp_components.release.store import ReleaseStore

__all__ = [
    "FINAL",
    "FORWARD",
    "SCHEMA_VERSION",
    "TRANSITIONS",
    "Approved",
    "Command",
    "Event",
    "Evidence",
    "Failure",
    "Held",
    "JudgeState",
    "Lease",
    "PastRelease",
    "Paused",
    "Phase",
    "Point",
    "Release",
    "ReleaseStore",
    "Rollback",
    "Waits",
    "local_holder",
]
