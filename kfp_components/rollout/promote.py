"""The promotion: all traffic to the candidate in one write, then the old version goes, and names follow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

from kfp_components import errors, names
from kfp_components.apply import apply, change_serve_config
from kfp_components.release import Release
from kfp_components.rollout import journal, manifests, undo, weights
from kfp_components.rollout.canary import stand_by
from kfp_components.rollout.run import Run
from kfp_components.rollout.step import step
from kfp_components.serving import rayservice
from kfp_components.traffic import Split


def promote_model(run: Run) -> Release:
    """All traffic to the candidate in one write; after the grace time the old version goes, and stub and registry follow.

    The version runs before it is given the traffic, and still before the old one goes; else all traffic goes back to that (`DeployFailed`,
    `ApplicationRemoved`). `StepOutOfOrder`, and nothing is written, when a step has not passed. `ReleaseLeft` in phase ``promoting``: the candidate
    has all traffic, and the same command finishes.
    """
    with step(run, "promote", until="promoted", stands=False) as record:
        if record is not None:
            _require_passed(record)
            if record.phase != "promoting":
                record = stand_by(run, "promote")
            old = record.stable_version
            weights.assert_runs(run, run.request.version)
            if record.phase != "promoting":
                record = journal.advance(run, "promoting", f"all traffic goes to {run.request.version}", weight_percent=100.0, held=None)
            split = weights.split(run, stable=run.request.version)
            run.router.set_weight(split)
            weights.wait_applied(run, split)
            if old is not None:
                _retire(run, old, split)
            _names_follow(run, record, split)
            undo.finish(run, "promoted", f"{run.request.version} is promoted")
    return journal.current(run)


def _require_passed(record: Release) -> None:
    if record.stable_version is not None and record.phase != "promoting" and record.step_index < len(record.steps):
        raise errors.StepOutOfOrder(f"model {record.model}: step {record.step_index + 1} of {len(record.steps)} has not passed; run it first")
    if not record.reached("smoked"):
        raise errors.StepOutOfOrder(
            f"model {record.model}: version {record.candidate_version} is not smoke-tested ({record.phase}); run that step first"
        )


def _retire(run: Run, old: str, split: Split) -> None:
    """After the grace time the old version goes, in one write with what the release left in the router's configuration."""
    request = run.request
    with contextlib.suppress(errors.KfpServingError):  # it is written again at the end
        manifests.show_traffic(run, split.shares, f"version {request.version} serves all requests")
    gone = names.application(request.model, old)
    if gone in rayservice.applications(rayservice.serve_config(run.cluster.get(run.rayservice))):
        journal.note(run, "promote", f"{request.version} serves all requests; {old} goes in {request.options.grace_s:g} s")
        run.pause(request.options.grace_s)
        weights.assert_runs(run, request.version)

    def without_old(text: str) -> str:
        journal.assert_ours(run)  # between the read and the compare-and-swap
        return run.router.settled(rayservice.without_application(text, gone), split)

    change_serve_config(
        run.cluster,
        request.namespace,
        request.rayservice,
        without_old,
        changed={gone, names.router_application(request.model)},
        clock=run.clock,
    )


def _names_follow(run: Run, record: Release, split: Split) -> None:
    """Registry and stub follow the traffic. What is refused there is noted: users have the version already, and asking again would not help.

    Raises `Unreachable`: the same command does the rest.
    """
    name, version = run.registered_name, run.request.version
    verdict = {"verdict": record.sentence or "deployed as the first version"}
    shown = f"version {version} serves all requests"
    items: list[tuple[str, str, Callable[[], object]]] = [
        ("registry", "alias champion", partial(run.registry.move, name, "champion", version)),
        ("registry", "alias candidate", partial(run.registry.move, name, "candidate", None)),
        ("registry", "verdict", partial(run.registry.annotate, name, version, verdict)),
        ("stub", "spec", lambda: apply(run.cluster, manifests.stub_plan(run, version))),
        ("stub", "traffic", partial(manifests.show_traffic, run, split.shares, shown)),
    ]
    if record.stable_version is not None:
        items.insert(0, ("registry", "alias previous", partial(run.registry.move, name, "previous", record.stable_version)))
    journal.assert_ours(run)
    for where, what, write in items:
        try:
            run.keep()
            write()
        except (errors.InputError, errors.Conflict) as error:
            journal.note(run, where, f"{what}: not done: {error}", ok=False)
