"""The phases of a release and which may follow which. This is the only list of them: whoever shows or changes a phase reads it here.

    prepared -> registered -> deployed -> smoked -> canary -> promoting -> promoted
                                                    ^    |
                                                    held <      from every one but the last: rolling_back -> rolled_back

``held``: the candidate is deployed, gets 0 %, and its evidence is kept, because that did not suffice, the meter is broken, or nobody approved
in time (that may be before its first request too). The same command goes on. ``promoted`` may go back for as long as its old version is kept
beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from kfp_components.clock import utc

Phase = Literal["prepared", "registered", "deployed", "smoked", "canary", "held", "promoting", "promoted", "rolling_back", "rolled_back"]

FORWARD: tuple[Phase, ...] = ("prepared", "registered", "deployed", "smoked", "canary", "promoting", "promoted")
"""The way to all users, in order."""

FINAL: tuple[Phase, ...] = ("promoted", "rolled_back")
"""Where a release ends."""

BACK: tuple[Phase, ...] = ("rolling_back", "rolled_back")
"""The candidate is being given up, or was."""

TRANSITIONS: Mapping[Phase, tuple[Phase, ...]] = MappingProxyType(
    {
        "prepared": ("registered", "rolling_back"),
        "registered": ("deployed", "rolling_back"),
        "deployed": ("smoked", "rolling_back"),
        "smoked": ("canary", "held", "promoting", "rolling_back"),
        "canary": ("held", "promoting", "rolling_back"),
        "held": ("canary", "promoting", "rolling_back"),
        "promoting": ("promoted", "rolling_back"),
        "promoted": ("rolling_back",),
        "rolling_back": ("rolled_back",),
        "rolled_back": (),
    }
)
"""What may follow each phase, beside staying in it. The keys are all phases. What is promoted goes back only while its old version is kept."""

OLDER: Mapping[str, Phase] = MappingProxyType({"inconclusive": "rolled_back"})
"""Phases that records of older versions hold, and what they are called now."""


def in_a_command(model: str, namespace: str) -> str:
    """How a command of a terminal names a model."""
    return f"{model} -n {namespace}"


def how_to_go_on(model: str, version: str, *, held: bool = False) -> str:
    """What a person is told about a release that has stopped and is not over. ``model`` is as a command names it."""
    approve = f" `kfp-serving approve {model}` promotes it as it is," if held else ""
    return f"The same command goes on;{approve} `kfp-serving rollback {model}` gives {version} up."


def standing(model: str, paused: Mapping[str, Any] | None, waits: Mapping[str, Any] | None) -> str:
    """Why a release that runs does not go on, and what to do; empty when it does.

    ``model`` is as a command names it; both others are of the record, as JSON.
    """
    if paused:
        why = f" ({paused['reason']})" if paused.get("reason") else ""
        since = utc(float(paused.get("since_unix_s") or 0.0))
        return f"Paused by {paused.get('by')} since {since}{why}; `kfp-serving resume {model}` goes on."
    if waits:
        until = utc(float(waits.get("until_unix_s") or 0.0))
        return f"Waits for approve before {waits.get('before')} until {until}; `kfp-serving approve {model}` goes on."
    return ""


def may_follow(now: Phase, then: Phase, *, previous_kept: bool) -> bool:
    """Whether a release in phase ``now`` may go to phase ``then``, or stay in it. ``previous_kept``: the old version is there to go back to."""
    return now == then or (then in TRANSITIONS[now] and (now != "promoted" or previous_kept))


def reached(phase: Phase, of: Phase) -> bool:
    """Whether a release in phase ``of`` has come at least as far as ``phase`` on its way forward. Held is as far as canary; on the way back: no."""
    place: Phase = "canary" if of == "held" else of
    if place not in FORWARD or phase not in FORWARD:
        return phase == of
    return FORWARD.index(place) >= FORWARD.index(phase)
