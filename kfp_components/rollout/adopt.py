"""Adoption: what serves a model already is recorded as its stable version. Nothing of it restarts, and ``serveConfigV2`` is not written.

Only what is missing is made (alias or its label, stub, registered version with the alias champion), and `undo_adoption` takes that away again.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from kfp_components import errors, names
from kfp_components.clock import Clock, SystemClock
from kfp_components.cluster import Cluster, Manifest, Ref
from kfp_components.cluster.changes import Apply, Change, Delete, Plan, write
from kfp_components.cluster.patience import Patience, patient
from kfp_components.registry import Alias
from kfp_components.release import Adoption, Release, records
from kfp_components.request import ModelTarget, PromoteRequest, parse
from kfp_components.rollout import journal, manifests, preflight, registered, undo
from kfp_components.rollout.run import DOOR_PATIENCE_S, Run
from kfp_components.rollout.step import own, step, take
from kfp_components.serving import alias, http_route, rayservice

ALIASES: tuple[Alias, ...] = ("champion", "previous")
NOT_IN_A_NAME = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Asked:
    """What the owner says of a running model; what he does not say is found. ``uri`` is where its artifact is."""

    application: str | None = None
    route: str | None = None
    alias: str | None = None
    version: str | None = None
    uri: str | None = None
    model_format: str = "custom"


NOTHING = Asked()


def adoption_of(cluster: Cluster, target: ModelTarget, asked: Asked = NOTHING, *, clock: Clock | None = None) -> PromoteRequest:
    """The request that stands for what serves the model: its application, route and version, by ``serveConfigV2``. Reads only.

    The application is the one that is named, else the one at the route that is named, else at ``/{model}``, else the one that is called as the model.
    A version that nobody names is ``args.version`` of the application, else ``found-`` and eight digits of its configuration's digest.
    Raises `NotFound` listing what there is.
    """
    ref = Ref("RayService", target.rayservice, target.namespace)
    steady = patient(cluster, clock or SystemClock(), Patience(DOOR_PATIENCE_S))
    found = steady.get(ref)
    if found is None:
        raise errors.NotFound(f"{ref}: it does not exist; correct the name")
    text = rayservice.serve_config(found)
    there = rayservice.applications(text)
    name = asked.application or rayservice.owner(text, asked.route or names.public_route(target.model))
    if name is None and asked.route is None and target.model in there:
        name = target.model
    entry = there.get(name) if name is not None else None
    if name is None or entry is None:
        known = ", ".join(f"{other} at {at}" for other, at in _reachable(there).items()) or "none that HTTP reaches"
        what = f"application {asked.application}" if asked.application else f"application at {asked.route or names.public_route(target.model)}"
        raise errors.NotFound(f"{ref}: there is no {what}; there are: {known}. Name one with --application or --route")
    route = rayservice.route_of(entry)
    if not route or (asked.route is not None and route != asked.route):
        raise errors.NotFound(f"{ref}: application {name} is at {route or 'no route'}{f', not at {asked.route}' if asked.route else ''}")
    if entry.get("import_path") == names.ROUTER_IMPORT_PATH or names.model_of_version_route(route):
        raise errors.NameTaken(f"{ref}: application {name} is of a release by this library already; `kfp-serving status` shows it")
    _refuse_anothers(steady, target, name, entry)
    options = {
        "application": name,
        "route": route,
        "alias": asked.alias,
        "model_format": asked.model_format,
        "protocol": "json",
        "smoke": "none",
    }
    return _parsed(
        f"{ref}: application {name} cannot be adopted as it is",
        {
            **target.model_dump(),
            "version": asked.version or _version(entry, rayservice.digests(text)[name]),
            "uri": asked.uri or f"{names.SERVED}{target.namespace}/{target.rayservice}/{name}",
            "import_path": entry.get("import_path"),
            "options": {key: value for key, value in options.items() if value is not None},
        },
    )


def _parsed(what: str, values: Mapping[str, Any]) -> PromoteRequest:
    try:
        return parse(values)
    except errors.RequestInvalid as error:
        raise errors.RequestInvalid(f"{what}: {error}") from error


def _refuse_anothers(cluster: Cluster, target: ModelTarget, application: str, entry: Mapping[str, Any]) -> None:
    """Raise `NameTaken` when the application serves another model by its record, or, where records may not be listed, by its arguments."""
    args = entry.get("args")
    told = args.get("model") if isinstance(args, Mapping) else None
    owners = {str(told)} if isinstance(told, str) and told != target.model and application.startswith(f"{told}-") else set()
    with contextlib.suppress(errors.PermissionDenied):
        owners = {
            record.model
            for record in records(cluster, target.namespace)
            if record.rayservice == target.rayservice and application in (record.application(v) for v in (record.stable_now, _candidate(record)) if v)
        }
    others = owners - {target.model}
    if others:
        raise errors.NameTaken(
            f"RayService {target.namespace}/{target.rayservice}: application {application} belongs to model {sorted(others)[0]} already; it cannot "
            f"be adopted as {target.model} too"
        )


def _candidate(record: Release) -> str | None:
    """Of a release that is not over."""
    return None if record.done else record.candidate_version


def adoptable(cluster: Cluster, namespace: str, rayservice_name: str) -> dict[str, str]:
    """Application -> model name, of all applications of a RayService that HTTP reaches, without those that are in a release now.

    Reads only. Raises `NotFound` without the RayService, `RequestInvalid` where an application gives no name of its own. The model is the one
    that was released or adopted with it; else it is called as its alias ``{model}-predictor`` says, where one is there for the application's name or
    its route; else as the application.
    """
    ref = Ref("RayService", rayservice_name, namespace)
    found = cluster.get(ref)
    if found is None:
        raise errors.NotFound(f"{ref}: it does not exist; correct the name")
    there = rayservice.applications(rayservice.serve_config(found))
    models: dict[str, str] = {}
    released = {
        record.application(record.stable_now): record.model
        for record in records(cluster, namespace)
        if record.rayservice == rayservice_name and record.stable_now is not None
    }
    for name, route in _reachable(there).items():
        if there[name].get("import_path") == names.ROUTER_IMPORT_PATH or names.model_of_version_route(route):
            continue
        if name in released:
            models[name] = released[name]
            continue
        candidates = [slug for slug in (_slug(name), _slug(route)) if slug]
        models[name] = next((slug for slug in candidates if cluster.get(Ref("Service", names.alias(slug), namespace))), (candidates or [""])[0])
    for name, model in models.items():
        if not model or list(models.values()).count(model) > 1:
            raise errors.RequestInvalid(
                f"{ref}: application {name} gives no model name of its own ({model!r}); adopt it by `adopt MODEL --application {name}`"
            )
    return models


def adopted(cluster: Cluster, namespace: str, rayservice_name: str) -> list[str]:
    """The models of a RayService that were adopted, whatever serves them by now: what `undo_adoption` is for. Reads only; raises as `adopt_model`."""
    return [record.model for record in records(cluster, namespace) if record.rayservice == rayservice_name and record.adoption is not None]


def plan_adoption(run: Run) -> tuple[list[str], Plan]:
    """What is there and stays as it is, in sentences, and what would be made. Reads only; raises as `adopt_model` before it writes."""
    run.address = run.request.address
    seen = _look(run)
    stub_ref = manifests.stub_ref(run)
    return seen.told, Plan(tuple(_missing(run, seen)), {manifests.alias_ref(run): seen.service, stub_ref: seen.stub})


def adopt_model(run: Run) -> Release:
    """Record the running application as the model's stable version; make what is missing. The same again is harmless.

    Raises an `InputError` with everything that is in the way before anything is written, `ReleaseHeld` while a release of the model is unfinished,
    `ReleaseLeft` when the surroundings did not let it finish: users are served as before, and the same command goes on.
    """
    found = run.persist(run.store.load_record)
    if found is not None and _is_known(run, found):
        run.record, run.address = found, found.address
        return found
    begun, seen = _begin(run, found)
    with step(run, "adopt", until="promoted", begun=begun) as record:
        if record is not None:
            request, fence = run.request, partial(journal.assert_ours, run)
            seen = seen or _look(run)
            if not seen.known:
                facts = registered.facts(request, run.source)
                run.registry.register(run.registered_name, request.version, request.uri, digest=None, properties=facts)
            run.registry.move(run.registered_name, "champion", request.version)
            for change in _missing(run, seen):
                run.keep()
                write(run.cluster, change, fence=fence)
            for sentence in seen.told:
                journal.note(run, "adopt", sentence)
            undo.finish(run, "promoted", f"application {record.application(request.version)} is adopted as {request.version}")
    return journal.current(run)


def plan_undo(run: Run) -> list[str]:
    """What would be taken away, in sentences. Reads only; raises as `undo_adoption`."""
    _, adoption = _undoable(run)
    names_before = [] if adoption.aliases is None else [f"registry alias {name} -> {adoption.aliases.get(name) or 'none'}" for name in ALIASES]
    return [*map(str, _made(run, adoption)), *names_before]


def _undoable(run: Run) -> tuple[Release, Adoption]:
    """The record and what it says of the adoption. Raises `NotFound`, `ReleaseHeld`."""
    record = journal.read(run)
    run.address = record.address
    if record.adoption is None:
        raise errors.NotFound(f"model {record.namespace}/{record.model}: it was not adopted; there is nothing to undo")
    if record.open:
        raise errors.ReleaseHeld(
            f"{run.store.ref}: the release of {record.candidate_version} is {record.phase.replace('_', ' ')}"
            f"{' and its old version is kept' if record.previous else ''}; end it first (`kfp-serving status`, `tidy`, `rollback`)"
        )
    return record, record.adoption


def undo_adoption(run: Run) -> Release:
    """Take away what the adoption made; what serves the model by now goes on. Only the record of it, Events and registered versions stay.

    Raises `NotFound` when the model was not adopted, `ReleaseHeld` while a release is unfinished or an old version is kept. ``run`` is of
    `open_rollback`.
    """
    record, adoption = _undoable(run)
    run.persist(run.lease.acquire)
    try:
        if adoption.aliases is not None:
            run.registry.aliases(run.registered_name)  # where it cannot be asked, nothing is undone by half
        if journal.read_record(run).epoch != record.epoch:  # nothing carries an epoch here, so it is looked at before anything goes
            raise errors.ReleaseHeld(f"{run.store.ref}: another run has released {record.model} since this one looked; run the same again")
        for change in _made(run, adoption):
            write(run.cluster, change)
        if adoption.aliases is not None:
            for name in ALIASES:
                run.registry.move(run.registered_name, name, adoption.aliases.get(name))
        undone = Release(
            **{key: getattr(record, key) for key in ("model", "namespace", "rayservice", "candidate_version", "request", "request_digest")},
            epoch=record.epoch + 1,
            holder=run.holder,
            phase="rolled_back",
            started_unix_s=run.clock.now_unix_s(),
            finished_unix_s=run.clock.now_unix_s(),
        )
        return run.persist(lambda: run.store.start(undone))
    finally:
        run.persist(run.lease.release)


@dataclass(frozen=True)
class _Seen:
    text: str
    """Of ``serveConfigV2``."""
    service: Manifest | None
    stub: Manifest | None
    told: list[str]
    runs: bool
    known: bool
    """Whether the registry knows the version, from wherever it is, and nobody has said where that is."""


def _is_known(run: Run, found: Release) -> bool:
    """Whether the application is the stable version of an earlier release or adoption."""
    serves = found.application(found.stable_now) if found.done and found.stable_now is not None else None
    return serves == run.request.options.application and found.address == run.request.address


def _begin(run: Run, found: Release | None) -> tuple[Release, _Seen | None]:
    """Look for everything that is in the way, then open the record over the one that was ``found``; with it what was seen.

    Or take the one that this adoption continues: then nobody has looked yet.
    """
    request = run.request
    if found is not None and not found.done:
        if found.request_digest != request.digest:
            raise errors.ReleaseHeld(f"{run.store.ref}: the release of {found.candidate_version} is unfinished ({found.phase}); end it first")
        run.record = found
        take(run)
        return journal.current(run), None
    run.address = request.address
    seen = _look(run)
    aliases: dict[str, str] | None = run.persist(lambda: run.registry.aliases(run.registered_name))
    run.persist(run.lease.acquire)
    try:
        seen = _still(run, seen)
        record = run.persist(lambda: run.store.start(_opened(run, found, seen, aliases)))
    except errors.KfpServingError:
        with contextlib.suppress(errors.KfpServingError):
            run.lease.release()
        raise
    own(run, record)
    return record, seen


def _still(run: Run, seen: _Seen) -> _Seen:
    """What is there once the Lease is ours, which may have been waited for: what somebody else has made since is not ours to take away in an undo.

    Looked at anew only when it changed; raises as `_look` then.
    """
    refs = (run.rayservice, manifests.alias_ref(run), manifests.stub_ref(run))
    found, service, stub = (run.persist(partial(run.cluster.get, ref)) for ref in refs)
    unchanged = rayservice.serve_config(found) == seen.text and _version_of(service) == _version_of(seen.service)
    return seen if unchanged and _version_of(stub) == _version_of(seen.stub) else _look(run)


def _version_of(found: Manifest | None) -> str | None:
    return None if found is None else str(found["metadata"]["resourceVersion"])


def _opened(run: Run, found: Release | None, seen: _Seen, aliases: dict[str, str] | None) -> Release:
    """The record to begin with, over the finished one that was ``found``."""
    request = run.request
    made = [kind for kind, there in (("Service", seen.service), ("InferenceService", seen.stub)) if there is None]
    made += [alias.LABEL] if alias.is_unlabelled(request.model, seen.service) else []
    if found is not None and found.adoption is not None:  # its version was replaced by a commit: the same undoing for both
        made = [*dict.fromkeys((*found.adoption.made, *made))]
        aliases = found.adoption.aliases
    now = run.clock.now_unix_s()
    application = str(request.options.application)
    return Release(
        epoch=(found.epoch if found else 0) + 1,
        model=request.model,
        namespace=request.namespace,
        rayservice=request.rayservice,
        candidate_version=request.version,
        candidate_application=application,
        alias=run.address.alias,
        route=run.address.route,
        request=request.model_dump(mode="json"),
        request_digest=request.digest,
        phase="promoting",
        holder=run.holder,
        started_unix_s=now,
        switched_unix_s=now,
        adoption=Adoption(version=request.version, application=application, at_unix_s=now, made=made, aliases=aliases),
        stub_uid=None if seen.stub is None else str(seen.stub["metadata"]["uid"]),
    )


def _look(run: Run) -> _Seen:
    """What is there. Raises one error that names everything that is in the way."""
    request, address = run.request, run.address
    in_the_way: list[str] = []
    try:
        preflight.check_permissions(run.cluster, request)
    except errors.PermissionDenied as error:
        in_the_way.append(str(error))
    found = run.persist(lambda: run.cluster.get(run.rayservice))
    text = rayservice.serve_config(found)
    application = str(request.options.application)
    try:
        preflight.check_router_name(request.model, str(run.rayservice), rayservice.applications(text), address.route)
    except errors.InputError as error:
        in_the_way.append(str(error))
    holder = rayservice.owner(text, address.route)
    if holder != application:
        in_the_way.append(f"{run.rayservice}: route {address.route} belongs to {holder or 'no application'}, not to {application}")
    service, stub = run.cluster.get(manifests.alias_ref(run)), run.cluster.get(manifests.stub_ref(run))
    try:
        alias.assert_free(request.model, request.namespace, service, stub, request.target_host)
    except errors.NameTaken as error:
        in_the_way.append(str(error))
    version = run.registry.find(run.registered_name, request.version)
    known = version is not None and request.uri.startswith(names.SERVED)
    try:
        if version is not None and not known:
            version.assert_same(request.uri, None)
    except errors.NameTaken as error:
        in_the_way.append(f"{error} (--version names another one)")
    if in_the_way:
        raise errors.NameTaken("; ".join(in_the_way))
    state = rayservice.application_status(found or {}, application).get("status")
    told = _told(run, text, service, stub)
    if state != "RUNNING":
        told.append(f"application {application} is {state or 'not reported by the operator'} now: it is recorded all the same")
    return _Seen(text, service, stub, told, state == "RUNNING", known)


def _told(run: Run, text: str, service: Manifest | None, stub: Manifest | None) -> list[str]:
    request, route = run.request, run.address.route
    told = [f"application {request.options.application} at {route} ({request.import_path}) is version {request.version}: nothing of it is touched"]
    told += rayservice.beside(text, route)
    if service is not None:
        label = "the label is put on" if alias.is_unlabelled(request.model, service) else "it is not touched"
        told.append(f"{Ref.of(service)} -> {service['spec'].get('externalName')} is there: {label}")
    if stub is not None:
        told.append(f"{Ref.of(stub)} is there: it is not touched before a promotion")
    return told + _told_of_http_routes(run, text)


def _told_of_http_routes(run: Run, text: str) -> list[str]:
    """By which HTTPRoutes of the namespace users come too. That they cannot be looked at is told, and is nobody's fault: few clusters have them."""
    request, routes = run.request, list(_reachable(rayservice.applications(text)).values())
    services = (run.address.alias, names.serve_service(request.rayservice))
    try:
        found = run.cluster.list("HTTPRoute", request.namespace)
    except errors.NotFound:
        return ["HTTPRoutes were not looked at: this cluster does not have Gateway API"]
    except errors.PermissionDenied:
        return ["HTTPRoutes were not looked at: this identity may not list them; the Role of deploy/rbac.yaml grants it"]
    except errors.Unreachable as error:
        return [f"HTTPRoutes were not looked at: {error}"]
    return [sentence for one in found for sentence in http_route.reaching(one, services, run.address.route, routes)]


def _missing(run: Run, seen: _Seen) -> list[Change]:
    """What is not there and is made. The stub gets its status with it."""
    changes: list[Change] = []
    version = run.request.version
    if seen.service is None or alias.is_unlabelled(run.request.model, seen.service):
        changes.append(manifests.alias_change(run, seen.service))
    if seen.stub is None:
        changes.append(manifests.stub_change(run, version, None))
    if seen.stub is None or _is_bare(seen.stub):
        told = manifests.all_message(version) if seen.runs else f"version {version} does not run"
        changes.append(manifests.traffic_change(run, {version: 100.0} if seen.runs else {}, told, seen.stub, ready=seen.runs))
    return changes


def _is_bare(stub: Manifest) -> bool:
    """Whether we made it and were killed before it got its status."""
    ours = (stub["metadata"].get("labels") or {}).get(names.MANAGED_BY_LABEL) == names.MANAGED_BY
    return ours and not (stub.get("status") or {}).get("components")


def _made(run: Run, adoption: Adoption) -> list[Change]:
    """What goes when the adoption is undone."""
    changes: list[Change] = []
    made, request = "the adoption made it", run.request
    if "InferenceService" in adoption.made:
        changes.append(Delete(manifests.stub_ref(run), made))
    service = manifests.alias_ref(run)
    found = run.cluster.get(service)
    if "Service" in adoption.made:
        changes.append(Delete(service, made))
    elif alias.LABEL in adoption.made and found is not None:
        bare = alias.without_label(request.model, request.namespace, request.target_host, found)
        changes.append(Apply(bare, "as it was before the adoption"))
    return changes


def _reachable(there: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Application -> route, of those that have one; Serve gives ``/`` to one that says nothing, and none where it is null."""
    return {name: str(route) for name, entry in there.items() if (route := rayservice.route_of(entry))}


def _version(entry: Mapping[str, Any], digest: str) -> str:
    args = entry.get("args")
    told = args.get("version") if isinstance(args, Mapping) else None
    if isinstance(told, str) and names.VERSION.fullmatch(told) and len(told) <= 63 and told != "router":
        return told
    return f"found-{digest[:8]}"


def _slug(text: str) -> str:
    """As a model may be called: ``Whisper_large`` -> ``whisper-large``, ``m-:a`` -> ``m-a``; empty when nothing is left."""
    slug = text if names.DNS_1035.fullmatch(text) else NOT_IN_A_NAME.sub("-", text.lower()).strip("-")
    return slug if names.DNS_1035.fullmatch(slug) and len(slug) <= names.MAX_MODEL_CHARACTERS else ""
