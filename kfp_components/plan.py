"""``Change`` and ``Plan``: what is going to be written, as values. A dry run prints them; `apply.apply` writes them."""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

Verb = Literal["create", "apply", "status", "patch", "delete"]


@dataclass(frozen=True)
class Change:
    """One write. ``before`` is what was read when the change was computed (None: nothing), for the diff that a dry run prints."""

    verb: Verb
    manifest: dict[str, Any]
    why: str
    manager: str
    force: bool = False
    before: dict[str, Any] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        metadata = self.manifest["metadata"]
        return f"{self.verb} {self.manifest['kind']} {metadata.get('namespace', '')}/{metadata.get('name', '')}: {self.why}"

    def diff(self) -> str:
        """Unified diff of the fields that the change carries."""
        old = "" if self.before is None else _text(only(self.before, self.manifest))
        new = "" if self.verb == "delete" else _text(only(self.manifest, self.manifest))
        return "".join(difflib.unified_diff(old.splitlines(True), new.splitlines(True), "now", "then", n=2))


@dataclass(frozen=True)
class Plan:
    """Changes in the order in which they are written. Falsy when there is nothing to do."""

    changes: tuple[Change, ...] = ()

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __add__(self, other: Plan) -> Plan:
        return Plan(self.changes + other.changes)

    def __str__(self) -> str:
        if not self.changes:
            return "nothing to do"
        return "\n".join(f"{change}\n{change.diff()}".rstrip() for change in self.changes)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def only(found: Any, like: Any) -> Any:
    """``found`` reduced to the keys that ``like`` has, without the resourceVersion."""
    if isinstance(found, dict) and isinstance(like, dict):
        return {key: only(found[key], like[key]) for key in like if key in found and key != "resourceVersion"}
    if isinstance(found, list) and isinstance(like, list) and len(found) == len(like):
        return [only(one, other) for one, other in zip(found, like, strict=True)]  # without what the server added to an entry
    return found


def _text(tree: Any) -> str:
    out = io.StringIO()
    yaml = YAML()
    yaml.width = 4096

    def literal(value: Any) -> Any:
        if isinstance(value, str) and "\n" in value:
            return LiteralScalarString(value)
        if isinstance(value, dict):
            return {key: literal(item) for key, item in value.items()}
        if isinstance(value, list):
            return [literal(item) for item in value]
        return value

    yaml.dump(literal(tree), out)
    return out.getvalue()
