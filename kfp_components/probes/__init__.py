"""Smoke inference: requests with expected answers, sent through the alias, as clients send them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kfp_components import errors, names
from kfp_components.cluster import Endpoint
from kfp_components.request import SmokeCase

if TYPE_CHECKING:
    import httpx

EXCERPT_CHARACTERS = 300


@dataclass(frozen=True)
class ProbeResult:
    """What one case gave. ``problem`` is None when all was as expected, else one line: request, answer, what was expected.

    ``unreachable``: nobody was there to answer, which says nothing about the version. ``value`` is what assertions read of the answer, parsed JSON,
    text or bytes by its content type; None without one. ``version`` is the one that the answer says it is from.
    """

    case: str
    seconds: float
    problem: str | None
    unreachable: bool = False
    value: Any = None
    version: str | None = None


class Prober:
    """Sends cases to one model through its alias: to the route prefix ``prefix``, which is the public one or a version's own.

    With ``version`` each request is pinned to it, where the router has that route: an answer that does not say it is of that version is a problem.
    """

    def __init__(
        self, endpoint: Endpoint, model: str, prefix: str, transport: httpx.BaseTransport | None = None, *, version: str | None = None
    ) -> None:
        self.endpoint = endpoint
        self.model = model
        self.prefix = prefix
        self.version = version
        import httpx  # its import brings rich and click: a step that sends nothing need not pay for it

        self._errors = ((httpx.ConnectError, httpx.ConnectTimeout), httpx.TimeoutException, httpx.HTTPError)
        verify = endpoint.base_url.startswith("https:")  # else the certificates would be loaded for nothing, which takes longer than all else
        headers = {"host": endpoint.host} | ({names.VERSION_HEADER: version} if version else {})
        self._client = httpx.Client(base_url=endpoint.base_url, headers=headers, trust_env=False, transport=transport, verify=verify)

    def __enter__(self) -> Prober:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._client.close()

    def run(self, cases: Iterable[SmokeCase]) -> list[ProbeResult]:
        """Send every case. Never raises for a bad answer."""
        return [self._one(case) for case in cases]

    def version_that_answers(self, case: SmokeCase) -> str | None:
        """Who answers such a request; None when nobody does or the server does not say."""
        path = self.prefix + PROTOCOLS[case.protocol](case, self.model)
        try:
            answer = self._client.request(case.method, path, timeout=case.timeout_s)
        except self._errors[2]:
            return None
        told: str | None = answer.headers.get(names.VERSION_HEADER)
        return told

    def _one(self, case: SmokeCase) -> ProbeResult:
        path = self.prefix + PROTOCOLS[case.protocol](case, self.model)
        sent = f"{case.name}: {case.method} {path}"
        try:
            answer = self._client.request(case.method, path, json=case.body if case.method == "POST" else None, timeout=case.timeout_s)
        except self._errors[0] as error:
            told = f"{sent}: {self.endpoint.base_url} cannot be reached ({' -> '.join(self.endpoint.path)}): {error}"
            return ProbeResult(case.name, 0.0, told, unreachable=True)
        except self._errors[1]:
            return ProbeResult(case.name, case.timeout_s, f"{sent}: no whole answer within {case.timeout_s:g} s")
        except self._errors[2] as error:
            return ProbeResult(case.name, 0.0, f"{sent}: {type(error).__name__}: {error}")
        value, told = _value(answer), answer.headers.get(names.VERSION_HEADER)
        problem = _problem(case, sent, answer, value)
        if problem is None and self.version not in (None, told):
            problem = f"{sent}: asked for version {self.version}, and {told or 'a server that does not say its version'} answered"
        return ProbeResult(case.name, answer.elapsed.total_seconds(), problem, value=value, version=told)


def assert_passed(results: Iterable[ProbeResult], what: str) -> None:
    """Raise `SmokeFailed` with a line for each case that failed; `Unreachable` when one could not be sent."""
    results = list(results)
    nobody = next((result.problem for result in results if result.unreachable), None)
    if nobody:
        raise errors.Unreachable(f"{what}: {nobody}")
    problems = [result.problem for result in results if result.problem]
    if problems:
        raise errors.SmokeFailed(f"{what}: {len(problems)} smoke case(s) failed: " + "; ".join(problems))


def health_cases(model: str, protocol: str) -> list[SmokeCase]:
    """The protocol's own health checks: for V2 live, ready and the model's ready; none for plain JSON."""
    if protocol != "v2":
        return []
    paths = ("/v2/health/live", "/v2/health/ready", f"/v2/models/{model}/ready")
    return [SmokeCase(name=path, path=path, method="GET") for path in paths]


PROTOCOLS: Mapping[str, Callable[[SmokeCase, str], str]] = {
    "json": lambda case, _model: case.path,
    "v2": lambda _case, model: f"/v2/models/{model}/infer",
}
"""Protocol -> path below the public route."""


def _value(answer: httpx.Response) -> Any:
    """Parsed JSON, text or bytes, by what the answer says it is; JSON where it says nothing, if it is any."""
    kind = answer.headers.get("content-type", "").lower()
    if not kind or "json" in kind:
        try:
            return answer.json()
        except (ValueError, RecursionError):  # text that is no JSON, bytes that are no text, numbers and depths beyond reason
            pass
    return answer.content if kind and not kind.startswith("text/") and "json" not in kind else answer.text


def _problem(case: SmokeCase, sent: str, answer: httpx.Response, value: Any) -> str | None:
    excerpt = answer.text[:EXCERPT_CHARACTERS]
    if answer.status_code != case.expect_status:
        return f"{sent}: expected status {case.expect_status}, got {answer.status_code}: {excerpt}"
    if not case.expect and not case.expect_shape:
        return None
    body = value
    if isinstance(value, str | bytes):
        try:
            body = answer.json()
        except (ValueError, RecursionError):
            return f"{sent}: expected JSON, got {excerpt!r}"
    for pointer, wanted in case.expect.items():
        found = resolve(body, pointer)
        if not matches(found, wanted, case.tolerance):
            return f"{sent}: expected {pointer} = {_short(wanted)} (tolerance {case.tolerance:g}), got {_short(found)}"
    for pointer, lengths in case.expect_shape.items():
        found_shape = shape(resolve(body, pointer))
        if found_shape != lengths:
            return f"{sent}: expected {pointer} of shape {lengths}, got {found_shape}"
    return None


class _Missing:
    def __repr__(self) -> str:
        return "nothing there"


MISSING = _Missing()


def resolve(body: Any, pointer: str) -> Any:
    """The value at a JSON pointer (RFC 6901), `MISSING` when there is none."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(body, list) and key.isascii() and key.isdecimal() and int(key) < len(body):
            body = body[int(key)]
        elif isinstance(body, dict) and key in body:
            body = body[key]
        else:
            return MISSING
    return body


def matches(found: Any, wanted: Any, tolerance: float) -> bool:
    """Equal, with ``tolerance`` (absolute) for numbers; a wanted dict may hold fewer keys; lists match element by element."""
    if isinstance(wanted, bool) or isinstance(found, bool):
        return found is wanted
    if isinstance(wanted, int | float) and isinstance(found, int | float):
        try:
            return abs(found - wanted) <= tolerance
        except OverflowError:  # an integer beyond every float
            return found == wanted
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(key in found and matches(found[key], item, tolerance) for key, item in wanted.items())
    if isinstance(wanted, list):
        same_length = isinstance(found, list) and len(found) == len(wanted)
        return same_length and all(matches(a, b, tolerance) for a, b in zip(found, wanted, strict=True))
    return bool(found == wanted)


def shape(value: Any) -> list[int]:
    """Lengths of nested lists: [] for a scalar, [2, 3] for two lists of three."""
    lengths = []
    while isinstance(value, list):
        lengths.append(len(value))
        value = value[0] if value else None
    return lengths


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
