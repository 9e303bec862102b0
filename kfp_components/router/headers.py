"""Headers on their way to a version and back. Pure functions: what a version says in its own terms is told to the client in the public ones.

A version's application knows only its internal route, ``/.versions/m/v1``, and makes links of it. The client must come back by the public route,
which is the ``root_path`` that its request arrived at (``/m``, ``/v1``, or nothing at all for an application at ``/``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, unquote

from multidict import CIMultiDict

RawHeaders = Iterable[tuple[bytes, bytes]]

VERSION_HEADER = "x-model-version"
ROUTER_HEADER = "x-model-router"
"""On a request: the router that sends it on, by its application. On an answer with status 508: that router, which has met its own request."""

PREFIX_HEADER = "x-forwarded-prefix"
REQUEST_ID_HEADER = "x-request-id"

HOP_BY_HOP = {
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"),
    *("te", "trailer", "transfer-encoding", "upgrade"),
}
NOT_FORWARDED = HOP_BY_HOP | {"expect", ROUTER_HEADER, PREFIX_HEADER}
"""``expect`` was answered by the proxy that the request arrived at."""

NOT_ANSWERED = HOP_BY_HOP | {VERSION_HEADER, ROUTER_HEADER, "date", "server"}
"""``date`` and ``server`` are added to every answer by the proxy that the client talks to; those of the version's proxy would be a second one."""

SOCKET_HEADERS = {f"sec-websocket-{name}" for name in ("key", "version", "extensions", "protocol", "accept")}
"""Of one handshake; the one with the version is another."""

ABSOLUTE = re.compile(r"(?P<scheme>(?:https?|wss?):)?//(?P<host>[^/?#]*)(?P<path>[^?#]*)(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
RELATIVE = re.compile(r"(?P<path>/[^?#]*)(?P<rest>.*)", re.DOTALL)
REFRESH = re.compile(r"(?P<before>\s*[\d.]*\s*[;,]\s*(?:url\s*=\s*)?[\"']?)(?P<url>[^\"']+)(?P<after>[\"']?\s*)", re.IGNORECASE)
LINK = re.compile(r"<([^<>]*)>")
COOKIE_PATH = re.compile(r"(?P<before>;\s*path\s*=\s*)(?P<path>[^;]*)", re.IGNORECASE)


def header(headers: RawHeaders, name: str) -> str | None:
    """The first one of that (small) name."""
    wanted = name.encode()
    return next((value.decode("latin-1") for key, value in headers if key.lower() == wanted), None)


@dataclass(frozen=True)
class Prefixes:
    """What is told to a client instead of what: ``public`` instead of each of ``internal``; both without a slash at the end, ``public`` quoted.

    ``hosts`` are the names by which the client may have called this host (see `known_hosts`): an absolute URL of another one is left as it is.
    """

    internal: tuple[str, ...]
    public: str
    hosts: frozenset[str] = frozenset()

    @classmethod
    def of(cls, route: str, root_path: str, hosts: frozenset[str] = frozenset()) -> Prefixes:
        """For a version at ``route`` and a request that arrived at ``root_path``. Serve's own ``root_path`` option stands in front of both."""
        parts = root_path.strip("/").split("/") if root_path.strip("/") else []
        outer = ("/" + "/".join(parts[:length]) if length else "" for length in range(len(parts) + 1))
        return cls(tuple(before + route for before in outer), quote(root_path.rstrip("/")), hosts)

    def path(self, path: str) -> str | None:
        """The public one of an absolute path; None when it is not below an internal prefix."""
        for prefix in self.internal:
            rest = _below(path, prefix)
            if rest is not None:
                return self.public + rest or "/"
        return None

    def url(self, url: str) -> str:
        """The public one of a URL reference; as it is when it does not lead to the internal route."""
        absolute = ABSOLUTE.fullmatch(url)
        found = absolute or RELATIVE.fullmatch(url)
        if found is None or (absolute and _host(absolute["host"]) not in self.hosts):
            return url
        path = self.path(found["path"])
        if path is None:
            return url
        if absolute:
            return f"{absolute['scheme'] or ''}//{absolute['host']}{path}{absolute['rest']}"
        return f"{'/.' if path.startswith('//') else ''}{path}{found['rest']}"  # "//x" would be another host


def known_hosts(headers: RawHeaders, *others: str) -> frozenset[str]:
    """By which a request may have been meant for this host: ``host``, ``x-forwarded-host``, and others that are known."""
    told = (header(headers, "host") or "", *(header(headers, "x-forwarded-host") or "").split(","), *others)
    return frozenset(_host(name) for name in told if name.strip())


def forwarded(headers: RawHeaders, router: str, root_path: str) -> CIMultiDict[str]:
    """Of the request to the version, which learns who sends it on (``router``) and the public prefix that its own stands for."""
    found: CIMultiDict[str] = CIMultiDict()
    outer = ""
    for name, value in headers:
        key = name.decode("latin-1").lower()
        if key == PREFIX_HEADER:
            outer = value.decode("latin-1").rstrip("/")  # a gateway before Serve has taken something off
        if key not in NOT_FORWARDED:
            found.add(name.decode("latin-1"), value.decode("latin-1"))
    found[ROUTER_HEADER] = router
    found[PREFIX_HEADER] = outer + quote(root_path.rstrip("/")) or "/"
    return found


def answered(headers: RawHeaders, version: str, prefixes: Prefixes, request_id: str | None = None) -> list[tuple[bytes, bytes]]:
    """Of the answer to the client. ``request_id`` is that of the request: the version's proxy has added it, the client's does so again."""
    kept: list[tuple[bytes, bytes]] = []
    added = (REQUEST_ID_HEADER.encode(), (request_id or "").encode("latin-1"))
    for raw_name, value in headers:
        name = raw_name.lower()
        key = name.decode("latin-1")
        if key not in NOT_ANSWERED:
            change = REWRITTEN.get(key)
            kept.append((name, value if change is None else change(value.decode("latin-1"), prefixes).encode("latin-1")))
    if added in kept:
        kept.remove(added)
    return [*kept, (VERSION_HEADER.encode(), version.encode())]


def _location(value: str, prefixes: Prefixes) -> str:
    return prefixes.url(value.strip())


def _refresh(value: str, prefixes: Prefixes) -> str:
    found = REFRESH.fullmatch(value)
    return value if found is None else f"{found['before']}{prefixes.url(found['url'].strip())}{found['after']}"


def _link(value: str, prefixes: Prefixes) -> str:
    return LINK.sub(lambda found: f"<{prefixes.url(found[1].strip())}>", value)


def _set_cookie(value: str, prefixes: Prefixes) -> str:
    return COOKIE_PATH.sub(lambda found: f"{found['before']}{prefixes.path(found['path'].strip()) or found['path']}", value)


REWRITTEN = {"location": _location, "content-location": _location, "refresh": _refresh, "link": _link, "set-cookie": _set_cookie}


def _below(path: str, prefix: str) -> str | None:
    """What follows ``prefix`` in ``path``, segment by segment, however it is percent-encoded; None when it is not below it."""
    wanted = prefix.split("/")
    found = path.split("/", len(wanted))
    if len(found) < len(wanted) or any(unquote(one) != other for one, other in zip(found, wanted)):
        return None
    return f"/{found[-1]}" if len(found) > len(wanted) else ""


def _host(name: str) -> str:
    """Small, without the port that goes without saying."""
    return re.sub(r":(80|443)?$", "", name.strip().lower())
