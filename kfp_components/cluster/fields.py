"""What server-side apply would refuse, known beforehand: fields of an object that a change would take from somebody else."""

from __future__ import annotations

import re

from kfp_components import errors, names
from kfp_components.cluster import KINDS, Manifest
from kfp_components.cluster.changes import Apply
from kfp_components.kube_api import kinds, ssa
from kfp_components.kube_api.failure import Failure

MANAGER_WORDS = re.compile(r'conflict with "(?P<name>[^"]*)"')


def taken(change: Apply, found: Manifest | None) -> list[tuple[str, str]]:
    """Field and owner of each conflict that the apply would end in, by the managedFields of the object as it was ``found``."""
    if found is None or change.force:
        return []
    of = KINDS[change.ref.kind]
    group, _, version = of.api_version.rpartition("/")
    kind = kinds.BY_PATH[group, version, of.plural]
    me = ssa.Manager(change.manager, "Apply", of.api_version, "status" if change.status else "")
    managers = ssa.read_managers(found["metadata"].get("managedFields") or [])
    try:
        ssa.apply(kind.schema, found, change.manifest, managers, me, force=False)
    except Failure as conflict:
        causes = (conflict.details or {}).get("causes") or []
        return [(cause["field"].removeprefix("."), MANAGER_WORDS.sub(r"\g<name>", cause["message"]).partition(" using ")[0]) for cause in causes]
    return []


def refuse_taken(change: Apply, found: Manifest | None) -> None:
    """Raise `NameTaken` that names the fields, their owners and both ways on; nothing has been written then."""
    fields = taken(change, found)
    if not fields:
        return
    ref = change.ref
    told = " and ".join(f"{field} belongs to {owner}" for field, owner in fields)
    raise errors.NameTaken(
        f"{ref}: {told}, and would be changed; take {'it' if len(fields) == 1 else 'them'} out of what the owner applies, or hand the object over: "
        f"kubectl annotate {ref.kind.lower()} {ref.name} -n {ref.namespace} {names.GITOPS}=yielded"
    )
