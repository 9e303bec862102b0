"""Looks are gathered until they hold requests of both versions: a look with one version's requests alone says nothing about the other.

A test of the batch's totals stays valid as long as the rule that closes it looks at numbers of requests only, never at what became of them: the
versions' parts of the failures are then as random as the router's choices. So `closes` sees how many requests ended, and nothing else.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from kfp_components.judge.counts import ArmCounts, Tick

ENOUGH_REQUESTS = 16
"""A batch of both versions with so many requests closes however they are split."""

SPLIT_SLACK = 0.5
"""A smaller one closes once stable has half the requests that are due to it beside the candidate's. Three failures of the candidate beside a single
request of stable's say little; waiting for more of stable's costs nothing but time. By simulation: see benchmarks/RESULTS.md."""


def holds_both(tick: Tick) -> bool:
    """Whether requests of both versions have ended in it."""
    return tick.candidate.ended > 0 and tick.stable.ended > 0


def closes(tick: Tick, weight_percent: float) -> bool:
    """Whether a batch is to be judged. ``weight_percent`` is the candidate's share of the requests by plan."""
    n_c, n_s = tick.candidate.ended, tick.stable.ended
    if not holds_both(tick):
        return False
    return n_c + n_s >= ENOUGH_REQUESTS or n_s * weight_percent >= SPLIT_SLACK * n_c * (100 - weight_percent)


def pack(tick: Tick) -> dict[str, Any]:
    """A batch as plain JSON; requests per latency bucket as pairs, since most buckets of a small batch are empty."""
    return {arm: _pack(counted) for arm, counted in (("stable", tick.stable), ("candidate", tick.candidate))}


def unpack(packed: dict[str, Any], bounds_s: tuple[float, ...]) -> Tick:
    """The batch that `pack` made."""
    return Tick(_unpack(packed["stable"]), _unpack(packed["candidate"]), bounds_s)


def add(batch: Tick, tick: Tick) -> Tick:
    """Both together."""
    return Tick(batch.stable + tick.stable, batch.candidate + tick.candidate, tick.bounds_s or batch.bounds_s)


def _pack(counted: ArmCounts) -> dict[str, Any]:
    found = {key: value for key, value in asdict(counted).items() if key in ("requests", "failures", "client_errors", "disconnects")}
    return {**found, "buckets": len(counted.latency_counts), "latency": [[b, n] for b, n in enumerate(counted.latency_counts) if n]}


def _unpack(packed: dict[str, Any]) -> ArmCounts:
    latency = [0] * packed["buckets"]
    for bucket, number in packed["latency"]:
        latency[bucket] = number
    return ArmCounts(packed["requests"], packed["failures"], tuple(latency), None, 0, packed["client_errors"], packed["disconnects"])
