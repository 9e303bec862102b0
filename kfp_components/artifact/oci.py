"""``oci://``: the manifest or image index that a reference names, as its registry serves it, hashed. No layer is read: the manifest pins them.

By httpx, because what counts are the bytes of the answer: oras-py gives a manifest parsed, after which nobody can tell its digest, and no index.
Credentials are those that docker's ``config.json`` holds (in the folder DOCKER_CONFIG, else ``~/.docker``); helpers that it names are not run.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit
from urllib.request import parse_http_list, parse_keqv_list

from kfp_components import uris
from kfp_components.artifact import web
from kfp_components.artifact.content import File, Found, Reading, Unreadable

if TYPE_CHECKING:
    import httpx

MEDIA_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MOST_BYTES = 4 << 20
"""Of a manifest: what registries have to take, by the distribution specification."""

DOCKER_HUB, DOCKER_HUB_API = "docker.io", "registry-1.docker.io"
COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
REFERENCE = re.compile(rf"(?P<name>{COMPONENT}(?:/{COMPONENT})*)(?::(?P<tag>\w[\w.-]{{0,127}}))?(?:@(?P<digest>sha256:[0-9a-f]{{64}}))?", re.ASCII)


@dataclass(frozen=True)
class Reference:
    """What a URI names: ``registry`` with its port, and ``reference``, a digest or a tag."""

    registry: str
    repository: str
    reference: str

    @property
    def urls(self) -> tuple[str, ...]:
        """Where its manifest is. A Service's registry often speaks no TLS, so http is tried where nobody answers https; on loopback it is http."""
        host = urlsplit(f"//{self.registry}").hostname or ""
        schemes = ("http",) if uris.is_loopback(host) else ("https", "http") if web.in_cluster(host) else ("https",)
        api = DOCKER_HUB_API if self.registry == DOCKER_HUB else self.registry
        return tuple(f"{scheme}://{api}/v2/{self.repository}/manifests/{self.reference}" for scheme in schemes)


def parse(uri: str) -> Reference:
    """As docker reads it: without a registry it is Docker Hub's, without tag or digest ``latest``. A digest counts before a tag."""
    rest = uri.partition("://")[2]
    first, slash, name = rest.partition("/")
    if not slash or not (re.search(r"[.:]", first) or first == "localhost"):
        first, name = DOCKER_HUB, rest if slash else f"library/{rest}"
    found = REFERENCE.fullmatch(name)
    if found is None:
        raise Unreadable("it names no artifact: write oci://registry/name:tag or oci://registry/name@sha256:...")
    return Reference(first, found["name"], found["digest"] or found["tag"] or "latest")


def find(uri: str, reading: Reading) -> Found:
    """The manifest, as one file. Raises `Missing`, `Unreadable`, `Away`."""
    content = _manifest(parse(uri), reading)
    return Found((File("", len(content), lambda: iter((content,))),))


def _manifest(wanted: Reference, reading: Reading) -> bytes:
    *others, last = wanted.urls
    for url in others:
        try:
            return _asked(url, wanted, reading)
        except web.NoConnection:
            continue
    return _asked(last, wanted, reading)


def _asked(url: str, wanted: Reference, reading: Reading) -> bytes:
    headers = {"accept": ", ".join(MEDIA_TYPES)}
    with web.answered(url, headers, reading) as answer:
        if answer.status_code != 401:
            return _body(answer, MOST_BYTES)
        challenge = answer.headers.get("www-authenticate", "")
    authorization = _authorization(challenge, wanted, reading)
    with web.answered(url, {**headers, "authorization": authorization}, reading) as answer:
        if answer.status_code in (401, 403):
            raise Unreadable(f"{wanted.registry} answers {answer.status_code}: {_whose(wanted.registry)} may not read {wanted.repository}")
        return _body(answer, MOST_BYTES)


def _authorization(challenge: str, wanted: Reference, reading: Reading) -> str:
    """What the registry wants to see: the credentials themselves, or a token that another server gives for them, or to anybody."""
    kind, _, rest = challenge.partition(" ")
    known = credentials(wanted.registry)
    if kind.lower() == "basic" and known:
        return f"Basic {known}"
    told = parse_keqv_list([item for item in parse_http_list(rest) if "=" in item])
    if kind.lower() != "bearer" or "realm" not in told:
        raise Unreadable(f"{wanted.registry} wants credentials, and {_whose(wanted.registry)} is not enough")
    query = urlencode({"service": told.get("service", ""), "scope": told.get("scope", f"repository:{wanted.repository}:pull")})
    url = told["realm"] + ("&" if "?" in told["realm"] else "?") + query
    with web.answered(url, {"authorization": f"Basic {known}"} if known else {}, reading) as answer:
        if answer.status_code in (401, 403):
            raise Unreadable(f"{wanted.registry} gives no token to {_whose(wanted.registry)}")
        found = _json(_body(answer, MOST_BYTES))
    token = found.get("token") or found.get("access_token")
    if not isinstance(token, str):
        raise Unreadable(f"{wanted.registry} gives no token")
    return f"Bearer {token}"


def _body(answer: httpx.Response, most_bytes: int) -> bytes:
    web.refuse(answer)
    content = bytearray()
    for chunk in answer.iter_bytes():
        content += chunk
        if len(content) > most_bytes:
            raise Unreadable(f"the answer is longer than {most_bytes >> 20} MiB, which no manifest is")
    return bytes(content)


def _whose(registry: str) -> str:
    return "what docker's config.json says for it" if credentials(registry) else "anybody, without credentials in docker's config.json,"


def credentials(registry: str) -> str | None:
    """What docker's ``config.json`` holds for a registry, as HTTP's Basic wants it; None where it holds nothing. Raises `Unreadable`."""
    try:
        file = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
        entries = _json(file.read_bytes()).get("auths")
    except (FileNotFoundError, RuntimeError):  # no such file, no home
        return None
    except (OSError, Unreadable) as error:
        raise Unreadable(f"docker's config.json cannot be read ({type(error).__name__})") from None
    names = {registry, "index.docker.io", DOCKER_HUB_API} if registry == DOCKER_HUB else {registry}
    for key, entry in (entries if isinstance(entries, dict) else {}).items():
        host = (urlsplit(key) if "://" in key else urlsplit(f"//{key}")).netloc
        if host in names and isinstance(entry, dict):
            return _basic(entry)
    return None


def _basic(entry: dict[str, Any]) -> str | None:
    if isinstance(entry.get("auth"), str) and entry["auth"]:
        try:
            return base64.b64encode(base64.b64decode(entry["auth"], validate=True)).decode()
        except (binascii.Error, ValueError):
            raise Unreadable("docker's config.json holds credentials that are not base64") from None
    if entry.get("username") and entry.get("password"):
        return base64.b64encode(f"{entry['username']}:{entry['password']}".encode()).decode()
    return None


def _json(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        raise Unreadable("what should be JSON is none") from None
    return found if isinstance(found, dict) else {}
