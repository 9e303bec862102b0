"""Smoke inference: requests with expected answers, sent through the alias, as clients send them.

``http``, ``tensors`` (V2 as bytes and gRPC) and ``handle`` ask, each by its protocols; ``check`` compares an answer with what a case expects;
``defaults`` has the cases of a model family; ``golden`` reads golden sets. `Prober` sends cases: at the same time, at a rate, within a budget.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kfp_components import errors
from kfp_components.cluster import Endpoint
from kfp_components.probes import check, tensors
from kfp_components.probes.answer import Way
from kfp_components.probes.check import MISSING, matches, resolve, shape
from kfp_components.probes.http import PATHS, Http
from kfp_components.request import SmokeCase, SmokePace

if TYPE_CHECKING:
    import httpx

__all__ = [
    "MISSING",
    "PATHS",
    "ProbeResult",
    "Prober",
    "Reach",
    "assert_askable",
    "assert_passed",
    "health_cases",
    "matches",
    "not_sent",
    "resolve",
    "shape",
]

TOLD_PROBLEMS = 10
"""Of one version; the record of a release stays small."""

HEARTBEAT_S = 1.0
"""How often who waits for answers is given the word meanwhile."""


@dataclass(frozen=True)
class ProbeResult:
    """What one case gave. ``problem`` is None when all was as expected, else one line: case, request, what was expected and found, the answer.

    ``unreachable``: nobody was there to answer, which says nothing about the version. ``value`` is what assertions read of the answer, parsed JSON,
    text or bytes; None without one. ``version`` is the one that the answer says it is from. ``first_s`` is the time to its first piece.
    """

    case: str
    seconds: float
    problem: str | None
    unreachable: bool = False
    value: Any = None
    version: str | None = None
    first_s: float | None = None


@dataclass(frozen=True)
class Reach:
    """How a version is reached otherwise than by HTTP: the name of its application, Serve's gRPC proxy, the Ray head's dashboard and its Ray Client.

    Each is looked up when a case needs it, and raises `NotFound` where it is not known.
    """

    application: str
    grpc: Callable[[], Endpoint]
    dashboard: Callable[[], Endpoint]
    ray_client: Callable[[], Endpoint]


class Prober:
    """Sends cases to one model through its alias: to the route prefix ``prefix``, which is the public one or a version's own.

    With ``version`` each request is pinned to it, where the router has that route: an answer that does not say it is of that version is a problem.
    ``reach`` is needed for protocols v2_grpc and handle. Several threads may use it.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        prefix: str,
        transport: httpx.BaseTransport | None = None,
        *,
        version: str | None = None,
        reach: Reach | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.model = model
        self.prefix = prefix
        self.version = version
        self._reach = reach
        self._lock = threading.Lock()
        self._http = Http(endpoint, model, prefix, version, transport)
        self._ways: dict[str, Way] = {protocol: self._http for protocol in PATHS}

    def __enter__(self) -> Prober:
        return self

    def __exit__(self, *_exc: object) -> None:
        for way in set(self._ways.values()):
            way.close()

    def run(self, cases: Iterable[SmokeCase]) -> list[ProbeResult]:
        """Send every case, one after the other. Never raises for a bad answer; an `InputError` for a case that cannot be sent from here."""
        return [self._one(case) for case in cases]

    def send(
        self,
        cases: Sequence[SmokeCase],
        pace: SmokePace,
        *,
        go_on: Callable[[], bool] = lambda: True,
        meanwhile: Callable[[int], None] = lambda _done: None,
    ) -> Iterator[tuple[int, ProbeResult | None]]:
        """Number and result of each case, as they come; None was not sent, because the budget was spent or ``go_on`` said no.

        One that nobody answered is sent once more. ``meanwhile`` hears each second how many are done, in the caller's thread; what it raises ends
        this. Then, and when the caller goes away, none is sent any more; those under way are not waited for.
        """
        _load(cases)
        done: queue.SimpleQueue[tuple[int, ProbeResult | BaseException | None]] = queue.SimpleQueue()
        waiting, lock, over = iter(enumerate(cases)), threading.Lock(), threading.Event()
        began = time.monotonic()

        def one(number: int, case: SmokeCase) -> ProbeResult | None:
            if pace.rate_per_s is not None:
                over.wait(max(0.0, began + number / pace.rate_per_s - time.monotonic()))
            for _ in range(2):
                if over.is_set() or time.monotonic() >= began + pace.budget_s or not go_on():
                    return None
                (result,) = self.run([case])
                if not result.unreachable:
                    break
            return result

        def work() -> None:
            while not over.is_set():
                with lock:
                    number, case = next(waiting, (-1, None))
                if case is None:
                    return
                try:
                    done.put((number, one(number, case)))
                except BaseException as error:  # raised where the results are waited for
                    done.put((number, error))

        for _ in range(min(pace.concurrency, len(cases))):
            threading.Thread(target=work, name=f"probes of {self.model}", daemon=True).start()
        try:
            for so_far in range(len(cases)):
                while True:
                    try:
                        number, result = done.get(timeout=HEARTBEAT_S)
                        break
                    except queue.Empty:
                        meanwhile(so_far)
                if isinstance(result, BaseException):
                    raise result
                yield number, result
        finally:
            over.set()

    def version_that_answers(self, case: SmokeCase) -> str | None:
        """Who answers such a request; None when nobody does or the server does not say."""
        return self._way(case).ask(case).version

    def _way(self, case: SmokeCase) -> Way:
        with self._lock:
            if case.protocol not in self._ways:
                self._ways[case.protocol] = _connect(self.model, case, self._reach)
            return self._ways[case.protocol]

    def _one(self, case: SmokeCase) -> ProbeResult:
        way = self._way(case)
        answer = way.ask(case)
        if way is not self._http:
            answer.version = answer.version or self.version  # its application is asked by name
        problem = answer.broken if answer.unreachable else check.problem(case, self.version, answer)
        told = f"{case.name}: {way.request(case)}: {problem}" if problem else None
        return ProbeResult(case.name, answer.seconds, told, answer.unreachable, answer.value, answer.version, answer.first_s)


def _connect(model: str, case: SmokeCase, reach: Reach | None) -> Way:
    """What asks by gRPC or by handle. Raises an `InputError` that says what is missing for it, `Unreachable`."""
    what = f"smoke case {case.name}: protocol {case.protocol}"
    if reach is None:
        raise errors.RequestInvalid(f"{what}: it reaches one version's application, and which one is not known here")
    assert_askable([case])
    try:
        if case.protocol == "v2_grpc":
            return tensors.Grpc(reach.grpc(), model, reach.application)
        from kfp_components.probes.handle import Handle

        return Handle(reach.dashboard(), reach.ray_client(), reach.application)
    except errors.NotFound as error:
        where = "Serve's gRPC proxy" if case.protocol == "v2_grpc" else "the Ray head"
        raise errors.NotFound(f"{what}: where {where} is, is not known: {error}") from error


def _load(cases: Iterable[SmokeCase]) -> None:
    """Import in the caller's thread what the cases need: threads that import KServe's package at the same time get one that is half there."""
    for case in cases:
        if case.protocol == "v2_grpc" or case.binary:
            tensors.load(case.name, "v2_grpc" if case.protocol == "v2_grpc" else "binary")
            break
    if any(case.expect_text or case.expect_audio or case.expect_vectors for case in cases):
        import kfp_components.quality  # noqa: F401


def assert_askable(cases: Iterable[SmokeCase]) -> None:
    """Raise `RequestInvalid` for a case that cannot be sent from here: a package is missing, or its tensors contradict themselves."""
    for case in cases:
        if case.protocol == "v2_grpc" or case.binary:
            tensors.assert_installed(case.name, "v2_grpc" if case.protocol == "v2_grpc" else "binary")
            tensors.request("model", case)
        elif case.protocol == "handle":
            from kfp_components.probes import handle

            handle.assert_installed(case.name)
        if case.expect_text is not None and case.expect_text.max_wer is not None:
            from kfp_components.quality import asr

            asr.rates("a", "a")


def not_sent(case: SmokeCase, pace: SmokePace) -> ProbeResult:
    """The result of a case that was left when the budget was spent."""
    return ProbeResult(case.name, 0.0, f"{case.name}: not sent, the budget of {pace.budget_s:g} s for all cases was spent before")


def assert_passed(results: Iterable[ProbeResult], what: str) -> None:
    """Raise `SmokeFailed` with a line for each case that failed, the first ten; `Unreachable` when one could not be sent."""
    results = list(results)
    nobody = next((result.problem for result in results if result.unreachable), None)
    if nobody:
        raise errors.Unreachable(f"{what}: {nobody}")
    problems = [result.problem for result in results if result.problem]
    if problems:
        more = f"; and {len(problems) - TOLD_PROBLEMS} more" if len(problems) > TOLD_PROBLEMS else ""
        raise errors.SmokeFailed(f"{what}: {len(problems)} smoke case(s) failed: {'; '.join(problems[:TOLD_PROBLEMS])}{more}")


def health_cases(model: str, protocol: str) -> list[SmokeCase]:
    """The protocol's own health checks: for V2 live, ready and the model's ready; none for plain JSON."""
    if protocol != "v2":
        return []
    paths = ("/v2/health/live", "/v2/health/ready", f"/v2/models/{model}/ready")
    return [SmokeCase(name=path, path=path, method="GET") for path in paths]
