"""One function per step of a release. Notebooks and the CLI call them, the KFP components of the same names wrap them.

    run = rollout.open_run(request, cluster)      # nothing is touched yet
    rollout.promote_with_canary(run)              # or step by step, as below

    register_model -> deploy_rayservice -> create_alias -> create_inference_service -> smoke_inference -> canary_step(0) -> ... -> promote_model

Every step re-reads the release record, so a step that is run again goes on where it stood, in any process. What a fault means is one table
(`rollout.policy`); the step that finds it acts itself, before it raises. Nobody running: the router gives all traffic back to stable when the
weight's lease lapses.

A release that runs is steered from any other process, `open_rollback` connects it: `abort_release`, `pause_release`, `resume_release`,
`approve_release`.
"""

import functools

from kfp_components import clock, errors, notify, request
from kfp_components.release import Release, ReleaseStore, Watcher
from kfp_components.rollout import journal, registered, revalidate
from kfp_components.rollout.adopt import Asked, adopt_model, adoptable, adopted, adoption_of, plan_adoption, plan_undo, undo_adoption
from kfp_components.rollout.begin import register_model
from kfp_components.rollout.canary import canary_step, judge_canary, shift_traffic
from kfp_components.rollout.command import abort_release, approve_release, pause_release, resume_release
from kfp_components.rollout.deploy import deploy_rayservice
from kfp_components.rollout.export import Exported, export, patch_files
from kfp_components.rollout.front import create_alias, create_inference_service
from kfp_components.rollout.handover import HandOver, undo_yield, yield_field
from kfp_components.rollout.plan import plan
from kfp_components.rollout.promote import promote_model
from kfp_components.rollout.revalidate import Revalidation, champions, last_look, not_looked_at, raise_if_decayed
from kfp_components.rollout.rollback import finish_release, roll_back
from kfp_components.rollout.run import Run, open_rollback, open_run
from kfp_components.rollout.smoke import smoke_cases, smoke_inference, smoke_serving
from kfp_components.rollout.status import Status, read_status
from kfp_components.rollout.tidy import tidy_release


def promote_with_canary(run: Run) -> Release:
    """The whole way from a registered version to all users, or back. Returns the record.

    A version that is what users get already is left alone, so running the same command again after the end is harmless. Raises what stopped it: a
    `RolledBack` (taken back), `Inconclusive` or `MeterBroken` (held at 0 %), `ReleaseLeft` (the same command goes on), or as `register_model`.
    """
    _deploy_and_smoke(run, first_version=False)
    for index in range(len(run.request.steps)):
        canary_step(run, index)
    return promote_model(run)


def deploy_model(run: Run) -> Release:
    """The first version of a model: no stable version to compare with, so smoke inference alone decides. Raises as `promote_with_canary`."""
    _deploy_and_smoke(run, first_version=True)
    return promote_model(run)


def revalidate_model(
    run: Run,
    rules: request.RevalidateRules | None = None,
    *,
    models: int = 1,
    run_id: str = "",
    tell: revalidate.Told = revalidate.nobody_counts,
) -> Revalidation:
    """Ask the version that users have its golden set, through the alias as clients do, add that to what its tests know, and say what they say.

    The first look at a version makes its record. ``models``: how many share `RevalidateRules.alpha`; ``tell`` hears how many answers there are.
    ``run`` is of `open_rollback`. Where nobody can be asked nothing is added: the outcome is ``unreachable``, or ``not enough`` while a release is
    under way. Traffic is touched only where it decayed and the rules say ``demote``: see `demote_champion`; what came of that is in the look. A
    demotion that was killed is gone on with first.

    Raises `RequestInvalid` or `NotFound` for cases that cannot be used or do not fit, `Conflict` where another run looked at the same model
    meanwhile; nothing is written then. Where other models wait for their turn, `not_looked_at` makes that this one's outcome.
    """
    rules = rules or request.RevalidateRules()
    notifier = revalidate.notifier(run, rules)
    found = (revalidate.demotion_under_way(run) if rules.demote else None) or revalidate.look_at(run, rules, models, run_id, tell)
    if found.outcome == "decayed":
        notifier.tell(notify.of_decay(found.namespace, found.model, str(found.version), found.as_dict(), run.source))
    return _demoted(run, found, run_id) if rules.demote and found.outcome == "decayed" else found


def demote_champion(run: Run, champion: str, reason: str, *, to: str | None = None) -> Release:
    """Users get the version before the ``champion`` again: by one write while it is still kept, else deployed anew and judged by a canary.

    ``run`` is of `open_rollback`. The request by which that version came is taken from the registry; its alias is ``previous``. ``to``: the version
    to which an earlier call was on the way, whose release is gone on with. Raises `NotFound`, and nothing is written, when nobody knows such a
    version or its request, `Conflict` when users have another one than the champion, else as `roll_back` or `promote_with_canary`.
    """
    record = journal.read(run)
    if _goes_back(record, champion):
        return roll_back(run, reason)
    if not record.done and (record.candidate_version, record.stable_version) == (to, champion):
        if record.phase == "rolling_back":
            return roll_back(run, reason)
        return promote_with_canary(run.for_request(record.asked()))
    return promote_with_canary(run.for_request(_before(run, champion)))


def _goes_back(record: Release, champion: str) -> bool:
    """Whether the champion's own release can be undone, or that has begun."""
    return record.candidate_version == champion and (record.phase == "rolling_back" or (record.phase == "promoted" and record.previous is not None))


def _before(run: Run, champion: str) -> request.PromoteRequest:
    """The request by which the version before the champion came."""
    model = f"model {run.request.namespace}/{run.request.model}"
    version = run.registry.aliases(run.registered_name).get("previous")
    if version is None:
        raise errors.NotFound(f"{model}: the registry knows no previous version, so {champion} stays; promote another version")
    asked = registered.request_of(run.registry.find(run.registered_name, version))
    if asked is None:
        raise errors.NotFound(f"{model}: the registry does not hold the request of {version}, so {champion} stays; promote {version} by its file")
    now = journal.read(run).stable_now
    if version == champion or now != champion:
        raise errors.Conflict(f"{model}: another run changed what users get meanwhile: {now}, not {champion}")
    return asked


def _demoted(run: Run, found: Revalidation, run_id: str) -> Revalidation:
    """What was found, with what came of the demotion. One that the surroundings stopped is gone on with by the next look."""
    to = found.demoting
    note, champion = functools.partial(revalidate.note_demotion, run, found, run_id), str(found.version)
    try:
        if to is None:
            record = journal.read(run)
            to = record.stable_version if _goes_back(record, champion) else _before(run, champion).version
            if (since := revalidate.decayed_before(run, str(to))) is not None:
                cause = f"{to} was found to have decayed too, at {clock.utc(since)}: the cause may not be the version; promote another one"
                return note(told=f"it was not demoted: {cause}")
            note(to=to, told=f"users are on the way back to {to}")
        record = demote_champion(run, champion, found.look.sentence, to=to)
    except errors.TemporaryError as error:
        return note(to=to, told=f"the demotion is not finished, the next look goes on: {error}")
    except errors.KfpServingError as error:
        return note(told=f"it was not demoted: {error}")
    got = record.stable_now
    return note(told=f"demoted, users get {got}" if got == to else f"it was not demoted, users get {got}")


def _deploy_and_smoke(run: Run, *, first_version: bool) -> None:
    register_model(run, first_version=first_version)
    deploy_rayservice(run)
    create_alias(run)
    create_inference_service(run)
    smoke_inference(run)


__all__ = [
    "Asked",
    "Exported",
    "HandOver",
    "Release",
    "ReleaseStore",
    "Revalidation",
    "Run",
    "Status",
    "Watcher",
    "abort_release",
    "adopt_model",
    "adoptable",
    "adopted",
    "adoption_of",
    "approve_release",
    "canary_step",
    "champions",
    "create_alias",
    "create_inference_service",
    "demote_champion",
    "deploy_model",
    "deploy_rayservice",
    "export",
    "finish_release",
    "judge_canary",
    "last_look",
    "not_looked_at",
    "open_rollback",
    "open_run",
    "patch_files",
    "pause_release",
    "plan",
    "plan_adoption",
    "plan_undo",
    "promote_model",
    "promote_with_canary",
    "raise_if_decayed",
    "read_status",
    "register_model",
    "resume_release",
    "revalidate_model",
    "roll_back",
    "shift_traffic",
    "smoke_cases",
    "smoke_inference",
    "smoke_serving",
    "tidy_release",
    "undo_adoption",
    "undo_yield",
    "yield_field",
]
