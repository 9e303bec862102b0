"""Kubeflow Model Registry: its REST API, as of Kubeflow 1.10 (v1alpha3) and newer (v1).

A registered model is ours by name, a version keeps its own name (``v7``) and has one model artifact with the URI. The server knows no aliases: they
are custom properties ``alias.champion`` ... of the registered model, which the UI shows, as it shows the version's.

Its Python client is not used: each release of it speaks one version of the API only, it is asynchronous, patches the event loop of a notebook, and
takes seconds to import. Its models check every body that goes either way in the tests.
"""

from __future__ import annotations

import base64
import os
import weakref
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from kfp_components import errors, uris
from kfp_components.registry import ALIASES, Alias, ModelVersion

if TYPE_CHECKING:
    import httpx

API_VERSIONS = ("v1", "v1alpha3")
"""Newest first; the first that the server answers is used."""

TOKEN_PATH = "KF_PIPELINES_SA_TOKEN_PATH"
"""Environment variable with the path of a token's file, as the registry's own client has it."""

LOGIN = f"name the file of a token in {TOKEN_PATH}, or correct the address"

UI = "KFP_SERVING_REGISTRY_UI"
"""Environment variable with the address that a browser shows for the registry's list of models. Nothing in the API says it."""

SERVICE_ACCOUNT_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"
DIGEST = "digest"
AUTHOR = "kfp-serving"
CONNECT_S, ANSWER_S = 5.0, 20.0
PAGE = 500
WILDCARDS = frozenset("_%\\")
"""The server looks a name up by SQL's LIKE, in which these mean something else."""


class KubeflowRegistry:
    """``kubeflow+http://host:port`` or ``kubeflow+https://host``."""

    def __init__(self, uri: str) -> None:
        """Nothing is sent yet. Raises `RequestInvalid` when the URI is none."""
        self.uri, self.shown = uri, uris.shown(uri)
        self._parts = _parts(uri, self.shown)
        scheme = self._parts.scheme.removeprefix("kubeflow+")
        self._base = f"{scheme}://{self._parts.netloc}{self._parts.path.rstrip('/')}/api/model_registry"

    def register(self, model: str, version: str, uri: str, *, digest: str | None, properties: Mapping[str, str]) -> ModelVersion:
        """Make the version known. The same again is idempotent; another URI or digest is refused with `NameTaken`.

        Three objects are made one after the other (model, version, artifact); killed in between, the same call makes the rest.
        """
        doing = f"registering {model} {version}"
        parent = self._model(model) or self._create("registered_models", {"name": model}, doing) or self._again(self._model(model), doing)
        entry = self._version(parent, version)
        if entry is None:
            told = {**properties, **({DIGEST: digest} if digest else {})}
            body = {"name": version, "registeredModelId": parent["id"], "author": AUTHOR, "customProperties": _custom(told)}
            entry = self._create("model_versions", body, doing) or self._again(self._version(parent, version), doing)
        artifact = self._artifact(entry)
        if artifact is None:
            path = f"model_versions/{entry['id']}/artifacts"
            artifact = self._create(path, _new_artifact(model, uri, properties), doing) or self._again(self._artifact(entry), doing)
        found = self._found(parent, entry, artifact)
        found.assert_same(uri, digest)
        if digest and found.digest is None:
            found = self._found(parent, self._add(entry, {DIGEST: digest}, doing), artifact)
        return found

    def find(self, model: str, version: str) -> ModelVersion | None:
        """The version, None when it is not registered (or only half: then `register` completes it)."""
        parent = self._model(model)
        entry = self._version(parent, version) if parent else None
        artifact = self._artifact(entry) if entry else None
        return self._found(parent, entry, artifact) if parent and entry and artifact else None

    def aliases(self, model: str) -> dict[str, str]:
        """Alias -> version."""
        told = _plain(self._model(model) or {})
        return {alias: told[_alias(alias)] for alias in ALIASES if told.get(_alias(alias))}

    def move(self, model: str, alias: Alias, version: str | None) -> None:
        """Point an alias at a version, or remove it; doing it twice is harmless.

        The server replaces all custom properties at once. They are read first; of two writers at the same moment the later one wins, and a release's
        Lease keeps a second writer of ours out.
        """
        parent = self._model(model)
        if version is not None and (parent is None or self._version(parent, version) is None):
            raise self._unknown(model, version)
        if parent is None:
            return  # nothing to remove
        known = _properties(parent)
        wanted = {key: value for key, value in known.items() if key != _alias(alias)}
        if version is not None:
            wanted |= _custom({_alias(alias): version})
        if wanted != known:
            self._ask("PATCH", f"registered_models/{parent['id']}", f"moving alias {alias} of {model}", json={"customProperties": wanted})

    def annotate(self, model: str, version: str, properties: Mapping[str, str]) -> None:
        """Add properties to a version. Values may be long (text columns; 4,000 characters are tested)."""
        parent = self._model(model)
        entry = self._version(parent, version) if parent else None
        if entry is None:
            raise self._unknown(model, version)
        self._add(entry, properties, f"annotating {model} {version}")

    def _model(self, model: str) -> dict[str, Any] | None:
        return self._named(model, "registered_model", {}, "registered_models", f"reading {model}")

    def _version(self, parent: Mapping[str, Any], version: str) -> dict[str, Any] | None:
        number, doing = parent["id"], f"reading {parent['name']} {version}"
        return self._named(version, "model_version", {"parentResourceId": number}, f"registered_models/{number}/versions", doing)

    def _artifact(self, entry: Mapping[str, Any]) -> dict[str, Any] | None:
        items = self._pages(f"model_versions/{entry['id']}/artifacts", f"reading the artifact of {entry['name']}")
        return next((item for item in items if item.get("artifactType") == "model-artifact"), None)

    def _named(self, name: str, path: str, within: dict[str, str], everything: str, doing: str) -> dict[str, Any] | None:
        """The object of exactly that name. The server takes a name as a pattern, finds others by it, and says 404 when it finds several."""
        found = self._ask("GET", path, doing, params={"name": name, **within})
        if found is not None and self._entity(found, doing)["name"] == name:
            return found
        if not WILDCARDS & set(name):
            return None
        return next((self._entity(item, doing) for item in self._pages(everything, doing) if item.get("name") == name), None)

    def _pages(self, path: str, doing: str) -> Iterator[dict[str, Any]]:
        token = ""
        while True:
            page = self._ask("GET", path, doing, params={"pageSize": PAGE, **({"nextPageToken": token} if token else {})}) or {}
            items, before = page.get("items") or [], token
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise self._something_else(doing)
            yield from items
            token = page.get("nextPageToken") or ""
            if token in ("", before):
                return

    def _create(self, path: str, body: dict[str, Any], doing: str) -> dict[str, Any] | None:
        """The new object, None when another process made it a moment before."""
        try:
            made = self._ask("POST", path, doing, json=body)
        except errors.Conflict:
            return None
        return self._entity(made or {}, doing)

    def _add(self, entry: dict[str, Any], properties: Mapping[str, str], doing: str) -> dict[str, Any]:
        wanted = {**_properties(entry), **_custom(properties)}
        changed = self._ask("PATCH", f"model_versions/{entry['id']}", doing, json={"customProperties": wanted})
        return self._entity(changed or {}, doing)

    def _again(self, found: dict[str, Any] | None, doing: str) -> dict[str, Any]:
        """What another process made. Not there under this name, it differs in a way that the database does not tell apart."""
        if found is None:
            raise errors.NameTaken(f"registry {self.shown}: {doing}: the name is taken by another spelling of it (upper and lower case?); use that")
        return found

    def _unknown(self, model: str, version: str) -> errors.NotFound:
        return errors.NotFound(f"model {model} version {version}: not registered at {self.shown}; register it first")

    def _found(self, parent: Mapping[str, Any], entry: Mapping[str, Any], artifact: Mapping[str, Any]) -> ModelVersion:
        told = _plain(entry)
        pages = os.environ.get(UI, "").rstrip("/")
        url = f"{pages}/registered-models/{parent['id']}/versions/{entry['id']}" if pages and not uris.credential_in(pages) else ""
        return ModelVersion(parent["name"], entry["name"], artifact.get("uri") or "", told.pop(DIGEST, None), told, url)

    def _entity(self, found: dict[str, Any], doing: str) -> dict[str, Any]:
        names = found.get("id"), found.get("name")
        if not (all(isinstance(name, str) for name in names) and isinstance(found.get("customProperties") or {}, dict)):
            raise self._something_else(doing)
        return found

    def _something_else(self, doing: str) -> errors.RequestInvalid:
        return errors.RequestInvalid(f"registry {self.shown}: {doing}: what answers there is not a Kubeflow Model Registry; correct the address")

    @cached_property
    def _http(self) -> httpx.Client:
        import httpx

        client = httpx.Client(timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S))
        weakref.finalize(self, client.close)
        return client

    @cached_property
    def _root(self) -> str:
        for version in API_VERSIONS:
            root, doing = f"{self._base}/{version}", "connecting"
            answer = self._send("GET", f"{root}/registered_models", doing, params={"pageSize": 1})
            if answer.status_code != 404:
                self._read(answer, doing)
                return root
        raise errors.RequestInvalid(
            f"registry {self.shown}: no Kubeflow Model Registry answers there (neither {' nor '.join(API_VERSIONS)}); correct the address"
        )

    def _ask(self, method: str, path: str, doing: str, **more: Any) -> dict[str, Any] | None:
        """The answer's body, None for "not found". Raises what `_send` and `_read` do, and `Conflict` when the object exists already."""
        answer = self._send(method, f"{self._root}/{path}", doing, **more)
        if answer.status_code == 409:
            raise errors.Conflict(f"registry {self.shown}: {doing}: {_said(answer)}; run it again")
        if answer.status_code != 404:
            return self._read(answer, doing)
        if method != "GET" or "message" not in self._read(answer, doing):  # a gateway's 404 says nothing about a model
            raise errors.Unreachable(f"registry {self.shown}: {doing}: {_said(answer)}; is it running?")
        return None

    def _send(self, method: str, url: str, doing: str, **more: Any) -> httpx.Response:
        """The answer, when it is a success, 404 or 409. The token is read anew each time: what Kubernetes puts into that file changes."""
        import httpx

        headers = {"accept": "application/json"}
        if token := token_for(self._parts, self.shown):
            headers["authorization"] = f"Bearer {token}"
        try:
            answer = self._http.request(method, url, headers=headers, **more)
        except httpx.HTTPError as error:
            raise errors.Unreachable(f"registry {self.shown}: {doing}: {type(error).__name__}: {error}; is it running?") from error
        except httpx.InvalidURL as error:
            raise errors.RequestInvalid(f"registry {self.shown}: {doing}: {error}; correct the address") from error
        status = answer.status_code
        if status in (401, 403) or answer.has_redirect_location:
            asked = f"{status}, go to {_place(answer)}" if answer.has_redirect_location else _said(answer)
            raise errors.PermissionDenied(f"registry {self.shown}: {doing}: {asked}; {LOGIN}")
        if status in (408, 429) or status >= 500:
            raise errors.Unreachable(f"registry {self.shown}: {doing}: {_said(answer)}; is it running?")
        if not answer.is_success and status not in (404, 409):
            raise errors.RequestInvalid(f"registry {self.shown}: {doing}: {_said(answer)}")
        return answer

    def _read(self, answer: httpx.Response, doing: str) -> dict[str, Any]:
        """The JSON object that it is. A page instead is a login, other text a proxy that is not well, other JSON another server."""
        if answer.is_success and "html" in answer.headers.get("content-type", ""):
            raise errors.PermissionDenied(f"registry {self.shown}: {doing}: a web page answers, probably a login; {LOGIN}")
        try:
            found = answer.json()
        except ValueError as error:
            raise errors.Unreachable(f"registry {self.shown}: {doing}: the answer is not JSON: {_said(answer)}; is it running?") from error
        if not isinstance(found, dict):
            raise self._something_else(doing)
        return found


def _parts(uri: str, shown: str) -> SplitResult:
    """Raises `RequestInvalid` unless it is a scheme of ours, a host and perhaps a port and a path."""
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as error:
        raise errors.RequestInvalid(f"registry {shown}: {error}; write kubeflow+https://host or kubeflow+http://host:port") from error
    if not parts.hostname or parts.query or parts.fragment:
        raise errors.RequestInvalid(f"registry {shown}: it is an address with a host and without a query; write kubeflow+https://host")
    return parts


def token_for(parts: SplitResult, shown: str) -> str | None:
    """The token whose file the environment names, not over plain HTTP through foreign networks; else the pod's own, to cluster-local hosts only.

    Raises `RequestInvalid` when it may not go there, or when its file holds none.
    """
    host, named = parts.hostname or "", os.environ.get(TOKEN_PATH)
    in_cluster = host.endswith((".svc", ".svc.cluster.local"))
    if not named and not (in_cluster and Path(SERVICE_ACCOUNT_TOKEN).exists()):
        return None
    if named and parts.scheme.endswith("+http") and not in_cluster and not uris.is_loopback(host):
        raise errors.RequestInvalid(
            f"registry {shown}: the token of {TOKEN_PATH} does not go over plain HTTP to {host}; use kubeflow+https://, or its name ending in .svc"
        )
    path = named or SERVICE_ACCOUNT_TOKEN
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.RequestInvalid(f"registry {shown}: the token's file {path} cannot be read: {type(error).__name__}; see {TOKEN_PATH}") from error
    if not token.isascii() or len(token.split()) != 1:
        raise errors.RequestInvalid(f"registry {shown}: the token's file {path} holds no token; see {TOKEN_PATH}")
    return token


def _alias(alias: str) -> str:
    return f"alias.{alias}"


def _new_artifact(model: str, uri: str, properties: Mapping[str, str]) -> dict[str, Any]:
    """The artifact of a version. Where a pipeline run registers it, that run is its source."""
    body = {"artifactType": "model-artifact", "name": model, "uri": uri}
    if model_format := properties.get("model_format"):
        body["modelFormatName"] = model_format
    if run := properties.get("kfp_run_id"):
        body |= {"modelSourceKind": "kfp", "modelSourceClass": "pipelinerun", "modelSourceId": run, "modelSourceName": model}
    return body


def _custom(properties: Mapping[str, str]) -> dict[str, Any]:
    return {key: {"metadataType": "MetadataStringValue", "string_value": value} for key, value in properties.items()}


def _properties(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Custom properties as the server takes them. It wants structures in base64 and gives them back as JSON (v0.3.10)."""
    return {key: _as_taken(value) if isinstance(value, dict) else value for key, value in (entry.get("customProperties") or {}).items()}


def _as_taken(value: dict[str, Any]) -> dict[str, Any]:
    structure = value.get("struct_value")
    if not isinstance(structure, str) or not structure.startswith("{"):
        return value
    return {**value, "struct_value": base64.b64encode(structure.encode()).decode()}


def _plain(entry: Mapping[str, Any]) -> dict[str, str]:
    """Custom properties as strings; those of other types (numbers, booleans) in the form that they were sent in, structures left out."""
    return {
        key: str(next(inner for name, inner in value.items() if name.endswith("_value")))
        for key, value in _properties(entry).items()
        if isinstance(value, dict) and value.keys() & {"string_value", "int_value", "double_value", "bool_value"}
    }


def _said(answer: httpx.Response) -> str:
    try:
        message = answer.json()["message"]
    except (ValueError, KeyError, TypeError):
        message = answer.text
    return f"{answer.status_code} {' '.join(str(message).split())[:300]}".strip()


def _place(answer: httpx.Response) -> str:
    """Where a redirect leads, without its query, which holds what a login hands over."""
    parts = urlsplit(answer.headers["location"])
    return f"{parts.scheme}://{parts.hostname}{parts.path}" if parts.hostname else parts.path
