"""One function per step of a release. Notebooks and the CLI call them, the KFP components wrap them.

    run = rollout.open_run(request, cluster)      # nothing is touched yet
    rollout.promote_with_canary(run)              # or step by step, as below

    register -> deploy -> create_alias -> create_stub -> smoke -> canary_step(0) -> canary_step(1) -> ... -> promote

Every step re-reads the release record, so a step that is run again goes on where it stood, in any process. The step that finds a fault gives
all traffic back to stable itself, in one write, before it raises. Nobody running: the router does so when the weight's lease lapses.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from kfp_components import errors, names, preflight, probes, registry, release, traffic
from kfp_components.apply import apply, change_serve_config, remove_applications
from kfp_components.cluster import Cluster, Manifest, Ref
from kfp_components.judge import counts
from kfp_components.plan import Change, Plan
from kfp_components.registry import ModelRegistry
from kfp_components.release import Event, Evidence, Failure, JudgeState, Lease, Release, ReleaseStore, Rollback
from kfp_components.request import ModelTarget, Options, PromoteRequest, SmokeCase
from kfp_components.serving import alias, inference_service, rayservice
from kfp_components.traffic import Split, TrafficStrategy

if TYPE_CHECKING:
    from kfp_components.judge.verdict import Judge, Verdict

APPLY_TIMEOUT_S = 60.0
"""How long the router may take to route by a weight that was written; Serve needs 0.6 s, a busy operator several."""

METER_PATIENCE_S = 15.0
"""How long the counts may be unreadable before the verdict is `error`: a restarted replica is back by then."""

ROLLBACK_PROBES = 10
ANY_EPOCH = 1 << 30
Watcher = Callable[[Release], None]


@dataclass
class Run:
    """One run's view of a release: what is asked, where, by whom, and who watches."""

    request: PromoteRequest
    cluster: Cluster
    registry: ModelRegistry
    router: TrafficStrategy
    store: ReleaseStore
    hold: Lease
    watch: Watcher = lambda _release: None
    source: dict[str, str] = field(default_factory=dict)
    last: Release | None = field(default=None, repr=False)
    """The record as this run read or wrote it last: a way back begins with it, without a read."""

    @property
    def registered_name(self) -> str:
        """Name of the model in the registry."""
        return preflight.registered_name(self.request)


def open_run(
    request: PromoteRequest,
    cluster: Cluster | None = None,
    *,
    holder: str | None = None,
    watch: Watcher = lambda _release: None,
    source: dict[str, str] | None = None,
) -> Run:
    """Connect everything; nothing is written.

    ``holder`` names the run in the Lease (a KFP run id; default: this process). ``source`` is recorded in the registry (run id, URL, commit).
    """
    if cluster is None:
        from kfp_components.cluster.kubernetes import KubernetesCluster

        cluster = KubernetesCluster()
    return Run(
        request=request,
        cluster=cluster,
        registry=registry.connect(request.options.registry_uri),
        router=traffic.connect("ray_router", cluster, request),
        store=ReleaseStore(cluster, request.model, request.namespace),
        hold=Lease(cluster, request.model, request.namespace, holder or release.local_holder(), request.options.lease_s),
        watch=watch,
        source=source or {},
    )


def promote_with_canary(run: Run) -> Release:
    """The whole way from a registered version to all users, or back. Returns the record; raises what stopped it.

    A version that is what users get already is left alone, so running the same command again after the end is harmless.
    """
    _all_steps(run, first_version=False)
    for index in range(len(run.request.steps)):
        canary_step(run, index)
    return promote(run)


def deploy_model(run: Run) -> Release:
    """The first version of a model: no stable version to compare with, so smoke inference alone decides."""
    _all_steps(run, first_version=True)
    return promote(run)


def _all_steps(run: Run, *, first_version: bool) -> None:
    register(run, first_version=first_version)
    deploy(run)
    create_alias(run)
    create_stub(run)
    smoke(run)


def begin(run: Run, *, first_version: bool = False) -> Release:
    """Check everything, take the model's Lease and open the release record, or find the one that this request continues.

    Raises an `InputError` before anything is written; `ReleaseHeld` when another run is at it.
    """
    request = run.request
    preflight.check_permissions(run.cluster, request)
    found = run.store.load()
    if found is not None and not found.done:
        if found.request_digest != request.digest:
            raise errors.ReleaseHeld(
                f"{run.store.ref}: the release of {found.candidate_version} is unfinished ({found.phase}, last run by {found.holder}); "
                "run that request again to go on, or `kfp-serving rollback` to give it up"
            )
        _acquire(run)
        return run.store.take_over(run.hold.run)
    split = run.router.current()
    stable = split.stable if split else None
    if found is not None and found.phase == "promoted" and stable == request.version and found.request_digest == request.digest:
        return found
    if stable == request.version:
        raise errors.RequestInvalid(f"model {request.model}: version {request.version} is what users get already; give a new version")
    if stable is not None and first_version:
        raise errors.RequestInvalid(
            f"model {request.model}: version {stable} is live; a new version goes through the canary (promote_with_canary), not deploy_model"
        )
    situation = preflight.check(run.cluster, run.registry, request, stable_version=stable, first_version=first_version)
    _acquire(run)
    made = [kind for kind, there in _would_make(situation).items() if not there]
    record = Release(
        model=request.model,
        namespace=request.namespace,
        rayservice=request.rayservice,
        candidate_version=request.version,
        stable_version=stable,
        split_before=asdict(split) if split else None,
        request=request.model_dump(mode="json"),
        request_digest=request.digest,
        holder=run.hold.run,
        steps=[] if first_version else list(request.steps),
        started_unix_s=time.time(),
        made=made,
    )
    try:
        return run.store.start(record)
    except errors.KfpServingError:
        run.hold.release()
        raise


def plan(run: Run, *, first_version: bool = False) -> Plan:
    """What the release would write first (deploy, alias, stub), without writing it."""
    split = run.router.current()
    stable = split.stable if split else None
    situation = preflight.check(run.cluster, run.registry, run.request, stable_version=stable, first_version=first_version)
    before = situation.serve_config
    after = _deployed(run, before, stable)
    whole = situation.rayservice or _new_rayservice(run.request, before)
    change = Change(
        "apply",
        {**{k: whole[k] for k in ("apiVersion", "kind")}, "metadata": _named(whole), "spec": {"serveConfigV2": after}},
        f"application {names.application(run.request.model, run.request.version)} beside the others, which stay as they are",
        names.MANAGER,
        before=situation.rayservice,
    )
    return Plan((change,) if after != before else ()) + _alias_plan(run) + _stub_plan(run, stable or run.request.version)


def register(run: Run, *, first_version: bool = False) -> Release:
    """Make the version known to the registry, as ``candidate``. Opens the release."""
    begin(run, first_version=first_version)
    with _step(run, "register", until="registered") as record:
        if record is not None:
            request = run.request
            properties = {"model_format": request.options.model_format, "import_path": request.import_path, **run.source}
            run.registry.register(run.registered_name, request.version, request.uri, digest=request.options.digest, properties=properties)
            run.registry.move(run.registered_name, "candidate", request.version)
            _advance(run, "registered", f"{run.registered_name} {request.version} registered from {request.uri}")
    return _record(run)


def deploy(run: Run) -> Release:
    """Put the version beside the others on the RayService and wait until it runs. It gets no traffic yet."""
    with _step(run, "deploy", until="deployed") as record:
        if record is not None:
            request = run.request
            if "RayService" in record.made:
                _create_rayservice(run, record)
            ours = {names.application(request.model, request.version), names.router_application(request.model)}
            change_serve_config(
                run.cluster, request.namespace, request.rayservice, lambda text: _deployed(run, text, record.stable_version), changed=ours
            )
            wanted = ours if record.stable_version is None else {names.application(request.model, request.version)}
            for name in sorted(wanted):
                run.cluster.wait(
                    Ref("RayService", request.rayservice, request.namespace),
                    ready=rayservice.ready(name),
                    failed=rayservice.failed(name),
                    timeout_s=request.options.ready_timeout_s,
                )
            _advance(run, "deployed", f"application {names.application(request.model, request.version)} runs")
    return _record(run)


def create_alias(run: Run) -> Release:
    """The ExternalName Service that clients call. Idempotent."""
    with _step(run, "alias", until="smoked") as record:
        if record is not None:
            apply(run.cluster, _alias_plan(run))
            _note(run, "alias", f"{names.alias_host(run.request.model, run.request.namespace)} -> {run.request.target_host}")
    return _record(run)


def create_stub(run: Run) -> Release:
    """The InferenceService that Kubeflow's models page shows, with URL, readiness and traffic. Idempotent."""
    with _step(run, "stub", until="smoked") as record:
        if record is not None:
            apply(run.cluster, _stub_plan(run, record.stable_version or run.request.version))
            _show_traffic(run, {record.stable_version or run.request.version: 100.0}, "waits for smoke inference")
            _note(run, "stub", f"InferenceService {run.request.namespace}/{run.request.model} shows the model")
    return _record(run)


def smoke(run: Run) -> Release:
    """Send the smoke cases to the version, through the alias; none of a user's requests has reached it yet."""
    with _step(run, "smoke", until="smoked") as record:
        if record is not None:
            results = smoke_cases(run.cluster, run.request, run.request.options, version=run.request.version)
            _advance(run, "smoked", f"{len(results)} case(s) answered as expected by {run.request.version}")
    return _record(run)


def smoke_cases(cluster: Cluster, target: ModelTarget, options: Options, *, version: str | None) -> list[probes.ProbeResult]:
    """The protocol's health checks and the given cases, through the alias. Raises `SmokeFailed` with a line for each failed case."""
    endpoint = cluster.endpoint(names.alias(target.model), target.namespace, names.SERVE_PORT)
    what = f"model {target.model} version {version or 'as routed'}"
    with probes.Prober(endpoint, target.model) as prober:
        health = probes.health_cases(target.model, options.protocol)
        deadline = time.monotonic() + 20.0
        results = prober.run(health, version)
        while any(result.problem for result in results) and time.monotonic() < deadline:
            time.sleep(0.5)  # a proxy learns a new route a moment after the application runs
            results = prober.run(health, version)
        probes.assert_passed(results, what)
        results += prober.run(options.smoke, version)
        probes.assert_passed(results, what)
    return results


def shift(run: Run, weight_percent: float) -> Release:
    """Give the candidate a share of the requests, verified; the share is a lease that a running step renews."""
    with _step(run, "shift", until="promoting") as record:
        if record is not None:
            _shift(run, record, weight_percent)
    return _record(run)


def canary_step(run: Run, index: int) -> Release:
    """Shift to the step's weight and judge until the evidence suffices for the next one.

    Raises `CanaryFailed`, `MeterBroken` or `Inconclusive`, each after all traffic went back to stable.
    """
    steps = run.request.steps
    if index >= len(steps):
        return _record(run)  # the compiled pipeline has more boxes than this request has steps
    with _step(run, f"canary {steps[index]:g} %", until="promoting") as record:
        if record is not None and record.step_index <= index:
            _shift(run, record, steps[index])
            _judge_until(run, index)
    return _record(run)


def judge_step(run: Run, index: int) -> Release:
    """Judge at the weight that is set, without changing it. Otherwise as `canary_step`."""
    with _step(run, f"judge {run.request.steps[index]:g} %", until="promoting") as record:
        if record is not None and record.step_index <= index:
            _judge_until(run, index)
    return _record(run)


def promote(run: Run) -> Release:
    """All traffic to the candidate in one write; after the grace time aliases and stub follow, and the old version goes.

    The version runs before it is given the traffic, and still before the old one goes; else all traffic goes back to that.
    """
    with _step(run, "promote", until="promoted") as record:
        if record is not None:
            request = run.request
            old = record.stable_version
            if old is not None and record.phase != "promoting" and record.step_index < len(record.steps):
                raise errors.StepOutOfOrder(
                    f"model {request.model}: step {record.step_index + 1} of {len(record.steps)} has not passed; run it first"
                )
            if not record.reached("smoked"):
                raise errors.StepOutOfOrder(
                    f"model {request.model}: version {request.version} is not smoke-tested ({record.phase}); run that step first"
                )
            _assert_still_runs(run, request.version)
            _advance(run, "promoting", f"all traffic goes to {request.version}", weight_percent=100.0)
            split = _split(request, stable=request.version)
            run.router.set_weight(split)
            _wait_applied(run, split)
            if old is not None:
                with contextlib.suppress(errors.KfpServingError):  # it is written again at the end
                    _show_traffic(run, split.shares, f"version {request.version} serves all requests")
                _note(run, "promote", f"{request.version} serves all requests; {old} goes in {request.options.grace_s:g} s")
                time.sleep(request.options.grace_s)
                _assert_still_runs(run, request.version)
                gone = names.application(request.model, old)
                change_serve_config(
                    run.cluster, request.namespace, request.rayservice, lambda text: rayservice.without_application(text, gone), changed={gone}
                )
            _tell_registry(run, record)
            apply(run.cluster, _stub_plan(run, request.version))
            _show_traffic(run, split.shares, f"version {request.version} serves all requests")
            _finish(run, "promoted", f"{request.version} is promoted")
    return _record(run)


def _tell_registry(run: Run, record: Release) -> None:
    """Aliases and verdict follow the traffic. What the registry refuses is noted: users have the version already, and asking again would not help."""
    name, version = run.registered_name, run.request.version

    def noted(what: str, write: Callable[[], None]) -> None:
        try:
            write()
        except errors.InputError as error:
            _note(run, "registry", f"{what}: not done: {error}", ok=False)

    if record.stable_version is not None:
        noted("alias previous", partial(run.registry.move, name, "previous", record.stable_version))
    noted("alias champion", partial(run.registry.move, name, "champion", version))
    noted("alias candidate", partial(run.registry.move, name, "candidate", None))
    verdict = {"verdict": _sentence(record) or "deployed as the first version"}
    noted("verdict", partial(run.registry.annotate, name, version, verdict))


def roll_back(run: Run, reason: str = "asked for") -> Release:
    """Give up an unfinished release: all traffic to stable in one write, verified by probes, then tidy up.

    A finished release is left as it is: then this only verifies that the version that should answer does.
    """
    record = run.store.load()
    if record is None:
        raise errors.NotFound(f"{run.store.ref}: there is no release of {run.request.model}; nothing to roll back")
    if record.done:
        _verify_answers(run, record.candidate_version if record.phase == "promoted" else record.stable_version)
        return record
    if record.phase == "promoting":
        raise errors.RequestInvalid(
            f"model {record.model}: {record.candidate_version} has been given all traffic and is being promoted; run the request again to finish it"
        )
    _acquire(run)
    with contextlib.nullcontext():
        _undo(run, record, errors.RolledBack(f"model {record.model}: rolled back: {reason}"))
    return _record(run)


def finish(run: Run) -> Release | None:
    """What an exit handler does: verify that users are served, and end what this run left unfinished.

    A run that was refused at the door left nothing (None); another run's release is not touched.
    """
    record = run.store.load()
    if record is None or record.holder != run.hold.run:
        return None
    if record.phase == "promoting":
        return promote(run)
    return roll_back(run, "the run ended before the release did")


def open_rollback(target: ModelTarget, cluster: Cluster | None = None, *, holder: str | None = None, watch: Watcher = lambda _r: None) -> Run:
    """A run for `roll_back`: the request is the one in the release record."""
    if cluster is None:
        from kfp_components.cluster.kubernetes import KubernetesCluster

        cluster = KubernetesCluster()
    record = ReleaseStore(cluster, target.model, target.namespace).load()
    if record is None:
        raise errors.NotFound(f"model {target.namespace}/{target.model}: there is no release of it; nothing to roll back")
    return open_run(record.asked(), cluster, holder=holder, watch=watch)


# --- one step ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _step(run: Run, name: str, *, until: release.Phase) -> Iterator[Release | None]:
    """The frame of every step: the Lease is held and renewed, the record is read; a fault gives traffic back to stable, then raises.

    Yields the record, or None when the step is done already (a retried pod, a rerun).
    """
    record = _record(run)
    if record.request_digest != run.request.digest:
        raise errors.ReleaseHeld(f"{run.store.ref}: it is the release of another request ({record.candidate_version}); this run stops here")
    if record.phase == "rolled_back":
        raise _as_error(record)
    if record.phase == "promoted":
        yield None
        return
    _acquire(run)
    with contextlib.nullcontext():
        record = _record(run)
        if record.phase == "rolling_back":
            _undo(run, record, _as_error(record))  # the process that began this was killed: finish it
            raise _as_error(record)
        try:
            yield None if record.reached(until) else record
            if run.hold.held:
                run.hold.keep()
        except (errors.ReleaseHeld, errors.StepOutOfOrder):
            raise  # somebody else is in charge now, or nothing was done
        except BaseException as error:
            _on_fault(run, name, error)
            raise


def _on_fault(run: Run, name: str, error: BaseException) -> None:
    """All traffic back to stable, unless the candidate has it all and still runs: that release is finished by the next run.

    The way back begins with the record as it was read last, so that nothing has to be read before the weight is written.
    """
    record = run.last
    assert record is not None  # the step has read it
    try:
        if record.phase == "promoted" or (record.phase == "promoting" and not isinstance(error, errors.RolledBack)):
            _note(run, name, f"{type(error).__name__}: {error}; run the same request again to finish the promotion", ok=False)
        else:
            _undo(run, record, error)
    except errors.KfpServingError as second:
        error.add_note(f"the rollback did not finish: {second}; run again to finish it")
        if record.weight_percent and record.phase != "promoting":
            error.add_note(f"the router gives all traffic back to stable by itself, within {run.request.options.lease_s:g} s")


def _acquire(run: Run) -> None:
    def waiting(message: str) -> None:
        with contextlib.suppress(errors.KfpServingError):
            _note(run, "wait", message)

    run.hold.acquire(waiting)


def _record(run: Run) -> Release:
    found = run.store.load()
    if found is None:
        raise errors.NotFound(f"{run.store.ref}: there is no release record; run the step register_model first")
    run.last = found
    return found


def _advance(run: Run, phase: release.Phase, message: str, **fields: Any) -> Release:
    return _write(run, phase, message, phase=phase, **fields)


def _note(run: Run, step: str, message: str, *, ok: bool = True) -> Release:
    return _write(run, step, message, ok=ok)


def _write(run: Run, step: str, message: str, *, ok: bool = True, **fields: Any) -> Release:
    """Change the record, tell the watcher, and put an Event on the stub."""

    event = Event(unix_s=time.time(), step=step, message=message, ok=ok)

    def change(record: Release) -> None:
        for key, value in fields.items():
            setattr(record, key, value)
        record.events.append(event)

    run.last = record = run.store.update(change, epoch=ANY_EPOCH)
    with contextlib.suppress(errors.KfpServingError):  # an Event informs; the record is what counts
        run.cluster.create(_event(record, step, message, ok))
    _tell(run, record)
    return record


def _tell(run: Run, record: Release) -> None:
    """Show the record to the watcher. One that breaks (a closed pipe, a terminal that is gone) is told nothing more: a view never fails a release."""
    try:
        run.watch(record)
    except Exception as error:
        logging.getLogger(__name__).warning("the view of the release broke (%s: %s); the release goes on without", type(error).__name__, error)
        run.watch = lambda _record: None


def _event(record: Release, step: str, message: str, ok: bool) -> Manifest:
    now = _now()
    reason = "".join(part.capitalize() for part in step.replace("%", "percent").replace(".", "_").split())
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{record.model}-", "namespace": record.namespace},
        "involvedObject": {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "name": record.model,
            "namespace": record.namespace,
        },
        "type": "Normal" if ok else "Warning",
        "reason": reason,
        "message": message[:1000],
        "source": {"component": names.MANAGER},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


# --- traffic and judge ------------------------------------------------------------------------------------------------------------


def _split(request: PromoteRequest, *, stable: str, candidate: str | None = None, weight_percent: float = 0.0) -> Split:
    options = request.options
    return Split(
        stable=stable,
        candidate=candidate,
        weight_percent=weight_percent,
        lease_expires_unix_s=time.time() + options.lease_s if weight_percent else None,
        sticky_header=options.sticky_header,
        request_timeout_s=options.request_timeout_s,
    )


def _shift(run: Run, record: Release, weight_percent: float) -> None:
    assert record.stable_version is not None
    if not record.reached("smoked"):
        raise errors.StepOutOfOrder(f"model {record.model}: version {record.candidate_version} is not smoke-tested; run that step first")
    if record.judge is None:  # counts from before the canary are not the candidate's traffic
        from kfp_components.judge.verdict import Judge  # numpy: only the steps that judge pay for it

        page = run.router.ledger()
        history = counts.history(page, record.stable_version)
        begun = JudgeState(state=Judge(run.request.options.judge, history=history).state, cursor=counts.start(page))
        run.store.save_canary(run.store.update(lambda r: setattr(r, "judge", begun), epoch=ANY_EPOCH))
    _assert_still_runs(run, record.candidate_version)
    split = _split(run.request, stable=record.stable_version, candidate=record.candidate_version, weight_percent=weight_percent)
    run.router.set_weight(split)
    seconds = _wait_applied(run, split)
    _advance(
        run,
        "canary",
        f"{weight_percent:g} % of the requests go to {record.candidate_version} (effective after {seconds:.1f} s)",
        weight_percent=weight_percent,
    )
    _show_traffic(run, split.shares, f"canary: {weight_percent:g} % of the requests go to {record.candidate_version}")


def _assert_still_runs(run: Run, version: str) -> None:
    """Before a version is given traffic, and before the one that could replace it goes.

    Raises `ApplicationRemoved` when somebody else took its application out of the RayService, `DeployFailed` with the diagnosis when it is not
    RUNNING within `APPLY_TIMEOUT_S` (Serve restarts a replica that died by itself), `WaitTimeout` when the operator does not say.
    """
    ref = Ref("RayService", run.request.rayservice, run.request.namespace)
    application = names.application(run.request.model, version)

    def runs(found: Manifest) -> bool:
        if application not in rayservice.applications(str(found["spec"].get("serveConfigV2") or "")):
            raise errors.ApplicationRemoved(
                f"{ref}: application {application} is not in serveConfigV2 any more, somebody else took it out; {version} gets no traffic"
            )
        return rayservice.ready(application)(found)

    try:
        run.cluster.wait(ref, ready=runs, failed=lambda _found: None, timeout_s=APPLY_TIMEOUT_S)
    except errors.WaitTimeout as error:
        diagnosis = rayservice.failed(application)(run.cluster.get(ref) or {"metadata": {}})
        if diagnosis:
            raise errors.DeployFailed(diagnosis) from error
        raise


def _judge_until(run: Run, index: int) -> None:
    """Read the counts, judge, renew the weight's lease; until the next step may begin. Raises what stops the release."""
    from kfp_components.judge import weight
    from kfp_components.judge.verdict import Judge

    request = run.request
    rules = request.options.judge
    record = _record(run)
    assert record.stable_version is not None and record.judge is not None
    stored = record.judge
    judge = Judge(rules, stored.state)
    cursor: dict[str, Any] = stored.cursor
    started = time.time()
    renew_at = 0.0
    unwatched = True  # before the first look the lease may have lapsed: requests since then went by another weight
    readable_at = saved_at = time.monotonic()
    while True:
        time.sleep(rules.tick_s)
        run.hold.keep()
        if time.monotonic() >= renew_at:
            _renew_weight(run, record, request.steps[index])
            renew_at = time.monotonic() + request.options.lease_s / 3
        try:
            page = run.router.ledger()
        except errors.Unreachable as error:
            if time.monotonic() - readable_at > METER_PATIENCE_S:
                raise errors.MeterBroken(f"model {record.model}: the counts could not be read for {METER_PATIENCE_S:g} s: {error}") from error
            continue
        readable_at = time.monotonic()
        tick, cursor = counts.advance(cursor, page, record.stable_version, record.candidate_version)
        sticky = request.options.sticky_header is not None
        verdict = judge.observe(tick, weight_percent=request.steps[index], sticky=sticky, unwatched=unwatched)
        unwatched = False
        may_advance = weight.may_advance(request.steps, index, verdict)
        over = _budget_spent(rules, started, judge)
        decided = verdict.kind in ("fail", "error") or may_advance or over is not None
        if decided or time.monotonic() - saved_at >= 2.0:
            stored = JudgeState(state=judge.state, cursor=cursor, step=index)
            with contextlib.nullcontext() if decided else contextlib.suppress(errors.TemporaryError):  # the next look stores it too
                record = _store_tick(run, stored, judge, verdict, request.steps[index])
            saved_at = time.monotonic()
        if verdict.kind == "fail":
            raise errors.CanaryFailed(f"model {record.model}: {verdict.sentence}")
        if verdict.kind == "error":
            raise errors.MeterBroken(f"model {record.model}: {verdict.sentence}")
        if may_advance:
            following = f"{request.steps[index + 1]:g} %" if index + 1 < len(request.steps) else "the promotion"
            _write(run, f"judge {request.steps[index]:g} %", f"enough for {following}: {verdict.sentence}", step_index=index + 1)
            return
        if over:
            raise errors.Inconclusive(f"model {record.model}: {over}; {verdict.sentence}")


def _renew_weight(run: Run, record: Release, weight_percent: float) -> None:
    """A few failures in a row are harmless: the lease lasts three renewals. `ApplicationRemoved` ends the release."""
    assert record.stable_version is not None
    split = _split(run.request, stable=record.stable_version, candidate=record.candidate_version, weight_percent=weight_percent)
    with contextlib.suppress(errors.Unreachable, errors.Conflict):
        run.router.set_weight(split)


def _budget_spent(rules: Any, started_unix_s: float, judge: Judge) -> str | None:
    minutes = (time.time() - started_unix_s) / 60
    if minutes > rules.max_minutes:
        return f"the step's budget of {rules.max_minutes:g} minutes is spent"
    if judge.candidate_requests > rules.max_candidate_requests:
        return f"the budget of {rules.max_candidate_requests:,} candidate requests is spent"
    return None


def _store_tick(run: Run, stored: JudgeState, judge: Judge, verdict: Verdict, weight_percent: float) -> Release:
    totals = {"unix_s": time.time(), "weight_percent": weight_percent, **judge.totals(), "e_fail": verdict.e_fail, "e_pass": verdict.e_pass}
    point = release.Point.model_validate(totals)

    def change(record: Release) -> None:
        record.judge = stored
        record.verdict = Evidence.model_validate(verdict.as_dict())
        record.timeline.append(point)

    run.last = record = run.store.update(change, epoch=ANY_EPOCH)
    run.store.save_canary(record)
    _tell(run, record)
    return record


def _wait_applied(run: Run, split: Split) -> float:
    return run.router.wait_until_applied(split, APPLY_TIMEOUT_S)


# --- the way back -----------------------------------------------------------------------------------------------------------------


def _undo(run: Run, record: Release, error: BaseException) -> None:
    """All traffic to stable in one write, verified; then the candidate's traces go. Safe to run again after a kill at any point.

    Nothing stands before that write which can fail: the record is the one that the step has, and the counts are read afterwards, if they can be.
    """
    began = time.monotonic()
    stable = record.stable_version
    back = _give_back(run, record, stable) if stable is not None else None
    failure = record.failure or Failure(error=type(error).__name__, message=str(error))
    told = f"all traffic back to {stable}: " if back else "the router is not in serveConfigV2, users get what is in it now: " if stable else ""
    record = _write(run, "roll back", told + failure.message, ok=False, phase="rolling_back", failure=failure, weight_percent=0.0)
    if back is not None:
        _wait_applied(run, back)
        _verify_answers(run, stable)
        seconds = time.monotonic() - began
        rollback = record.rollback or Rollback(seconds=round(seconds, 2), leaked_requests=_leaked_requests(run, record), reason=failure.message)
        _write(run, "roll back", f"{stable} answers everything after {seconds:.1f} s", rollback=rollback)
    _tidy_up(run, record)
    serves = f"{stable} serves" if back else "what is in serveConfigV2 serves" if stable else "nothing serves"
    _finish(run, "rolled_back", f"{record.candidate_version} is taken back; {serves}")


def _give_back(run: Run, record: Release, stable: str) -> Split | None:
    """Write that stable gets everything, whatever the router was told before; None when there is no router to tell.

    Raises `ApplicationRemoved`, and writes nothing, when stable itself is not there any more.
    """
    before = record.split_before or {}
    back = Split(
        stable=stable,
        sticky_header=before.get("sticky_header"),
        request_timeout_s=before.get("request_timeout_s", run.request.options.request_timeout_s),
    )
    try:
        run.router.set_weight(back)
    except (errors.NotFound, errors.ApplicationRemoved) as error:
        if run.router.current() is None:
            return None
        raise errors.ApplicationRemoved(f"{error}. The candidate stays as it is: put {stable} back, then run `kfp-serving rollback`") from error
    return back


def _tidy_up(run: Run, record: Release) -> None:
    """Leave the cluster as it was before the release: only the record, Events and the registered version remain."""
    request = run.request
    gone = {names.application(request.model, record.candidate_version)}
    if record.stable_version is None:
        gone.add(names.router_application(request.model))
    remove_applications(run.cluster, request.namespace, request.rayservice, gone, created_by=_release_id(record))
    made = set(record.made)
    if "Service" in made:
        run.cluster.delete(Ref("Service", names.alias(request.model), request.namespace))
    if "InferenceService" in made:
        run.cluster.delete(Ref("InferenceService", request.model, request.namespace))
    elif record.stable_version is not None and run.cluster.get(Ref("InferenceService", request.model, request.namespace)):
        _show_traffic(run, {record.stable_version: 100.0}, f"version {record.stable_version} serves all requests")
    run.registry.move(run.registered_name, "candidate", None)
    if run.registry.find(run.registered_name, record.candidate_version) is not None:
        run.registry.annotate(run.registered_name, record.candidate_version, {"verdict": _sentence(record)})


def _verify_answers(run: Run, version: str | None) -> None:
    """Probes through the alias must all be answered by ``version``. Raises `RolloutStopped` naming the one that was not."""
    if version is None:
        return
    request = run.request
    case = SmokeCase(name="version", path="/v2/health/ready" if request.options.protocol == "v2" else "/", method="GET", timeout_s=10)
    endpoint = run.cluster.endpoint(names.alias(request.model), request.namespace, names.SERVE_PORT)
    with probes.Prober(endpoint, request.model) as prober:
        for _ in range(ROLLBACK_PROBES):
            told = prober.version_that_answers(case)
            if told != version:
                raise errors.WaitTimeout(
                    f"model {request.model}: {told or 'nobody'} answered where {version} should; look at the router in the Ray dashboard"
                )


def _finish(run: Run, phase: release.Phase, message: str) -> Release:
    record = _write(run, phase.replace("_", " "), message, ok=phase == "promoted", phase=phase, finished_unix_s=time.time())
    run.hold.release()
    return record


def _as_error(record: Release) -> errors.KfpServingError:
    failure = record.failure or Failure(message=f"model {record.model}: rolled back")
    kind = getattr(errors, failure.error, errors.RolledBack)
    if not (isinstance(kind, type) and issubclass(kind, errors.KfpServingError)):
        kind = errors.RolledBack
    return kind(failure.message)


def _leaked_requests(run: Run, record: Release) -> int | None:
    """Users' requests that the candidate answered after the last look; None when nobody can say. The way back does not depend on it."""
    try:
        cursor = record.judge.cursor if record.judge else {"cursor": None}["cursor"]
        assert cursor is not None
        return max(0, counts.total_requests(run.router.ledger(), record.candidate_version) - counts.requests_at(cursor, record.candidate_version))
    except (errors.KfpServingError, AssertionError, KeyError, TypeError, ValueError):
        return None


def _release_id(record: Release) -> str:
    """Of this very release, for what it creates (`names.CREATED_BY_RELEASE`)."""
    return f"{record.model}/{record.candidate_version}/{record.started_unix_s:.3f}"


def _sentence(record: Release) -> str:
    return record.sentence


# --- manifests --------------------------------------------------------------------------------------------------------------------


def _deployed(run: Run, serve_config: str, stable: str | None) -> str:
    """``serveConfigV2`` with the version in it and, for a model's first version, the router."""
    request = run.request
    options = request.options
    application: dict[str, Any] = {
        "name": names.application(request.model, request.version),
        "route_prefix": names.version_route(request.model, request.version),
        "import_path": request.import_path,
    }
    if options.builder:
        application["args"] = {"model": request.model, "version": request.version, **options.args}
    if options.runtime_env:
        application["runtime_env"] = options.runtime_env
    if options.deployments:
        application["deployments"] = options.deployments
    serve_config = rayservice.with_application(serve_config, application)
    if stable is None:
        return run.router.prepare(serve_config, _split(request, stable=request.version))
    return run.router.prepare(serve_config, _split(request, stable=stable, candidate=request.version))  # known to the router, at 0 %


def _new_rayservice(request: PromoteRequest, serve_config: str) -> Manifest:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": request.rayservice, "namespace": request.namespace, "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY}},
        "spec": {"serveConfigV2": serve_config, "rayClusterConfig": request.options.rayservice_template or {}},
    }


def _create_rayservice(run: Run, record: Release) -> None:
    """From the template, owned by a manager of its own, so that later writes of ``serveConfigV2`` alone do not remove the rest."""
    manifest = _new_rayservice(run.request, "applications: []\n")
    manifest["metadata"]["annotations"] = {names.CREATED_BY_RELEASE: _release_id(record)}
    if run.cluster.get(Ref.of(manifest)) is None:
        run.cluster.apply(manifest, manager=names.TEMPLATE_MANAGER)


def _alias_plan(run: Run) -> Plan:
    request = run.request
    wanted = alias.manifest(request.model, request.namespace, request.target_host)
    found = run.cluster.get(Ref.of(wanted))
    stub = run.cluster.get(Ref("InferenceService", request.model, request.namespace))
    alias.assert_free(request.model, request.namespace, found, stub, request.target_host)
    return Plan((Change("apply", wanted, "the name that clients call", names.MANAGER, before=found),))


def _stub_plan(run: Run, version: str) -> Plan:
    request = run.request
    found = run.cluster.get(Ref("InferenceService", request.model, request.namespace))
    uri = request.uri
    if found is not None and version != request.version:
        uri = (found["metadata"].get("annotations") or {}).get("kfp-serving/uri", uri)
    wanted = inference_service.manifest(
        request.model, request.namespace, version=version, uri=uri, model_format=request.options.model_format, rayservice=request.rayservice
    )
    return Plan((Change("apply", wanted, "shows the model in Kubeflow's UI", names.MANAGER, before=found),))


def _show_traffic(run: Run, shares: dict[str, float], message: str) -> None:
    """The stub's status: URL, conditions, live split. Forced, because KServe writes conditions Unknown once."""
    request = run.request
    found = run.cluster.get(Ref("InferenceService", request.model, request.namespace))
    wanted = inference_service.status(request.model, request.namespace, traffic=shares, ready=True, message=message, now=_now(), previous=found)
    apply(run.cluster, Plan((Change("status", wanted, message, names.MANAGER, force=True, before=found),)))


def _would_make(situation: preflight.Situation) -> dict[str, bool]:
    return {
        "RayService": situation.rayservice is not None,
        "Service": situation.alias_exists,
        "InferenceService": situation.stub_exists,
    }


def _named(manifest: Manifest) -> dict[str, Any]:
    return {"name": manifest["metadata"]["name"], "namespace": manifest["metadata"]["namespace"]}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
