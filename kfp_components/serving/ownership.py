"""Who applies a field of an object: we may write it, its owner leaves it to us, or the change belongs into somebody's repository.

``metadata.managedFields`` decide: a tool that applies the object, and not this field (Flux owns exactly the fields that stand in git), leaves it be.
Labels and annotations decide where those are missing, or name nobody that is known; a hint that charts give too counts only where they are missing.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kfp_components import names

Path = tuple[str, ...]
SERVE_CONFIG: Path = ("spec", "serveConfigV2")
MANAGED_BY = "app.kubernetes.io/managed-by"
PEOPLE = ("kubectl*", "oc", "k9s", "lens", "openlens", "node-fetch", "mozilla", "rancher", "headlamp*", "octant")
"""Managers behind which somebody sits: what they applied once is not written back by itself."""


@dataclass(frozen=True)
class Ownership:
    """``ours``: nobody else applies it; ``yielded``: its owner leaves it to us; ``commit``: the owner would write it back. ``manager`` is the owner's
    name (``Flux``), ``sign`` what tells so; both empty where nobody else is seen."""

    mode: Literal["ours", "yielded", "commit"]
    manager: str = ""
    sign: str = ""


@dataclass(frozen=True)
class Tool:
    """One that applies objects again and again. Patterns are those of the shell, without regard to case."""

    name: str
    managers: tuple[str, ...]
    marks: tuple[str, ...] = ()
    """Labels and annotations that it puts, or that are written for it."""
    managed_by: tuple[str, ...] = ()
    """Values of the label ``app.kubernetes.io/managed-by``."""
    options: tuple[str, ...] = ()
    """Among ``marks``, those that an owner may put anywhere beforehand."""
    hands_off: Mapping[str, str] = field(default_factory=dict)
    """Label or annotation -> value by which it is told to leave an object alone."""
    leave: str = ""
    """How it is told to leave one field alone."""
    exact: bool = False
    """It owns exactly the fields that stand in git, and writes each of them back: what it owns is yielded in words only."""


FLUX = ("kustomize.toolkit.fluxcd.io/", "helm.toolkit.fluxcd.io/")
OUT_OF_GIT = "take the field out of the file: it leaves alone what does not stand there"
HELM = "with Helm 4 take the field out of the chart, with Helm 3 leave it there and never change it"
TOOLS = (
    Tool(
        "Flux",
        ("kustomize-controller", "gotk-kustomize-controller", "flux", "flux-*"),
        (FLUX[0] + "*",),
        ("flux*",),
        tuple(FLUX[0] + option for option in ("reconcile", "ssa", "prune", "force", "substitute")),
        {FLUX[0] + "reconcile": "disabled", FLUX[0] + "ssa": "i[fg]n*"},  # Ignore, IfNotPresent; with Merge it writes what stands in git
        OUT_OF_GIT,
        exact=True,
    ),
    Tool(
        "Flux",
        ("helm-controller", "gotk-helm-controller"),
        (FLUX[1] + "*",),
        options=(FLUX[1] + "driftDetection",),
        hands_off={FLUX[1] + "driftDetection": "disabled"},
    ),
    Tool(
        "Argo CD",
        ("argocd*", "argo-cd*"),
        ("argocd.argoproj.io/*",),
        ("argocd*", "argo-cd*"),
        leave="ignoreDifferences with jsonPointers [/spec/serveConfigV2], and the sync option RespectIgnoreDifferences=true",
    ),
    Tool(
        "Config Sync",
        ("configsync*", "configmanagement*", "config-sync*"),
        ("configmanagement.gke.io/*", "configsync.gke.io/*"),
        ("configmanagement.gke.io", "configsync*"),
        hands_off={"configmanagement.gke.io/managed": "disabled", "client.lifecycle.config.k8s.io/mutation": "ignore"},
        leave=OUT_OF_GIT,
    ),
    Tool("k3s", ("deploy@*", "k3s"), ("addon.k3s.cattle.io/*",)),
    Tool("Rancher Fleet", ("fleetagent*", "fleet-*", "fleet"), ("objectset.rio.cattle.io/*", "fleet.cattle.io/*"), ("fleet*",)),
    Tool(
        "kapp",
        ("kapp*",),
        ("kapp.k14s.io/*",),
        ("kapp*",),
        hands_off={"kapp.k14s.io/noop": "*", "kapp.k14s.io/exists": "*", "kapp.k14s.io/update-strategy": "skip"},
        leave="a rebaseRule for the field",
    ),
    Tool("kpt", ("kpt*",), ("config.k8s.io/owning-inventory",)),
    Tool("Sveltos", ("*sveltos*",), ("projectsveltos.io/*",)),
    Tool("Open Cluster Management", ("work-agent*",)),
    Tool("Pulumi", ("pulumi*",), ("pulumi.com/*",), ("pulumi*",), leave="ignoreChanges in the program"),
    Tool("Terraform", ("terraform*", "hashicorp*", "opentofu*"), (), ("terraform*", "opentofu*"), leave="ignore_changes, or computed_fields"),
    Tool("Crossplane", ("crossplane*", "*provider-kubernetes*"), ("crossplane.io/*",), ("crossplane*",)),
    Tool("Helm", ("helm", "helm[0-9]*"), ("meta.helm.sh/*",), ("helm",), leave=HELM),  # last: others install charts too
)
HINTS: tuple[tuple[str, str], ...] = (("app.kubernetes.io/instance", "Argo CD"),)
"""Labels by which a tool may track objects (Argo CD does before 3.0, and when it is told to); charts and kustomizations set them as well."""


def of(manifest: Mapping[str, Any], path: Path = SERVE_CONFIG) -> Ownership:
    """Who applies the field ``path`` of an object as it was read."""
    metadata = manifest.get("metadata") or {}
    owner = _owner(metadata, path)
    said = f"annotation {names.GITOPS}: yielded" if says_yielded(manifest) else ""
    if owner is None:
        return Ownership("yielded", "", said) if said else Ownership("ours")
    tool, sign = owner
    if said := said or _hands_off(metadata, tool):
        return Ownership("yielded", tool.name, said)
    return Ownership("commit", tool.name, sign)


def _hands_off(metadata: Mapping[str, Any], tool: Tool) -> str:
    """By which mark the tool is told to leave the object alone; empty when by none."""
    told = tool.hands_off
    return next((f"{kind} {key}: {value}" for kind, key, value in _marks(metadata) if key in told and _fits(value, (told[key],))), "")


def says_yielded(manifest: Mapping[str, Any]) -> bool:
    """Whether the owner's annotation stands on the object."""
    annotations = (manifest.get("metadata") or {}).get("annotations") or {}
    return str(annotations.get(names.GITOPS, "")).casefold() == "yielded"


def owned(wanted: Mapping[str, Any], found: Mapping[str, Any] | None) -> dict[str, Any]:
    """What of ``wanted`` this library applied to the object before; ``{}`` where there is none. Left out of the next apply, it would be removed."""
    for entry in ((found or {}).get("metadata") or {}).get("managedFields") or []:
        if entry.get("manager") == names.MANAGER and entry.get("operation") == "Apply" and not entry.get("subresource"):
            kept: dict[str, Any] = _owned(wanted, entry.get("fieldsV1") or {})
            return kept
    return {}


def _owned(wanted: Any, fields: Mapping[str, Any]) -> Any:
    if isinstance(wanted, Mapping) and fields:
        return {key: _owned(item, fields[f"f:{key}"]) for key, item in wanted.items() if f"f:{key}" in fields}
    if isinstance(wanted, list) and fields:
        keys = {element: json.loads(element[2:]) for element in fields if element.startswith("k:")}
        return [
            {**key, **_owned(item, fields[element])} for element, key in keys.items() for item in wanted if all(item.get(k) == key[k] for k in key)
        ]
    return wanted


def writers(manifest: Mapping[str, Any], path: Path = SERVE_CONFIG) -> list[tuple[str, str]]:
    """Manager and operation (``Apply`` or ``Update``) of everybody who holds the field, ourselves included."""
    return [
        (str(entry.get("manager") or ""), str(entry.get("operation") or ""))
        for entry in (manifest.get("metadata") or {}).get("managedFields") or []
        if entry.get("subresource") != "status" and _holds(entry.get("fieldsV1") or {}, path)
    ]


def written_back(manifest: Mapping[str, Any], path: Path = SERVE_CONFIG) -> str:
    """The manager of a tool that writes the field back for certain, although its owner yields it: it stands in git yet. Empty when there is none."""
    if not says_yielded(manifest):
        return ""
    exact = [tool for tool in TOOLS if tool.exact and not _hands_off(manifest["metadata"], tool)]
    applies = [manager for manager, operation in writers(manifest, path) if operation == "Apply"]
    return next((manager for manager in applies for tool in exact if _fits(manager, tool.managers)), "")


def tool_of(manager: str) -> str:
    """Name of the tool that writes under that manager; empty for people and unknown ones."""
    tool = _tool(manager)
    return tool.name if tool else ""


def how_to_yield(manager: str) -> str:
    """How that tool is told to leave one field alone; empty where there is no such way."""
    return next((tool.leave for tool in TOOLS if tool.name == manager and tool.leave), "")


def _owner(metadata: Mapping[str, Any], path: Path) -> tuple[Tool, str] | None:
    """The tool that writes the field, and what tells so."""
    written = [entry for entry in metadata.get("managedFields") or [] if entry.get("subresource") != "status"]
    owners = [str(entry.get("manager") or "") for entry in written if _holds(entry.get("fieldsV1") or {}, path)]
    for manager in owners:
        if (tool := _tool(manager)) is not None:
            return tool, f"{manager} applies {'.'.join(path)}"
    for entry in written:
        if (tool := _tool(str(entry.get("manager") or ""))) is not None:
            applied = str((metadata.get("annotations") or {}).get(names.LAST_APPLIED, ""))
            if entry.get("operation") == "Update" and f'"{path[-1]}"' in applied:  # whose field was written by somebody else meanwhile
                return tool, f"{entry['manager']} applied {'.'.join(path)}"
            return None
    if any(_fits(manager, PEOPLE) for manager in owners):
        return None
    marks = list(_marks(metadata))
    for tool in TOOLS:
        put = [mark for mark in marks if _fits(mark[1], tool.marks) and mark[1] not in tool.options]
        said = [mark for mark in marks if mark[1] == MANAGED_BY and _fits(mark[2], tool.managed_by)]
        for kind, key, value in put + said:
            return tool, f"{kind} {key}" + (f": {value}" if len(value) <= 63 else "")
    if not written and (metadata.get("labels") or {}).get(MANAGED_BY) != names.MANAGED_BY:
        for label, name in HINTS:
            if label in (metadata.get("labels") or {}):
                return next(tool for tool in TOOLS if tool.name == name), f"label {label}: {metadata['labels'][label]}"
    return None


def _tool(manager: str) -> Tool | None:
    return None if _fits(manager, PEOPLE) else next((tool for tool in TOOLS if _fits(manager, tool.managers)), None)


def _marks(metadata: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for kind in ("label", "annotation"):
        for key, value in (metadata.get(f"{kind}s") or {}).items():
            yield kind, key, str(value)


def _fits(value: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(value.casefold(), pattern.casefold()) for pattern in patterns)


def _holds(fields: Mapping[str, Any], path: Path) -> bool:
    for step in path:
        if not isinstance(fields, Mapping) or f"f:{step}" not in fields:
            return False
        fields = fields[f"f:{step}"]
    return True
