"""The verbs on objects: create, update, patch, apply, delete; the one path by which an object is written, and garbage collection.

Each verb is one transaction of the store: it answers with the object as stored, or raises a `Failure` and leaves all as it was.
"""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kfp_components.kube_api import failure, patches, schema, ssa
from kfp_components.kube_api.kinds import KINDS, Kind, metadata_faults
from kfp_components.kube_api.plain import clone
from kfp_components.kube_api.store import Store

Object = dict[str, Any]
BY_RESOURCE = {k.resource: k for k in KINDS}
NAMESPACE = BY_RESOURCE["namespaces"]
PATCH_TYPES = {
    "application/json-patch+json": "json",
    "application/merge-patch+json": "merge",
    "application/strategic-merge-patch+json": "strategic",
    "application/apply-patch+yaml": "apply",
    "application/apply-patch+cbor": "",
}
SYSTEM_FIELDS = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "selfLink",
    "namespace",
    "name",
)
SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
FOREGROUND = "foregroundDeletion"


@dataclass
class Call:
    """What a request says beside the object: who writes, how strictly, whether for real."""

    manager: str
    dry_run: bool = False
    validation: str = "Warn"
    force: bool = False
    warnings: list[str] = field(default_factory=list)


def now() -> str:
    """The time as objects carry it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Verbs:
    """The verbs, over one store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        with store.transaction():
            if store.get(NAMESPACE, "", "default") is None:
                self._create(NAMESPACE, "", {"metadata": {"name": "default"}}, Call("embedded-apiserver"))

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """The object; 404 when there is none."""
        found = self.store.get(kind, namespace, name)
        if found is None:
            raise failure.not_found(kind, name)
        return found

    def create(self, kind: Kind, namespace: str, body: Object, call: Call) -> Object:
        """A new object; 409 when the name is taken, 404 when the namespace does not exist."""
        with self.store.transaction(dry_run=call.dry_run):
            return self._create(kind, namespace, body, call)

    def update(self, kind: Kind, namespace: str, name: str, body: Object, call: Call, sub: str = "") -> Object:
        """Replace the object, or its status only; 409 when the resourceVersion it carries is not the live one."""
        with self.store.transaction(dry_run=call.dry_run):
            live = self.get(kind, namespace, name)
            body = clone(body)
            self._identify(kind, body, namespace, name)
            version = body["metadata"].get("resourceVersion")
            if not version and not kind.unconditional_update:
                cause = failure.Cause("FieldValueInvalid", "metadata.resourceVersion", "Invalid value: 0x0: must be specified for an update")
                raise failure.invalid(kind, name, [cause])
            return self._write(kind, live, body, call, sub)

    def patch(self, kind: Kind, namespace: str, name: str, content_type: str, body: Any, call: Call, sub: str = "") -> Object:
        """Change the live object by a JSON, merge or strategic merge patch."""
        how = self.patch_type(kind, content_type)
        with self.store.transaction(dry_run=call.dry_run):
            live = self.get(kind, namespace, name)
            if how == "json":
                new = patches.json_patch(live, body)
            elif not isinstance(body, dict):
                raise failure.bad_request("error decoding patch: a merge patch is a JSON object")
            elif how == "merge":
                new = patches.merge_patch(live, body)
            else:
                new = patches.strategic_merge(kind.schema, live, body)
            if not isinstance(new, dict) or not isinstance(new.get("metadata"), dict):
                raise failure.bad_request("the patched object has no metadata")
            self._identify(kind, new, namespace, name)
            return self._write(kind, live, clone(new), call, sub)

    def apply(self, kind: Kind, namespace: str, name: str, body: Any, call: Call, sub: str = "") -> tuple[Object, bool]:
        """Server-side apply; returns the object and whether it is new."""
        if not isinstance(body, dict):
            raise failure.bad_request("error decoding YAML: an apply configuration is an object")
        config = clone(body)
        said = config["metadata"].get("namespace") or "" if isinstance(config.get("metadata"), dict) else ""
        if not config.get("apiVersion") or not config.get("kind"):
            raise failure.bad_request(f"PatchOptions: the apply configuration of {kind.resource} {name!r} must hold apiVersion and kind")
        self._identify(kind, config, namespace, name)
        if config["metadata"].get("managedFields"):
            raise failure.bad_request("metadata.managedFields must be nil")
        with self.store.transaction(dry_run=call.dry_run):
            live = self.store.get(kind, namespace, name)
            fault = ssa.check_types(kind.schema, config)
            if fault:
                raise ssa.typed_failure(f"{said}/{name}; {kind.group}/{kind.version}, Kind={kind.kind}", fault)
            identity = {key: config["metadata"].pop(key) for key in ("resourceVersion", "uid") if key in config["metadata"]}
            if live is None and sub:
                raise failure.not_found(kind, name)
            if live is None and identity:
                raise failure.conflict(kind, name, "Precondition failed: the object does not exist")
            start = live if live is not None else self._empty(kind, namespace, name)
            if sub:
                config = {k: config[k] for k in ("apiVersion", "kind", "status") if k in config}
                config["metadata"] = {"name": name}
            elif kind.status:
                config.pop("status", None)
            managers = ssa.read_managers(start["metadata"].get("managedFields", []))
            me = ssa.Manager(call.manager, "Apply", kind.api_version, sub)
            new, managers = ssa.apply(kind.schema, start, config, managers, me, force=call.force)
            new = clone(new)
            new["metadata"] |= identity
            if live is None:
                self._require_namespace(kind, namespace, name)
                return self._write(kind, None, new, call, "", managers), True
            return self._write(kind, live, new, call, sub, managers), False

    def delete(self, kind: Kind, namespace: str, name: str, options: Object, *, dry_run: bool) -> Object:
        """Delete the object, or mark it while finalizers hold it; returns the answer's body."""
        with self.store.transaction(dry_run=dry_run):
            return self._delete(kind, self.get(kind, namespace, name), options)

    def delete_collection(self, kind: Kind, doomed: list[Object], options: Object, *, dry_run: bool) -> None:
        """Delete these objects."""
        with self.store.transaction(dry_run=dry_run):
            for obj in doomed:
                current = self.store.get(kind, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
                if current is not None:
                    self._delete(kind, current, options)

    @staticmethod
    def patch_type(kind: Kind, content_type: str) -> str:
        """Which patch a content type is; 415 for one that the kind does not take."""
        how = PATCH_TYPES.get(content_type, "")
        if not how or (how == "strategic" and not kind.builtin):
            accepted = ", ".join(t for t, name in PATCH_TYPES.items() if name and (name != "strategic" or kind.builtin))
            said = "the body of the request was in an unknown format - accepted media types include"
            raise failure.Failure(415, "UnsupportedMediaType", f"{said}: {accepted}")
        return how

    def _create(self, kind: Kind, namespace: str, body: Object, call: Call) -> Object:
        new = clone(body)
        metadata = new["metadata"] = new.get("metadata") or {}
        if not isinstance(metadata, dict) or not all(isinstance(metadata.get(k) or "", str) for k in ("name", "generateName")):
            raise failure.bad_request(f"{kind.kind}: metadata must be an object whose name and generateName are strings")
        if metadata.get("resourceVersion"):
            raise failure.Failure(500, "", "resourceVersion should not be set on objects to be created")
        name, prefix = metadata.get("name"), metadata.get("generateName") or ""
        if not name and not prefix:
            raise failure.invalid(kind, "", [failure.required("metadata.name", "name or generateName is required")])
        for _ in range(8):
            metadata["name"] = name or prefix[:58] + "".join(random.choices(SUFFIX_LETTERS, k=5))
            if name or self.store.get(kind, namespace, metadata["name"]) is None:
                break
        self._identify(kind, new, namespace, metadata["name"])
        self._require_namespace(kind, namespace, metadata["name"])
        if self.store.get(kind, namespace, metadata["name"]) is not None:
            raise failure.already_exists(kind, metadata["name"])
        return self._write(kind, None, new, call, "")

    def _write(self, kind: Kind, live: Object | None, new: Object, call: Call, sub: str, managers: ssa.Managers | None = None) -> Object:
        """The way of every object into the store; ``managers`` are given by an apply and worked out otherwise."""
        old = live if live is not None else self._empty(kind, new["metadata"].get("namespace", ""), new["metadata"]["name"])
        metadata, name = new["metadata"], old["metadata"]["name"]
        if live is not None:
            self._check_identity(kind, live, metadata)
        if sub:
            new = {k: v for k, v in clone(old).items() if k != "status"} | ({"status": new["status"]} if "status" in new else {})
        elif kind.status:
            new = {k: v for k, v in new.items() if k != "status"} | ({"status": old["status"]} if live and "status" in live else {})
        metadata = new["metadata"]
        entries = old["metadata"].get("managedFields", [])
        reset = metadata.get("managedFields") in ([], [{}]) and managers is None and live is not None
        for key in (*SYSTEM_FIELDS, "resourceVersion", "managedFields"):
            metadata.pop(key, None)
        metadata |= {key: old["metadata"][key] for key in SYSTEM_FIELDS if key in old["metadata"]}
        if live is None:
            metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
        self._clean(kind, live, new, call, name, applied=managers is not None)
        if managers is None:
            me = ssa.Manager(call.manager, "Update", kind.api_version, sub)
            held = {} if reset else ssa.read_managers(entries)
            managers = ssa.update(kind.schema, _owned(kind, old, sub), _owned(kind, new, sub), held, me)
        if kind.generation and not sub:
            changed = live is not None and _body(live) != _body(new)
            metadata["generation"] = 1 if live is None else live["metadata"].get("generation", 1) + changed
        if live is not None and managers == ssa.read_managers(entries) and _rest(live) == _rest(new):
            return live
        metadata["managedFields"] = ssa.write_managers(managers, entries, now())
        stored = self.store.put(kind, _ordered(new), live)
        return self._settle(kind, stored)

    def _clean(self, kind: Kind, live: Object | None, new: Object, call: Call, name: str, *, applied: bool) -> None:
        unknown = schema.prune(kind.schema, new)
        if unknown and call.validation == "Strict":
            said = ", ".join(f'unknown field "{path}"' for path in unknown)
            message = f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: strict decoding error: {said}'
            raise failure.bad_request(message)
        if call.validation != "Ignore":
            call.warnings += [f'unknown field "{path}"' for path in unknown]
        schema.default(kind.schema, new)
        for key in ("labels", "annotations", "finalizers", "ownerReferences"):
            if new["metadata"].get(key) in ({}, []):
                del new["metadata"][key]
        faults = list(schema.validate(kind.schema, new))
        types = [f for f in faults if f.reason == "FieldValueTypeInvalid"]
        if types and kind.builtin and not applied:
            words = f"json: cannot unmarshal into field {types[0].field}: {types[0].message}"
            raise failure.bad_request(f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: {words}')
        if not faults:
            kind.prepare(new)
            faults += list(metadata_faults(kind, new["metadata"])) + list(kind.check(live, new))
        if kind.rules and failure.blocking(faults):
            faults.append(failure.RULES_NOT_CHECKED)
        if faults:
            raise failure.invalid(kind, name, faults)

    def _check_identity(self, kind: Kind, live: Object, metadata: Object) -> None:
        name, held = live["metadata"]["name"], live["metadata"]
        if metadata.get("uid") not in (None, "", held["uid"]):
            words = f"UID in precondition: {metadata['uid']}, UID in object meta: {held['uid']}"
            raise failure.conflict(kind, name, f"Precondition failed: {words}")
        if metadata.get("resourceVersion") not in (None, "", "0", held["resourceVersion"]):
            raise failure.conflict(kind, name)
        if held.get("deletionTimestamp") and set(metadata.get("finalizers") or []) - set(held.get("finalizers") or []):
            cause = failure.immutable("metadata.finalizers", "no new finalizers can be added if the object is being deleted")
            raise failure.invalid(kind, name, [cause])

    def _identify(self, kind: Kind, body: Object, namespace: str, name: str) -> None:
        """Check that the object is of this kind, name and namespace, and fill in what it leaves out."""
        version, said = body.get("apiVersion") or kind.api_version, body.get("kind") or kind.kind
        if version != kind.api_version or said != kind.kind:
            message = f"{version}, Kind={said} cannot be handled as {kind.api_version}, Kind={kind.kind}"
            raise failure.bad_request(f"the object provided is unrecognized (must be of type {kind.kind}): {message}")
        metadata = body.get("metadata") or {}
        if not isinstance(metadata, dict):
            raise failure.bad_request("metadata must be an object")
        if metadata.get("name") not in (None, "", name):
            raise failure.bad_request(f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})")
        if kind.namespaced and metadata.get("namespace") not in (None, "", namespace):
            raise failure.bad_request("the namespace of the provided object does not match the namespace sent on the request")
        body |= {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}
        metadata["name"] = name
        if kind.namespaced:
            metadata["namespace"] = namespace
        else:
            metadata.pop("namespace", None)

    def _empty(self, kind: Kind, namespace: str, name: str) -> Object:
        identity = {"name": name} | ({"namespace": namespace} if kind.namespaced else {})
        body: Object = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": identity}
        if kind.builtin:
            body |= {part: {} for part in ("spec", "status") if part in kind.schema["properties"]}
        return body

    def _require_namespace(self, kind: Kind, namespace: str, name: str) -> None:
        if not kind.namespaced:
            return
        found = self.get(NAMESPACE, "", namespace)
        if found["metadata"].get("deletionTimestamp"):
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            raise failure.Failure(403, "Forbidden", f'{kind.resource} "{name}" is forbidden: {why}', {"name": name, "kind": kind.plural})

    def _delete(self, kind: Kind, obj: Object, options: Object) -> Object:
        metadata = obj["metadata"]
        wanted = options.get("preconditions") or {}
        if wanted.get("uid") not in (None, metadata["uid"]):
            words = f"the UID in the precondition ({wanted['uid']}) does not match the UID in record ({metadata['uid']})"
            raise failure.not_as_expected(kind, metadata["name"], f"{words}. The object might have been deleted and then recreated")
        if wanted.get("resourceVersion") not in (None, metadata["resourceVersion"]):
            held = metadata["resourceVersion"]
            asked = f"the ResourceVersion in the precondition ({wanted['resourceVersion']})"
            words = f"{asked} does not match the ResourceVersion in record ({held}). The object might have been modified"
            raise failure.not_as_expected(kind, metadata["name"], words)
        policy = options.get("propagationPolicy") or ("Orphan" if options.get("orphanDependents") else "Background")
        if policy not in ("Background", "Foreground", "Orphan"):
            raise failure.bad_request(f'invalid DeleteOptions: propagationPolicy: Invalid value: "{policy}"')
        answer = clone(obj)
        if kind is NAMESPACE and metadata["name"] == "default":
            raise failure.Failure(403, "Forbidden", 'namespaces "default" is forbidden: this namespace may not be deleted')
        if policy == "Orphan":
            self._release(metadata["uid"])
        if policy == "Foreground":
            self._touch(kind, obj, finalizers=[*(f for f in metadata.get("finalizers", []) if f != FOREGROUND), FOREGROUND])
        if kind is NAMESPACE or obj["metadata"].get("finalizers"):
            extra = {"phase": "Terminating"} if kind is NAMESPACE else {}
            answer = self._touch(
                kind,
                obj,
                deletionTimestamp=metadata.get("deletionTimestamp") or now(),
                deletionGracePeriodSeconds=0,
                status=extra,
            )
            answer = clone(answer)
            if policy == "Foreground":
                self._collect(metadata["uid"])
            self._settle(kind, answer)
            return answer
        self._remove(kind, obj)
        if kind.returns_deleted:
            return answer
        details = {"name": metadata["name"], "kind": kind.plural, "uid": metadata["uid"]} | ({"group": kind.group} if kind.group else {})
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}

    def _touch(self, kind: Kind, obj: Object, *, status: Object | None = None, **metadata: Any) -> Object:
        """Write system fields, which no manager owns; lists that are empty go."""
        before = clone(obj)
        obj["metadata"] |= metadata
        for key in [k for k, v in metadata.items() if v == []]:
            del obj["metadata"][key]
        if status:
            obj["status"] = obj.get("status", {}) | status
        if kind.generation and not before["metadata"].get("deletionTimestamp") and "deletionTimestamp" in metadata:
            obj["metadata"]["generation"] = before["metadata"].get("generation", 1) + 1
        return self.store.put(kind, obj, before) if obj != before else obj

    def _settle(self, kind: Kind, obj: Object) -> Object:
        """After a write: finish a deletion that nothing holds any more, and collect an object all of whose owners are gone."""
        metadata = obj["metadata"]
        if metadata.get("deletionTimestamp"):
            if kind is NAMESPACE:
                for resource, content in self.store.everything(metadata["name"]):
                    if not content["metadata"].get("deletionTimestamp"):
                        self._delete(BY_RESOURCE[resource], content, {})
                held = bool(self.store.everything(metadata["name"]))
            else:
                held = bool(self._holders(metadata))
            if not held and self.store.get(kind, metadata.get("namespace", ""), metadata["name"]) is not None:
                self._remove(kind, clone(obj))
        elif metadata.get("ownerReferences") and not any(self.store.has_uid(o["uid"]) for o in metadata["ownerReferences"]):
            self._delete(kind, clone(obj), {})
        return obj

    def _holders(self, metadata: Object) -> list[str]:
        finalizers = metadata.get("finalizers", [])
        blocking = any(o.get("blockOwnerDeletion") for _, _, refs in self._dependents(metadata["uid"]) for o in refs)
        return [f for f in finalizers if f != FOREGROUND or blocking]

    def _remove(self, kind: Kind, obj: Object) -> None:
        """Take the object out; its dependents follow, its owners and its namespace may have waited for it."""
        metadata = obj["metadata"]
        self.store.remove(kind, clone(obj))
        self._collect(metadata["uid"])
        waiting = {o["uid"] for o in metadata.get("ownerReferences", [])}
        for resource, other in self.store.everything(metadata.get("namespace", "")) if waiting else ():
            if other["metadata"]["uid"] in waiting and other["metadata"].get("deletionTimestamp"):
                self._settle(BY_RESOURCE[resource], other)
        home = self.store.get(NAMESPACE, "", metadata["namespace"]) if metadata.get("namespace") else None
        if home is not None and home["metadata"].get("deletionTimestamp") and not self.store.everything(metadata["namespace"]):
            self._remove(NAMESPACE, home)

    def _dependents(self, uid: str) -> list[tuple[Kind, Object, list[Object]]]:
        found = ((BY_RESOURCE[r], o, [x for x in o["metadata"].get("ownerReferences", []) if x["uid"] == uid]) for r, o in self.store.everything())
        return [(kind, obj, refs) for kind, obj, refs in found if refs]

    def _collect(self, uid: str) -> None:
        """Background deletion: dependents of a gone owner go, or lose the reference while another owner lives."""
        for kind, obj, refs in self._dependents(uid):
            others = [o for o in obj["metadata"]["ownerReferences"] if o not in refs]
            current = self.store.get(kind, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
            if current is None:
                continue
            if any(self.store.has_uid(o["uid"]) for o in others):
                self._touch(kind, current, ownerReferences=others)
            elif not current["metadata"].get("deletionTimestamp"):
                self._delete(kind, current, {})

    def _release(self, uid: str) -> None:
        for kind, obj, refs in self._dependents(uid):
            self._touch(kind, obj, ownerReferences=[o for o in obj["metadata"]["ownerReferences"] if o not in refs])


def _owned(kind: Kind, obj: Object, sub: str) -> Object:
    """The part of an object whose ownership a write through this path changes."""
    return obj if sub or not kind.status else {k: v for k, v in obj.items() if k != "status"}


def _body(obj: Object) -> Object:
    return {k: v for k, v in obj.items() if k not in ("metadata", "status")}


def _rest(obj: Object) -> Object:
    metadata = {k: v for k, v in obj["metadata"].items() if k not in ("managedFields", "resourceVersion")}
    return obj | {"metadata": metadata}


def _ordered(obj: Object) -> Object:
    first = {k: obj[k] for k in ("apiVersion", "kind", "metadata") if k in obj}
    return first | {k: v for k, v in obj.items() if k not in first}
