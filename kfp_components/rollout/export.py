"""Objects as files for git: as they stand now, and as they would stand after a release that somebody else has to write.

print(export(cluster, "ai-ml", "ai-inference"))
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from kfp_components import errors, names
from kfp_components.cluster import Cluster, Manifest, Ref
from kfp_components.cluster.changes import Plan, as_yaml
from kfp_components.rollout import deploy, manifests, routes
from kfp_components.rollout.preflight import Serving
from kfp_components.rollout.run import Run
from kfp_components.serving import ownership, rayservice
from kfp_components.serving.rayservice import serve_config

OF_THE_SERVER = ("uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink")
OF_TOOLS = (
    names.LAST_APPLIED,
    names.CREATED_BY_RELEASE,
    "kustomize.toolkit.fluxcd.io/name",
    "kustomize.toolkit.fluxcd.io/namespace",
    "helm.toolkit.fluxcd.io/name",
    "helm.toolkit.fluxcd.io/namespace",
    "argocd.argoproj.io/tracking-id",
    "argocd.argoproj.io/installation-id",
    "meta.helm.sh/*",
    "objectset.rio.cattle.io/*",
    "kapp.k14s.io/app",
    "kapp.k14s.io/association",
    "kapp.k14s.io/identity",
    "kapp.k14s.io/original*",
)
"""Labels and annotations that whoever applies the file puts by himself."""

NOT_A_TEXT = re.compile(r"y|n|yes|no|on|off|true|false|null|~|[-+.\d][-+.\w:]*", re.IGNORECASE)
PLACEHOLDER = "the-text-of-serve-config-v2-stands-here"


@dataclass(frozen=True)
class Exported:
    """An object as a file. ``note`` is what its owner has to know before he commits it; often empty."""

    text: str
    note: str = ""

    def __str__(self) -> str:
        return self.text


def export(cluster: Cluster, namespace: str, name: str) -> Exported:
    """The RayService as it should stand in git now, ``serveConfigV2`` to the letter. Reads only; raises `NotFound`."""
    ref = Ref("RayService", name, namespace)
    found = cluster.get(ref)
    if found is None:
        raise errors.NotFound(f"{ref}: it does not exist; correct the name or the namespace")
    holders = {tool for manager, _ in ownership.writers(found) if (tool := ownership.tool_of(manager))}
    entries = found["metadata"].get("managedFields") or []
    beside = {tool for entry in entries if entry.get("subresource") != "status" and (tool := ownership.tool_of(str(entry.get("manager") or "")))}
    note = "".join(
        f"{ref}: {tool} applies this object without serveConfigV2, which is ours; keep that field out of its file, or the next release is taken "
        "back. This text is for the day on which the cluster is made anew."
        for tool in sorted(beside - holders)[:1]
    )
    return Exported(as_file(found), note)


def as_file(manifest: Manifest) -> str:
    """YAML of what its owner would write: without status, without what the server and other tools put there."""
    metadata = {key: manifest["metadata"][key] for key in ("name", "namespace")}
    metadata |= {key: value for key, value in manifest["metadata"].items() if key not in (*OF_THE_SERVER, "managedFields")}
    for kind in ("labels", "annotations"):
        kept = {key: value for key, value in (metadata.pop(kind, None) or {}).items() if not any(fnmatch.fnmatchcase(key, of) for of in OF_TOOLS)}
        metadata |= {kind: kept} if kept else {}
    whole = {key: value for key, value in manifest.items() if key not in ("metadata", "status")}
    whole = {key: whole[key] for key in ("apiVersion", "kind")} | {"metadata": metadata} | whole
    whole = _quoted(whole)
    written = (whole.get("spec") or {}).get("serveConfigV2")
    if not isinstance(written, str) or not written:
        return as_yaml(whole)
    text = as_yaml({**whole, "spec": {**whole["spec"], "serveConfigV2": PLACEHOLDER}}).replace(PLACEHOLDER, _block(written), 1)
    if _means(text, whole):
        return text
    return as_yaml({**whole, "spec": {**whole["spec"], "serveConfigV2": DoubleQuotedScalarString(written)}})


def patch_files(plan: Plan, run: Run) -> Mapping[str, str]:
    """Path -> text of the files to commit where a run is refused; nothing is written. Raises `NotFound` without RayService.

    A replacement without canary, judge or way back by itself, in three commits, each when the one before is applied and runs: the version beside the
    others, the public route to it, the old one gone. ``0-now`` is what stands there. Alias and stub are with it where they are missing. No record
    of it is made: `adopt_model` makes one.
    """
    found = plan.found.get(run.rayservice)
    if found is None:
        raise errors.NotFound(f"{run.rayservice}: it does not exist, so there is no file to change; create it first")
    text, wanted, model = serve_config(found), deploy.application(run), run.request.model
    stable = _stable(run, found)
    beside = rayservice.without_application(deploy.with_version(run, text, stable), names.router_application(model))
    aside = {stable.application: names.version_route(model, stable.version)} if stable else {}
    files = {"0-now": text, "1-beside": beside, "2-route": rayservice.with_owner(beside, run.address.route, wanted, aside)}
    if stable:
        files["3-tidy"] = rayservice.without_application(files["2-route"], stable.application)
    told = {f"{step}/rayservice.yaml": as_file({**found, "spec": {**found["spec"], "serveConfigV2": then}}) for step, then in files.items()}
    changes = (manifests.alias_change(run, None), manifests.stub_change(run, run.request.version, None))
    missing = [change for change in changes if plan.found.get(change.ref) is None]
    return told | {f"2-route/{change.ref.kind.lower()}.yaml": as_file(change.manifest) for change in missing}


def _stable(run: Run, found: Manifest) -> Serving | None:
    """What has the public route; under the name that a record gives it, or ``before``."""
    try:
        return routes.serving(run, found, run.store.load_record())
    except errors.NotAdopted:
        return Serving("before", str(routes.has_it(run, found)))


def _block(text: str) -> str:
    """As a literal block, four blanks in: below ``spec`` and its field."""
    lines = text.split("\n")
    ends = len(text) - len(text.rstrip("\n"))
    chomp = "-" if ends == 0 else "" if ends == 1 and len(text) > 1 else "+"
    lines = lines if ends == 0 else lines[:-1]
    indent = "2" if re.match(r"\n*[ \t]", text) else ""
    return f"|{indent}{chomp}\n" + "\n".join(f"    {line}" if line else "" for line in lines)


def _quoted(tree: Any) -> Any:
    """With quotes around a text that some reader takes for something else: ``no`` is false in YAML 1.1, and ``1e3`` a number in 1.2."""
    if isinstance(tree, dict):
        return {key: _quoted(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_quoted(item) for item in tree]
    return DoubleQuotedScalarString(tree) if isinstance(tree, str) and NOT_A_TEXT.fullmatch(tree) else tree


def _means(text: str, whole: Any) -> bool:
    """Whether every reader gets exactly that from it."""
    try:
        return bool(yaml.safe_load(text) == whole)
    except yaml.YAMLError:
        return False
