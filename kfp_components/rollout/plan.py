"""What a release would write, without writing it: the same changes that its steps write, one after another."""

from __future__ import annotations

from dataclasses import replace

from kfp_components import artifact, errors, names
from kfp_components.cluster import Manifest
from kfp_components.cluster.changes import Change, Plan
from kfp_components.request import PromoteRequest, plain_secrets
from kfp_components.rollout import deploy, manifests, owners, preflight, promote, routes, weights
from kfp_components.rollout.adopt import plan_adoption
from kfp_components.rollout.begin import address, adoption, assert_new
from kfp_components.rollout.preflight import Serving
from kfp_components.rollout.run import Run
from kfp_components.serving import capacity
from kfp_components.serving.rayservice import serve_config


def plan(run: Run, *, first_version: bool = False) -> Plan:
    """Everything that the request would write when all goes well; nothing is touched. Raises what `register_model` would, before it writes.

    But where somebody else applies ``serveConfigV2``, the plan is told all the same and has in ``refused`` what a run would raise.

    An artifact is looked for and not read, but for an ``oci://`` manifest: its digest is told, or what a run would compare.

    A weight's lease and the release's epoch are those of now. What a way back would write is not in it: see `rollout.undo`.
    """
    request, version = run.request, run.request.version
    stable, found, adopted = _checked(run, first_version)
    rayservice = found.rayservice
    alias = manifests.alias_change(run, found.service)
    serving = stable.version if stable else version
    changes: list[Change] = [] if rayservice is not None else [manifests.new_rayservice(run, "a new release")]
    deployed = deploy.version_change(run, stable)
    size = capacity.told(request, serve_config(rayservice), stable.application if stable else None)
    router = f"; {found.router.told}" if found.router else ""
    verified = run.persist(lambda: artifact.verify(request, found.registered_digest, run.reading, dry=True))
    told = f"{router}; artifact: {verified.sentence}"
    changes += [replace(deployed, why=deployed.why + told + size + _kubectl_warning(rayservice) + _plain_secrets(request)), alias]
    if stable is None or found.stub is None:
        changes.append(manifests.stub_change(run, serving, found.stub))
    changes.append(manifests.traffic_change(run, {serving: 100.0}, "waits for smoke inference", found.stub))
    applications = {version: deploy.application(run)} | ({stable.version: stable.application} if stable else {})
    shown = manifests.traffic_change(run, {version: 100.0}, manifests.all_message(version), found.stub)
    if stable is not None:
        changes.append(routes.to_router(run, applications))
        for weight_percent in request.steps:
            step = weights.split(run, applications, stable=stable.version, candidate=version, weight_percent=weight_percent)
            changes += [
                run.router.change(step),
                manifests.traffic_change(run, step.shares, manifests.canary_message(weight_percent, version), found.stub),
            ]
        changes += [run.router.change(weights.split(run, applications, stable=version)), shown]
    changes.append(routes.change(run, deploy.application(run), f"version {version}", applications))
    if stable is not None:
        changes.append(promote.removal(run, promote.retired(request, stable.application, request.options.keep_previous_s)))
    changes += [manifests.stub_change(run, version, found.stub), shown]
    objects = {run.rayservice: rayservice, alias.ref: found.service, manifests.stub_ref(run): found.stub}
    return adopted + Plan(tuple(changes), objects, *owners.of(objects))


def _checked(run: Run, first_version: bool) -> tuple[Serving | None, preflight.Situation, Plan]:
    """Who serves, what is there, and what an adoption would write before, with ``options.adopt``."""
    last = run.persist(run.store.load_record)
    run.address = address(run, last)
    run.router.epoch = last.epoch + 1 if last else 0  # a router of the last release may be there still
    rayservice = run.cluster.get(run.rayservice)
    adopted = Plan()
    try:
        stable = routes.serving(run, rayservice, last)
    except errors.NotAdopted:
        if not run.request.options.adopt:
            raise
        adopting, stable = adoption(run)
        adopted = plan_adoption(adopting)[1]
    assert_new(run, stable.version if stable else None, first_version)
    found = preflight.check(run, found=rayservice, serving=stable, first_version=first_version, dry=True)
    if found.router is not None:
        run.router.runtime_env = found.router.runtime_env
    then = {change.ref: after for change, _, after in adopted.played()}
    service, stub = then.get(manifests.alias_ref(run), found.service), then.get(manifests.stub_ref(run), found.stub)
    return stable, replace(found, service=service, stub=stub), adopted


def _kubectl_warning(rayservice: Manifest | None) -> str:
    """Where the owner applies ``serveConfigV2`` from a file with kubectl."""
    annotations = ((rayservice or {}).get("metadata") or {}).get("annotations") or {}
    if "serveConfigV2" not in str(annotations.get(names.LAST_APPLIED, "")):
        return ""
    return ". Its owner applied serveConfigV2 with kubectl: the next `kubectl apply` of that file takes all of this back"


def _plain_secrets(asked: PromoteRequest) -> str:
    """Where environment variables look like secrets: nothing is refused, since whoever set them may have no other way."""
    found = plain_secrets(asked)
    return (
        f". In plain text there: runtime_env.env_vars {', '.join(found)}; a Secret in the pods' env keeps them out of RayService and record"
        * bool(found)
    )
