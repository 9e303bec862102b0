"""Everything that is checked before anything is touched. Reads only; raises an `InputError` that says what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kfp_components import errors, names, notify, probes, request
from kfp_components.cluster import Cluster, Manifest, Permission, Ref
from kfp_components.cluster.changes import Apply, refuse_gitops, refuse_written_back
from kfp_components.cluster.fields import refuse_taken
from kfp_components.rollout import cases, golden_set, judge_model
from kfp_components.rollout.run import Run
from kfp_components.serving import alias, inference_service, ownership, rayservice
from kfp_components.traffic.router_source import Source

PERMISSIONS: tuple[Permission, ...] = (
    *(Permission(verb, "ConfigMap") for verb in ("get", "create", "update")),
    *(Permission(verb, "Lease") for verb in ("get", "create", "update", "delete")),
    *(Permission(verb, "Service") for verb in ("get", "create", "patch", "delete")),
    *(Permission(verb, "InferenceService") for verb in ("get", "create", "patch", "delete")),
    Permission("patch", "InferenceService", "status"),
    *(Permission(verb, "RayService") for verb in ("get", "patch")),
    Permission("create", "Event"),
)
"""What a promotion needs. deploy/rbac.yaml grants exactly this."""


@dataclass(frozen=True)
class Serving:
    """The version that users get, the application that holds it, and whether that stands at ``/`` without saying so."""

    version: str
    application: str
    route_implied: bool = False


@dataclass(frozen=True)
class Situation:
    """What was found: the RayService (None: to be created), alias and stub (None: there is none)."""

    rayservice: Manifest | None
    service: Manifest | None
    stub: Manifest | None
    router: Source | None = None
    """Where the router comes from; None where no router is needed."""
    registered_digest: str | None = None
    """The artifact's, as the registry knows it."""


def check(run: Run, *, found: Manifest | None, serving: Serving | None, first_version: bool, dry: bool = False) -> Situation:
    """Look at everything that a release will touch.

    ``found`` is the RayService as it was read, ``serving`` what users get at the run's address. ``first_version`` allows that there is nothing
    (deploy_model); it needs no router, any other release finds out where that would come from. ``dry`` lets pass that somebody else applies
    ``serveConfigV2``: a plan tells it beside the changes, and no router stands in what is committed. Media of smoke cases are read unless ``dry``.
    """
    cluster, asked, address = run.cluster, run.request, run.address
    check_permissions(cluster, asked)
    notify.check(asked.options.notify, notify.reader(cluster, asked.namespace))
    probes.assert_askable(asked.options.smoke if dry else cases.with_media(asked.options.smoke))
    if any(case.reference is not None for case in asked.options.smoke):
        from kfp_components import quality  # numpy: only who scores pays for it

        quality.assert_references(asked.options.smoke, asked.family)
    ref = Ref("RayService", asked.rayservice, asked.namespace)
    if found is None and asked.options.rayservice_template is None:
        raise errors.NotFound(f"{ref}: it does not exist; create it, correct the name, or give options.rayservice_template")
    metadata = (found or {}).get("metadata") or {}
    text = rayservice.serve_config(found)
    applications = rayservice.applications(text)
    if found is not None and not dry:
        refuse_gitops(found)
        refuse_written_back(found)
    imports = {str(entry.get("import_path")) for entry in applications.values()}
    request.assert_allowed(asked, metadata.get("annotations") or {}, imports)
    _check_routes(asked, str(ref), applications, address.route)
    rayservice.refuse_replicas(str(ref), text, names.router_application(asked.model), names.ROUTER_DEPLOYMENT)
    if serving is None and not first_version:
        raise errors.NotFound(
            f"model {asked.model}: {ref} serves no version of it yet, so there is nothing to compare with; "
            "deploy the first version with `deploy_model` (kfp-serving promote --first)"
        )
    if serving is not None and serving.application not in applications:
        raise errors.NotFound(
            f"{ref}: the router sends users to {serving.version}, but application {serving.application} is not in serveConfigV2; "
            "mend the RayService first"
        )
    if serving is not None:
        golden_set.of_request(asked)
        judge_model.token(asked, cluster)
        _try_the_switch(asked.model, text, serving, address.route)
    service = cluster.get(Ref("Service", address.alias, asked.namespace))
    stub = cluster.get(Ref("InferenceService", asked.model, asked.namespace))
    alias.assert_free(asked.model, asked.namespace, service, stub, asked.target_host)
    _check_fields(asked, service, stub)
    known = run.registry.find(run.registered_name, asked.version)
    if known is not None:
        known.assert_same(asked.uri, asked.options.digest)
    committed = found is not None and ownership.of(found).mode == "commit"
    source = run.router.source(found) if found is not None and serving is not None and not committed else None
    return Situation(found, service, stub, source, known.digest if known else None)


def check_permissions(cluster: Cluster, target: request.ModelTarget) -> None:
    """Raise `PermissionDenied` naming everything that this identity may not do."""
    missing = cluster.missing(PERMISSIONS, target.namespace)
    if missing:
        raise errors.PermissionDenied(
            f"namespace {target.namespace}: this identity may not {', '.join(map(str, missing))}; bind the Role of deploy/rbac.yaml to it"
        )


def _check_fields(asked: request.PromoteRequest, service: Manifest | None, stub: Manifest | None) -> None:
    """Raise `NameTaken` for a field of alias or stub that has to be written and is somebody else's, unless he yields the object."""
    wanted = (
        (alias.manifest(asked.model, asked.namespace, asked.target_host, service), service),
        (inference_service.wanted(asked, asked.version, stub), stub),
    )
    for manifest, found in wanted:
        if found is not None and ownership.of(found).mode != "yielded":
            refuse_taken(Apply(manifest, "as it should be"), found)


def _try_the_switch(model: str, text: str, serving: Serving, public: str) -> None:
    """Raise what giving the route to the router, and back, would: a route that stands elsewhere as an anchor, for instance."""
    if rayservice.owner(text, public) != serving.application:
        return
    try:
        aside = rayservice.with_route(text, serving.application, names.version_route(model, serving.version))
        rayservice.with_route(aside, serving.application, None if serving.route_implied else public)
    except errors.Conflict as error:
        raise errors.RequestInvalid(f"{error}; write the route of {serving.application} into its own entry first") from error


def _check_routes(asked: request.PromoteRequest, ref: str, applications: dict[str, dict[str, object]], public: str) -> None:
    """The names and internal routes that a release uses are free, or this model's own."""
    check_router_name(asked.model, ref, applications, public)
    candidate, internal = asked.application, names.version_route(asked.model, asked.version)
    for name, entry in applications.items():
        route = rayservice.route_of(entry)
        if name == candidate and route != internal:
            other = _other_model(str(route), entry)
            whose = f"it belongs to model {other}" if other else "it is not of this release"
            raise errors.NameTaken(f"{ref}: application {name} is there already, at {route}; {whose}: give the version another name")
        taken = route in (internal, names.router_route(asked.model)) and route != public
        if name not in (candidate, names.router_application(asked.model)) and taken:
            raise errors.NameTaken(f"{ref}: route {route} belongs to application {name}, but this library uses it while a release runs")


def check_router_name(model: str, ref: str, applications: Mapping[str, Mapping[str, object]], public: str) -> None:
    """Raise `NameTaken` where the application that a release's router would be is somebody else's, `RequestInvalid` where two have one route."""
    router = names.router_application(model)
    entry = applications.get(router)
    if entry is not None:
        route = rayservice.route_of(entry)
        if entry.get("import_path") != names.ROUTER_IMPORT_PATH or route not in (names.router_route(model), public):
            other = _other_model(str(route), entry)
            whose = f"it belongs to model {other}" if other else f"it is from {entry.get('import_path')}"
            raise errors.NameTaken(
                f"{ref}: application {router} is there already, at {route}; {whose}, and a release of {model} calls its router so: leave it, and "
                "call the model otherwise"
            )
    routes = [(str(found), name) for name, one in applications.items() if (found := rayservice.route_of(one))]
    twice = next((route for route, _ in routes if [other for other, _ in routes].count(route) > 1), None)
    if twice is not None:
        both = " and ".join(name for route, name in routes if route == twice)
        raise errors.RequestInvalid(f"{ref}: applications {both} have the same route {twice}, which Ray Serve refuses; mend the RayService first")


def _other_model(route: str, entry: Mapping[str, object]) -> str | None:
    """The model that an application of this library belongs to: `bge` with version `large-v1` is named as `bge-large` with `v1`."""
    args = entry.get("args")
    told = args.get("model") if isinstance(args, Mapping) else None
    return names.model_of_version_route(route) or (str(told) if told else None)
