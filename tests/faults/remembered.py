"""The surgery on ``serveConfigV2``, remembered: pure functions of text that take most of a release's time and get the same texts in every case.

So that they are the same, the tokens of heartbeats are not drawn but counted, from each world's beginning.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from kfp_components.serving import rayservice
from kfp_components.traffic import ray_router

PURE = ("applications", "digests", "user_config", "with_application", "without_application", "with_user_config")


def remembered(pure: Callable[..., Any]) -> Callable[..., Any]:
    """Calls ``pure`` once for equal arguments; what it raises is not remembered."""
    known: dict[str, Any] = {}

    @functools.wraps(pure)
    def found(*args: Any, **options: Any) -> Any:
        key = json.dumps([args, options], sort_keys=True)
        if key not in known:
            known[key] = pure(*args, **options)
        value = known[key]
        return value if isinstance(value, str) else copy.deepcopy(value)

    return found


_tokens = itertools.count(1)


def count_tokens_anew() -> None:
    global _tokens
    _tokens = itertools.count(1)


def new_token() -> str:
    return f"token-{next(_tokens)}"


@contextmanager
def surgery() -> Iterator[None]:
    with ExitStack() as stack:
        for name in PURE:
            stack.enter_context(mock.patch.object(rayservice, name, remembered(getattr(rayservice, name))))
        stack.enter_context(mock.patch.object(ray_router, "new_token", new_token))
        yield
