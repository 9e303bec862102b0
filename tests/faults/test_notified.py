"""What a release tells webhooks, in the world in memory: each occasion once, and never at the price of a rollback."""

from typing import Any

import pytest
from memory_world import MODEL, REGISTERED, World, asked, live
from patience import until
from standins.receiver import Receiver, receiver

from kfp_components import errors, rollout
from kfp_components.cluster.faults import Killed
from kfp_components.release import Release
from kfp_components.request import Notification, PromoteRequest, RevalidateRules


def telling(got: Receiver, **options: Any) -> PromoteRequest:
    return asked(notify=[{"url": got.url, "timeout_s": 60}], **options)


def run_of(world: World, request: PromoteRequest) -> rollout.Run:
    world.rayservice(live())
    world.front()
    return world.process().open(request)


def test_a_promotion_tells_its_start_each_verdict_and_its_end(world: World) -> None:
    with receiver() as got:
        run = run_of(world, telling(got))
        rollout.promote_with_canary(run)
        assert run.notifier.drain(60)
    assert got.occasions == ["start", "verdict", "verdict", "promoted"]
    assert len({event["id"] for event in got.events}) == 4
    start, first, _, last = got.events
    assert start["data"]["message"] == "v2 is to replace v1" and "enough for 50 %" in first["data"]["message"]
    assert last["data"]["phase"] == "promoted" and last["data"]["verdict"]["kind"] == "pass"


def test_a_rollback_does_not_wait_for_a_receiver_that_never_answers(world: World) -> None:
    with receiver(opened=False) as got:
        run = run_of(world, telling(got))
        world.serve.behaviour(f"{MODEL}-v2").answer = lambda n: 500 if n % 3 == 0 else 200
        with pytest.raises(errors.CanaryFailed):
            rollout.promote_with_canary(run)
        assert world.users_get() == ("v1",) and world.record().phase == "rolled_back", "it is over, and nothing was answered yet"
        assert got.asked.wait(60) and not got.bodies
        got.open.set()
        assert run.notifier.drain(60)
    assert got.occasions == ["start", "rollback"] and "all traffic back to v1" in got.events[-1]["data"]["message"]


def test_what_was_not_delivered_stands_in_the_record(world: World) -> None:
    with receiver(404, 404, 404, 404) as got:
        run = run_of(world, telling(got))
        rollout.register_model(run)
        assert run.notifier.drain(60)
        rollout.promote_with_canary(run)
        assert run.notifier.drain(60)
    told = [event for event in world.record().events if event.step == "notify"]
    assert told[0].message == "notify.0: start not delivered: 127.0.0.1 answers 404" and not told[0].ok
    assert world.record().phase == "promoted"


def test_one_that_was_killed_tells_the_rest_and_its_start_not_again(world: World) -> None:
    with receiver() as got:
        run = run_of(world, telling(got))

        def killed(record: Release) -> None:
            if record.phase == "canary" and record.step_index == 1:
                raise Killed

        run.watch = killed
        with pytest.raises(Killed):
            rollout.promote_with_canary(run)
        assert run.notifier.drain(60)
        world.clock.sleep(60)
        again = world.process().open(run.request)
        rollout.promote_with_canary(again)
        assert again.notifier.drain(60)
    assert got.occasions == ["start", "verdict", "verdict", "promoted"]


def test_approval_and_hold_are_told(world: World) -> None:
    with receiver() as got:
        run = run_of(world, telling(got, approval={"before": ["promote"], "timeout_s": 600}))
        with pytest.raises(errors.NotApproved):
            rollout.promote_with_canary(run)
        assert run.notifier.drain(60)
    assert got.occasions == ["start", "verdict", "verdict", "approval", "hold"]
    assert "waits for approve before promote" in got.events[3]["data"]["message"]


def test_one_whose_secret_is_not_there_is_refused_before_anything_is_written(world: World) -> None:
    run = run_of(world, asked(notify=[{"url_from": {"secret": "kfp-serving-notify", "key": "url"}}]))
    before = world.stored()
    with pytest.raises(errors.NotFound, match=r"notify.0: Secret kfp-serving-notify, key url: it is not there or empty"):
        rollout.promote_with_canary(run)
    assert world.stored() == before and world.text() == live() and world.registry.find(REGISTERED, "v2") is None


@pytest.mark.parametrize("of_the_rules", [True, False])
def test_decay_is_told_whom_the_rules_name_else_whom_the_release_told(world: World, of_the_rules: bool) -> None:
    with receiver() as got, receiver() as other:
        run = run_of(world, telling(other if of_the_rules else got))
        rollout.promote_with_canary(run)
        assert run.notifier.drain(60)
        notify = (Notification(url=got.url),) if of_the_rules else ()
        rules = RevalidateRules(concurrency=1, latency_margin_percent=1000, requests=100, record_requests=200, notify=notify)
        for percent in (0, 40, 40, 40, 40):
            world.serve.behaviour(f"{MODEL}-v2").probe = lambda n, percent=percent: n * percent % 100 >= percent
            looking = world.process().open_rollback(asked())
            found = rollout.revalidate_model(looking, rules)
            assert looking.notifier.drain(60)
            world.clock.sleep(86_400)
        assert found.outcome == "decayed"
        until(lambda: "decay" in got.occasions, "the decay to be told")
    told = [event for event in got.events if event["type"].endswith(".decay")]
    assert told and told[0]["subject"] == "v2" and "v2 decayed: 40.0%" in told[0]["data"]["sentence"]
    assert "decay" not in other.occasions
