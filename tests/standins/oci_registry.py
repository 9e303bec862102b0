"""A stand-in for a registry of the OCI distribution specification: blobs pushed whole, manifests by tag and digest, and the bearer token dance.

A manifest is served as it was put, byte for byte, to whoever accepts its media type. With ``token`` it asks for a bearer token, which it gives itself
at ``/token``: to anybody for ``public`` repositories, else for the credentials in ``users``. With ``basic`` it wants those themselves.
What it does not do: chunked uploads, mounts, catalogues, deletion, checks of what a manifest refers to, and lifetimes of tokens.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from standins.loopback import Answering, served


@dataclass
class Registry:
    """What it holds: repository -> tag or digest -> media type and bytes. ``answers`` are statuses given before anything else, one a request."""

    host: str = ""
    manifests: dict[str, dict[str, tuple[str, bytes]]] = field(default_factory=dict)
    auth: str = "none"
    users: set[str] = field(default_factory=set)
    public: set[str] = field(default_factory=set)
    answers: list[int] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)


@contextmanager
def running() -> Iterator[Registry]:
    registry = Registry()

    class Handler(Answering):
        def do_GET(self) -> None:
            self._route()

        def do_POST(self) -> None:
            self._route()

        def do_PUT(self) -> None:
            self._route()

        def _route(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            parts = urlsplit(self.path)
            kind = (self.headers.get("authorization") or "nobody").split()[0]
            registry.seen.append(f"{self.command} {parts.path} as {kind}")
            if registry.answers:
                return self._error(registry.answers.pop(0), "UNKNOWN")
            if parts.path == "/token":
                return self._token(parse_qs(parts.query))
            upload = re.fullmatch(r"/v2/(.+)/blobs/uploads/", parts.path)
            manifest = re.fullmatch(r"/v2/(.+)/manifests/([^/]+)", parts.path)
            if upload:
                return self.answer(202 if self.command == "POST" else 201, b"", "text/plain", Location=parts.path)
            if manifest is None:
                return self._error(404, "UNSUPPORTED")
            repository, reference = manifest.groups()
            if self.command == "PUT":
                return self._keep(repository, reference, body)
            if not self._allowed(repository):
                return None
            kind, content = registry.manifests.get(repository, {}).get(reference, ("", b""))
            if not kind or kind not in (self.headers.get("accept") or ""):
                return self._error(404, "MANIFEST_UNKNOWN")
            return self.answer(200, content, kind)

        def _keep(self, repository: str, reference: str, body: bytes) -> None:
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
            kept = registry.manifests.setdefault(repository, {})
            kept[reference] = kept[digest] = (self.headers["content-type"], body)
            self.answer(201, b"", "text/plain")

        def _allowed(self, repository: str) -> bool:
            given = self.headers.get("authorization", "")
            scope = f"repository:{repository}:pull"
            wanted = {
                "none": given,
                "token": "Bearer " + base64.b64encode(scope.encode()).decode(),
                "basic": given if self._user() in registry.users else "Basic of somebody known",
            }[registry.auth]
            if given == wanted:
                return True
            bearer = f'Bearer realm="http://{registry.host}/token",service="{registry.host}",scope="{scope}"'
            self._error(401, "UNAUTHORIZED", **{"WWW-Authenticate": bearer if registry.auth == "token" else 'Basic realm="here"'})
            return False

        def _user(self) -> str:
            given = self.headers.get("authorization", "")
            return base64.b64decode(given.removeprefix("Basic ")).decode() if given.startswith("Basic ") else ""

        def _token(self, query: dict[str, list[str]]) -> None:
            scope = query.get("scope", [""])[0]
            repository = scope.removeprefix("repository:").removesuffix(":pull")
            if query.get("service") != [registry.host] or not (repository in registry.public or self._user() in registry.users):
                return self._error(401, "UNAUTHORIZED")
            return self.answer(200, json.dumps({"token": base64.b64encode(scope.encode()).decode()}).encode(), "application/json")

        def _error(self, status: int, code: str, **headers: str) -> None:
            self.answer(status, json.dumps({"errors": [{"code": code}]}).encode(), "application/json", **headers)

    with served(Handler) as address:
        registry.host = address
        yield registry
