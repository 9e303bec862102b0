"""The surgery on ``serveConfigV2``, remembered: pure functions of text that take most of a release's time and get the same texts in every case."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from kfp_components.serving import rayservice

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


@contextmanager
def surgery() -> Iterator[None]:
    with ExitStack() as stack:
        for name in PURE:
            stack.enter_context(mock.patch.object(rayservice, name, remembered(getattr(rayservice, name))))
        yield
