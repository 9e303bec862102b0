"""What the engine does when something else than the candidate fails, one test for each defect (shared/DEFECTS.md) and case (shared/cases)."""

import json
import signal
from collections.abc import Callable
from typing import Any

import pytest
from memory_world import MODEL, NAMESPACE, OTHERS, RAYSERVICE, Chosen, Process, Transport, World, application, asked, live

from kfp_components import errors, names, report, rollout, traffic
from kfp_components.cluster import Ref
from kfp_components.cluster.faults import Record
from kfp_components.release import Release, ReleaseStore
from kfp_components.request import Options, PromoteRequest, parse
from kfp_components.rollout import smoke
from kfp_components.router.policy import PROTOCOL
from kfp_components.serving import inference_service, rayservice

V2 = f"{MODEL}-v2"
FLUX = {"kustomize.toolkit.fluxcd.io/name": "serving"}
PATIENT = {"judge_latency": False, "error_margin_percent": 0.5, "tick_s": 1.0, "max_minutes": 60.0}
"""So narrow a margin that the canary takes minutes."""


def bad(world: World) -> None:
    world.serve.behaviour(V2).answer = lambda n: 500 if n % 3 == 0 else 200


def in_canary(record: Release) -> bool:
    return record.phase == "canary" and record.weight_percent > 0


def is_left(world: World, end: Any, phase: str) -> None:
    """Users are on stable, the candidate is still there, and the record says where to go on."""
    assert end.exit_code == 3, str(end)
    assert world.users_get() == ("v1",)
    assert world.record().phase == phase and V2 in world.serve.applications()
    assert "v1" in end.words


def goes_on(world: World, request: PromoteRequest) -> None:
    """The same command, by another process, later."""
    world.clock.sleep(2 * request.options.lease_s)
    process = world.process()
    end = process.outcome(lambda: process.promote(request))
    assert end.exit_code == 0 and world.record().phase == "promoted", str(end)
    assert world.users_get() == ("v2",) and not world.serve.lost and not world.serve.failed


def labelled(world: World) -> None:
    """GitOps takes the RayService over, with what it serves now."""
    metadata = {"name": RAYSERVICE, "namespace": NAMESPACE, "labels": FLUX}
    body = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "spec": {"serveConfigV2": world.text()}}
    world.cluster.apply(body, manager="kustomize-controller", force=True)


# --- D3: not every exception is the candidate's fault -----------------------------------------------------------------------------------


def test_d3_one_503_while_a_long_deploy_is_watched_is_nothing(world: World) -> None:
    told: list[Record] = []

    def once(call: Record) -> errors.Unreachable | None:
        if call.method in ("wait", "watch") and not told:
            told.append(call)
            return errors.Unreachable("503")
        return None

    world.rayservice(live())
    world.serve.behaviour(V2).starts_after_s = 60.0
    process = world.process(Chosen(world.clock, once))
    end = process.outcome(lambda: process.promote(asked()))
    assert end.exit_code == 0 and told and world.record().phase == "promoted", str(end)


@pytest.mark.parametrize("sent", [KeyboardInterrupt, SystemExit])
def test_d3_ctrl_c_and_sigterm_give_the_traffic_back_and_leave(world: World, sent: type[BaseException]) -> None:
    def stops() -> None:
        raise sent

    def watch(record: Release) -> None:
        if in_canary(record):
            world.soon = stops

    world.rayservice(live())
    process = world.process(watch=watch)
    end = process.outcome(lambda: process.promote(asked(judge=PATIENT)))
    assert isinstance(end.error, sent | errors.TemporaryError), str(end)
    assert world.users_get() == ("v1",), "at once, not when the lease lapses"
    assert world.record().phase == "canary" and V2 in world.serve.applications()
    goes_on(world, asked(judge=PATIENT))


def test_d3_an_input_error_in_mid_flight_does_not_say_that_nothing_was_touched(world: World) -> None:
    world.rayservice(live())
    script = Chosen(world.clock, lambda call: errors.PermissionDenied("no") if call.method == "apply" and "InferenceService" in call.what else None)
    process = world.process(script)
    end = process.outcome(lambda: process.promote(asked()))
    is_left(world, end, "deployed")
    goes_on(world, asked())


# --- D4b: the way back does not stop half-way -------------------------------------------------------------------------------------------


def taken_back(world: World, choose: Callable[[Record], BaseException | None], watch: Callable[[Release], None] = lambda _r: None) -> Any:
    """A bad version; ``choose`` fails calls once the verdict is there."""
    judged = False

    def watched(record: Release) -> None:
        nonlocal judged
        judged = judged or (record.verdict is not None and record.verdict.kind == "fail")
        watch(record)

    bad(world)
    process = world.process(Chosen(world.clock, lambda call: choose(call) if judged else None), watched)
    end = process.outcome(lambda: process.promote(asked()))
    assert end.exit_code == 4, str(end)
    assert world.users_get() == ("v1",) and world.record().phase == "rolled_back" and V2 not in world.serve.applications()
    return end


def said(world: World, end: Any) -> str:
    """To the caller, and in the record."""
    return "\n".join([end.words, *(event.message for event in world.record().events)])


def test_d4b_a_probe_without_an_answer_does_not_stop_the_way_back(world: World) -> None:
    probes: list[Record] = []

    def third(call: Record) -> errors.Unreachable | None:
        if call.owner != "http" or "/-/" in call.what:
            return None
        probes.append(call)
        return errors.Unreachable("reset") if len(probes) == 3 else None

    world.rayservice(live())
    taken_back(world, third)
    assert len(probes) > 3


def test_d4b_a_registry_that_is_away_does_not_stop_the_way_back(world: World) -> None:
    world.rayservice(live())
    end = taken_back(world, lambda call: errors.Unreachable("registry away") if call.owner == "registry" else None)
    assert "registry" in said(world, end), "what is left over is named"
    assert world.lease() is None


def test_d4b_a_right_to_delete_that_is_missing_does_not_stop_the_way_back(world: World) -> None:
    world.rayservice(live())
    end = taken_back(world, lambda call: errors.PermissionDenied("may not delete") if call.method == "delete" and "Lease" not in call.what else None)
    assert "Service" in said(world, end), "what is left over is named"


def test_d4b_a_gitops_label_that_came_meanwhile_does_not_stop_the_way_back(world: World) -> None:
    def watch(record: Release) -> None:
        if (record.verdict is not None and record.verdict.kind == "fail") and record.phase == "canary":
            labelled(world)

    world.rayservice(live())
    taken_back(world, lambda _call: None, watch)


def test_d4b_a_gitops_label_on_the_way_forward_leaves_the_release(world: World) -> None:
    world.rayservice(live())
    process = world.process(watch=lambda record: labelled(world) if in_canary(record) else None)
    end = process.outcome(lambda: process.promote(asked(judge=PATIENT)))
    is_left(world, end, "canary")


# --- D5: a process that was paused ------------------------------------------------------------------------------------------------------


def test_d5_a_paused_process_that_wakes_changes_nothing(world: World) -> None:
    request = asked(judge=PATIENT, lease_s=20.0)
    seen: list[Any] = []

    def another_rolls_back() -> None:
        world.clock.sleep(90.0)
        other = world.process()
        assert other.roll_back(request).phase == "rolled_back"
        seen.append((world.text(), world.record().phase))

    def watch(record: Release) -> None:
        if in_canary(record) and not seen:
            world.soon = another_rolls_back

    world.rayservice(live())
    process = world.process(watch=watch)
    end = process.outcome(lambda: process.promote(request))
    assert isinstance(end.error, errors.ReleaseHeld), str(end)
    assert seen == [(world.text(), world.record().phase)] and world.users_get() == ("v1",)
    assert not world.serve.lost


# --- D6: after the switch ---------------------------------------------------------------------------------------------------------------


def test_d6_a_candidate_that_dies_at_100_percent_goes_back_though_the_registry_is_away(world: World) -> None:
    promoting = False

    def dies() -> None:
        world.serve.behaviour(V2).status = "UNHEALTHY"
        world.serve.report()

    def watch(record: Release) -> None:
        nonlocal promoting
        if record.phase == "promoting" and not promoting:
            promoting, world.soon = True, dies

    world.rayservice(live())
    script = Chosen(world.clock, lambda call: errors.Unreachable("away") if call.owner == "registry" and promoting else None)
    process = world.process(script, watch)
    end = process.outcome(lambda: process.promote(asked(watch_s=30.0, keep_previous_s=30.0)))
    assert end.exit_code == 4, str(end)
    assert world.users_get() == ("v1",) and world.record().phase == "rolled_back"


def test_d6_a_promotion_that_stopped_can_be_rolled_back_while_the_old_version_is_there(world: World) -> None:
    request = asked(watch_s=30.0, keep_previous_s=30.0)
    world.rayservice(live())
    world.killed_when(lambda record: record.phase == "promoting", request)
    world.clock.sleep(60.0)
    assert world.process().roll_back(request).phase == "rolled_back"
    assert world.users_get() == ("v1",) and V2 not in world.serve.applications() and not world.serve.lost


def late(world: World, status: int | None = 500) -> None:
    """v2 is good as long as v1 gets requests too."""
    answered = lambda _n: status if world.split()[0] == "v2" else 200  # noqa: E731
    world.serve.behaviour(V2).answer = answered


LONG = {"watch_s": 30.0, "keep_previous_s": 60.0}


@pytest.mark.parametrize(("status", "metric"), [(500, "errors"), (404, "client errors"), (None, "clients that give up")])
def test_d6_a_version_that_fails_only_when_it_has_all_traffic_goes_back_in_one_write(world: World, status: int | None, metric: str) -> None:
    world.rayservice(live())
    world.front()
    before = stub(world)
    late(world, status)
    script = Chosen(world.clock, lambda _call: None)
    process = world.process(script)
    end = process.outcome(lambda: process.promote(asked(**LONG)))
    assert end.exit_code == 4 and isinstance(end.error, errors.CanaryFailed), str(end)
    assert "after the switch" in end.words and metric in end.words
    assert world.users_get() == ("v1",) and V2 not in world.serve.applications() and not world.serve.lost
    assert stub(world) == before and world.registry.aliases(f"{NAMESPACE}.{MODEL}") == {"champion": "v1"}, "no name had followed"
    record = world.record()
    assert record.phase == "rolled_back" and "after the switch" in record.sentence and record.previous is None
    assert world.serve.failed["v2"] <= 40, "found at the first look, a second after the switch"
    assert record.rollback is not None and record.timeline[-1].weight_percent == 100.0 and record.timeline[-1].e_fail
    assert report.flow(record.model_dump(mode="json"))[-1] == {"name": "rolled back", "state": "bad"}
    assert "after the switch" in report.render(record.model_dump(mode="json"))


def test_d6_the_old_version_is_kept_and_a_rollback_is_one_write_then_the_names(world: World) -> None:
    request = asked(model_format="reranker", watch_s=5.0, keep_previous_s=3600.0)
    world.rayservice(live())
    world.front(model_format="embedding")
    registered = f"{NAMESPACE}.{MODEL}"
    world.registry.register(registered, "v0", "s3://models/v0", digest=None, properties={})
    world.registry.move(registered, "previous", "v0")
    before, applications = stub(world), world.serve.applications()
    began = world.clock.monotonic()
    record = world.promote(request)
    assert record.phase == "promoted" and world.clock.monotonic() - began < 60.0, "no run waits for an hour"
    assert record.previous is not None and record.previous.version == "v1" and record.switched_unix_s is not None
    assert record.previous.until_unix_s == record.switched_unix_s + 3600.0
    assert f"{MODEL}-v1" in world.serve.applications() and world.users_get() == ("v2",)
    assert world.registry.aliases(registered) == {"champion": "v2", "previous": "v1"} and stub(world) != before
    world.clock.sleep(1800.0)
    assert world.process().open_rollback(request) and world.process().roll_back(request).phase == "rolled_back"
    assert world.users_get() == ("v1",) and V2 not in world.serve.applications()
    assert world.registry.aliases(registered) == {"champion": "v1", "previous": "v0"} and stub(world) == before
    assert world.serve.applications() == applications and not world.serve.lost and not world.serve.failed
    assert world.cluster.get(Ref("Service", names.alias(MODEL), NAMESPACE)) is not None, "clients use it"
    assert world.process().roll_back(request).phase == "rolled_back", "and again is harmless"


def test_d6_what_a_promoted_release_made_stays_when_it_is_taken_back(world: World) -> None:
    request = asked(watch_s=5.0, keep_previous_s=3600.0)
    world.rayservice(live())
    world.promote(request)
    assert world.process().roll_back(request).phase == "rolled_back"
    service, shown = Ref("Service", names.alias(MODEL), NAMESPACE), Ref("InferenceService", MODEL, NAMESPACE)
    assert world.cluster.get(service) is not None and world.cluster.get(shown) is not None, "clients may use them by now"


@pytest.mark.parametrize("who", ["tidy", "the same request", "another request"])
def test_d6_the_old_version_goes_when_its_time_is_over(world: World, who: str) -> None:
    request = asked(watch_s=5.0, keep_previous_s=3600.0)
    world.rayservice(live())
    world.promote(request)
    assert tidied(world, request).previous is not None, "not yet"
    assert world.promote(request).previous is not None, "not yet"
    world.clock.sleep(3600.0)
    if who == "tidy":
        assert tidied(world, request).previous is None
    else:
        world.promote(request if who == "the same request" else asked("v3"))
    assert f"{MODEL}-v1" not in world.serve.applications() and world.record().phase == "promoted"
    assert world.users_get() == (("v3",) if who == "another request" else ("v2",)) and not world.serve.lost and world.lease() is None
    with pytest.raises(errors.StepOutOfOrder, match="cannot become rolling back"):
        to_rolling_back(world)


def to_rolling_back(world: World) -> None:
    record = world.record()
    ReleaseStore(world.cluster, MODEL, NAMESPACE).update(lambda found: setattr(found, "phase", "rolling_back"), epoch=record.epoch)


def tidied(world: World, request: PromoteRequest) -> Release:
    return rollout.tidy_release(world.process().open_rollback(request))


def test_d6_tidy_takes_a_candidate_back_that_was_held_for_too_long(world: World) -> None:
    request = quiet(hold_ttl_s=3600.0)
    world.rate_per_s = 0.0
    world.rayservice(live())
    process = world.process()
    process.outcome(lambda: process.promote(request))
    assert tidied(world, request).phase == "held", "not yet"
    world.clock.sleep(3600.0)
    assert tidied(world, request).phase == "rolled_back" and V2 not in world.serve.applications() and world.lease() is None


def test_d6_tidy_leaves_a_candidate_that_somebody_went_on_with_while_it_waited_for_the_lease(world: World) -> None:
    request = quiet(hold_ttl_s=3600.0)
    world.rate_per_s = 0.0
    world.rayservice(live())
    process = world.process()
    process.outcome(lambda: process.promote(request))
    world.clock.sleep(3600.0)
    assert world.record().phase == "held"

    def somebody(call: Record) -> None:
        if call.method == "get" and call.what.startswith("Lease") and world.record().phase == "held":
            world.rate_per_s = 40.0
            world.killed_when(in_canary, request)

    run = world.process(Chosen(world.clock, somebody)).open_rollback(request)
    assert rollout.tidy_release(run).phase == "canary" and world.lease() is None
    assert V2 in world.serve.applications() and "its time is over" not in str(world.record().events)
    goes_on(world, request)


@pytest.mark.parametrize("fault", ["its successor is dead", "users are back on it"])
def test_d6_an_old_version_stays_when_it_is_needed_though_its_time_is_over(world: World, fault: str) -> None:
    world.rayservice(live())
    request = asked(keep_previous_s=600.0)
    world.promote(request)
    world.clock.sleep(600.0)
    if fault == "users are back on it":
        text = rayservice.with_owner(world.text(), f"/{MODEL}", f"{MODEL}-v1", {V2: names.version_route(MODEL, "v2")})
        world.rayservice(text, adopted=False)
    else:
        world.serve.behaviour(V2).status = "DEPLOY_FAILED"
        world.serve.report()
    process = world.process()
    end = process.outcome(lambda: rollout.tidy_release(process.open(request)))
    assert end.exit_code != 0 and f"{MODEL}-v1" in world.serve.applications() and world.record().previous is not None, str(end)
    assert ("sends users to v1, which was to be removed" if fault == "users are back on it" else "DEPLOY_FAILED") in end.words


def test_d6_a_switch_is_made_once_however_often_the_promotion_is_run(world: World) -> None:
    """The old version's time runs from the first one, and the watch belongs to it."""
    world.rayservice(live())
    request = asked(keep_previous_s=600.0)
    world.killed_when(lambda record: record.switched_unix_s is not None, request)
    first = world.record()
    world.clock.sleep(60.0)
    last = world.promote(request)
    assert (last.switched_unix_s, last.previous) == (first.switched_unix_s, first.previous) and last.previous is not None


def test_d3_the_handler_of_a_signal_is_as_before_when_a_step_is_over(world: World) -> None:
    world.rayservice(live())
    before = signal.getsignal(signal.SIGTERM)
    world.promote(asked())
    assert signal.getsignal(signal.SIGTERM) is before


def test_d6_a_default_run_ends_without_the_old_version(world: World) -> None:
    options = Options()
    world.rayservice(live())
    record = world.promote(asked(watch_s=options.watch_s, keep_previous_s=options.keep_previous_s))
    assert record.phase == "promoted" and record.previous is None and f"{MODEL}-v1" not in world.serve.applications()


def test_d6_a_killed_watch_goes_on_with_what_is_left_of_it(world: World) -> None:
    request = asked(watch_s=80.0, keep_previous_s=90.0)
    world.rayservice(live())
    world.killed_when(lambda record: record.judge is not None and record.judge.watch is not None and record.judge.watched_s >= 50.0, request)
    world.clock.sleep(300.0)
    looked: list[float] = []
    process = world.process(watch=lambda record: looked.append(record.judge.watched_s) if record.judge and record.judge.watch else None)
    assert process.promote(request).phase == "promoted"
    assert looked and min(looked) >= 20.0 and max(looked) == 80.0
    late_world = World(rate_per_s=40.0)
    late_world.rayservice(live())
    late_world.killed_when(lambda record: record.switched_unix_s is not None, request)
    late(late_world)
    process = late_world.process()
    end = process.outcome(lambda: process.promote(request))
    assert end.exit_code == 4 and late_world.users_get() == ("v1",), "the fault came while nobody watched"


def test_d6_a_meter_that_is_broken_at_100_percent_is_not_the_versions_fault(world: World) -> None:
    world.rayservice(live())

    def watch(record: Release) -> None:
        if record.phase == "promoting":
            world.serve.page = lambda page: (500, {}, b"no") if page == "ledger" else None

    process = world.process(watch=watch)
    end = process.outcome(lambda: process.promote(asked(**LONG)))
    assert end.exit_code == 0 and world.record().phase == "promoted", str(end)
    assert any("at 100 %, then no more" in event.message for event in world.record().events)


# --- D7, case 19: too little traffic ----------------------------------------------------------------------------------------------------


def quiet(**options: Any) -> PromoteRequest:
    judge = {"judge_latency": False, "error_margin_percent": 5.0, "tick_s": 5.0, "max_minutes": 0.5}
    return asked(judge=judge, **options)


def test_d7_a_version_without_traffic_is_held_and_goes_on_when_there_is_some(world: World) -> None:
    world.rate_per_s = 0.1
    world.rayservice(live())
    process = world.process()
    end = process.outcome(lambda: process.promote(quiet()))
    assert end.exit_code == 5 and isinstance(end.error, errors.Inconclusive), str(end)
    assert world.record().phase == "held" and world.users_get() == ("v1",) and V2 in world.serve.applications()
    assert world.record().verdict is not None
    world.rate_per_s = 30.0  # enough for the budget of a step, which begins anew, not for its first look
    goes_on(world, quiet())


@pytest.mark.parametrize(
    ("wanted", "exit_codes", "phase", "users"),
    [("hold", (5,), "held", "v1"), ("roll_back", (4, 5), "rolled_back", "v1"), ("promote", (0,), "promoted", "v2")],
)
def test_d7_what_happens_without_traffic_is_the_requests_choice(
    world: World, wanted: str, exit_codes: tuple[int, ...], phase: str, users: str
) -> None:
    world.rate_per_s = 0.1
    world.rayservice(live())
    process = world.process()
    end = process.outcome(lambda: process.promote(quiet(on_inconclusive=wanted)))
    assert end.exit_code in exit_codes, str(end)
    assert (world.record().phase, world.users_get()) == (phase, (users,))
    assert (V2 in world.serve.applications()) == (wanted != "roll_back")


def test_d7_a_held_release_can_be_given_up(world: World) -> None:
    world.rate_per_s = 0.0
    world.rayservice(live())
    process = world.process()
    process.outcome(lambda: process.promote(quiet()))
    assert world.record().phase == "held"
    assert world.process().roll_back(quiet()).phase == "rolled_back"
    assert V2 not in world.serve.applications() and world.users_get() == ("v1",)


def test_case_19_a_healthy_version_that_nobody_asks_is_not_taken_back(world: World) -> None:
    world.rate_per_s = 0.0
    world.rayservice(live())
    process = world.process()
    end = process.outcome(lambda: process.promote(quiet()))
    record = world.record()
    assert (record.phase, end.exit_code) == ("held", 5) and V2 in world.serve.applications(), str(end)
    assert "taken back" not in said(world, end) and "The same command goes on" in end.words


# --- D10, D11: time -------------------------------------------------------------------------------------------------------------------


def test_d10_a_lapse_of_ones_own_weight_is_not_the_routers_fault(world: World) -> None:
    from_s: list[float] = []

    def away(call: Record) -> errors.Unreachable | None:
        gone = bool(from_s) and call.owner == "cluster" and from_s[0] + 10.0 <= call.at_s < from_s[0] + 40.0
        return errors.Unreachable("API away") if gone else None

    def watch(record: Release) -> None:
        if in_canary(record) and not from_s:
            from_s.append(world.clock.monotonic())

    world.rayservice(live())
    process = world.process(Chosen(world.clock, away), watch)
    request = asked(judge=PATIENT, lease_s=20.0)
    end = process.outcome(lambda: process.promote(request))
    assert end.exit_code in (0, 3), str(end)
    if end.exit_code == 3:
        world.clock.sleep(request.options.lease_s)  # nobody could write the weight: it lapses
        is_left(world, end, "canary")
        goes_on(world, request)
    assert world.record().phase == "promoted" and world.users_get() == ("v2",)


def test_d11_time_in_which_nobody_ran_is_not_spent(world: World) -> None:
    judge = {"judge_latency": False, "error_margin_percent": 5.0, "tick_s": 1.0, "max_minutes": 5.0}
    request = asked(judge=judge)
    world.rate_per_s = 0.1
    world.rayservice(live())
    begun: list[float] = []

    def a_minute_later(record: Release) -> bool:
        if in_canary(record) and not begun:
            begun.append(world.clock.monotonic())
        return bool(begun) and world.clock.monotonic() >= begun[0] + 60.0

    world.killed_when(a_minute_later, request)
    world.clock.sleep(40 * 60.0)
    world.rate_per_s = 40.0
    goes_on(world, request)


# --- D12: the published steps compose, or are refused -----------------------------------------------------------------------------------


def smoked(world: World, request: PromoteRequest) -> tuple[Process, rollout.Run]:
    """As far as a person goes step by step before the canary."""
    world.rayservice(live())
    process = world.process()
    run = process.open(request)
    rollout.register_model(run)
    rollout.deploy_rayservice(run)
    rollout.create_alias(run)
    rollout.create_inference_service(run)
    rollout.smoke_inference(run)
    return process, run


def refused(world: World, process: Process, asked_for: Callable[[], Release], phase: str) -> None:
    text = world.text()
    end = process.outcome(asked_for)
    assert isinstance(end.error, errors.StepOutOfOrder), str(end)
    assert world.text() == text and world.record().phase == phase


def test_d12_a_weight_of_ones_own_is_judged_as_it_is(world: World) -> None:
    process, run = smoked(world, asked())
    rollout.shift_traffic(run, 5)
    process.outcome(lambda: rollout.judge_canary(run, 0))
    assert max(world.serve.weights) == 5.0, "judging does not change the weight"


def test_d12_judging_before_there_is_a_weight_is_refused(world: World) -> None:
    process, run = smoked(world, asked())
    refused(world, process, lambda: rollout.judge_canary(run, 0), "smoked")


def test_d12_a_step_before_its_turn_is_refused(world: World) -> None:
    process, run = smoked(world, asked().model_copy(update={"steps": (10.0, 25.0, 50.0)}))
    refused(world, process, lambda: rollout.canary_step(run, 2), "smoked")


def test_d12_a_share_above_that_of_the_step_whose_turn_it_is_is_refused(world: World) -> None:
    process, run = smoked(world, asked())
    refused(world, process, lambda: rollout.shift_traffic(run, 50), "smoked")


def test_d12_another_request_for_the_version_that_users_get_is_refused(world: World) -> None:
    """It asks for something else, so it is not taken for the release that has ended well."""
    world.rayservice(live())
    world.promote(asked())
    assert world.promote(asked()).phase == "promoted", "the same request again is harmless"
    with pytest.raises(errors.RequestInvalid, match="version v2 is what users get already; give a new version"):
        world.promote(asked(watch_s=1.0))


@pytest.mark.parametrize("index", [0, 1])
def test_d12_a_first_version_has_no_canary_step(index: int) -> None:
    world = World(rate_per_s=0.0)
    world.rayservice("applications: []\n")
    run = world.process().open(asked("v1"))
    rollout.register_model(run, first_version=True)
    for step in (rollout.canary_step, rollout.judge_canary):
        with pytest.raises(errors.StepOutOfOrder, match="v1 is a first version, so it has no canary step; promote it"):
            step(run, index)


def test_d12_promoting_before_the_steps_have_passed_is_refused(world: World) -> None:
    process, run = smoked(world, asked())
    refused(world, process, lambda: rollout.promote_model(run), "smoked")


def test_d12_shifting_before_the_smoke_test_is_refused(world: World) -> None:
    world.rayservice(live())
    process = world.process()
    run = process.open(asked())
    rollout.register_model(run)
    refused(world, process, lambda: rollout.shift_traffic(run, 5), "registered")


@pytest.mark.parametrize("weight_percent", [250.0, -1.0, 100.5])
def test_d12_a_split_is_a_percentage(weight_percent: float) -> None:
    with pytest.raises((ValueError, errors.RequestInvalid)):
        traffic.Split(stable="v1", candidate="v2", weight_percent=weight_percent)


# --- D16: as before, to the field -------------------------------------------------------------------------------------------------------


def stub(world: World) -> Any:
    found = world.cluster.get(Ref("InferenceService", MODEL, NAMESPACE))
    assert found is not None
    return found["spec"], found["metadata"].get("annotations"), found["metadata"].get("labels")


def test_d16_the_format_of_a_rejected_candidate_does_not_stay(world: World) -> None:
    world.rayservice(live())
    world.front(model_format="embedding")
    before = stub(world)
    bad(world)
    with pytest.raises(errors.CanaryFailed):
        world.promote(asked(model_format="reranker"))
    assert stub(world) == before


def test_d16_the_uri_of_an_owners_stub_is_as_before(world: World) -> None:
    owned = inference_service.manifest(MODEL, NAMESPACE, version="v1", uri="s3://owner/bge", model_format="custom", rayservice=RAYSERVICE)
    owned["metadata"]["annotations"] = {names.DEPLOYMENT_MODE: "ModelMesh"}
    world.rayservice(live())
    world.front()
    world.cluster.delete(Ref("InferenceService", MODEL, NAMESPACE))
    world.cluster.apply(owned, manager="owner")
    before = stub(world)
    bad(world)
    process = world.process()
    end = process.outcome(lambda: process.promote(asked()))
    assert end.exit_code in (2, 4), "taken back, or refused at the door"
    assert stub(world) == before


def test_d16_a_stub_says_protocol_v2_only_of_a_model_that_speaks_it(world: World) -> None:
    request = asked(watch_s=5.0, keep_previous_s=3600.0, protocol="json")
    world.rayservice(live())
    world.front()
    before = stub(world)
    assert before[0]["predictor"]["model"]["protocolVersion"] == "v2"
    world.promote(request)
    assert "protocolVersion" not in stub(world)[0]["predictor"]["model"]
    assert world.process().roll_back(request).phase == "rolled_back" and stub(world) == before, "as before, to the field"


# --- D17: contradictions ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"lease_s": 20.0, "judge": {"tick_s": 60.0}}, {"lease_s": 2.0}, {"lease_s": 20.0, "judge": {"tick_s": 20.0}}],
    ids=["tick", "apply", "equal"],
)
def test_d17_options_that_contradict_each_other_are_refused_at_birth(options: dict[str, Any]) -> None:
    with pytest.raises(errors.RequestInvalid, match="lease_s"):
        asked(**options)


# --- case 22: the router is taken away --------------------------------------------------------------------------------------------------


def test_case_22_the_words_are_about_what_serves_now(world: World) -> None:
    def the_owner_applies_his_file(record: Release) -> None:
        if in_canary(record) and record.timeline and f"{MODEL}-router" in world.serve.applications():
            world.rayservice("applications:\n" + OTHERS + application("v1").replace(f"{MODEL}-v1", "bge").replace("/.versions/bge/v1", "/bge"))

    world.rayservice(live())
    process = world.process(watch=the_owner_applies_his_file)
    end = process.outcome(lambda: process.promote(asked(judge=PATIENT)))
    assert end.exit_code == 4, str(end)
    record = world.record()
    assert record.phase == "rolled_back" and world.users_get() == ("bge",)
    told = said(world, end)
    assert f"{MODEL}-router" in end.words and "owner" in end.words, "what was taken out, and by whom"
    assert "what is in serveConfigV2" in told or "what is in it now" in told
    assert "v1 serves" not in told and "back to v1" not in told


# --- what an exit handler does, and who makes way ---------------------------------------------------------------------------------------


def finished(world: World, holder: str) -> Release | None:
    """The exit handler of the run of that name."""
    process = world.process()
    process.holder = holder
    return rollout.finish_release(process.open_rollback(asked()))


def test_the_exit_handler_gives_a_canarys_traffic_back_and_leaves_the_rest(world: World) -> None:
    request = asked(judge=PATIENT)
    world.rayservice(live())
    world.killed_when(in_canary, request)
    assert world.users_get() == ("v1", "v2")
    found = finished(world, world.record().holder)
    assert found is not None and found.phase == "canary"
    assert world.users_get() == ("v1",) and V2 in world.serve.applications()
    goes_on(world, request)


def test_the_exit_handler_finishes_a_promotion(world: World) -> None:
    world.rayservice(live())
    world.killed_when(lambda record: record.phase == "promoting", asked())
    found = finished(world, world.record().holder)
    assert found is not None and found.phase == "promoted" and world.users_get() == ("v2",)


def test_the_exit_handler_touches_neither_a_finished_release_nor_another_runs(world: World) -> None:
    world.rayservice(live())
    world.killed_when(in_canary, asked(judge=PATIENT))
    text = world.text()
    assert finished(world, "another run") is None and world.text() == text
    world.clock.sleep(60.0)
    assert world.process().roll_back(asked()).phase == "rolled_back"
    text, holder = world.text(), world.record().holder
    found = finished(world, holder)
    assert found is not None and found.phase == "rolled_back" and world.text() == text


def test_a_held_version_makes_way_when_its_time_is_over(world: World) -> None:
    world.rate_per_s = 0.0
    world.rayservice(live())
    process = world.process()
    process.outcome(lambda: process.promote(quiet(hold_ttl_s=3600.0)))
    assert world.record().phase == "held"
    world.rate_per_s = 400.0
    with pytest.raises(errors.ReleaseHeld, match="the release of v2 is unfinished"):
        world.promote(asked("v3"))
    world.clock.sleep(3600.0)
    assert world.promote(asked("v3")).phase == "promoted"
    assert world.users_get() == ("v3",) and V2 not in world.serve.applications() and not world.serve.lost


def test_every_step_is_harmless_when_it_runs_again_after_it_succeeded(world: World) -> None:
    """A real backend does that: an upload of logs that fails after exit 0 repeats the step, in the same run with the same id."""
    _process, run = smoked(world, asked())
    world.front()
    for _ in range(2):
        rollout.canary_step(run, 0)
        rollout.canary_step(run, 1)
        rollout.smoke_inference(run)
        rollout.register_model(run)
    for _ in range(2):
        assert rollout.promote_model(run).phase == "promoted"
        rollout.deploy_rayservice(run)
        rollout.canary_step(run, 1)
    assert world.users_get() == ("v2",) and not world.serve.failed and not world.serve.lost


# --- D15: an endpoint that cannot be reached is nobody's fault --------------------------------------------------------------------------


def test_d15_an_endpoint_that_cannot_be_reached_says_nothing_about_the_candidate(world: World) -> None:
    world.rayservice(live())
    away = Chosen(world.clock, lambda call: errors.Unreachable("no route") if call.owner == "http" and "/-/" not in call.what else None)
    process = world.process(away)
    end = process.outcome(lambda: process.promote(asked()))
    is_left(world, end, "deployed")
    goes_on(world, asked())


def test_d21_events_name_the_stubs_uid_so_that_kubectl_describe_shows_them(world: World) -> None:
    world.rayservice(live())
    world.front()
    world.promote(asked())
    stub = world.cluster.get(Ref("InferenceService", MODEL, NAMESPACE))
    assert stub is not None
    told = [event["involvedObject"] for event in world.cluster.list("Event", NAMESPACE)]
    assert len(told) > 5 and {about.get("uid") for about in told} == {stub["metadata"]["uid"]}


def test_a_router_that_refuses_its_configuration_says_why(world: World) -> None:
    """As one does whose image holds an older version of this package."""
    refused = {
        "stable": {"version": "v1"},
        "candidate": None,
        "weight_percent_effective": 0.0,
        "refused_config": "'epoch' is not a known key",
        "protocol": PROTOCOL,
    }
    world.rayservice(live())
    world.serve.page = lambda page: (200, {}, json.dumps(refused).encode()) if page == "router" else None
    process = world.process()
    end = process.outcome(lambda: process.promote(asked()))
    assert end.exit_code == 3 and "it refused its configuration: 'epoch' is not a known key" in end.words
    assert world.users_get() == ("v1",)


# --- case 14, D18: what is, not what was written last -----------------------------------------------------------------------------------


def seen(world: World) -> rollout.Status:
    return rollout.read_status(world.cluster, world.record(), clock=world.clock, transport=Transport(world.serve))


def owners_file() -> str:
    """As it was before the adoption."""
    return "applications:\n" + OTHERS + application("v1").replace(f"{MODEL}-v1", "bge").replace("/.versions/bge/v1", "/bge")


def test_case_14_a_version_that_is_gone_is_said_by_status_and_by_the_commands(world: World) -> None:
    world.rayservice(live())
    world.promote(asked())
    before = seen(world)
    assert (before.ready, before.traffic, before.written, before.shown, before.notes) == (True, {"v2": 100.0}, {"v2": 100.0}, {"v2": 100}, [])
    world.rayservice(owners_file())
    now = seen(world)
    gone = "users get application bge at /bge, not v2 (bge-v2). serveConfigV2 was written by owner at "
    assert now.ready is False and now.traffic is None and now.written is None and len(now.notes) == 1 and now.notes[0].startswith(gone)
    process = world.process()
    back = process.outcome(lambda: process.roll_back(asked()))
    assert back.exit_code == 2 and gone in back.words
    following = process.outcome(lambda: process.promote(asked("v3")))
    assert following.exit_code == 2 and gone in following.words and "v2" in following.words
    assert tidied(world, asked()).phase == "promoted"
    shown = world.cluster.get(Ref("InferenceService", MODEL, NAMESPACE))
    assert shown is not None and seen(world).shown == {}
    assert {(c["type"], c["status"]) for c in shown["status"]["conditions"]} == {("PredictorReady", "False"), ("Ready", "False")}
    assert gone in shown["status"]["conditions"][0]["message"]


def test_a_rollback_of_a_finished_release_reads_the_rayservice_once_and_asks_serve(world: World) -> None:
    world.rayservice(live())
    world.promote(asked())
    script = Chosen(world.clock, lambda _call: None)
    assert world.process(script).roll_back(asked()).phase == "promoted"
    assert [call.what for call in script.calls if call.method == "get"].count(str(world.serve.ref)) == 1
    assert [call.what for call in script.calls if call.owner == "http"] == ["/-/routes"]


def test_case_14_a_weight_that_lapsed_is_shown_as_it_is(world: World) -> None:
    world.rayservice(live())
    world.killed_when(in_canary, asked(judge=PATIENT))
    live_canary = seen(world)
    assert live_canary.traffic == live_canary.written == {"v1": 80.0, "v2": 20.0} and not live_canary.notes
    world.clock.sleep(60.0)
    now = seen(world)
    assert now.written == {"v1": 80.0, "v2": 20.0} and now.traffic == {"v1": 100.0, "v2": 0.0} and now.ready is True
    assert now.notes == ["the weight of v2 has lapsed: nobody runs the release, and v1 serves all requests"]
    assert tidied(world, asked(judge=PATIENT)).phase == "canary" and seen(world).shown == {"v1": 100}
    goes_on(world, asked(judge=PATIENT))


def test_case_14_a_promotion_that_is_stuck_shows_who_serves(world: World) -> None:
    world.rayservice(live())
    world.killed_when(lambda record: record.switched_unix_s is not None, asked())
    now = seen(world)
    assert world.record().phase == "promoting" and (now.stable_version, now.traffic, now.ready) == ("v2", {"v2": 100.0}, True)


def test_case_14_what_cannot_be_asked_is_said_and_not_guessed(world: World) -> None:
    world.rayservice(live())
    world.promote(asked())
    world.serve.answer = lambda *_request: (502, {}, b"away")  # type: ignore[method-assign]
    now = seen(world)
    assert (now.ready, now.traffic, now.written) == (None, None, {"v2": 100.0})
    assert len(now.notes) == 1 and "what users get is not known" in now.notes[0]


def test_case_14_a_tidy_that_can_ask_nobody_leaves_what_the_stub_shows(world: World) -> None:
    world.rayservice(live())
    world.promote(asked())
    before = seen(world).shown
    world.serve.answer = lambda *_request: (502, {}, b"away")  # type: ignore[method-assign]
    tidied(world, asked())
    shown = world.cluster.get(Ref("InferenceService", MODEL, NAMESPACE))
    assert shown is not None and seen(world).shown == before == {"v2": 100}
    assert {condition["status"] for condition in shown["status"]["conditions"]} == {"True"}


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("dies", "application bge-v2 is UNHEALTHY: told by the test"),
        ("is taken out", "nothing answers at /bge, not v2 (bge-v2). serveConfigV2 was written by owner at "),
        ("refuses", "the router refused its configuration and goes on with the one before: "),
        ("all is gone", "RayService ai-ml/ai-inference does not exist any more"),
    ],
)
def test_case_14_whatever_else_is_not_as_the_release_left_it(world: World, what: str, told: str) -> None:
    world.rayservice(live())
    if what == "refuses":
        world.killed_when(in_canary, asked(sticky_header="x-user"))
    else:
        world.promote(asked())
    if what == "dies":
        world.serve.behaviour(V2).status = "UNHEALTHY"
    elif what == "is taken out":
        world.rayservice(rayservice.without_application(world.text(), V2))
    elif what == "refuses":
        world.rayservice(world.text().replace("sticky_header", "sticky"))
    else:
        world.cluster.delete(world.serve.ref)
    now = seen(world)
    assert any(note.startswith(told) for note in now.notes), now.notes
    assert now.ready is (what == "refuses"), "the router goes on"


# --- D22: what the steps before a canary cost ---------------------------------------------------------------------------------------------


def test_d22_each_step_reads_the_record_once_and_nothing_apart_before_a_canary(world: World) -> None:
    world.rayservice(live())
    script = Chosen(world.clock, lambda _call: None)
    process = world.process(script)
    steps = (rollout.register_model, rollout.deploy_rayservice, rollout.create_alias, rollout.create_inference_service, rollout.smoke_inference)
    for step in steps:
        before = len(script.calls)
        step(process.open(asked()))  # a process of its own, as in a pipeline
        read = [call.what for call in script.calls[before:] if call.method == "get" and call.what.startswith("ConfigMap ")]
        assert read.count(f"ConfigMap {NAMESPACE}/{names.release(MODEL)}") == 1, step.__name__
        assert read.count(f"ConfigMap {NAMESPACE}/{names.canary(MODEL)}") == 0, step.__name__


# --- D12, D21: refused at the door ------------------------------------------------------------------------------------------------------


def test_d12_more_steps_than_the_pipeline_has_boxes_are_refused_at_the_door(world: World) -> None:
    world.rayservice(live())
    text, record = world.text(), world.stored()
    run = world.process().open(asked())
    with pytest.raises(errors.RequestInvalid, match=r"steps: 2 are asked for, but this pipeline was compiled with 1 canary step\(s\).*--steps 20,50"):
        rollout.register_model(run, boxes=1)
    assert world.stored() == record and world.text() == text and world.lease() is None
    assert rollout.register_model(run, boxes=2).phase == "registered"


def clashing(model: str, version: str) -> PromoteRequest:
    return parse({**asked().model_dump(mode="json"), "model": model, "version": version})


@pytest.mark.parametrize(("model", "version"), [(MODEL, "large-v1"), (MODEL, "large-router")], ids=["a version", "a router"])
def test_d21_a_version_whose_application_is_named_as_another_models_is_refused(world: World, model: str, version: str) -> None:
    world.rayservice("applications: []\n")
    world.deploy(clashing(f"{MODEL}-large", "v1"))
    split = "deployments: [{name: Router, user_config: {stable: {version: v1, route: /x}}}]"
    at = f"name: {MODEL}-large-router, route_prefix: {names.router_route(f'{MODEL}-large')}, import_path: '{names.ROUTER_IMPORT_PATH}'"
    router = f"  - {{{at}, {split}}}\n"
    world.rayservice(world.text() + router + application("v1", f"/{MODEL}"))
    text, record = world.text(), world.stored()
    with pytest.raises(errors.NameTaken, match=f"application {model}-{version} is there already, at .*; it belongs to model {MODEL}-large"):
        world.promote(clashing(model, version))
    assert world.text() == text and world.stored() == record


def test_d21_a_model_whose_router_is_named_as_another_models_version_is_refused(world: World) -> None:
    """`bge` version `x-router` is there: the router of a model `bge-x` would have its name."""
    world.rayservice(live())
    world.promote(clashing(MODEL, "x-router"))
    text = world.text()
    with pytest.raises(errors.NameTaken, match=f"{MODEL}-x-router is there already, at .*; it belongs to model {MODEL}, and a release of {MODEL}-x"):
        world.deploy(clashing(f"{MODEL}-x", "v1"))
    assert world.text() == text


def test_case_14_the_plan_warns_of_a_file_that_kubectl_applies(world: World) -> None:
    world.rayservice(live())
    warning = "the next `kubectl apply` of that file takes all of this back"
    assert warning not in str(rollout.plan(world.process().open(asked())))
    metadata = {"name": RAYSERVICE, "namespace": NAMESPACE, "annotations": {names.LAST_APPLIED: '{"spec":{"serveConfigV2":"applications: []"}}'}}
    world.cluster.apply({"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata}, manager="kubectl-client-side-apply", force=True)
    assert warning in str(rollout.plan(world.process().open(asked())))


# --- smoke cases that take long --------------------------------------------------------------------------------------------------------


def test_how_many_cases_are_done_is_shown_and_not_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "TOLD_EVERY_S", 0.0)
    world.rayservice(live())
    shown: list[str] = []
    case = {"path": "/", "body": {"text": "x"}, "expect": {"/ok": True}}
    world.promote(asked(smoke=[case, case]), watch=lambda record: shown.append(record.events[-1].message))
    assert shown.count("1 of 2 case(s) answered") == shown.count("2 of 2 case(s) answered") == 1
    assert not any("case(s) answered" in event.message and " of " in event.message for event in world.record().events)
