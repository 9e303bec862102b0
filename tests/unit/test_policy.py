"""The fault table, row by row, and who may read the names of a release."""

import inspect
import pkgutil
from typing import get_args

import pytest

from kfp_components import errors, ops, rollout
from kfp_components.phases import FINAL, Phase
from kfp_components.rollout import policy

OPEN: tuple[Phase, ...] = tuple(phase for phase in get_args(Phase) if phase not in FINAL)
FORWARD: tuple[Phase, ...] = tuple(phase for phase in OPEN if phase != "rolling_back")


@pytest.mark.parametrize("phase", OPEN)
@pytest.mark.parametrize("error", [errors.ReleaseHeld("x"), errors.StepOutOfOrder("x")])
def test_where_another_run_is_in_charge_or_nothing_was_begun_nothing_is_written(error: Exception, phase: Phase) -> None:
    assert policy.decide(error, phase) == "stand aside"


@pytest.mark.parametrize("phase", OPEN)
@pytest.mark.parametrize("kind", [errors.DeployFailed, errors.SmokeFailed, errors.CanaryFailed, errors.ApplicationRemoved, errors.Aborted])
def test_the_candidates_own_fault_takes_it_back(kind: type[errors.RolledBack], phase: Phase) -> None:
    assert policy.decide(kind("x"), phase) == "take back"


def test_too_little_evidence_and_a_broken_meter_hold() -> None:
    assert policy.decide(errors.Inconclusive("x"), "canary") == policy.decide(errors.MeterBroken("x"), "canary") == "hold"
    assert policy.decide(errors.Inconclusive("x"), "canary", on_inconclusive="roll_back") == "take back"
    assert policy.decide(errors.MeterBroken("x"), "canary", on_inconclusive="roll_back") == "hold"
    for phase in ("smoked", "canary", "held"):
        assert policy.decide(errors.NotApproved("x"), phase, on_inconclusive="roll_back") == "hold"  # type: ignore[arg-type]


@pytest.mark.parametrize("phase", [phase for phase in FORWARD if phase != "canary"])
def test_only_a_canary_is_held_for_want_of_evidence_or_of_a_meter(phase: Phase) -> None:
    assert policy.decide(errors.Inconclusive("x"), phase) == policy.decide(errors.MeterBroken("x"), phase) == "leave"
    waits = phase in ("smoked", "held")
    assert policy.decide(errors.NotApproved("x"), phase) == ("hold" if waits else "leave")


SURROUNDINGS = [
    errors.Unreachable("x"),
    errors.Conflict("x"),
    errors.WaitTimeout("x"),
    errors.PermissionDenied("x"),
    errors.ManagedElsewhere("x"),
    errors.NotFound("x"),
    KeyError("a mistake of ours"),
    KeyboardInterrupt(),
    SystemExit(143),
]


@pytest.mark.parametrize("phase", FORWARD)
@pytest.mark.parametrize("error", SURROUNDINGS, ids=lambda error: type(error).__name__)
def test_the_surroundings_never_remove_a_candidate(error: BaseException, phase: Phase) -> None:
    assert policy.decide(error, phase) == "leave"


def test_a_way_back_that_was_begun_is_finished() -> None:
    assert policy.decide(errors.Unreachable("x"), "rolling_back") == policy.decide(errors.WaitTimeout("x"), "rolling_back") == "take back"
    assert policy.decide(KeyboardInterrupt(), "rolling_back") == "leave"


def test_steps_and_the_components_that_wrap_them_have_one_name() -> None:
    steps = {
        name
        for name in rollout.__all__
        if inspect.isfunction(getattr(rollout, name)) and list(inspect.signature(getattr(rollout, name)).parameters)[:1] == ["run"]
    } - {
        "demote_champion",  # of the component revalidate_model
        "deploy_model",
        "not_looked_at",
        "plan",
        "plan_adoption",
        "plan_undo",
        "promote_with_canary",
        "smoke_cases",
        "smoke_serving",
        "undo_adoption",  # of the component adopt_model
    }
    components = {module.name for module in pkgutil.iter_modules(ops.__path__)} - {"image", "runtime", "list_champions", "collect_revalidations"}
    assert steps == components
