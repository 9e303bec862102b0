"""A registry in memory, for simulations and tests: the rules and the words of the others, and gone with the process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kfp_components import errors
from kfp_components.registry import Alias, ModelVersion


class MemoryRegistry:
    """Versions and aliases of any number of models."""

    uri = "memory:"

    def __init__(self) -> None:
        self._versions: dict[tuple[str, str], ModelVersion] = {}
        self._aliases: dict[str, dict[str, str]] = {}

    def register(self, model: str, version: str, uri: str, *, digest: str | None, properties: Mapping[str, str]) -> ModelVersion:
        """Make the version known. The same again is idempotent; another URI or digest is refused with `NameTaken`."""
        found = self.find(model, version)
        if found is None:
            found = self._versions[model, version] = ModelVersion(model, version, uri, digest, dict(properties))
        found.assert_same(uri, digest)
        if digest and found.digest is None:
            found = self._versions[model, version] = replace(found, digest=digest)
        return found

    def find(self, model: str, version: str) -> ModelVersion | None:
        """The version, None when it is not registered."""
        return self._versions.get((model, version))

    def aliases(self, model: str) -> dict[str, str]:
        """Alias -> version."""
        return dict(self._aliases.get(model, {}))

    def move(self, model: str, alias: Alias, version: str | None) -> None:
        """Point an alias at a version, or remove it; doing it twice is harmless."""
        if version is None:
            self._aliases.get(model, {}).pop(alias, None)
            return
        self._required(model, version)
        self._aliases.setdefault(model, {})[alias] = version

    def annotate(self, model: str, version: str, properties: Mapping[str, str]) -> None:
        """Add properties to a version."""
        found = self._required(model, version)
        self._versions[model, version] = replace(found, properties={**found.properties, **properties})

    def _required(self, model: str, version: str) -> ModelVersion:
        found = self.find(model, version)
        if found is None:
            raise errors.NotFound(f"model {model} version {version}: not registered at {self.uri}; register it first")
        return found
