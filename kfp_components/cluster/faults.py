"""Faults on demand: the n-th call of a run fails, or is the last one that the process makes.

A `Script` counts the calls of all objects that are wrapped with it in one sequence, and keeps them. Run once without faults to learn how many
calls a run makes, then once for every call and every kind of fault:

    script = Script(Fault("killed before", at=7))
    cluster, router = wrap(cluster, script), wrap(router, script, writes=("set",))

`Faulty` is the same for one cluster alone. What a wrapped object calls of itself is not counted: a ``wait`` is one call, however often it looks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self, TypeVar, cast

from kfp_components import errors
from kfp_components.clock import Clock, SystemClock
from kfp_components.cluster import Cluster, Ref

T = TypeVar("T")
Kind = Literal["error", "answer lost", "killed before", "killed after"]
WRITES = ("create", "apply", "replace", "patch", "delete")
"""The methods of a `Cluster` that change something."""


class Killed(BaseException):
    """The process was killed here. Not an `Exception`: nothing but the test may catch it."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong from the ``at``-th call on (the first is 1).

    ``error``: the calls fail without effect. ``answer lost``: they take effect, and fail. Both raise ``error`` in ``calls`` calls in a row, or for
    ``for_s`` seconds of the script's clock from the first of them on. ``killed before``, ``killed after``: the process ends before or
    after the call takes effect; every later call raises `Killed` without effect.
    """

    kind: Kind
    at: int
    error: type[Exception] = errors.Unreachable
    calls: int = 1
    for_s: float | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a fault that could never come."""
        if self.at < 1 or self.calls < 1:
            raise ValueError(f"{self}: calls are counted from 1, and at least one has to fail")


@dataclass(frozen=True)
class Record:
    """One call: its number, the object and the method, what it was about, when (seconds of the script's clock), and whether it writes."""

    number: int
    owner: str
    method: str
    what: str
    at_s: float
    write: bool

    def __str__(self) -> str:
        return f"call {self.number}, {self.owner}.{self.method}({self.what})"


class Script:
    """The faults of one run, and its calls so far. May be used from several threads."""

    def __init__(self, *faults: Fault, clock: Clock | None = None) -> None:
        self.faults, self.calls = faults, list[Record]()
        self.dead = False
        """Whether the process was killed."""
        self._clock: Clock = clock or SystemClock()
        self._ends: dict[Fault, float] = {}
        self._lock = threading.Lock()

    @property
    def writes(self) -> list[Record]:
        """The calls that write, among them those that failed."""
        return [call for call in self.calls if call.write]

    def play(self, owner: str, method: str, what: str, act: Callable[[], T], *, write: bool) -> T:
        """Count a call and make it. Raises what a fault says, `Killed` when the process is dead, else what the call raises."""
        with self._lock:
            self.check_alive()
            call = Record(len(self.calls) + 1, owner, method, what, self._clock.monotonic(), write)
            self.calls.append(call)
            fault = next((f for f in self.faults if self._hits(f, call)), None)
            if fault and fault.kind == "killed before":
                self.dead = True
                raise Killed(f"{call}: killed before it")
        if fault is None:
            return act()
        if fault.kind == "error":
            raise fault.error(f"{call}: failed on purpose, without effect")
        try:
            act()
        except Exception:
            if fault.kind != "killed after":
                raise
        if fault.kind == "killed after":
            self.dead = True
            raise Killed(f"{call}: killed after it")
        raise fault.error(f"{call}: took effect, its answer was lost on purpose")

    def check_alive(self) -> None:
        """Raises `Killed` when the process is dead."""
        if self.dead:
            raise Killed("the process was killed before; a dead process makes no calls")

    def _hits(self, fault: Fault, call: Record) -> bool:
        if fault.for_s is None or fault.kind.startswith("killed"):
            return fault.at <= call.number < fault.at + fault.calls
        if call.number >= fault.at:
            self._ends.setdefault(fault, call.at_s + fault.for_s)
        return call.at_s < self._ends.get(fault, call.at_s)


def wrap(obj: T, script: Script, *, name: str = "", writes: Collection[str] = WRITES) -> T:
    """``obj`` with the calls of its public methods (of itself, when it is a function) counted and failed by the script.

    ``name`` is what records call it, else its class. ``writes`` names the methods that change something. Entering and leaving an object that is a
    context manager are not counted.
    """
    return cast(T, _Wrapped(obj, script, name or type(obj).__name__, writes))


class _Wrapped:
    def __init__(self, obj: Any, script: Script, name: str, writes: Collection[str]) -> None:
        self._obj, self._script, self._name, self._writes = obj, script, name, writes

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)
        found = getattr(self._obj, method)
        return partial(self._count, method, found) if callable(found) else found

    def __enter__(self) -> Self:
        self._obj.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._obj.__exit__(*error)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._count("__call__", self._obj, *args, **options)

    def _count(self, method: str, act: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        what = ", ".join(map(_words, args or tuple(options.values())))
        return self._script.play(self._name, method, what, partial(act, *args, **options), write=method in self._writes)


def _words(argument: Any) -> str:
    """A manifest is named by its reference; other arguments are as they print, shortened."""
    if isinstance(argument, dict) and "kind" in argument and isinstance(argument.get("metadata"), dict):
        metadata = argument["metadata"]
        return str(Ref(argument["kind"], metadata.get("name") or f"{metadata.get('generateName', '')}*", metadata.get("namespace", "")))
    return str(argument)[:80]


class Faulty(_Wrapped):
    """A cluster with faults of its own; ``script`` has its calls. For a type checker, `wrap` is the one that gives a `Cluster`."""

    def __init__(self, cluster: Cluster, *faults: Fault, clock: Clock | None = None) -> None:
        self.script = Script(*faults, clock=clock)
        super().__init__(cluster, self.script, "cluster", WRITES)
