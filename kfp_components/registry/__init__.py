"""Model registries: versions with their provenance, and the aliases champion, candidate and previous, which move with the traffic."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, get_args
from urllib.parse import urlsplit

from kfp_components import errors, uris

Alias = Literal["champion", "candidate", "previous"]
ALIASES: tuple[Alias, ...] = get_args(Alias)


@dataclass(frozen=True)
class ModelVersion:
    """One registered version. ``properties`` are strings; ``url`` is where a person can look at it ("" when there is no page)."""

    model: str
    version: str
    uri: str
    digest: str | None
    properties: Mapping[str, str]
    url: str = ""

    def assert_same(self, uri: str, digest: str | None) -> None:
        """Raise `NameTaken` when the version is another artifact than the one given: another URI, or another digest where both say one."""
        if self.uri != uri or (digest and self.digest and digest != self.digest):
            raise errors.NameTaken(
                f"model {self.model} version {self.version}: registered with {uris.shown(self.uri)} ({self.digest or 'no digest'}), "
                f"not with {uri} ({digest or 'no digest'}); give the new artifact a new version"
            )


class ModelRegistry(Protocol):
    """Five verbs. Every method raises `Unreachable` when the registry does not answer."""

    def register(self, model: str, version: str, uri: str, *, digest: str | None, properties: Mapping[str, str]) -> ModelVersion:
        """Make the version known. The same again is idempotent; another URI or digest is refused with `NameTaken`.

        A digest that was not known is added. Killed in between, the same call does the rest.
        """

    def find(self, model: str, version: str) -> ModelVersion | None:
        """The version, None when it is not registered."""

    def aliases(self, model: str) -> dict[str, str]:
        """Alias -> version."""

    def move(self, model: str, alias: Alias, version: str | None) -> None:
        """Point an alias at a version, or remove it; doing it twice is harmless."""

    def annotate(self, model: str, version: str, properties: Mapping[str, str]) -> None:
        """Add properties (verdict, evidence, report) to a version."""


def _mlflow(uri: str) -> ModelRegistry:
    from kfp_components.registry.mlflow import MlflowRegistry

    return MlflowRegistry(uri)


def _kubeflow(uri: str) -> ModelRegistry:
    from kfp_components.registry.kubeflow import KubeflowRegistry

    return KubeflowRegistry(uri)


REGISTRIES: Mapping[str, Callable[[str], ModelRegistry]] = {
    "sqlite": _mlflow,
    "http": _mlflow,
    "https": _mlflow,
    "kubeflow+http": _kubeflow,
    "kubeflow+https": _kubeflow,
}
"""URI scheme -> how to connect: an sqlite file or a tracking server of MLflow, or a Kubeflow Model Registry."""

ENVIRONMENT = ("KFP_SERVING_REGISTRY_URI", "MLFLOW_TRACKING_URI")
"""Where the registry is when a request does not say; the first that is set counts."""


class Absent:
    """Stands for a registry that cannot be connected, where a release goes back all the same: every call raises why."""

    def __init__(self, why: errors.InputError) -> None:
        self.why = why

    def register(self, model: str, version: str, uri: str, *, digest: str | None, properties: Mapping[str, str]) -> ModelVersion:
        """Raises why."""
        raise self.why

    def find(self, model: str, version: str) -> ModelVersion | None:
        """Raises why."""
        raise self.why

    def aliases(self, model: str) -> dict[str, str]:
        """Raises why."""
        raise self.why

    def move(self, model: str, alias: Alias, version: str | None) -> None:
        """Raises why."""
        raise self.why

    def annotate(self, model: str, version: str, properties: Mapping[str, str]) -> None:
        """Raises why."""
        raise self.why


def connect(uri: str | None = None) -> ModelRegistry:
    """The registry at ``uri``, or where the environment says. Raises `RequestInvalid` when there is none or its scheme is not known."""
    where = uri or next((found for name in ENVIRONMENT if (found := os.environ.get(name))), "")
    known = ", ".join(f"{scheme}://" for scheme in REGISTRIES)
    if not where:
        raise errors.RequestInvalid(f"registry: none given; set options.registry_uri or {' or '.join(ENVIRONMENT)} ({known})")
    try:
        scheme = urlsplit(where).scheme
    except ValueError as error:
        raise errors.RequestInvalid(f"registry {uris.shown(where)}: it is no address ({error}); correct the address") from error
    if scheme not in REGISTRIES:
        raise errors.RequestInvalid(f"registry {uris.shown(where)!r}: scheme {scheme!r} is not known; known are {known}")
    return REGISTRIES[scheme](where)
