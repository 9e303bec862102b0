"""MLflow as the registry: a tracking server, or an sqlite file as the embedded default.

MLflow numbers versions by itself; ours (``v7``) is a tag, and the two are matched here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from kfp_components import errors, uris
from kfp_components.registry import Alias, ModelVersion

VERSION_TAG = "kfp_serving.version"
SQLITE = "sqlite:///"
DIGEST_TAG = "kfp_serving.digest"
PAGE = 1000
"""Versions asked for at once; MLflow's own default is 10,000, and more than that are pages too."""


class MlflowRegistry:
    """Models are named ``{namespace}.{model}`` by the caller; MLflow forbids ``/`` and ``:`` in names."""

    def __init__(self, uri: str) -> None:
        """Nothing is sent yet."""
        self.uri, self.shown = uri, uris.shown(uri)

    @cached_property
    def _client(self) -> Any:
        """MLflow's client, made at first use: its import takes seconds, and most steps of a release do not ask the registry."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # MLflow's 7 take minutes to say that nobody answers,
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # and its 120 s, three times, hold up the end of a release
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise errors.RequestInvalid(f"registry {self.shown}: MLflow is not installed; install kfp-serving-components[mlflow]") from error
        if self.uri.startswith(SQLITE) and not Path(self.uri.removeprefix(SQLITE).partition("?")[0] or ".").parent.is_dir():
            raise errors.RequestInvalid(f"registry {self.shown}: the folder of that file does not exist, and MLflow would make one; correct the path")
        for name in ("mlflow", "mlflow.store.db.utils", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def register(self, model: str, version: str, uri: str, *, digest: str | None, properties: Mapping[str, str]) -> ModelVersion:
        """Make the version known. The same again is idempotent; another URI or digest is refused with `NameTaken`."""
        found = self.find(model, version)
        if found is not None:
            found.assert_same(uri, digest)
            if digest and found.digest is None:
                self.annotate(model, version, {DIGEST_TAG: digest})
                found = replace(found, digest=digest)
            return found
        tags = {**properties, VERSION_TAG: version, **({DIGEST_TAG: digest} if digest else {})}
        with self._mapped(f"registering {model} {version}", exists_ok=True):
            self._client.create_registered_model(model)
        with self._mapped(f"registering {model} {version}"):
            made = self._client.create_model_version(model, source=uri, tags=tags)
        return self._found(made)

    def find(self, model: str, version: str) -> ModelVersion | None:
        """The version, None when it is not registered."""
        found = self._entry(model, version)
        return None if found is None else self._found(found)

    def aliases(self, model: str) -> dict[str, str]:
        """Alias -> version."""
        entries = {str(entry.version): entry for entry in self._entries(model)}
        if not entries:
            return {}
        with self._mapped(f"reading the aliases of {model}"):
            numbers = self._client.get_registered_model(model).aliases
        return {alias: entries[str(number)].tags[VERSION_TAG] for alias, number in numbers.items() if str(number) in entries}

    def move(self, model: str, alias: Alias, version: str | None) -> None:
        """Point an alias at a version, or remove it; doing it twice is harmless."""
        if version is None:
            if alias in self.aliases(model):
                with self._mapped(f"removing alias {alias} of {model}"):
                    self._client.delete_registered_model_alias(model, alias)
            return
        entry = self._required(model, version)
        with self._mapped(f"moving alias {alias} of {model}"):
            self._client.set_registered_model_alias(model, alias, entry.version)

    def annotate(self, model: str, version: str, properties: Mapping[str, str]) -> None:
        """Add properties to a version."""
        entry = self._required(model, version)
        with self._mapped(f"annotating {model} {version}"):
            for key, value in properties.items():
                self._client.set_model_version_tag(model, entry.version, key, value)

    def _required(self, model: str, version: str) -> Any:
        entry = self._entry(model, version)
        if entry is None:
            raise errors.NotFound(f"model {model} version {version}: not registered at {self.shown}; register it first")
        return entry

    def _entry(self, model: str, version: str) -> Any | None:
        return next((entry for entry in self._entries(model) if entry.tags.get(VERSION_TAG) == version), None)

    def _entries(self, model: str) -> list[Any]:
        found: list[Any] = []
        token: str | None = ""
        with self._mapped(f"reading the versions of {model}"):
            while token is not None:
                page = self._client.search_model_versions(f"name='{model}'", max_results=PAGE, page_token=token or None)
                found += [entry for entry in page if VERSION_TAG in entry.tags]
                token = page.token or None
        return found

    def _found(self, entry: Any) -> ModelVersion:
        tags = dict(entry.tags)
        return ModelVersion(entry.name, tags.pop(VERSION_TAG), entry.source, tags.pop(DIGEST_TAG, None), tags, self._page(entry))

    def _page(self, entry: Any) -> str:
        """The version's page on a tracking server; an sqlite file has none. A user and a password before the host are left out."""
        parts = urlsplit(self.uri)
        if parts.scheme not in ("http", "https"):
            return ""
        base = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
        return f"{base}/#/models/{quote(entry.name, safe='')}/versions/{entry.version}"

    def _told(self, error: Exception) -> str:
        """MLflow's words, which may hold the URI and so what stands before its host."""
        message = str(getattr(error, "message", error))
        return message.replace(self.uri.rstrip("/"), self.shown.rstrip("/")) if self.shown != self.uri else message

    @contextmanager
    def _mapped(self, doing: str, exists_ok: bool = False) -> Iterator[None]:
        try:
            self._client  # noqa: B018  without MLflow this says so
            from mlflow.exceptions import MlflowException
        except errors.KfpServingError:
            raise
        except Exception as error:  # of SQLAlchemy, for a file that is no database; ValueError, for what is no address
            raise self._none(doing, error) from error
        try:
            yield
        except MlflowException as error:
            if exists_ok and error.error_code == "RESOURCE_ALREADY_EXISTS":
                return
            if error.error_code in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
                raise errors.PermissionDenied(f"registry {self.shown}: {doing}: {self._told(error)}") from error
            if error.error_code == "INVALID_PARAMETER_VALUE":
                raise errors.RequestInvalid(f"registry {self.shown}: {doing}: {self._told(error)}") from error
            raise errors.Unreachable(f"registry {self.shown}: {doing}: {self._told(error)[:300]}; is it running?") from error
        except errors.KfpServingError:
            raise
        except Exception as error:  # what answers there has other answers than MLflow's: protobuf's and JSON's errors
            raise self._none(doing, error) from error

    def _none(self, doing: str, error: Exception) -> errors.RequestInvalid:
        told = f"{type(error).__name__}: {' '.join(self._told(error).split())[:200]}"
        return errors.RequestInvalid(f"registry {self.shown}: {doing}: no MLflow is there ({told}); correct the address")
