"""The promotion: all traffic to the candidate in one write, watched there; then the route is its own, router and old version go, names follow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from kfp_components import errors, names, phases
from kfp_components.clock import rfc3339
from kfp_components.cluster.changes import Edit, write
from kfp_components.release import NamesBefore, Previous, Release
from kfp_components.request import PromoteRequest
from kfp_components.rollout import journal, manifests, registered, routes, undo, weights
from kfp_components.rollout.canary import stand_by
from kfp_components.rollout.run import Run
from kfp_components.rollout.step import step
from kfp_components.rollout.watch import watch

RUN_WAITS_S = 60.0
"""How long after the switch a run waits for the old version's time to be over; after that it ends, and another one removes it."""


def promote_model(run: Run) -> Release:
    """All traffic to the candidate in one write; it is watched there, the names follow, and the old version goes when its time is over.

    A fault of the candidate gives all traffic back to the old version: raises `CanaryFailed` when it does worse than stable did, `DeployFailed` or
    `ApplicationRemoved` when it does not run. `StepOutOfOrder`, and nothing is written, when a step has not passed. `ReleaseLeft` in phase
    ``promoting``: the candidate has all traffic, and the same command finishes. ``previous`` in the record it ends with is an old version that is
    still kept, for `roll_back`; the next run of the model, or `tidy_release`, removes it.
    """
    with step(run, "promote", until="promoted", stands=False) as record:
        if record is not None:
            _require_passed(record)
            if record.phase != "promoting":
                record = stand_by(run, "promote")
            weights.assert_runs(run, run.request.version)
            if record.phase != "promoting":
                record = journal.advance(run, "promoting", f"all traffic goes to {run.request.version}", weight_percent=100.0, held=None)
            if record.stable_version is not None and record.names_before is None:
                record = _switch(run, record, record.stable_version)
            routes.give(run, run.request.version)
            if record.stable_version is not None:
                _retire(run, record)
            _names_follow(run, journal.current(run))
            _end(run)
    return journal.current(run)


def _require_passed(record: Release) -> None:
    if record.stable_version is not None and record.phase != "promoting" and record.step_index < len(record.steps):
        raise errors.StepOutOfOrder(f"model {record.model}: step {record.step_index + 1} of {len(record.steps)} has not passed; run it first")
    if not record.reached("smoked"):
        raise errors.StepOutOfOrder(
            f"model {record.model}: version {record.candidate_version} is not smoke-tested ({record.phase}); run that step first"
        )


def _end(run: Run) -> None:
    """What the release made belongs to the model from now on: whoever takes the promotion back leaves alias and stub."""
    previous = journal.current(run).previous
    kept = f"; {previous.version} is kept until {rfc3339(previous.until_unix_s)}, until then rollback is one write" if previous else ""
    undo.finish(run, "promoted", f"{run.request.version} is promoted{kept}", made=[])


def _switch(run: Run, record: Release, old: str) -> Release:
    """The router gives the candidate everything; it is watched, and what the names are now is written down before they follow."""
    request = run.request
    routes.take(run, record)  # it stands there, unless no step has begun: a held release was approved as it is
    split = weights.split(run, routes.of_release(record), stable=request.version)
    run.router.set_weight(split)
    weights.wait_applied(run, split)
    with contextlib.suppress(errors.KfpServingError):  # it is written again at the end
        manifests.show(run, split.shares, manifests.all_message(request.version))
    if record.switched_unix_s is None:
        now = run.clock.now_unix_s()
        previous = Previous(version=old, until_unix_s=now + request.options.keep_previous_s)
        told = f"{request.version} serves all requests; {old} is kept for {request.options.keep_previous_s:g} s"
        record = journal.write(run, "promote", told, switched_unix_s=now, previous=previous)
    if record.names_before is None:
        told = watch(run)
        weights.assert_runs(run, request.version)
        record = journal.write(run, "watch", told, names_before=_names(run))
    return record


def _names(run: Run) -> NamesBefore:
    """Stub and aliases as they are. That the registry cannot be asked stops nobody: champion was what users had."""
    aliases = None
    with contextlib.suppress(errors.KfpServingError):
        aliases = run.registry.aliases(run.registered_name)
    return NamesBefore(stub=manifests.stub_fields(run), aliases=aliases)


def _retire(run: Run, record: Release) -> None:
    """The router goes, which has the route no more; the old version too when its time is over, unless that is later than a run waits for.

    Both stay for `tidy_release` where the router still has something in flight, which may be for the old version.
    """
    assert record.stable_version is not None
    previous = record.previous
    left_s = previous.until_unix_s - run.clock.now_unix_s() if previous is not None else 0.0
    gone = retired(run.request, record.application(record.stable_version), left_s)
    if left_s > 0 and not gone.later:
        run.pause(left_s)
        weights.assert_runs(run, run.request.version)
    if not routes.drain(run):
        journal.note(run, "promote", routes.still_busy(record))
        return
    write(run.cluster, removal(run, gone), fence=partial(journal.assert_ours, run), clock=run.clock)
    if previous is not None and not gone.later:
        journal.write(run, "promote", f"{previous.version} is removed", previous=None)


@dataclass(frozen=True)
class Retired:
    """The applications that a promotion removes: ``at_once`` in its own run, ``later`` by `tidy_release` or with the next release of the model."""

    at_once: frozenset[str]
    later: frozenset[str] = frozenset()


def retired(request: PromoteRequest, old: str, left_s: float) -> Retired:
    """The router, and ``old``, the application of the version before, unless more than `RUN_WAITS_S` was asked for it and ``left_s`` are left."""
    router = names.router_application(request.model)
    if left_s > 0 and request.options.keep_previous_s > RUN_WAITS_S:
        return Retired(frozenset({router}), frozenset({old}))
    return Retired(frozenset({router, old}))


def removal(run: Run, gone: Retired) -> Edit:
    """One write: what goes at once, which nobody reaches; it says what goes later, and by what."""
    change, request = manifests.removal_change(run, gone.at_once), run.request
    command = phases.in_a_command(request.model, request.namespace)
    kept = "".join(
        f"; {old} is kept for options.keep_previous_s, {request.options.keep_previous_s:g} s after the switch: then `kfp-serving tidy {command}`, "
        f"or the next release of {request.model}, removes it"
        for old in sorted(gone.later)
    )
    return replace(change, why=change.why + kept)


def _names_follow(run: Run, record: Release) -> None:
    """Registry and stub follow the traffic. What is refused there is noted: users have the version already, and asking again would not help.

    A registry that is away is noted too: `tidy_release` and the next release mend it. Raises `Unreachable` of the cluster: the same command does the
    rest.
    """
    version = run.request.version
    shown = manifests.all_message(version)
    items: list[tuple[str, Callable[[], object]]] = [
        ("spec", lambda: write(run.cluster, manifests.stub_change(run, version, run.cluster.get(manifests.stub_ref(run))))),
        ("traffic", partial(manifests.show, run, {version: 100.0}, shown)),
    ]
    journal.assert_ours(run)
    for what, do in items:
        try:
            run.keep()
            do()
        except (errors.InputError, errors.Conflict) as error:
            journal.note(run, "stub", f"{what}: not done: {error}", ok=False)
    for what, why in registered.settle(run, record):
        later = f"; `kfp-serving tidy {record.in_a_command}` does it later" if isinstance(why, errors.TemporaryError) else ""
        journal.note(run, "registry", f"{what}: not done: {why}{later}", ok=False)
