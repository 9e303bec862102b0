"""The hand-over of ``serveConfigV2`` from a GitOps tool to this library, and back.

The order is the point. Server-side apply removes a field that its last owner no longer applies, and ``serveConfigV2`` holds every application of
the endpoint. So this library owns the field too, with the value that is there, *before* the tool lets go of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kfp_components import errors, names
from kfp_components.clock import Clock
from kfp_components.cluster import Cluster, Manifest, Ref
from kfp_components.cluster.changes import SYSTEM_CLOCK, until_written
from kfp_components.serving import ownership

ANNOTATION: ownership.Path = ("metadata", "annotations", names.GITOPS)
FILE = """\
metadata:
  annotations:
    {annotation}: yielded   # keep the word with the object
"""
FLUX = """\
Flux owns exactly the fields that stand in git, so take serveConfigV2 out of the file and commit that (the annotation
kustomize.toolkit.fluxcd.io/ssa: Merge is not enough: what stands in git is written all the same):

{file}spec:
  # no serveConfigV2 here any more
  rayClusterConfig: ...

Where the file is not yours, in kustomization.yaml:

patches:
  - target: {{group: ray.io, kind: RayService, name: {name}}}
    patch: |
      - op: remove
        path: /spec/serveConfigV2
"""
ARGO_CD = """\
Leave serveConfigV2 in the file (synced client-side, as is the default, a field taken out is deleted) and have the Application ignore it.
managedFieldsManagers does not do it in several versions of Argo CD, jsonPointers do:

spec:
  ignoreDifferences:
    - group: ray.io
      kind: RayService
      name: {name}
      namespace: {namespace}
      jsonPointers: [/spec/serveConfigV2]
  syncPolicy:
    syncOptions: [RespectIgnoreDifferences=true]   # without it a sync writes the field all the same

And in the file of the RayService:

{file}"""
KAPP = """\
Leave serveConfigV2 in the file, and give kapp a rule by which the cluster's value stays:

apiVersion: kapp.k14s.io/v1alpha1
kind: Config
rebaseRules:
  - path: [spec, serveConfigV2]
    type: copy
    sources: [existing, new]
    resourceMatchers:
      - apiVersionKindMatcher: {{apiVersion: ray.io/v1, kind: RayService}}

And in the file of the RayService:

{file}"""
CLIENT_SIDE = """\
{manager} writes serveConfigV2 client-side ({by}): taken out of what it applies, the field would be deleted, with every application. Leave it there
exactly as it is; Helm 3 writes of it only what differs between two versions of the chart (never upgrade with --force). And beside it:

{file}"""
SERVER_SIDE = """\
{manager} applies serveConfigV2 server-side ({by}): take the field out of what it applies. And beside it:

{file}"""


@dataclass(frozen=True)
class HandOver:
    """What was done (nothing, where it was so already), and what the owner has to do now."""

    ref: Ref
    manager: str
    """The tool, empty where nobody else applies the field."""
    done: tuple[str, ...]
    todo: str
    """With what to commit; empty where nothing is left to do."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"rayservice": self.ref.name, "namespace": self.ref.namespace, "manager": self.manager, "done": list(self.done), "todo": self.todo}

    def __str__(self) -> str:
        return "\n".join([f"{self.ref}: {'; '.join(self.done) or 'nothing had to be done'}", *([self.todo.rstrip()] if self.todo else [])])


def yield_field(cluster: Cluster, namespace: str, rayservice: str, *, clock: Clock = SYSTEM_CLOCK) -> HandOver:
    """Own ``serveConfigV2`` beside the tool that applies it, at the value that it has, and say on the object that its owner leaves it to us.

    Idempotent, and nothing that runs is changed. Raises `NotFound` without RayService or field, `ManagedElsewhere` where nobody can tell who applies
    the field, or where git says otherwise; `Conflict` and nothing is written when every attempt lost.
    """
    ref, done = Ref("RayService", rayservice, namespace), list[str]()
    for attempt in until_written(clock):
        with attempt:
            found = _read(cluster, ref)
            owned = ownership.of(found)
            if owned.mode == "ours":
                return HandOver(ref, "", tuple(done), "Nobody else applies serveConfigV2, so it is ours to write: there is nothing to hand over.")
            _refuse_word_of_git(ref, found, "yielded")
            if (names.MANAGER, "Apply") not in ownership.writers(found):
                text = found["spec"]["serveConfigV2"]
                found = cluster.apply({**_only(found), "spec": {"serveConfigV2": text}}, manager=names.MANAGER)
                done.append(f"{names.MANAGER} owns serveConfigV2 too, as it is")
            if not ownership.says_yielded(found):
                _say(cluster, ref, found, "yielded")
                done.append(f"annotation {names.GITOPS}: yielded")
    return HandOver(ref, owned.manager, tuple(done), _todo(ref, found, owned))


def undo_yield(cluster: Cluster, namespace: str, rayservice: str, *, clock: Clock = SYSTEM_CLOCK) -> HandOver:
    """Leave ``serveConfigV2`` to the tool that applies it again; idempotent.

    Raises `NotFound` without RayService or field, `ManagedElsewhere` when nobody else applies the field, which would go then, or when git says
    `yielded`; `Conflict` when every attempt lost. Nothing is written in any case.
    """
    ref, done = Ref("RayService", rayservice, namespace), list[str]()
    for attempt in until_written(clock):
        with attempt:
            found = _read(cluster, ref)
            writers = ownership.writers(found)
            others = [manager for manager, _ in writers if manager != names.MANAGER]
            if not others:
                raise errors.ManagedElsewhere(
                    f"{ref}: nobody but {names.MANAGER} applies serveConfigV2, so without us it would go with every application; put it into git as "
                    f"`kfp-serving export {ref.name} -n {ref.namespace}` prints it, have it applied, and run this again"
                )
            _refuse_word_of_git(ref, found, None)
            if ownership.says_yielded(found):
                found = _say(cluster, ref, found, None)
                done.append(f"annotation {names.GITOPS} is taken off")
            if (names.MANAGER, "Apply") in writers:
                cluster.apply(_only(found), manager=names.MANAGER)
                done.append(f"serveConfigV2 is left to {' and '.join(others)}")
    return HandOver(ref, ownership.tool_of(others[0]) or others[0], tuple(done), "")


def _read(cluster: Cluster, ref: Ref) -> Manifest:
    found = cluster.get(ref)
    if found is None:
        raise errors.NotFound(f"{ref}: it does not exist; correct the name or the namespace")
    if not isinstance((found.get("spec") or {}).get("serveConfigV2"), str):
        raise errors.NotFound(f"{ref}: it has no serveConfigV2, so there is nothing to hand over; deploy the first version with --first")
    if not found["metadata"].get("managedFields"):
        raise errors.ManagedElsewhere(
            f"{ref}: it has no managedFields, so nobody can tell who applies serveConfigV2, nor keep it when that one lets go; "
            "apply it once with `kubectl apply --server-side`, and run this again"
        )
    return found


def _refuse_word_of_git(ref: Ref, found: Manifest, wanted: str | None) -> None:
    """Raise `ManagedElsewhere` where a tool applies the annotation, and with another value: ours would be written back."""
    value = (found["metadata"].get("annotations") or {}).get(names.GITOPS)
    tool = next((tool for manager, _ in ownership.writers(found, ANNOTATION) if (tool := ownership.tool_of(manager))), None)
    if tool is None or value == wanted:
        return
    told = "take it out of the file" if wanted is None else f"write `{names.GITOPS}: {wanted}` into the file"
    raise errors.ManagedElsewhere(f"{ref}: the annotation {names.GITOPS}: {value} stands in git, {tool} applies it; {told}, and run this again")


def _say(cluster: Cluster, ref: Ref, found: Manifest, value: str | None) -> Manifest:
    """By a patch: the next apply of ``serveConfigV2`` alone would take an annotation off that was applied."""
    metadata = {"annotations": {names.GITOPS: value}, "resourceVersion": found["metadata"]["resourceVersion"]}
    return cluster.patch(ref, {"metadata": metadata}, manager=names.MANAGER)


def _only(found: Manifest) -> Manifest:
    """The object as it was read, without any field: applied, it is refused when somebody wrote it meanwhile."""
    metadata = {key: found["metadata"][key] for key in ("name", "namespace", "resourceVersion")}
    return {"apiVersion": found["apiVersion"], "kind": found["kind"], "metadata": metadata}


def _todo(ref: Ref, found: Manifest, owned: ownership.Ownership) -> str:
    """What has to be committed, by who holds the field."""
    holders = [(manager, operation) for manager, operation in ownership.writers(found) if ownership.tool_of(manager)]
    if not owned.manager:
        return ""
    manager, operation = holders[0] if holders else (owned.sign, "Update")
    text = SERVER_SIDE if operation == "Apply" else CLIENT_SIDE
    if owned.manager == "Flux" and "helm" not in manager:
        text = FLUX
    elif owned.manager in ("Argo CD", "kapp"):
        text = {"Argo CD": ARGO_CD, "kapp": KAPP}[owned.manager]
    file = FILE.format(annotation=names.GITOPS)
    filled = text.format(name=ref.name, namespace=ref.namespace, manager=owned.manager, by=manager, file=file)
    return f"Now, and not before, have {owned.manager} leave the field alone. {filled}"
