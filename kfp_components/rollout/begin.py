"""The beginning: everything is checked, then the release record is opened, or the one that this request continues is found."""

from __future__ import annotations

import contextlib
from dataclasses import asdict

from kfp_components import errors, names
from kfp_components.plan import Change, Plan
from kfp_components.release import Release
from kfp_components.rollout import deploy, journal, manifests, preflight, tidy
from kfp_components.rollout.run import Run
from kfp_components.rollout.status import without_router
from kfp_components.rollout.step import adopt, put_down, step, take


def register_model(run: Run, *, first_version: bool = False, boxes: int | None = None) -> Release:
    """Make the version known to the registry, as ``candidate``. Opens the release, or continues it.

    ``boxes``: how many canary steps the pipeline has that calls this. `RequestInvalid`, and nothing is written, when the request has more.
    """
    if boxes is not None and len(run.request.steps) > boxes:
        raise errors.RequestInvalid(
            f"steps: {len(run.request.steps)} are asked for, but this pipeline was compiled with {boxes} canary step(s); give at most {boxes}, or "
            f"compile it with --steps {','.join(f'{weight:g}' for weight in run.request.steps)} and upload that"
        )
    begin(run, first_version=first_version)
    with step(run, "register", until="registered") as record:
        if record is not None:
            request = run.request
            journal.assert_ours(run)
            properties = {"model_format": request.options.model_format, "import_path": request.import_path, **run.source}
            run.registry.register(run.registered_name, request.version, request.uri, digest=request.options.digest, properties=properties)
            run.registry.move(run.registered_name, "candidate", request.version)
            journal.advance(run, "registered", f"{run.registered_name} {request.version} registered from {request.uri}")
    return journal.current(run)


def begin(run: Run, *, first_version: bool = False) -> Release:
    """Check everything, take the model's Lease and open the release record, or find the one that this request continues.

    Raises an `InputError` before anything is written; `ReleaseHeld` when another run is at it, or another request's release is unfinished.
    """
    request = run.request
    found = run.persist(run.store.load)
    if found is not None and not found.done and found.request_digest == request.digest:
        run.record = found
        take(run)
        return journal.current(run)
    if found is not None and not found.done:
        found = _make_way(run, found)
    split = run.persist(run.router.current)
    stable = split.stable if split else None
    if found is not None and found.phase == "promoted" and stable == request.version and found.request_digest == request.digest:
        return tidy.tidy_release(run) if tidy.due(run, found) else found
    if stable == request.version:
        found = run.persist(run.store.load)  # another run may just have finished this very request
        if found is not None and found.phase == "promoted" and found.request_digest == request.digest:
            return found
        raise errors.RequestInvalid(f"model {request.model}: version {request.version} is what users get already; give a new version")
    if stable is not None and first_version:
        raise errors.RequestInvalid(
            f"model {request.model}: version {stable} is live; a new version goes through the canary (promote_with_canary), not deploy_model"
        )
    try:
        situation = preflight.check(run.cluster, run.registry, request, stable_version=stable, first_version=first_version)
    except errors.InputError as error:
        if split is None and found is not None and found.stable_now is not None and (served := run.cluster.get(run.rayservice)) is not None:
            error.add_note(f"The last release left users on {found.stable_now}, but {without_router(served, request.model)}.")
        if _state(run.persist(run.store.load_record)) != _state(found):  # it was looked at while another run changed it
            return begin(run, first_version=first_version)
        raise
    if found is not None and found.open:  # it is promoted: its old version goes, this release may go back to the newer one
        found = tidy.put_away(run.for_request(found.asked()))
    run.persist(run.lease.acquire)
    if _state(run.persist(run.store.load_record)) != _state(found):  # another run began or ended a release while this one looked
        run.persist(run.lease.release)
        return begin(run, first_version=first_version)
    record = Release(
        epoch=(found.epoch if found else 0) + 1,
        model=request.model,
        namespace=request.namespace,
        rayservice=request.rayservice,
        candidate_version=request.version,
        stable_version=stable,
        split_before=asdict(split) if split else None,
        request=request.model_dump(mode="json"),
        request_digest=request.digest,
        holder=run.holder,
        steps=[] if first_version else list(request.steps),
        started_unix_s=run.clock.now_unix_s(),
        made=[kind for kind, there in (("Service", situation.alias_exists), ("InferenceService", situation.stub_exists)) if not there],
    )
    try:
        adopt(run, run.persist(lambda: run.store.start(record)))
    except errors.KfpServingError:
        with contextlib.suppress(errors.KfpServingError):
            run.lease.release()
        raise
    put_down(run)
    return record


def plan(run: Run, *, first_version: bool = False) -> Plan:
    """What the release would write first (deploy, alias, stub), without writing it."""
    split = run.router.current()
    stable = split.stable if split else None
    situation = preflight.check(run.cluster, run.registry, run.request, stable_version=stable, first_version=first_version)
    before = situation.serve_config
    after = deploy.with_version(run, before, stable)
    whole = situation.rayservice or manifests.new_rayservice(run, before)
    metadata = {"name": whole["metadata"]["name"], "namespace": whole["metadata"]["namespace"]}
    applied = "serveConfigV2" in str((whole["metadata"].get("annotations") or {}).get(names.LAST_APPLIED, ""))
    warning = ". Its owner applied serveConfigV2 with kubectl: the next `kubectl apply` of that file takes all of this back" if applied else ""
    change = Change(
        "apply",
        {"apiVersion": whole["apiVersion"], "kind": whole["kind"], "metadata": metadata, "spec": {"serveConfigV2": after}},
        f"application {deploy.application(run)} beside the others, which stay as they are{warning}",
        names.MANAGER,
        before=situation.rayservice,
    )
    stub = () if stable is not None and situation.stub_exists else tuple(manifests.stub_plan(run, stable or run.request.version))
    return Plan((change,) if after != before else ()) + manifests.alias_plan(run) + Plan(stub)


def _state(record: Release | None) -> tuple[int, str, float] | None:
    return None if record is None else (record.epoch, record.phase, record.started_unix_s)


def _make_way(run: Run, found: Release) -> Release:
    """Another request's release: one that was held for longer than it may is taken back first, any other one refuses this request."""
    if tidy.due(run, found):
        return tidy.put_away(run.for_request(found.asked()))
    raise errors.ReleaseHeld(
        f"{run.store.ref}: the release of {found.candidate_version} is unfinished ({found.phase}, last run by {found.holder}); "
        f"run that request again to go on, or `kfp-serving rollback {found.model}` to give it up"
    )
