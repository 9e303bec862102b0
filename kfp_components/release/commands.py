"""What a person asks of a release while it runs: an annotation on its Lease, which the running step reads when it renews that.

    kubectl annotate lease bge-release -n ai-ml kfp-serving/command=abort --overwrite

does the same as ``kfp-serving abort``; who wrote it, and when, is then read from managedFields. Nothing here calls the cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from kfp_components import names
from kfp_components.clock import rfc3339
from kfp_components.cluster import Manifest

Kind = Literal["abort", "pause", "resume", "approve"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ANNOTATIONS = (names.COMMAND, names.COMMAND_BY, names.COMMAND_AT, names.COMMAND_REASON)


@dataclass(frozen=True)
class Command:
    """One word for the running step, who asked, when (seconds since 1970; 0 when nobody can say), and why."""

    kind: str
    by: str
    at_unix_s: float
    reason: str = ""

    @property
    def known(self) -> bool:
        """Whether it is one that a step can obey."""
        return self.kind in KINDS

    @property
    def asked(self) -> str:
        """Who asked and when, in words; the same command is asked for in the same words."""
        return f"asked for by {self.by} at {rfc3339(self.at_unix_s)}" if self.at_unix_s else f"asked for by {self.by}"

    @property
    def told(self) -> str:
        """The same and why."""
        return f"{self.asked}: {self.reason}" if self.reason else self.asked


def find(lease: Manifest | None) -> Command | None:
    """The command on a Lease; None when there is none. Whatever stands in the annotations, it raises nothing."""
    metadata = (lease or {}).get("metadata") or {}
    told = metadata.get("annotations") or {}
    kind = str(told.get(names.COMMAND) or "").strip()
    if not kind:
        return None
    manager, at = _written_by(metadata)
    if manager not in (None, names.MANAGER):  # kubectl, or whatever else wrote the word alone: what stands beside it may be of an earlier one
        return Command(kind, str(manager), _seconds(at))
    return Command(
        kind, str(told.get(names.COMMAND_BY) or "somebody"), _seconds(told.get(names.COMMAND_AT) or at), str(told.get(names.COMMAND_REASON) or "")
    )


def put(lease: Manifest, command: Command) -> Manifest:
    """The Lease with the command on it, instead of one that is there."""
    told = {names.COMMAND: command.kind, names.COMMAND_BY: command.by, names.COMMAND_AT: rfc3339(command.at_unix_s)}
    return _annotated(lease, told | ({names.COMMAND_REASON: command.reason} if command.reason else {}))


def without(lease: Manifest) -> Manifest:
    """The Lease without a command."""
    return _annotated(lease, {})


def _annotated(lease: Manifest, told: dict[str, str]) -> Manifest:
    kept = {key: value for key, value in (lease["metadata"].get("annotations") or {}).items() if key not in ANNOTATIONS}
    return {**lease, "metadata": {**lease["metadata"], "annotations": kept | told}}


def _written_by(metadata: dict[str, Any]) -> tuple[str | None, str | None]:
    """The manager that owns the annotation, and when it wrote; None where managedFields are missing."""
    for entry in metadata.get("managedFields") or []:
        fields = entry.get("fieldsV1") or {}
        if f"f:{names.COMMAND}" in ((fields.get("f:metadata") or {}).get("f:annotations") or {}):
            return entry.get("manager"), entry.get("time")
    return None, None


def _seconds(at: Any) -> float:
    try:
        return datetime.fromisoformat(str(at).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0
