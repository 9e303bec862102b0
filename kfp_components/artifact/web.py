"""``https://``, and ``http://`` where nobody is between: loopback and the names of the cluster itself.

Plain HTTP from elsewhere is not read even when a digest is given: the replicas read the same address again, and whoever is in between could give
them other bytes than these. A redirect to another host is followed, and told; never from https to http.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from kfp_components import uris
from kfp_components.artifact.content import CHUNK_BYTES, Away, File, Found, Missing, Reading, Unreadable

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 30.0
"""To connect, and between two pieces of an answer."""
MOST_HOPS = 5
REDIRECTS = (301, 302, 303, 307, 308)
LATER = (408, 425, 429)
CLUSTER_NAME = re.compile(r"[a-z0-9.-]+\.svc(\.cluster\.local)?\.?")


class NoConnection(Away):
    """Nobody listens there, or no TLS is spoken."""


def find(uri: str, reading: Reading) -> Found:
    """The one file; nothing is asked yet."""
    refuse_plain(uri)
    return Found((File("", None, partial(_chunks, uri, reading)),))


def _chunks(uri: str, reading: Reading) -> Iterator[bytes]:
    with answered(uri, {}, reading) as answer:
        refuse(answer)
        length = answer.headers.get("content-length", "")
        if length.isdecimal():
            reading.total_bytes = int(length)
            reading.fits(reading.total_bytes)
        yield from answer.iter_bytes(CHUNK_BYTES)


def refuse(answer: httpx.Response) -> None:
    """Raise what a status other than 200 means: `Missing`, `Unreadable` or `Away`."""
    status = answer.status_code
    if status in (404, 410):
        raise Missing(f"{_host(str(answer.url))} answers {status}: there is no such thing, or not for this identity")
    if status in LATER or status >= 500:
        raise Away(f"{_host(str(answer.url))} answers {status}")
    if status != 200:
        raise Unreadable(f"{_host(str(answer.url))} answers {status}")


@contextmanager
def answered(url: str, headers: Mapping[str, str], reading: Reading) -> Iterator[httpx.Response]:
    """The answer, still to be read; ``authorization`` goes to the first host only. Raises `Unreadable`, `Away`."""
    import httpx  # as in kfp_components.probes

    sent = {"accept-encoding": "identity", **headers}
    try:
        for _ in range(MOST_HOPS + 1):
            refuse_plain(url)
            secure = urlsplit(url).scheme == "https"
            # trust_env: as in traffic.router_source, but plain http is the cluster's own and asked directly. Without TLS no CAs need be loaded
            with httpx.Client(timeout=TIMEOUT_S, trust_env=secure, verify=secure) as client:
                with client.stream("GET", url, headers=sent) as answer:
                    if answer.status_code not in REDIRECTS or "location" not in answer.headers:
                        yield answer
                        return
                    there = _redirected(url, answer.headers["location"])
            if secure and urlsplit(there).scheme != "https":
                raise Unreadable(f"{_host(url)} redirects from https:// to {urlsplit(there).scheme}://, which is not followed")
            if _host(there) != _host(url):
                sent.pop("authorization", None)
                if _host(there) not in reading.via:
                    reading.via += (_host(there),)
            url = there
        raise Unreadable(f"it redirects more than {MOST_HOPS} times")
    except httpx.ConnectError as error:
        raise NoConnection(f"{_host(url)}: no answer ({error})") from error
    except (httpx.UnsupportedProtocol, httpx.DecodingError, httpx.InvalidURL, httpx.LocalProtocolError) as error:
        raise Unreadable(f"{_host(url)}: it cannot be read ({type(error).__name__}: {error})") from error
    except httpx.HTTPError as error:
        raise Away(f"{_host(url)}: no answer ({type(error).__name__}: {error})") from error
    except (OSError, ImportError) as error:  # SSL_CERT_FILE that is no such file, a SOCKS proxy without socksio
        raise Unreadable(f"it cannot be read here ({error})") from error


def _redirected(url: str, location: str) -> str:
    try:
        there = urljoin(url, location)
        _ = urlsplit(there).port
    except ValueError as error:
        raise Unreadable(f"{_host(url)} redirects to what is no address ({error})") from error
    return there


def refuse_plain(url: str) -> None:
    """Raise `Unreadable` for plain http to another machine outside the cluster, and for what is no address."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise Unreadable(f"it is no address ({error})") from error
    if parts.scheme == "http" and not (uris.is_loopback(host) or in_cluster(host)):
        raise Unreadable(
            f"http:// is not read from {host}: whoever is in between could change it for the replicas, which read it again; use https://"
        )


def in_cluster(host: str) -> bool:
    """Whether it is a Service's DNS name."""
    return CLUSTER_NAME.fullmatch(host) is not None


def _host(url: str) -> str:
    """With the port; never a user or a query, which may hold a secret."""
    return urlsplit(url).netloc.rpartition("@")[2]
