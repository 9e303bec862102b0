"""A live release listens (D8): abort, pause, resume and approve, from another process and from kubectl, whoever runs it or does not."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
from memory_world import MODEL, NAMESPACE, RAYSERVICE, Chosen, Process, World, asked, live

from kfp_components import errors, names, rollout
from kfp_components.cluster.faults import Fault, Record, Script
from kfp_components.release import Release, commands
from kfp_components.request import ModelTarget, PromoteRequest

V2 = f"{MODEL}-v2"
TARGET = ModelTarget(model=MODEL, namespace=NAMESPACE, rayservice=RAYSERVICE)
SLOW = {"judge_latency": False, "error_margin_percent": 0.5, "tick_s": 1.0, "max_minutes": 60.0}
"""So narrow a margin that the canary takes minutes."""
JUDGE = {"judge_latency": False, "error_margin_percent": 5.0, "tick_s": 1.0, "max_minutes": 60.0}


class Stage(World):
    """A world in which things are done at times, and at stations of the release."""

    def __init__(self, rate_per_s: float = 40.0) -> None:
        super().__init__(rate_per_s=rate_per_s)
        self.rayservice(live())
        self.front()
        self.planned: list[tuple[float, Callable[[], None]]] = []
        lived = self.clock.second

        def second(part_s: float) -> None:
            lived(part_s)
            due = [act for at_s, act in self.planned if at_s <= self.clock.monotonic()]
            self.planned = [(at_s, act) for at_s, act in self.planned if at_s > self.clock.monotonic()]
            for act in due:
                act()

        self.clock.second = second

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self.planned.append((self.clock.monotonic() + seconds, act))

    def when(self, there: Callable[[Release], bool], act: Callable[[], None], after_s: float = 0.5) -> Callable[[Release], None]:
        """A watcher that has something done once, a little after the record is so."""
        done = False

        def watch(record: Release) -> None:
            nonlocal done
            if not done and there(record):
                done = True
                self.after(after_s, act)

        return watch

    def cli(self, kind: str, reason: str = "", **options: Any) -> Release:
        """The command of another process."""
        surroundings = {"clock": self.clock, "registry": self.registry, "transport": self.process().transport}
        run = rollout.open_rollback(TARGET, self.cluster, **surroundings)
        return getattr(rollout, f"{kind}_release")(run, reason, **options)

    def asks(self, kind: str, reason: str = "because") -> None:
        """The same while this one sleeps: it is asked, and nobody waits for an answer."""
        with pytest.raises(errors.WaitTimeout, match=f"{kind} is asked for there"):
            self.cli(kind, reason, timeout_s=0.0)

    def messages(self, step: str) -> list[str]:
        return [event.message for event in self.record().events if event.step == step]

    def annotated(self) -> bool:
        return commands.find(self.lease()) is not None


@pytest.fixture
def stage() -> Stage:
    return Stage()


def at(percent: float) -> Callable[[Release], bool]:
    return lambda record: record.phase == "canary" and record.weight_percent == percent


def phase(name: str) -> Callable[[Release], bool]:
    return lambda record: record.phase == name


def outcome(stage: Stage, request: PromoteRequest, watch: Callable[[Release], None] = lambda _r: None, script: Script | None = None) -> Any:
    process = Process(stage, "kfp/run-1", script, watch)
    return process.outcome(lambda: process.promote(request))


def is_aborted(stage: Stage, by: str, end: Any = "") -> None:
    assert stage.users_get() == ("v1",) and not stage.serve.lost and not stage.serve.failed
    record = stage.record()
    assert record.phase == "rolled_back", f"{end}"
    assert V2 not in stage.serve.applications() and stage.lease() is None
    assert record.failure is not None and record.failure.error == "Aborted" and f"asked for by {by}" in record.failure.message


# --- abort ------------------------------------------------------------------------------------------------------------------------------

STATIONS = {"registered": phase("registered"), "deployed": phase("deployed"), "20 %": at(20.0), "50 %": at(50.0), "promoting": phase("promoting")}


@pytest.mark.parametrize("station", STATIONS)
@pytest.mark.parametrize("how", ["kubectl", "another process"])
def test_d8_abort_is_obeyed_within_a_second_wherever_the_release_is(stage: Stage, station: str, how: str) -> None:
    asked_s: list[float] = []

    def ask() -> None:
        asked_s.append(stage.clock.monotonic())
        stage.kubectl("abort") if how == "kubectl" else stage.asks("abort")

    told_s: list[float] = []

    def watch(record: Release) -> None:
        ask_there(record)
        if record.phase == "rolling_back" and not told_s:
            told_s.append(stage.clock.monotonic())

    ask_there = stage.when(STATIONS[station], ask)
    stage.serve.behaviour(V2).starts_after_s = 30.0
    end = outcome(stage, asked(judge=SLOW, keep_previous_s=20.0, watch_s=0.0), watch)
    assert isinstance(end.error, errors.Aborted) and end.exit_code == 4, str(end)
    is_aborted(stage, "kubectl-annotate" if how == "kubectl" else "", end)
    assert asked_s and told_s and told_s[0] - asked_s[0] <= 2.1
    assert "v1 serves all requests" in end.words
    if how == "kubectl":
        assert "asked for by kubectl-annotate at 20" in end.words
    else:
        assert ": because" in end.words and "@" in end.words


def test_d8_abort_waits_until_it_is_so_and_says_who_asked(stage: Stage) -> None:
    """The other order: the step works while the command waits."""
    process = Process(stage, "kfp/run-1")
    stage.killed_when(at(20.0), asked(judge=SLOW))  # the process is dead, its Lease is not
    assert stage.lease() is not None and process
    record = stage.cli("abort", "enough")
    is_aborted(stage, "")
    assert record.phase == "rolled_back" and record.sentence and ": enough" in record.failure.message  # type: ignore[union-attr]


@pytest.mark.parametrize("until", ["deployed", "20 %"])
def test_d8_abort_between_two_steps_of_a_pipeline_is_done_at_once_by_the_command(stage: Stage, until: str) -> None:
    run = to(stage, asked(judge=JUDGE), until)
    began_s = stage.clock.monotonic()
    stage.cli("abort", "enough")
    assert stage.clock.monotonic() - began_s < 5
    is_aborted(stage, "")
    with pytest.raises(errors.Aborted, match="enough"):
        rollout.canary_step(run, 1)
    found = rollout.finish_release(Process(stage, "kfp/run-1").open_rollback(TARGET))
    assert found is not None and found.phase == "rolled_back"


def test_d8_an_abort_by_kubectl_between_two_steps_is_obeyed_by_the_next_one_or_by_the_exit_handler(stage: Stage) -> None:
    for ending in ("the next step", "the exit handler"):
        run = to(stage, asked(judge=JUDGE), "20 %")
        stage.kubectl("abort")
        if ending == "the next step":
            with pytest.raises(errors.Aborted):
                rollout.canary_step(run, 1)
        else:
            rollout.finish_release(Process(stage, "kfp/run-1").open_rollback(TARGET))
        is_aborted(stage, "kubectl-annotate")


def test_d8_abort_of_what_is_held_or_left(stage: Stage) -> None:
    stage.rate_per_s = 0.0
    end = outcome(stage, asked(judge={**JUDGE, "max_minutes": 0.1}))
    assert end.exit_code == 5
    stage.cli("abort")
    is_aborted(stage, "")


def test_d8_what_is_not_unfinished_cannot_be_commanded(stage: Stage) -> None:
    for kind in commands.KINDS:
        with pytest.raises(errors.NotFound, match="the release of v1 is promoted, none is unfinished"):
            stage.cli(kind)
    assert outcome(stage, asked()).exit_code == 0
    for kind in commands.KINDS:
        with pytest.raises(errors.NotFound, match=f"the release of v2 is promoted, none is unfinished; there is nothing to {kind}"):
            stage.cli(kind)
    assert stage.users_get() == ("v2",)


def test_d8_an_abort_that_comes_when_the_old_version_is_gone_is_refused_and_the_promotion_ends(stage: Stage) -> None:
    script = Script(clock=stage.clock)
    told: list[int] = []
    original = script.play

    def play(owner: str, method: str, what: str, act: Any, *, write: bool) -> Any:
        if owner == "registry" and not told and f"{MODEL}-v1" not in stage.serve.applications():
            told.append(1)
            stage.kubectl("abort")
            stage.clock.sleep(2.0)
        return original(owner, method, what, act, write=write)

    script.play = play  # type: ignore[method-assign]
    end = outcome(stage, asked(), script=script)
    assert told and end.exit_code == 0 and stage.users_get() == ("v2",), str(end)
    assert any("v1 is gone already" in message for message in stage.messages("abort")) and stage.lease() is None


@pytest.mark.parametrize("word", ["stop", "ABORT", "x" * 300])
def test_d8_a_word_that_is_no_command_is_noted_and_taken_off(stage: Stage, word: str) -> None:
    end = outcome(stage, asked(), stage.when(at(20.0), lambda: stage.kubectl(word)))
    assert end.exit_code == 0 and not stage.serve.failed
    assert any(e.message.startswith("asked for by kubectl-annotate") and not e.ok for e in stage.record().events)


# --- pause and resume -------------------------------------------------------------------------------------------------------------------


def to(stage: Stage, request: PromoteRequest, until: str) -> rollout.Run:
    """A pipeline's run that has come so far, step by step; it is between two steps then."""
    run = Process(stage, "kfp/run-1").open(request)
    rollout.register_model(run)
    rollout.deploy_rayservice(run)
    if until != "deployed":
        rollout.create_alias(run)
        rollout.create_inference_service(run)
        rollout.smoke_inference(run)
    if until in ("20 %", "50 %"):
        rollout.canary_step(run, 0)
    if until == "50 %":
        rollout.canary_step(run, 1)
    return Process(stage, "kfp/run-1").open(request)


@pytest.mark.parametrize("how", ["kubectl", "another process"])
def test_d8_a_pause_longer_than_the_budget_keeps_the_weight_and_then_it_passes(stage: Stage, how: str) -> None:
    weights: set[tuple[str, ...]] = set()

    def pause() -> None:
        stage.kubectl("pause") if how == "kubectl" else stage.asks("pause", "lunch")
        stage.after(5.0, look)

    def look() -> None:
        record = stage.record()
        assert record.paused is not None and record.standing.startswith("Paused by ") and record.sentence == record.standing and not stage.annotated()
        assert record.phase == "canary" and stage.split() == ("v1", "v2", 20.0)
        assert record.judge is not None and record.judge.watched_s < 30, "the budget of time ran"
        assert record.judge.state["candidate"]["requests"] - record.judge.requests_before < 300, "the budget of requests ran"
        weights.add(stage.users_get())
        if stage.clock.monotonic() < 700:
            stage.after(60.0, look)
        else:
            stage.kubectl("resume") if how == "kubectl" else stage.asks("resume")

    budget = {**JUDGE, "max_minutes": 5.0, "max_candidate_requests": 5_000}
    end = outcome(stage, asked(judge=budget), stage.when(at(20.0), pause, after_s=2.5))
    assert end.exit_code == 0, str(end)
    record = stage.record()
    assert stage.clock.monotonic() > 700 and record.paused is None and weights == {("v1", "v2")}
    assert stage.users_get() == ("v2",) and not stage.serve.failed and not stage.serve.lost
    assert len(stage.messages("pause")) == len(stage.messages("resume")) == 1


def test_d8_a_candidate_that_fails_while_it_is_paused_is_taken_back(stage: Stage) -> None:
    def worse() -> None:
        assert stage.record().paused is not None
        stage.serve.behaviour(V2).answer = lambda n: 500 if n % 3 == 0 else 200

    def pause() -> None:
        stage.kubectl("pause")
        stage.after(30.0, worse)

    end = outcome(stage, asked(judge=SLOW), stage.when(at(20.0), pause))
    assert isinstance(end.error, errors.CanaryFailed) and stage.record().phase == "rolled_back" and stage.users_get() == ("v1",)


@pytest.mark.parametrize("until", ["deployed", "smoked", "20 %", "50 %"])
def test_d8_a_pause_between_two_steps_holds_the_next_one(stage: Stage, until: str) -> None:
    run = to(stage, asked(judge=JUDGE), until)
    stage.cli("pause")
    assert stage.annotated(), "asked of the next step"
    text = stage.text()

    def look() -> None:
        record = stage.record()
        assert record.paused is not None and not stage.annotated()
        if until in ("deployed", "smoked"):
            assert stage.text() == text
        else:
            assert stage.split()[2] == float(until.removesuffix(" %"))
        stage.asks("resume")

    stage.after(100.0, look)
    following = {"deployed": rollout.create_alias, "50 %": rollout.promote_model}
    index = {"smoked": 0, "20 %": 1}
    began_s = stage.clock.monotonic()
    following[until](run) if until in following else rollout.canary_step(run, index[until])
    assert stage.clock.monotonic() - began_s >= 100 and stage.record().paused is None and not stage.planned


def test_d8_a_pause_survives_a_kill_and_is_lifted_without_anybody_running(stage: Stage) -> None:
    """The weight lapsed meanwhile: the next process writes the one that the record says, for that is what was promised."""
    script = Script(clock=stage.clock)

    def killed(record: Release) -> None:
        if record.paused is not None:
            script.dead = True

    watch = stage.when(at(20.0), lambda: stage.kubectl("pause"))
    end = outcome(stage, asked(judge=JUDGE), lambda record: (watch(record), killed(record))[0], script)
    assert end.killed and stage.record().paused is not None
    stage.clock.sleep(60.0)
    assert stage.users_get() == ("v1",)

    def look() -> None:
        assert stage.users_get() == ("v1", "v2") and stage.split() == ("v1", "v2", 20.0) and stage.record().paused is not None
        assert stage.messages("pause")[0].startswith("asked for by kubectl-annotate") and len(stage.messages("pause")) == 1
        stage.kubectl("resume")

    stage.after(50.0, look)
    assert outcome(stage, asked(judge=JUDGE)).exit_code == 0 and stage.users_get() == ("v2",)


def test_d8_a_paused_release_whose_candidate_is_gone_gets_no_weight_again(stage: Stage) -> None:
    script = Script(clock=stage.clock)

    def killed(record: Release) -> None:
        script.dead = script.dead or record.paused is not None

    watch = stage.when(at(20.0), lambda: stage.kubectl("pause"))
    end = outcome(stage, asked(judge=JUDGE), lambda record: (watch(record), killed(record))[0], script)
    assert end.killed
    stage.clock.sleep(60.0)
    stage.rayservice(live())
    end = outcome(stage, asked(judge=JUDGE))
    assert isinstance(end.error, errors.ApplicationRemoved), str(end)
    assert stage.users_get() == ("v1",) and not stage.serve.failed and not stage.serve.lost


def test_d8_pause_and_resume_of_a_release_that_nobody_runs_are_in_the_record_at_once(stage: Stage) -> None:
    stage.rate_per_s = 0.0
    process = stage.process()
    run = process.open(asked(judge={**JUDGE, "max_minutes": 0.1}))
    run.in_one_process = True
    with pytest.raises(errors.Inconclusive):
        rollout.promote_with_canary(run)
    assert stage.lease() is None
    assert stage.cli("pause", "wait for me").paused is not None
    stage.clock.sleep(1.0)
    with pytest.raises(errors.StepOutOfOrder, match="it is paused already"):
        stage.cli("pause")
    with pytest.raises(errors.StepOutOfOrder, match="resume it first"):
        stage.cli("approve")
    assert stage.cli("resume").paused is None
    stage.clock.sleep(1.0)
    with pytest.raises(errors.StepOutOfOrder, match="it is not paused"):
        stage.cli("resume")


@pytest.mark.parametrize("kind", ["pause", "abort", "resume"])
@pytest.mark.parametrize("fault", ["killed before", "killed after", "answer lost"])
def test_d8_a_command_whose_process_dies_between_record_and_lease_is_obeyed_once(stage: Stage, kind: str, fault: str) -> None:
    def ask() -> None:
        stage.kubectl("abort" if kind == "abort" else "pause")
        if kind != "abort":
            stage.after(5.0, resume)

    def resume() -> None:
        if stage.record().paused is not None:
            stage.kubectl("resume")
        else:
            stage.after(5.0, resume)

    for offset in range(4):
        here = stage = Stage()
        script = Script(clock=here.clock)
        first: list[int] = []

        def hits(found: Fault, call: Any, script: Script = script, here: Stage = here, first: list[int] = first, offset: int = offset) -> bool:
            word = commands.find(here.lease())
            if call.write and word is not None and word.kind == kind:
                first.append(call.number)
            return len(first) == offset + 1 and call.number == first[-1]

        script.faults = (Fault(fault, 1),)  # type: ignore[arg-type]
        script._hits = hits  # type: ignore[method-assign]
        watch = here.when(at(20.0), ask)
        end = outcome(here, asked(judge=JUDGE), watch, script)
        if end.killed:
            end = outcome(here, asked(judge=JUDGE))
        assert end.exit_code == (4 if kind == "abort" else 0), f"{offset}: {end}"
        record = here.record()
        assert sum(event.step == kind for event in record.events) == (0 if kind == "abort" else 1), [e.message for e in record.events]
        assert not here.serve.failed and not here.serve.lost and not here.annotated()


# --- approve ----------------------------------------------------------------------------------------------------------------------------


def gated(*before: Any, judge: dict[str, Any] = JUDGE, **options: Any) -> PromoteRequest:
    return asked(judge=judge, approval={"before": list(before) or ["promote"], **options})


@pytest.mark.parametrize(("before", "weight"), [("promote", 50.0), (50, 20.0), (20, 0.0)])
@pytest.mark.parametrize("how", ["kubectl", "another process"])
def test_d8_a_gate_waits_at_the_weight_that_it_has_and_goes_on_at_once(stage: Stage, before: Any, weight: float, how: str) -> None:
    approved_s: list[float] = []

    def look() -> None:
        record = stage.record()
        assert record.waits is not None and record.standing.startswith("Waits for approve before ") and stage.split()[2] == weight
        stage.kubectl("approve") if how == "kubectl" else stage.asks("approve")
        approved_s.append(stage.clock.monotonic())

    gone_on: list[float] = []
    asks = stage.when(lambda record: record.waits is not None, look, after_s=300.0)

    def watch(record: Release) -> None:
        asks(record)
        if record.approved and not gone_on:
            gone_on.append(stage.clock.monotonic())

    end = outcome(stage, gated(before), watch)
    assert end.exit_code == 0 and stage.users_get() == ("v2",) and not stage.serve.failed, str(end)
    (approved,) = stage.record().approved
    assert approved.before == ("promote" if before == "promote" else f"{before} %") and approved.by and approved.at_unix_s > 1_750_000_000
    assert gone_on[0] - approved_s[0] <= 2.1 and stage.clock.monotonic() > 300


@pytest.mark.parametrize("before", ["promote", 20, 50])
@pytest.mark.parametrize("then", ["hold", "roll_back", "promote"])
def test_d8_nobody_approves_in_time(stage: Stage, before: Any, then: str) -> None:
    end = outcome(stage, gated(before, timeout_s=200.0, on_timeout=then))
    record = stage.record()
    assert record.waits is None and 200 <= stage.clock.monotonic() < 800 and not stage.serve.failed
    if then == "promote":
        assert end.exit_code == 0 and stage.users_get() == ("v2",)
        return
    told = f"nobody approved v2 before {'promote' if before == 'promote' else f'{before} %'} in time"
    assert told in end.words and "v1 serves all requests" in end.words and stage.users_get() == ("v1",)
    if then == "roll_back":
        assert end.exit_code == 4 and record.phase == "rolled_back" and V2 not in stage.serve.applications()
        return
    assert isinstance(end.error, errors.NotApproved) and end.exit_code == 5 and record.phase == "held" and V2 in stage.serve.applications()
    assert stage.cli("approve", "looks good").phase == "promoted"
    assert stage.users_get() == ("v2",) and not stage.serve.failed and not stage.serve.lost and stage.lease() is None


def test_d8_the_first_version_waits_too(stage: Stage) -> None:
    world = World(rate_per_s=0.0)
    world.rayservice("applications: []\n")
    request = asked("v1", approval={"timeout_s": 100.0})
    process = world.process()
    end = process.outcome(lambda: process.deploy(request))
    assert end.exit_code == 5 and world.record().phase == "held" and "None" not in end.words, str(end)
    run = rollout.open_rollback(TARGET, world.cluster, clock=world.clock, registry=world.registry, transport=process.transport)
    assert rollout.approve_release(run).phase == "promoted" and world.users_get() == ("v1",)


def test_d7_a_held_release_that_is_approved_is_promoted(stage: Stage) -> None:
    stage.rate_per_s = 0.0
    end = outcome(stage, asked(judge={**JUDGE, "max_minutes": 0.1}))
    assert end.exit_code == 5
    record = stage.cli("approve", "I looked at it myself")
    assert record.phase == "promoted" and stage.users_get() == ("v2",) and stage.lease() is None
    (told,) = stage.messages("approve")
    assert "asked for by " in told and ": I looked at it myself; v2 is promoted as it is" in told
    assert [found.before for found in record.approved] == ["promote"]


def test_d7_a_held_release_that_somebody_went_on_with_is_not_promoted_as_it_is(stage: Stage) -> None:
    """The approve was given to what was seen: between the look and the Lease another run has begun to judge it again."""
    stage.rate_per_s = 0.0
    request = asked(judge={**JUDGE, "max_minutes": 0.1})
    assert outcome(stage, request).exit_code == 5

    def somebody(call: Record) -> None:
        if call.write and call.what.startswith("Lease") and stage.record().phase == "held":
            stage.rate_per_s = 40.0
            stage.killed_when(at(20.0), request)

    process = stage.process(Chosen(stage.clock, somebody))
    run = process.open_rollback(TARGET)
    end = process.outcome(lambda: rollout.approve_release(run, timeout_s=0.0))
    assert end.exit_code in (2, 3) and stage.record().phase == "canary", str(end)


def test_d8_approve_where_nothing_waits_is_refused(stage: Stage) -> None:
    refused: list[str] = []

    def ask() -> None:
        stage.asks("approve")

    end = outcome(stage, gated("promote", timeout_s=60.0, on_timeout="promote"), stage.when(at(20.0), ask))
    refused = [event.message for event in stage.record().events if event.step == "approve" and not event.ok]
    assert end.exit_code == 0 and len(refused) == 1 and "nothing waits for approve" in refused[0]


def test_d8_time_in_which_it_is_paused_does_not_count_for_a_gate(stage: Stage) -> None:
    def pause() -> None:
        stage.kubectl("pause")
        stage.after(1000.0, functools.partial(stage.kubectl, "resume"))
        stage.after(1300.0, functools.partial(stage.kubectl, "approve"))

    end = outcome(stage, gated("promote", timeout_s=600.0), stage.when(lambda record: record.waits is not None, pause, after_s=10.0))
    assert end.exit_code == 0 and stage.clock.monotonic() > 1300, str(end)


def test_d8_a_candidate_that_fails_at_a_gate_is_taken_back(stage: Stage) -> None:
    def worse() -> None:
        stage.serve.behaviour(V2).answer = lambda n: 500 if n % 3 == 0 else 200

    end = outcome(stage, gated("promote"), stage.when(lambda record: record.waits is not None, worse, after_s=30.0))
    assert isinstance(end.error, errors.CanaryFailed) and stage.users_get() == ("v1",) and stage.clock.monotonic() < 3600


def test_d8_what_is_asked_of_an_earlier_release_is_not_obeyed_by_the_next(stage: Stage) -> None:
    run = to(stage, asked(judge=JUDGE), "deployed")
    stale = stage.lease()
    assert stale is not None and run
    stage.cli("abort")
    del stale["metadata"]["resourceVersion"], stale["metadata"]["uid"]
    stale["metadata"]["managedFields"] = []
    stale["metadata"]["annotations"] = {names.COMMAND: "abort"}
    stage.cluster.create(stale)
    assert outcome(stage, asked("v3", judge=JUDGE)).exit_code == 0 and stage.users_get() == ("v3",)


def test_a_release_on_another_rayservice_is_neither_steered_nor_rolled_back(stage: Stage) -> None:
    to(stage, asked(judge=JUDGE), "deployed")
    surroundings = {"clock": stage.clock, "registry": stage.registry, "transport": stage.process().transport}
    with pytest.raises(errors.RequestInvalid, match=f"its release is on RayService {RAYSERVICE}, not on other"):
        rollout.open_rollback(TARGET.model_copy(update={"rayservice": "other"}), stage.cluster, **surroundings)
    assert V2 in stage.serve.applications() and not stage.annotated()
