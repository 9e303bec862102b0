"""Long lists that hold one value nearly everywhere, written short. JSON in, JSON out, and exactly the same back.

sparse({"counts": [0] * 200})      {"counts": {"~": [200, 0, {}]}}
"""

from __future__ import annotations

from collections import Counter
from typing import Any

MARK = "~"
LEAST = 8
"""Shorter lists are left as they are."""


def sparse(value: Any) -> Any:
    """``value`` with each long list of numbers as its length, its most frequent number and what differs, where that is shorter."""
    if isinstance(value, dict):
        coded = {key: sparse(item) for key, item in value.items()}
        return {MARK: coded} if coded.keys() == {MARK} else coded
    if not isinstance(value, list):
        return value
    if len(value) < LEAST or not all(type(item) in (int, float) for item in value):
        return [sparse(item) for item in value]
    (fill, often), *_ = Counter(map(repr, value)).most_common(1)
    if 2 * often < len(value):
        return list(value)
    return {MARK: [len(value), next(item for item in value if repr(item) == fill), {str(i): v for i, v in enumerate(value) if repr(v) != fill}]}


def dense(value: Any) -> Any:
    """What `sparse` was given. Raises TypeError or ValueError for what it never gives."""
    if isinstance(value, list):
        return [dense(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() != {MARK}:
        return {key: dense(item) for key, item in value.items()}
    marked = value[MARK]
    if isinstance(marked, dict):  # a dictionary that has the mark as its only key
        return {MARK: dense(marked[MARK])}
    length, fill, different = marked
    found = [fill] * length
    for index, item in different.items():
        found[int(index)] = item
    return found
