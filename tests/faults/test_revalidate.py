"""Re-validation in the world in memory: a champion against its own record, look after look."""

import json
from pathlib import Path
from typing import Any

import pytest
from memory_world import MODEL, NAMESPACE, REGISTERED, World, asked, live
from stand_in import Behaviour

from kfp_components import errors, rollout
from kfp_components.clock import ManualClock
from kfp_components.cluster import Ref
from kfp_components.cluster.faults import Killed, Script
from kfp_components.release import Release
from kfp_components.release.revalidation import RevalidationStore
from kfp_components.report import revalidation as page
from kfp_components.request import RevalidateRules

RULES = RevalidateRules(concurrency=1, latency_margin_percent=1000, requests=100, record_requests=200)
WHOLE = RULES.model_copy(update={"requests": 200, "record_requests": 3000})
"""Latency is that of this machine here: it is not looked at."""
DAY_S = 86_400.0


@pytest.fixture
def served(world: World) -> World:
    world.rayservice(live())
    world.front()
    world.promote(asked())
    return world


def look(world: World, rules: RevalidateRules = RULES, **more: Any) -> rollout.Revalidation:
    found = rollout.revalidate_model(world.process().open_rollback(asked()), rules, **more)
    world.clock.sleep(DAY_S)
    return found


def wrong(world: World, percent: int, version: str = "v2") -> None:
    """So many of the answers to probes are wrong from now on."""
    world.serve.behaviour(f"{MODEL}-{version}").probe = lambda n: n * percent % 100 >= percent


def test_the_first_look_makes_the_record_and_the_next_ones_compare(served: World) -> None:
    first = look(served)
    assert (first.outcome, first.version, first.look.requests, first.look.failures) == ("not enough", "v2", 200, 0)
    assert "v2 is recorded: 0 of 200" in first.look.sentence
    second = look(served)
    assert second.outcome == "healthy", second.look.sentence
    assert [one.outcome for one in second.looks] == ["not enough", "healthy"]
    found = served.registry.find(REGISTERED, "v2")
    assert found is not None and found.properties["revalidation"] == "healthy"
    rollout.raise_if_decayed([first, second])


@pytest.mark.full
def test_one_that_was_always_at_92_percent_is_not_accused_and_one_that_fell_there_is(served: World) -> None:
    wrong(served, 8)
    assert look(served, WHOLE).look.failures == 240
    assert {look(served, WHOLE).outcome for _ in range(10)} == {"healthy"}
    served.cluster.delete(Ref("ConfigMap", f"{MODEL}-revalidation", NAMESPACE))
    wrong(served, 3)
    look(served, WHOLE), look(served, WHOLE)
    wrong(served, 8)
    looks = [look(served, WHOLE) for _ in range(8)]
    assert looks[-1].outcome == "decayed", [one.look.sentence for one in looks]


def test_one_that_decayed_makes_the_run_red_and_is_said_with_its_evidence(served: World) -> None:
    first = look(served)
    wrong(served, 40)
    looks = [look(served) for _ in range(5)]
    assert looks[-1].outcome == "decayed", [one.look.sentence for one in looks]
    with pytest.raises(errors.Decayed, match=r"1 of 2 champion\(s\) decayed: ai-ml/bge: v2 decayed: 40\.0% of \d+ requests failed since") as caught:
        rollout.raise_if_decayed([first, looks[-1]])
    assert caught.value.exit_code == 7
    assert looks[-1].since_unix_s is not None and "decayed" in page.render([looks[-1].as_dict()])
    told = page.markdown([first.as_dict(), looks[-1].as_dict()])
    assert told.startswith("## Re-validation: 1 decayed, 1 not enough\n") and "| bge | v2 | decayed |" in told
    assert " : 1 that it decayed (said at 100 : 1) |" in told and "- **Next**: users still get what decayed" in told
    hostile = page.markdown([{**first.as_dict(), "sentence": "a|b `c` <img>\n\n# d [e](f)"}])
    assert "| a\\|b \\`c\\` &lt;img&gt; \\# d \\[e\\](f) |\n" in hostile
    assert page.markdown([]).startswith("## Re-validation: no model\n")


def test_nothing_is_asked_while_a_release_runs_or_nothing_serves(served: World) -> None:
    look(served)
    served.killed_when(lambda record: record.phase == "canary" and served.split()[2] > 0, asked("v3"))
    found = rollout.revalidate_model(served.process().open_rollback(asked()), RULES)
    assert (found.outcome, found.look.requests) == ("not enough", 0) and "a release of v3 is canary" in found.look.sentence


def test_a_version_that_does_not_run_is_not_blamed_for_its_answers(served: World) -> None:
    look(served)
    served.serve.behaviour(f"{MODEL}-v2").status = "UNHEALTHY"
    found = look(served)
    assert found.outcome == "unreachable" and "UNHEALTHY" in found.look.sentence
    with pytest.raises(errors.Unreachable, match="could not be asked"):
        rollout.raise_if_decayed([found])
    served.serve.behaviour(f"{MODEL}-v2").status = "RUNNING"
    assert look(served).outcome == "healthy"


def test_another_champion_begins_anew_and_the_old_one_is_remembered(served: World) -> None:
    look(served), look(served)
    served.promote(asked("v3"))
    found = look(served)
    assert found.version == "v3" and "v3 is recorded" in found.look.sentence and len(found.looks) == 1


def test_a_version_that_comes_back_goes_on_with_its_own_record(world: World) -> None:
    world.rayservice("applications: []\n")
    world.deploy(asked("v1"))
    look(world), look(world)
    world.promote(asked("v2", keep_previous_s=5 * DAY_S))
    look(world)
    world.process().roll_back(asked())
    found = look(world)
    assert (found.version, found.outcome, found.look.requests) == ("v1", "healthy", 100), found.look.sentence


def test_of_one_that_fails_mostly_no_record_is_made(served: World) -> None:
    """Else it would be healthy for ever."""
    wrong(served, 50)
    with pytest.raises(errors.RequestInvalid, match="v2: 100 of 200 answers failed at the first look, so no record was made"):
        look(served)
    assert served.cluster.get(Ref("ConfigMap", f"{MODEL}-revalidation", NAMESPACE)) is None
    wrong(served, 49)
    assert "v2 is recorded: 98 of 200" in look(served).look.sentence


def test_a_look_ends_when_its_time_is_over_and_says_so(served: World) -> None:
    look(served)

    def told(done: int, _number: int) -> None:
        if done == 60:
            ManualClock.sleep(served.clock, 61.0)

    found = look(served, RULES.model_copy(update={"max_minutes": 1.0}), tell=told)
    assert 60 <= found.look.requests < 100
    assert f"it ended after 1 minutes, {100 - found.look.requests} were not asked" in found.look.sentence


def test_what_could_not_be_looked_at_is_noted_and_adds_nothing_to_the_evidence(served: World) -> None:
    (target,) = rollout.champions(served.cluster, NAMESPACE)
    assert "its step noted nothing" in rollout.last_look(served.cluster, target, "run-1").sentence
    look(served)
    rollout.not_looked_at(served.cluster, target, "its golden set is away", "run-1")
    found = rollout.last_look(served.cluster, target, "run-1")
    assert (found.outcome, found.sentence, found.version) == ("unreachable", "its golden set is away", "v2")
    assert look(served).outcome == "healthy"


def test_what_serves_is_looked_at_while_a_candidate_is_held(served: World) -> None:
    look(served)
    served.rate_per_s = 0.0
    with pytest.raises(errors.Inconclusive):
        served.promote(asked("v3", judge={"judge_latency": False, "tick_s": 5.0, "max_minutes": 0.2}))
    assert look(served).outcome == "healthy"


def test_a_golden_set_is_asked_and_a_changed_one_is_refused(world: World, tmp_path: Path) -> None:
    golden = tmp_path / "golden.jsonl"
    golden.write_text(
        json.dumps({"name": "a", "path": "/", "expect": {"/ok": True}}) + "\n\n" + json.dumps({"name": "b", "path": "/", "expect": {"/count": 7}})
    )
    world.rayservice(live())
    world.promote(asked(provenance={"golden_set": golden.as_uri()}, quality={"max_pairs": 0}))
    found = look(world)
    assert 60 < found.look.failures < 140 and "expected /count = 7" in found.look.failed[0]
    golden.write_text("{")
    with pytest.raises(errors.RequestInvalid, match=r"golden set file:.*, line 1: not JSON"):
        look(world)
    golden.write_text("")
    with pytest.raises(errors.RequestInvalid, match="it holds no case"):
        look(world)


def test_one_whose_answers_only_score_less_decays(world: World, tmp_path: Path) -> None:
    golden = tmp_path / "golden.jsonl"
    lines = [{"name": f"case {number}", "path": "/", "family": "embedding", "reference": {"relevant": [0], "k": 1}} for number in range(3)]
    golden.write_text("\n".join(map(json.dumps, lines)))
    world.rayservice(live())
    near, far = [0.9, 0.1], [0.0, 1.0]
    good, worse = ({"ok": True, "embeddings": [[1.0, 0.0], *order]} for order in ([near, far], [far, near]))
    world.serve.behaviours = {f"{MODEL}-{version}": Behaviour(smoke=good) for version in ("v1", "v2")}
    world.promote(asked(provenance={"golden_set": golden.as_uri()}, quality={"max_pairs": 0}))
    first = look(world).look
    assert first.failures == 0 and first.sentence.endswith("mean score 1.0000")
    assert look(world).outcome == "healthy"
    world.serve.behaviour(f"{MODEL}-v2").smoke = worse
    found = [look(world) for _ in range(3)][-1]
    assert (found.outcome, found.look.failures) == ("decayed", 0) and "of their score in the mean" in found.look.sentence, found.look.sentence


def test_two_looks_at_the_same_time_count_once(served: World) -> None:
    look(served)
    other: list[rollout.Revalidation] = []

    def meanwhile(done: int, _number: int) -> None:
        if done == 1:
            other.append(rollout.revalidate_model(served.process().open_rollback(asked()), RULES))

    with pytest.raises(errors.Conflict, match="another run has re-validated bge meanwhile"):
        look(served, tell=meanwhile)
    assert len(other[0].looks) == 2 == len(look(served).looks) - 1


def test_champions_of_a_namespace(served: World) -> None:
    found = rollout.champions(served.cluster, NAMESPACE)
    assert [(target.model, target.rayservice) for target in found] == [(MODEL, "ai-inference")]
    with pytest.raises(errors.NotFound, match="no model was released or adopted there"):
        rollout.champions(served.cluster, "elsewhere")


@pytest.mark.parametrize("keep_s", [2.0, 5 * DAY_S])
def test_a_champion_that_decayed_is_demoted_by_the_safe_path(world: World, keep_s: float) -> None:
    """Deployed anew and judged by a canary; by one write where it is still kept."""
    world.rayservice("applications: []\n")
    world.deploy(asked("v1"))
    world.promote(asked("v2", keep_previous_s=keep_s))
    applications = set(world.serve.applications())
    assert (f"{MODEL}-v1" in applications) == (keep_s > 2.0)
    record = rollout.demote_champion(world.process().open_rollback(asked()), "v2", "it decayed")
    assert record.stable_now == "v1" and world.users_get() == ("v1",) and not world.serve.lost and not world.serve.failed
    aliases = world.registry.aliases(REGISTERED)
    assert aliases["champion"] == "v1" and "candidate" not in aliases
    assert aliases.get("previous") == ("v2" if keep_s == 2.0 else None)
    assert len(set(world.said().values())) == 1


def decayed(world: World) -> RevalidateRules:
    """v2 after v1, and accused; the rules demote."""
    world.rayservice("applications: []\n")
    world.deploy(asked("v1"))
    world.promote(asked("v2"))
    look(world)
    wrong(world, 100)
    while look(world).outcome != "decayed":
        pass
    return RULES.model_copy(update={"demote": True})


def test_a_look_demotes_where_the_rules_say_so_and_the_next_one_is_about_who_came_back(world: World) -> None:
    rules = decayed(world)
    found = look(world, rules, run_id="run-1")
    assert (found.version, found.outcome, found.look.demotion) == ("v2", "decayed", "demoted, users get v1")
    assert "demoted, users get v1" in page.render([found.as_dict()]) and world.users_get() == ("v1",)
    (target,) = rollout.champions(world.cluster, NAMESPACE)
    assert rollout.last_look(world.cluster, target, "run-1").sentence == found.sentence
    with pytest.raises(errors.Decayed, match="demoted, users get v1"):
        rollout.raise_if_decayed([found])
    assert look(world, rules).version == "v1"


def test_one_that_comes_back_and_does_not_start_leaves_the_champion(world: World) -> None:
    rules = decayed(world)
    world.serve.behaviour(f"{MODEL}-v1").status = "DEPLOY_FAILED"
    found = look(world, rules)
    assert found.outcome == "decayed" and "it was not demoted: " in found.look.demotion, found.look.demotion
    assert world.users_get() == ("v2",) and len(set(world.said().values())) == 1


def test_another_release_is_not_taken_for_a_demotion(world: World) -> None:
    rules = decayed(world)
    world.serve.behaviour(f"{MODEL}-v2").probe = lambda _n: True
    world.killed_when(lambda record: record.phase == "canary" and world.split()[2] > 0, asked("v3"))
    world.serve.behaviour(f"{MODEL}-v2").probe = lambda _n: False
    found = look(world, rules)
    assert found.outcome == "not enough" and "a release of v3 is canary" in found.sentence
    found = look(world, rules)  # nobody runs it any more: users get v2 alone, and it is looked at
    assert found.outcome == "decayed" and "the release of v3 is unfinished (canary" in found.look.demotion
    assert world.record().candidate_version == "v3" and world.users_get() == ("v2",)


def test_users_are_not_sent_to_and_fro_where_the_cause_is_not_the_version(world: World) -> None:
    """What both versions need has broken: one demotion, and then a person looks."""
    rules = decayed(world)
    assert look(world, RULES).version == "v2"
    world.serve.behaviour(f"{MODEL}-v1").probe = lambda _n: True
    assert "demoted, users get v1" in look(world, rules).look.demotion
    look(world, rules)
    wrong(world, 60, "v1"), wrong(world, 60)
    told = [look(world, rules).look.demotion for _ in range(6)]
    assert "it was not demoted: v2 was found to have decayed too, at 20" in told[-1], told
    assert world.users_get() == ("v1",) and not any(one.startswith("demoted") for one in told)


@pytest.mark.parametrize("between", ["a look that may not demote", "one that could not be made"])
def test_a_demotion_that_was_killed_goes_on_whatever_was_noted_since(world: World, between: str) -> None:
    rules = decayed(world)
    (target,) = rollout.champions(world.cluster, NAMESPACE)

    script = Script(clock=world.clock)

    def killed(record: Release) -> None:
        if record.phase == "canary" and record.candidate_version == "v1" and world.split()[2] > 0:
            script.dead = True
            raise Killed("as the test wants it")

    with pytest.raises(Killed):
        rollout.revalidate_model(world.process(script, killed).open_rollback(asked()), rules)
    if between == "a look that may not demote":
        assert look(world).outcome == "not enough"
    else:
        rollout.not_looked_at(world.cluster, target, "registry down", "run-7")
    world.clock.sleep(60.0)
    found = look(world, rules, run_id="run-8")
    assert (found.version, found.outcome, found.look.demotion) == ("v2", "decayed", "demoted, users get v1"), found.sentence
    assert rollout.last_look(world.cluster, target, "run-8").outcome == "decayed" and world.users_get() == ("v1",)


def test_looks_during_one_outage_count_as_one(served: World) -> None:
    look(served), look(served)
    wrong(served, 100)
    outcomes = {rollout.revalidate_model(served.process().open_rollback(asked()), RULES).outcome for _ in range(6)}
    assert outcomes == {"not enough"}
    wrong(served, 0)
    assert {look(served).outcome for _ in range(4)} <= {"healthy", "not enough"}


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (RULES.model_copy(update={"error_margin_percent": 20.0}), "error_margin_percent 1, now 20"),
        (RULES.model_copy(update={"latency_margin_percent": 10.0}), "latency_margin_percent 1000, now 10"),
    ],
)
def test_a_record_belongs_to_its_margins(served: World, rules: RevalidateRules, words: str) -> None:
    look(served)
    with pytest.raises(errors.RequestInvalid, match=f"the record of v2 was made with {words}: .*kubectl delete configmap bge-revalidation -n ai-ml"):
        look(served, rules)


def test_a_record_belongs_to_its_cases(served: World, tmp_path: Path) -> None:
    look(served)
    golden = tmp_path / "golden.jsonl"
    golden.write_text(json.dumps({"name": "another", "path": "/", "expect": {"/ok": True}}))
    with pytest.raises(errors.RequestInvalid, match=r"made with cases \w{12} \(its smoke cases\), now \w{12} \(file:///.*golden.jsonl\)"):
        look(served, RULES.model_copy(update={"golden_set": golden.as_uri()}))
    assert look(served).outcome == "healthy"


@pytest.mark.parametrize("state", [{"x": 1}, {"tests": {}}, {"tests": {"errors": {"of": 1, "against": 2, "margin": 0.1}}}])
def test_a_state_that_cannot_be_read_is_named_with_what_to_do(served: World, state: dict[str, Any]) -> None:
    look(served)
    store = RevalidationStore(served.cluster, MODEL, NAMESPACE)
    kept = store.load()
    assert kept is not None
    store.save(kept.model_copy(update={"state": state}))
    with pytest.raises(errors.NameTaken, match=r"the state of its tests is none that this version of the library reads .*kubectl delete configmap"):
        look(served)


def test_what_a_newer_library_added_stays(served: World) -> None:
    look(served)
    ref = Ref("ConfigMap", f"{MODEL}-revalidation", NAMESPACE)
    stored = served.cluster.get(ref)
    assert stored is not None
    stored["data"]["revalidation.json"] = json.dumps(json.loads(stored["data"]["revalidation.json"]) | {"newer": [1]})
    served.cluster.replace(stored)
    look(served)
    assert json.loads((served.cluster.get(ref) or {})["data"]["revalidation.json"])["newer"] == [1]


def test_one_that_became_healthy_again_is_not_said_to_have_decayed(served: World) -> None:
    look(served)
    wrong(served, 40)
    while look(served).outcome != "decayed":
        pass
    wrong(served, 0)
    for _ in range(200):
        found = look(served)
        if found.outcome == "healthy":
            break
    assert found.outcome == "healthy" and found.since_unix_s is None


def test_a_few_answers_are_no_record(served: World) -> None:
    def told(done: int, _number: int) -> None:
        if done == 10:
            ManualClock.sleep(served.clock, 61.0)

    found = look(served, RULES.model_copy(update={"max_minutes": 1.0}), tell=told)
    assert "v2 is not recorded: 0 of" in found.sentence and "a record takes 100 answers" in found.sentence
    assert "v2 is recorded" in look(served).sentence


def test_nothing_is_touched_where_nobody_knows_what_was_before(served: World) -> None:
    text = served.text()
    with pytest.raises(errors.NotFound, match="the registry does not hold the request of v1, so v2 stays"):
        rollout.demote_champion(served.process().open_rollback(asked()), "v2", "it decayed")
    served.registry.move(REGISTERED, "previous", None)
    with pytest.raises(errors.NotFound, match="the registry knows no previous version, so v2 stays"):
        rollout.demote_champion(served.process().open_rollback(asked()), "v2", "it decayed")
    assert served.text() == text
