"""Makes an engine without a clock and a transport of its own run in the world: its modules' `time` and `httpx` are the world's while a process runs.

Nothing of it is used with an engine whose ``open_run`` takes ``clock`` and ``transport``.
"""

from __future__ import annotations

import contextlib
import datetime as real
import importlib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import httpx

from kfp_components import registry, rollout
from kfp_components.clock import Clock
from kfp_components.registry.memory import MemoryRegistry
from kfp_components.release import Release

NEEDED = "transport" not in inspect.signature(rollout.open_run).parameters
CLIENT = httpx.Client
MODULES = ("kfp_components.rollout", "kfp_components.release", "kfp_components.traffic.ray_router", "tenacity.nap", "kfp_components.probes")

FORMER = {
    "register_model": "register",
    "deploy_rayservice": "deploy",
    "create_inference_service": "create_stub",
    "smoke_inference": "smoke",
    "shift_traffic": "shift",
    "judge_canary": "judge_step",
    "promote_model": "promote",
}


def step(name: str) -> Callable[..., Release]:
    """A published step, which was called otherwise."""
    found: Callable[..., Release] = getattr(rollout, name, None) or getattr(rollout, FORMER.get(name, name))
    return found


def part(of: Any, name: str) -> Any:
    """A part of what the record says: its parts are dicts, or typed; None of nothing."""
    return of.get(name) if isinstance(of, dict) else getattr(of, name, None)


@contextlib.contextmanager
def adapted(clock: Clock, transport: httpx.BaseTransport) -> Iterator[None]:
    """Time and HTTP are the world's."""
    if not NEEDED:
        yield
        return
    fake = types.SimpleNamespace(time=clock.now_unix_s, monotonic=clock.monotonic, perf_counter=clock.monotonic, sleep=clock.sleep)

    class Datetime(real.datetime):
        @classmethod
        def now(cls, tz: real.tzinfo | None = None) -> Datetime:
            return cls.fromtimestamp(clock.now_unix_s(), tz)

    def get(url: str, *, headers: dict[str, str], timeout: float, trust_env: bool) -> httpx.Response:
        with CLIENT(transport=transport, trust_env=trust_env) as made:
            return made.get(url, headers=headers, timeout=timeout)

    def made_client(**options: Any) -> httpx.Client:
        return CLIENT(transport=transport, **options)

    with contextlib.ExitStack() as stack:
        for name in MODULES:
            module = importlib.import_module(name)
            if hasattr(module, "time"):
                stack.enter_context(mock.patch.object(module, "time", fake))
            if hasattr(module, "datetime"):
                stack.enter_context(mock.patch.object(module, "datetime", Datetime))
        stack.enter_context(mock.patch.object(registry, "connect", lambda _uri: MemoryRegistry()))  # the process puts its own in its place
        stack.enter_context(mock.patch.object(httpx, "get", get))
        stack.enter_context(mock.patch.object(httpx, "Client", made_client))
        yield
