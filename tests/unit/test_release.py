"""The record of a release: its parts, its size, its schema, and how it is changed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kfp_components import errors, live, names, phases, report
from kfp_components.clock import ManualClock
from kfp_components.cluster import Cluster, Ref
from kfp_components.cluster.faults import Fault, Killed, Script, wrap
from kfp_components.cluster.memory import MemoryCluster
from kfp_components.phases import Phase
from kfp_components.release import Event, Evidence, Failure, Held, JudgeState, PastRelease, Point, Release, ReleaseStore, Rollback, points, record
from kfp_components.release.sparse import dense, sparse
from kfp_components.request import parse as parse_request

NAMESPACE = "default"
RECORD, CANARY = (Ref("ConfigMap", name, NAMESPACE) for name in (names.release("bge"), names.canary("bge")))
REQUEST = parse_request(
    {
        "model": "bge",
        "version": "v2",
        "uri": "s3://models/bge/v2",
        "namespace": NAMESPACE,
        "rayservice": "ai-inference",
        "import_path": "acme.bge:build",
        "options": {"smoke": [{"name": "one", "body": {"texts": ["A cat sits on the mat."]}, "expect": {"/embeddings/0/0": 0.126535}}]},
    }
)

SCHEMA_1: dict[str, Any] = {
    "model": "bge",
    "namespace": NAMESPACE,
    "rayservice": "ai-inference",
    "candidate_version": "v2",
    "stable_version": "v1",
    "split_before": {"stable": "v1", "candidate": None, "weight_percent": 0.0},
    "request": REQUEST.model_dump(mode="json"),
    "request_digest": REQUEST.digest,
    "phase": "canary",
    "holder": "host/1/2",
    "steps": [10.0, 25.0],
    "step_index": 1,
    "weight_percent": 25.0,
    "started_unix_s": 1_790_000_000.0,
    "finished_unix_s": None,
    "verdict": {"kind": "inconclusive", "sentence": "undecided so far", "e_fail": None, "e_pass": 2.0, "metrics": {"errors": {"e_fail": None}}},
    "judge": {"state": {"rates": {}}, "cursor": {"r1": {"v1": {"requests": 3}}}, "step": 1, "step_started_unix_s": 1_790_000_010.0},
    "failure": None,
    "rollback": None,
    "made": ["Service"],
    "events": [{"unix_s": 1_790_000_001.0, "step": "registered", "message": "bge v2 registered", "ok": True}],
    "timeline": [{"unix_s": 1_790_000_012.0, "weight_percent": 10.0, "requests": {"stable": 9, "candidate": 1}, "failures": {}, "e_fail": None}],
    "past": [{"candidate_version": "v1", "phase": "inconclusive", "finished_unix_s": 1_780_000_000.0, "sentence": "too few requests"}],
}


def release(**changes: Any) -> Release:
    fields: dict[str, Any] = {
        "model": "bge",
        "namespace": NAMESPACE,
        "rayservice": "ai-inference",
        "candidate_version": "v2",
        "stable_version": "v1",
        "request": REQUEST.model_dump(mode="json"),
        "request_digest": REQUEST.digest,
        "started_unix_s": 1_790_000_000.0,
    }
    return Release(**{**fields, **changes})


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.cluster = MemoryCluster(clock=self.clock)

    def store(self, cluster: Cluster | None = None) -> ReleaseStore:
        return ReleaseStore(cluster or self.cluster, "bge", NAMESPACE, self.clock)

    def put(self, raw: dict[str, Any]) -> None:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": RECORD.name, "namespace": NAMESPACE}}
        self.cluster.create({**body, "data": {"release.json": json.dumps(raw)}})

    def text(self, ref: Ref = RECORD, key: str = "release.json") -> str:
        found = self.cluster.get(ref)
        assert found is not None
        return str(found["data"][key])

    def loaded(self) -> Release:
        found = self.store().load()
        assert found is not None
        return found


@pytest.fixture
def world() -> World:
    return World()


def to(phase: Phase, **fields: Any) -> Callable[[Release], None]:
    event = Event(unix_s=1_790_000_001.0, step=phase, message=f"now {phase}")

    def change(found: Release) -> None:
        for key, value in {"phase": phase, **fields}.items():
            setattr(found, key, value)
        found.events.append(event)

    return change


# --- phases -----------------------------------------------------------------------------------------------------------------------


def test_there_is_one_list_of_phases_and_everything_that_shows_one_knows_all() -> None:
    everything = set(get_args(Phase))
    assert set(phases.TRANSITIONS) == everything == {then for after in phases.TRANSITIONS.values() for then in after} | {"prepared"}
    assert set(live.COLOURS) == everything and set(report.OUTCOMES) == everything
    assert set(report.SHARES) < everything and {*phases.FORWARD, *phases.FINAL, *phases.BACK, *phases.OLDER.values()} < everything
    assert set(phases.OLDER) & everything == set()


def test_a_phase_is_followed_by_what_the_table_says_or_by_itself() -> None:
    for now in get_args(Phase):
        assert phases.may_follow(now, now, previous_kept=False)
        assert {then for then in get_args(Phase) if phases.may_follow(now, then, previous_kept=True)} == {now, *phases.TRANSITIONS[now]}
    assert phases.TRANSITIONS["rolled_back"] == () and phases.TRANSITIONS["promoted"] == ("rolling_back",)
    assert not phases.may_follow("promoted", "rolling_back", previous_kept=False)
    assert all(phases.may_follow(a, b, previous_kept=False) for a, b in zip(phases.FORWARD, phases.FORWARD[1:], strict=False))


def test_held_has_come_as_far_as_canary_and_not_further() -> None:
    assert [phase for phase in phases.FORWARD if phases.reached(phase, "held")] == ["prepared", "registered", "deployed", "smoked", "canary"]
    assert [phase for phase in phases.FORWARD if phases.reached(phase, "rolling_back")] == []
    assert release(phase="smoked").reached("deployed") and not release(phase="smoked").reached("canary")


# --- the record -------------------------------------------------------------------------------------------------------------------


def test_d18_the_version_that_users_have() -> None:
    assert release(phase="promoted").stable_now == "v2"
    assert [release(phase=phase).stable_now for phase in ("canary", "held", "promoting", "rolled_back")] == ["v1"] * 4
    assert release(stable_version=None).stable_now is None


def test_the_sentence_says_why_it_is_held_or_goes_back_else_the_verdict() -> None:
    parts = {"verdict": Evidence(kind="fail", sentence="worse"), "failure": Failure(error="CanaryFailed", message="failed")}
    held = Held(error="MeterBroken", message="the counts cannot be read")
    assert release(phase="held", held=held, **parts).sentence == "the counts cannot be read"
    assert release(phase="canary", held=held, **parts).sentence == "worse"
    assert release(failure=parts["failure"]).sentence == "failed" and release().sentence == ""
    assert release(phase="rolled_back", **parts).sentence == "failed"
    judged = {"verdict": parts["verdict"], "failure": Failure(error="CanaryFailed", message="model bge: worse")}
    assert release(phase="rolled_back", **judged).sentence == "worse"


def test_numbers_that_json_does_not_have_are_null_and_load(world: World) -> None:
    store = world.store()
    made = store.start(release(phase="canary", verdict=Evidence(e_fail=math.inf, e_pass=math.nan, metrics={"errors": {"e_fail": math.nan}})))
    made.timeline.append(Point(unix_s=1.0, e_fail=math.nan, e_pass=math.inf))
    store.save_canary(made)
    assert "NaN" not in world.text() + world.text(CANARY, "timeline.json")
    found = world.loaded()
    assert found.verdict is not None and found.verdict.e_fail is None and found.verdict.metrics == {"errors": {"e_fail": None}}
    assert found.timeline == [Point(unix_s=1.0)]


def test_d18_a_stored_request_of_another_version_is_refused_in_our_words() -> None:
    assert release().asked() == REQUEST and release(request=REQUEST.plain).asked() == REQUEST
    for strange in ({**REQUEST.plain, "from_the_future": 1}, {}, {**REQUEST.plain, "steps": "no"}):
        with pytest.raises(errors.RequestInvalid, match=r"model default/bge: the stored request .* with the version that began it"):
            release(request=strange).asked()


def test_d22_the_record_of_a_long_canary_is_below_10_kb_and_what_it_measured_lies_apart(world: World) -> None:
    long = 'the candidate is worse in errors, "quoted" and so on: ' * 40
    store = world.store()
    made = store.start(release(phase="canary"))
    made.events = [Event(unix_s=1_790_000_000.5 + i, step=f"step {i % 12}", message=f"{i}: {long}", ok=False) for i in range(200)]
    first, last = made.events[0], made.events[-1]
    made.past = [PastRelease(candidate_version=f"v{i}", finished_unix_s=1_780_000_000.0, sentence=long) for i in range(30)]
    made.failure, made.held = Failure(error="CanaryFailed", message=long), Held(error="Inconclusive", message=long)
    made.rollback, made.verdict = Rollback(seconds=1.5, reason=long), Evidence(sentence=long, metrics={n: {"e_fail": 1 / 3} for n in "abcd"})
    arms = {"stable": 1_000_000, "candidate": 100_000}
    slow = {arm: {"p50": 12.25, "p95": 24.5, "p99": None} for arm in arms}
    made.timeline = [
        Point(unix_s=1_790_000_000.5 + i, weight_percent=10, requests=arms, failures=arms, latency_ms=slow, e_fail=i / 3, e_pass=1 / 3)
        for i in range(2000)
    ]
    newest = made.timeline[-1].model_copy(update={"e_fail": 666.333, "e_pass": 0.333333})
    made.judge = JudgeState(state={"latency_counts": [0] * 90 + [7] + [0] * 109}, cursor={"r": {"v": {"latency_counts": [0] * 200}}}, step=1)
    store.update(lambda found: found.__dict__.update(made.__dict__), epoch=made.epoch)
    store.save_canary(made)
    assert len(world.text().encode()) < 10_000
    assert len(world.text(CANARY, "judge.json")) < 250 and len(world.text(CANARY, "timeline.json")) < 30_000
    found = world.loaded()
    assert found.timeline[-1] == newest and len(found.timeline) <= record.TIMELINE_POINTS and found.judge == made.judge
    assert found.events[0].unix_s == first.unix_s and found.events[-1].unix_s == last.unix_s and found.events[-1].message.startswith("199: the")
    assert found.past[-1].candidate_version == "v29"


def test_what_is_short_is_kept_as_it_is(world: World) -> None:
    events = [Event(unix_s=float(i), step="s", message=f"message {i}") for i in range(50)]
    world.store().start(release(events=events))
    assert world.loaded().events == events


def test_the_first_event_of_each_step_is_kept_with_the_newest(world: World) -> None:
    events = [Event(unix_s=float(i), step="begin" if i < 5 else "judge", message="x" * 30) for i in range(150)]
    world.store().start(release(events=events))
    found = [event.unix_s for event in world.loaded().events]
    assert found[:2] == [0.0, 5.0] and found[-1] == 149.0 and found == sorted(found)


numbers = st.one_of(st.sampled_from([0, 0.0, -0.0, 1]), st.integers(-3, 10**12), st.floats(allow_nan=False))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.text(max_size=3), numbers, st.lists(st.sampled_from([0, 0, 0, 0.0, 5]), min_size=8, max_size=40)),
    lambda inner: st.one_of(st.lists(inner, max_size=9), st.dictionaries(st.sampled_from(["~", "a", "b"]), inner, max_size=2)),
    max_leaves=8,
)


@given(values)
def test_d22_sparse_lists_come_back_exactly(value: Any) -> None:
    coded = json.loads(json.dumps(sparse(value)))
    assert repr(dense(coded)) == repr(value)  # repr tells 0 from 0.0 and from -0.0
    assert len(json.dumps(sparse([0] * 200))) < 25


def test_points_are_short_and_what_they_lack_stays_missing() -> None:
    whole = Point(
        unix_s=1.25, weight_percent=10.0, requests={"stable": 9, "candidate": 1}, latency_ms={"stable": {"p50": 12.5, "p95": None}}, e_pass=2.0
    )
    timeline = [Point(unix_s=0.5), whole, Point(unix_s=2.0, disconnects={"stable": 1})]
    packed = json.loads(json.dumps(points.pack(timeline)))
    found = points.unpack(packed)
    assert found[1] == whole and found[2].disconnects == {"stable": 1} and found[0].requests == {} and points.unpack(points.pack(found)) == found
    assert points.unpack([point.model_dump() for point in timeline]) == timeline and points.unpack(points.pack([])) == []


# --- schema -----------------------------------------------------------------------------------------------------------------------


def test_a_record_of_schema_1_goes_on_and_keeps_what_it_measured(world: World) -> None:
    world.put(SCHEMA_1)
    found = world.loaded()
    assert (found.schema_version, found.epoch, found.phase, found.step_index) == (4, 0, "canary", 1)
    assert found.judge == JudgeState(state={"rates": {}}, cursor={"r1": {"v1": {"requests": 3}}}, step=1)
    assert found.past == [PastRelease(candidate_version="v1", finished_unix_s=1_780_000_000.0, sentence="too few requests")]
    assert found.timeline[0].requests == {"stable": 9, "candidate": 1} and found.timeline[0].disconnects == {}
    store = world.store()
    store.take_over("me")
    store.update(to("held"), epoch=1)
    stored = json.loads(world.text())
    assert stored["schema_version"] == 4 and "timeline" not in stored and "judge" not in stored
    assert world.loaded().judge == found.judge and world.loaded().timeline == found.timeline


def test_an_inconclusive_record_of_schema_1_is_rolled_back_for_that(world: World) -> None:
    world.put({**SCHEMA_1, "phase": "inconclusive", "finished_unix_s": 1_790_000_100.0})
    found = world.loaded()
    assert found.phase == "rolled_back" and found.done and found.failure == Failure(error="Inconclusive", message="undecided so far")
    following = world.store().start(release(candidate_version="v3"))
    assert following.epoch == 1 and following.past[-1].candidate_version == "v2"
    page = report.render({**SCHEMA_1, "phase": "inconclusive"})
    assert '<span class="pill open">inconclusive</span>' in page


def test_a_record_of_a_newer_schema_is_read_where_it_can_be_and_never_written(world: World) -> None:
    newer = {**json.loads(release(phase="canary").model_dump_json()), "schema_version": 5, "novelty": {"a": 1}}
    world.put(newer)
    before = world.text()
    assert world.loaded().schema_version == 5 and world.loaded().phase == "canary"
    store = world.store()
    for write in (lambda: store.update(to("held"), epoch=9), lambda: store.take_over("me"), lambda: store.start(release())):
        with pytest.raises(errors.RecordTooNew, match=r"model default/bge: .* schema version 5, this library writes 4"):
            write()
    assert world.text() == before


def test_a_newer_record_that_cannot_be_understood_and_one_that_is_none_say_so(world: World) -> None:
    world.put({**SCHEMA_1, "schema_version": 5, "phase": "waiting for the moon"})
    with pytest.raises(errors.RecordTooNew, match="schema version 5"):
        world.store().load()
    for text in ("[]", "{}", "no", json.dumps({**SCHEMA_1, "phase": "strange"})):
        world.cluster.patch(RECORD, {"data": {"release.json": text}}, manager="me")
        with pytest.raises(errors.NameTaken, match="not a release record"):
            world.store().load()


# --- the store --------------------------------------------------------------------------------------------------------------------


def test_a_new_release_follows_a_finished_one_with_a_higher_epoch_and_refuses_an_unfinished_one(world: World) -> None:
    store = world.store()
    first = store.start(release())
    with pytest.raises(errors.ReleaseHeld, match="is unfinished"):
        world.store().start(release(candidate_version="v3"))
    for phase in phases.FORWARD:
        store.update(to(phase), epoch=first.epoch)
    second = world.store().start(release(candidate_version="v3", started_unix_s=1_790_000_500.0))
    assert second.epoch > first.epoch and [past.candidate_version for past in second.past] == ["v2"]
    with pytest.raises(errors.ReleaseHeld, match="has taken this release over"):
        store.update(to("promoted"), epoch=first.epoch)


def test_d5_a_run_that_wakes_after_another_took_over_changes_nothing(world: World) -> None:
    paused = world.store()
    paused.start(release(phase="canary", weight_percent=25.0))
    epoch = paused.take_over("paused").epoch
    other = world.store()
    theirs = other.take_over("kfp/other")
    assert theirs.epoch == epoch + 1 and theirs.holder == "kfp/other"
    before = world.text()
    with pytest.raises(errors.ReleaseHeld, match=r"another run, kfp/other, has taken this release over"):
        paused.update(to("canary", weight_percent=50.0), epoch=epoch)
    assert world.text() == before
    other.update(to("rolling_back"), epoch=theirs.epoch)
    other.update(to("rolled_back"), epoch=theirs.epoch)
    before = world.text()
    with pytest.raises(errors.ReleaseHeld, match=r"another run, kfp/other, has taken this release over"):
        paused.update(to("canary"), epoch=epoch)
    assert world.text() == before


def test_d5_a_phase_changes_only_along_the_transitions(world: World) -> None:
    store = world.store()
    store.start(release(phase="rolled_back"))
    with pytest.raises(errors.StepOutOfOrder, match="is rolled back and cannot become canary"):
        store.update(to("canary"), epoch=9)
    with pytest.raises(errors.StepOutOfOrder, match="is rolled back, not smoked or canary"):
        store.update(to("rolled_back"), epoch=9, expect=("smoked", "canary"))
    assert store.update(to("rolled_back"), epoch=9).events[-1].message == "now rolled_back"
    with pytest.raises(errors.NotFound, match="there is no release record"):
        ReleaseStore(world.cluster, "other", NAMESPACE).update(to("held"), epoch=0)


@pytest.mark.parametrize("at", range(1, 9))
@pytest.mark.parametrize("kind", ["error", "answer lost"])
def test_every_write_is_right_when_a_call_fails_or_its_answer_is_lost(world: World, kind: Any, at: int) -> None:
    world.store().start(release(phase="deployed"))
    script = Script(Fault(kind, at=at, calls=2), clock=world.clock)
    store = world.store(wrap(world.cluster, script))
    epoch = store.take_over("me").epoch
    store.update(to("smoked"), epoch=epoch, expect=("deployed",))
    made = store.update(to("canary", weight_percent=10.0), epoch=epoch, expect=("smoked",))
    made.timeline.append(Point(unix_s=1.0))
    store.save_canary(made)
    found = world.loaded()
    assert (found.phase, found.weight_percent, found.epoch) == ("canary", 10.0, epoch)
    assert [event.step for event in found.events] == ["smoked", "canary"] and found.timeline == [Point(unix_s=1.0)]


def test_an_event_is_not_doubled_when_the_record_changed_after_a_lost_answer(world: World) -> None:
    world.store().start(release(phase="deployed"))
    epoch = world.store().take_over("me").epoch
    long = Event(unix_s=5.0, step="deploy", message="x" * 2000)

    class Loses(MemoryCluster):
        lost = False

        def replace(self, manifest: dict[str, Any]) -> dict[str, Any]:
            done = world.cluster.replace(manifest)
            if not self.lost:
                self.lost = True
                world.store().update(lambda found: setattr(found, "holder", "a command"), epoch=epoch)
                raise errors.Unreachable("lost")
            return done

        def get(self, ref: Ref) -> dict[str, Any] | None:
            return world.cluster.get(ref)

    def change(found: Release) -> None:
        found.phase = "smoked"
        found.events.append(long)

    store = world.store(Loses())
    made = store.update(change, epoch=epoch, expect=("deployed",))
    assert made.phase == "smoked" and len(made.events) == 1 and made.holder == "a command"


def test_a_lost_race_is_tried_again_without_sleeping_for_real(world: World) -> None:
    world.store().start(release(phase="canary"))

    class Races(MemoryCluster):
        left = 5

        def get(self, ref: Ref) -> dict[str, Any] | None:
            found = world.cluster.get(ref)
            if ref == RECORD and self.left:
                self.left -= 1
                world.store().update(lambda r: setattr(r, "step_index", r.step_index + 1), epoch=0)
            return found

        def replace(self, manifest: dict[str, Any]) -> dict[str, Any]:
            return world.cluster.replace(manifest)

    made = world.store(Races()).update(lambda r: setattr(r, "weight_percent", 25.0), epoch=0)
    assert (made.step_index, made.weight_percent) == (5, 25.0) and world.clock.monotonic() > 0


def test_a_process_killed_at_any_call_leaves_a_record_that_loads(world: World) -> None:
    for kind in ("killed before", "killed after"):
        for at in range(1, 10):
            place = World()
            place.store().start(release(phase="smoked"))
            store = place.store(wrap(place.cluster, Script(Fault(kind, at=at))))  # type: ignore[arg-type]
            try:
                made = store.update(to("canary"), epoch=store.take_over("me").epoch)
                store.save_canary(made)
            except Killed:
                pass
            assert place.loaded().phase in ("smoked", "canary")
            place.store().update(to("rolling_back"), epoch=place.store().take_over("next").epoch)


def test_d22_a_change_costs_one_call_and_so_does_a_look(world: World) -> None:
    world.store().start(release(phase="smoked"))
    script = Script()
    store = world.store(wrap(world.cluster, script))
    epoch = store.take_over("me").epoch
    made = store.update(to("canary"), epoch=epoch)
    store.save_canary(made)
    before = len(script.calls)
    made = store.update(lambda found: found.timeline.append(Point(unix_s=2.0)), epoch=epoch)
    assert [call.method for call in script.calls[before:]] == ["replace"] and made.timeline == [Point(unix_s=2.0)]
    store.save_canary(made)
    assert [call.method for call in script.calls[before + 1 :]] == ["replace"]
    assert world.loaded().timeline == [Point(unix_s=2.0)]


def test_d5_what_a_canary_measured_is_overwritten_by_a_higher_epoch_and_refused_from_a_lower_one(world: World) -> None:
    old = world.store()
    old.start(release(phase="canary"))
    mine = old.take_over("old")
    old.save_canary(mine)
    new = world.store()
    theirs = new.take_over("new")
    theirs.timeline.append(Point(unix_s=7.0))
    new.save_canary(theirs)
    with pytest.raises(errors.ReleaseHeld, match=f"epoch {theirs.epoch}, this one has {mine.epoch}"):
        old.save_canary(mine)
    assert world.loaded().timeline == [Point(unix_s=7.0)]


def test_what_another_release_measured_or_what_cannot_be_read_is_left_out(world: World) -> None:
    store = world.store()
    made = store.start(release(phase="rolled_back"))
    made.timeline.append(Point(unix_s=7.0))
    store.save_canary(made)
    assert world.store().start(release(started_unix_s=1_790_000_900.0)).timeline == [] == world.loaded().timeline
    world.cluster.patch(CANARY, {"data": {"judge.json": "]"}}, manager="me")
    assert world.loaded().judge is None
    world.cluster.delete(CANARY)
    assert world.loaded().timeline == []


def test_a_record_that_was_deleted_does_not_bring_old_epochs_back(world: World) -> None:
    store = world.store()
    store.start(release(phase="canary"))
    store.save_canary(store.take_over("me"))
    world.cluster.delete(RECORD)
    assert world.store().start(release()).epoch == 2


def test_what_others_put_beside_the_record_stays(world: World) -> None:
    world.store().start(release(phase="canary"))
    world.cluster.patch(RECORD, {"data": {"command": "abort"}, "metadata": {"annotations": {"a": "b"}}}, manager="kubectl")
    world.store().update(to("held"), epoch=0)
    found = world.cluster.get(RECORD)
    assert found is not None and found["data"]["command"] == "abort" and found["metadata"]["annotations"] == {"a": "b"}


# --- what people see --------------------------------------------------------------------------------------------------------------


def test_a_held_release_is_shown_as_open_with_what_to_do() -> None:
    held = release(phase="held", held=Held(error="Inconclusive", message="too few requests"), steps=[10.0, 25.0])
    raw = held.model_dump(mode="json")
    assert '<span class="pill open">held</span>' in report.render(raw)
    go_on = "The same command goes on; `kfp-serving approve bge -n default` promotes it as it is, `kfp-serving rollback bge -n default` gives v2 up."
    assert report.sentence(raw) == f"too few requests. Stable serves all requests. {go_on}"
    assert {box["name"]: box["state"] for box in report.flow(raw)}["held"] == "held"
    assert "rollback" in report.markdown(raw)
