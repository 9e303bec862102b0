"""Who applies what a release writes of an object, in words: ours, yielded, or to be committed."""

from __future__ import annotations

from collections.abc import Mapping

from kfp_components import errors, names
from kfp_components.cluster import Manifest, Ref
from kfp_components.cluster.changes import Owner, refuse_gitops, refuse_written_back
from kfp_components.serving import ownership


def of(objects: Mapping[Ref, Manifest | None]) -> tuple[tuple[Owner, ...], errors.ManagedElsewhere | None]:
    """Of each object as it was found, and what a run is refused with because of it."""
    told = tuple(_serve_config(ref, found) if ref.kind == "RayService" else _beside(ref, found) for ref, found in objects.items())
    for ref, found in objects.items():
        if ref.kind == "RayService" and found is not None:
            try:
                refuse_gitops(found)
                refuse_written_back(found)
            except errors.ManagedElsewhere as refused:
                return told, refused
    return told, None


def _serve_config(ref: Ref, found: Manifest | None) -> Owner:
    if found is None:
        return Owner(ref, "ours", "", "it is made")
    owned, command = ownership.of(found), f"`kfp-serving yield {ref.name} -n {ref.namespace}`"
    if owned.mode == "commit":
        follows = (
            f"{owned.manager} applies serveConfigV2 ({owned.sign}) and would write it back, so a run is refused; {command} hands the field over, "
            "or `kfp-serving plan --patch` writes the files to commit instead, without a canary"
        )
    elif owned.mode == "yielded":
        follows = f"left to us by {owned.manager or 'its owner'} ({owned.sign})" + _still_applied(found, command)
    else:
        follows = "nobody else applies serveConfigV2"
    return Owner(ref, owned.mode, owned.manager, follows)


def _still_applied(found: Manifest, command: str) -> str:
    """What is to be done yet where a tool holds the field that its owner yields."""
    writers = ownership.writers(found)
    tools = [tool for manager, _ in writers if (tool := ownership.tool_of(manager))]
    if not tools:
        return ""
    if (names.MANAGER, "Apply") not in writers:
        return f"; {tools[0]} holds the field alone: run {command} before it is taken out of git, else it goes with every application"
    if ownership.written_back(found):
        return f"; {tools[0]} applies it all the same, so a run is refused until it is taken out of git"
    return f"; {tools[0]} holds it too: unless it is told to ignore the field, its next sync takes a release back"


def _beside(ref: Ref, found: Manifest | None) -> Owner:
    """Of alias and stub: what a tool applies there is not written, `preflight.check` refuses that, unless its owner yields it."""
    if found is None:
        return Owner(ref, "ours", "", "it is made")
    if ownership.of(found).mode == "yielded":
        return Owner(ref, "yielded", ownership.of(found).manager, f"left to us by its owner ({ownership.of(found).sign})")
    entries = found["metadata"].get("managedFields") or []
    tool = next((tool for entry in entries if (tool := ownership.tool_of(str(entry.get("manager") or "")))), "")
    return Owner(ref, "ours", tool, f"nothing that {tool} applies of it is changed" if tool else "nobody else applies what is written")
