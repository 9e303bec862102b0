"""The timeline written short: each field's path once, then one row of numbers for each point. What a point lacks is null."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kfp_components.release.record import Point

DIGITS = 6
"""Significant digits of evidence and latency, which are drawn and not reckoned with."""


def pack(points: Iterable[Point]) -> dict[str, Any]:
    """The points as ``{"columns": [paths], "rows": [[numbers]]}``."""
    flat = [dict(_leaves(point.model_dump(mode="json"))) for point in points]
    columns = list(dict.fromkeys(path for found in flat for path in found))
    return {"columns": columns, "rows": [[_short(path, found.get(path)) for path in columns] for found in flat]}


def unpack(packed: Any) -> list[Point]:
    """The points of `pack`, or of a plain list. Raises KeyError, TypeError or ValueError for anything else."""
    if isinstance(packed, list):
        return [Point.model_validate(found) for found in packed]
    return [Point.model_validate(_tree(packed["columns"], row)) for row in packed["rows"]]


def _leaves(value: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, float | None]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _leaves(item, f"{path}{key}/")
        else:
            yield f"{path}{key}", item


def _tree(columns: Sequence[str], row: Sequence[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path, item in zip(columns, row, strict=True):
        if item is None and not path.startswith("latency_ms/"):
            continue  # the point had no such count; a latency that nobody knows is null
        *above, key = path.split("/")
        place = found
        for part in above:
            place = place.setdefault(part, {})
        place[key] = item
    return found


def _short(path: str, value: float | None) -> float | int | None:
    if value is None or not math.isfinite(value):
        return None  # JSON has no such number
    if isinstance(value, float) and path != "unix_s":
        value = float(f"{value:.{DIGITS}g}")
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value
