"""The judge as a whole: counts from the ledger, verdicts, restarts from JSON, and when a step may end."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfp_components.judge import counts, weight
from kfp_components.judge.counts import ArmCounts, Tick
from kfp_components.judge.verdict import Judge, Verdict
from kfp_components.request import JudgeRules
from kfp_components.router.ledger import LATENCY_BOUNDS_S, VersionCounts

RULES = JudgeRules()


def arm(rng: np.random.Generator, requests: int, failure_rate: float = 0.01, scale: float = 1.0) -> ArmCounts:
    seconds = 0.05 * scale * rng.lognormal(0, 0.4, requests)
    buckets = np.bincount(np.searchsorted(LATENCY_BOUNDS_S, seconds), minlength=len(LATENCY_BOUNDS_S) + 1)
    return ArmCounts(requests, int(rng.binomial(requests, failure_rate)), tuple(map(int, buckets)))


def ticks(seed: int, number: int, failure_rate: float = 0.01, scale: float = 1.0, rate: int = 100) -> list[Tick]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(number):
        n_c = int(rng.binomial(rate, 0.1))
        made.append(Tick(arm(rng, rate - n_c), arm(rng, n_c, failure_rate, scale), LATENCY_BOUNDS_S))
    return made


def decide(judge: Judge, given_ticks: list[Tick]) -> Verdict:
    verdict = judge.observe(Tick(ArmCounts(), ArmCounts()), weight_percent=10)
    for tick in given_ticks:
        verdict = judge.observe(tick, weight_percent=10)
        if verdict.kind != "inconclusive":
            break
    return verdict


# --- verdicts -----------------------------------------------------------------------------------------------------------------------


def test_a_failing_candidate_fails_early_with_a_sentence_to_quote() -> None:
    judge = Judge(RULES)
    verdict = decide(judge, ticks(1, 200, failure_rate=0.3))
    assert verdict.kind == "fail" and judge.candidate_requests < 100
    found = judge.totals()
    assert f"failed {found['failures']['candidate']} of {found['requests']['candidate']} requests" in verdict.sentence
    assert verdict.metrics["errors"]["e_fail"] > 100 > verdict.metrics["latency"]["e_fail"]


def test_a_slow_candidate_fails_and_is_not_judged_where_latency_says_nothing() -> None:
    slow = ticks(2, 400, scale=1.5)
    assert decide(Judge(RULES), slow).kind == "fail"
    assert decide(Judge(JudgeRules(judge_latency=False)), slow).kind == "pass"


def test_a_good_candidate_passes() -> None:
    verdict = decide(Judge(RULES), ticks(3, 2000))
    assert verdict.kind == "pass" and verdict.e_pass >= 20 > verdict.e_fail
    assert verdict.e_pass == min(metric["e_pass"] for metric in verdict.metrics.values())


def test_no_traffic_is_inconclusive_and_never_a_failure() -> None:
    judge = Judge(RULES)
    for _ in range(300):
        verdict = judge.observe(Tick(ArmCounts(), ArmCounts(), LATENCY_BOUNDS_S), weight_percent=10)
    assert (verdict.kind, verdict.e_fail, verdict.e_pass) == ("inconclusive", 1.0, 1.0)


def test_slowness_of_both_is_not_the_candidates() -> None:
    """The load doubles every latency in the middle; bounds follow stable."""
    rng = np.random.default_rng(4)
    judge = Judge(RULES)
    for step in range(300):
        scale = 2.0 if step > 150 else 1.0
        verdict = judge.observe(Tick(arm(rng, 90, scale=scale), arm(rng, 10, scale=scale), LATENCY_BOUNDS_S), weight_percent=10)
        assert verdict.kind in ("inconclusive", "pass")


def test_cold_start_is_not_judged() -> None:
    rng = np.random.default_rng(6)
    judge = Judge(JudgeRules(warm_up_requests=50))
    for _ in range(5):
        judge.observe(Tick(arm(rng, 90), arm(rng, 10, scale=50), LATENCY_BOUNDS_S), weight_percent=10)
    for _ in range(100):
        verdict = judge.observe(Tick(arm(rng, 90), arm(rng, 10), LATENCY_BOUNDS_S), weight_percent=10)
    assert verdict.metrics["latency"]["e_fail"] < 1


def test_false_alarms_of_the_whole_judge() -> None:
    """60 runs of alike versions, looked at each second for 60 s: at 1 % each, three or more have a chance of 2 %."""
    alarms = sum(decide(Judge(RULES), ticks(100 + run, 60)).kind == "fail" for run in range(60))
    assert alarms <= 2


@pytest.mark.parametrize(("history", "margin"), [(None, 0.005), ((100, 90), 0.005), ((1000, 1), 0.005), ((1000, 30), 0.03)])
def test_margin_follows_stables_own_rate_when_it_is_known(history: tuple[int, int] | None, margin: float) -> None:
    assert Judge(RULES, history=ArmCounts(*history) if history else None).state["margin"] == margin
    assert Judge(JudgeRules(error_margin_percent=2.0), history=ArmCounts(1000, 300)).state["margin"] == 0.02


# --- the meter ----------------------------------------------------------------------------------------------------------------------


def test_a_broken_meter_is_an_error_and_not_a_bad_model() -> None:
    verdict = Judge(RULES).observe(Tick(ArmCounts(), ArmCounts(50, 50), broken="replica r counted backwards"), weight_percent=10)
    assert verdict.kind == "error" and "replica r counted backwards" in verdict.sentence


def test_a_wrong_split_is_an_error() -> None:
    judge = Judge(RULES)
    for _ in range(30):
        verdict = judge.observe(Tick(ArmCounts(60), ArmCounts(40)), weight_percent=10)
    assert verdict.kind == "error" and "40.0%" in verdict.sentence
    sticky = Judge(RULES)
    for _ in range(30):
        assert sticky.observe(Tick(ArmCounts(60), ArmCounts(40)), weight_percent=10, sticky=True).kind != "error"


def test_how_sure_a_wrong_split_must_be_is_a_rule() -> None:
    def looks_until_error(rules: JudgeRules) -> int:
        judge = Judge(rules)
        for look in range(1, 100):
            if judge.observe(Tick(ArmCounts(80), ArmCounts(20)), weight_percent=10).kind == "error":
                return look
        raise AssertionError("never an error")

    assert looks_until_error(RULES) < looks_until_error(RULES.model_copy(update={"alpha_split": 1e-9}))


def test_requests_of_the_weight_before_are_no_wrong_split() -> None:
    """At 1,000 requests a second the tick that spans a change of weight holds hundreds of the old one; so does one after a gap."""
    judge = Judge(RULES)
    rng = np.random.default_rng(8)
    for before, now in ((0, 10), (10, 25), (25, 50)):
        spanning = int(rng.binomial(1000, before / 100))
        assert judge.observe(Tick(ArmCounts(1000 - spanning), ArmCounts(spanning)), weight_percent=now).kind != "error"
        for _ in range(20):
            n_c = int(rng.binomial(1000, now / 100))
            assert judge.observe(Tick(ArmCounts(1000 - n_c), ArmCounts(n_c)), weight_percent=now).kind != "error"
    assert judge.observe(Tick(ArmCounts(9000), ArmCounts(0)), weight_percent=50, unwatched=True).kind != "error"


def test_late_answers_are_no_wrong_split() -> None:
    judge = Judge(RULES)
    judge.observe(Tick(ArmCounts(), ArmCounts()), weight_percent=10)
    for _ in range(4):
        tick = Tick(ArmCounts(90, routed=90, waiting=5), ArmCounts(0, routed=10, waiting=10))
        assert judge.observe(tick, weight_percent=10).kind == "inconclusive"


def test_a_hanging_candidate_fails_before_its_requests_time_out() -> None:
    judge = Judge(RULES)
    for second in range(1, 20):
        verdict = judge.observe(Tick(ArmCounts(90, routed=90, waiting=4), ArmCounts(0, routed=10, waiting=10 * second)), weight_percent=10)
        if verdict.kind != "inconclusive":
            break
    assert verdict.kind == "fail" and "hangs" in verdict.sentence and second <= 9


# --- restart ------------------------------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 10_000),
    restarts=st.sets(st.integers(0, 24), max_size=4),
    failure_rate=st.sampled_from([0.01, 0.1, 1.0]),
    scale=st.sampled_from([1.0, 1.3]),
)
@settings(max_examples=25, deadline=None)
def test_a_restarted_judge_says_exactly_the_same(seed: int, restarts: set[int], failure_rate: float, scale: float) -> None:
    steady, restarted = Judge(RULES), Judge(RULES)
    for index, tick in enumerate(ticks(seed, 25, failure_rate, scale)):
        if index in restarts:
            restarted = Judge(RULES, state=json.loads(json.dumps(restarted.state)))
        assert restarted.observe(tick, weight_percent=10) == steady.observe(tick, weight_percent=10)
    assert json.loads(json.dumps(steady.state)) == restarted.state == steady.state


def test_observing_leaves_the_states_given_out_alone() -> None:
    judge = Judge(RULES)
    kept = judge.state
    before = json.dumps(kept)
    for tick in ticks(9, 10):
        judge.observe(tick, weight_percent=10)
    assert json.dumps(kept) == before


# --- counts from the ledger ---------------------------------------------------------------------------------------------------------


class Router:
    """A router in small: replicas that count, vanish and come back under new names, as `VersionCounts` does it."""

    def __init__(self) -> None:
        self.replicas: dict[str, dict[str, VersionCounts]] = {}
        self.names = 0
        self.start_replica()

    def start_replica(self) -> None:
        self.names += 1
        self.replicas[f"r{self.names}"] = {}

    def answer(self, replica: str, version: str, failed: bool) -> None:
        found = self.replicas[replica].setdefault(version, VersionCounts())
        found.count(0.05, 500 if failed else 200, "http_5xx" if failed else None, pinned=False)

    def page(self, only: str | None = None) -> dict[str, Any]:
        shown = {r: {"versions": {v: c.as_dict() for v, c in found.items()}} for r, found in self.replicas.items() if only in (None, r)}
        return json.loads(json.dumps({"replicas": shown, "latency_bounds_s": LATENCY_BOUNDS_S}))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_request_of_a_living_replica_is_counted_once(data: st.DataObject) -> None:
    router = Router()
    for _ in range(data.draw(st.integers(0, 5))):
        router.answer("r1", data.draw(st.sampled_from(["v1", "v2"])), False)
    cursor = counts.start(router.page())
    answered, seen = {"v1": [0, 0], "v2": [0, 0]}, {"v1": ArmCounts(), "v2": ArmCounts()}
    for action in data.draw(st.lists(st.sampled_from(["answer", "start", "stop", "look", "look at one"]), max_size=40)):
        names = sorted(router.replicas)
        if action == "answer":
            version, failed = data.draw(st.sampled_from(["v1", "v2", "v0"])), data.draw(st.booleans())
            router.answer(data.draw(st.sampled_from(names)), version, failed)
            if version in answered:
                answered[version][0] += 1
                answered[version][1] += failed
        elif action == "start":
            router.start_replica()
        else:
            page = router.page(data.draw(st.sampled_from(names)) if action == "look at one" else None)
            if action == "stop" and len(names) > 1:
                page = router.page()  # looked at, then gone: nothing is lost
                del router.replicas[names[0]]
            tick, cursor = counts.advance(json.loads(json.dumps(cursor)), page, "v1", "v2")
            assert tick.broken is None
            seen["v1"] += tick.stable
            seen["v2"] += tick.candidate
    tick, cursor = counts.advance(cursor, router.page(), "v1", "v2")
    seen["v1"] += tick.stable
    seen["v2"] += tick.candidate
    for version, (requests, failures) in answered.items():
        assert (seen[version].requests, seen[version].failures, seen[version].arrived) == (requests, failures, requests)
        assert sum(seen[version].latency_counts) == requests
    assert counts.advance(cursor, router.page(), "v1", "v2")[0].candidate.requests == 0


def test_a_replica_that_counts_backwards_breaks_the_meter_and_adds_nothing() -> None:
    router = Router()
    for _ in range(5):
        router.answer("r1", "v2", False)
    cursor = counts.start(router.page())
    router.replicas["r1"] = {}
    router.answer("r1", "v2", True)
    tick, _ = counts.advance(cursor, router.page(), "v1", "v2")
    assert tick.broken is not None and "r1" in tick.broken and tick.candidate == ArmCounts()


def test_waiting_requests_have_arrived_but_are_not_answered() -> None:
    router = Router()
    router.answer("r1", "v2", False)
    cursor = counts.start(router.page())
    router.replicas["r1"]["v2"].in_flight = 7
    tick, cursor = counts.advance(cursor, router.page(), "v1", "v2")
    assert (tick.candidate.requests, tick.candidate.arrived, tick.candidate.waiting) == (0, 7, 7)
    router.replicas["r1"]["v2"].in_flight = 5
    router.replicas["r1"]["v2"].client_disconnects = 1
    router.answer("r1", "v2", False)
    tick, cursor = counts.advance(cursor, router.page(), "v1", "v2")
    assert (tick.candidate.requests, tick.candidate.arrived, tick.candidate.waiting) == (1, 0, 5)


def test_history_is_all_that_a_version_did() -> None:
    router = Router()
    router.start_replica()
    for replica in ("r1", "r2"):
        router.answer(replica, "v1", replica == "r2")
    assert counts.history(router.page(), "v1").requests == counts.total_requests(router.page(), "v1") == 2
    assert counts.history(router.page(), "v9") == ArmCounts()


@given(st.lists(st.integers(0, 5), min_size=5, max_size=5), st.floats(0.01, 1.0))
def test_quantile_is_the_bound_of_its_bucket(latency_counts: list[int], quantile: float) -> None:
    bounds_s = (1.0, 2.0, 3.0, 4.0)
    found = counts.quantile_s(latency_counts, bounds_s, quantile)
    total = sum(latency_counts)
    if total == 0:
        assert found is None
        return
    ordered = [min(bucket + 1.0, 4.0) for bucket, count in enumerate(latency_counts) for _ in range(count)]
    assert found == ordered[max(0, int(np.ceil(quantile * total - 1e-9)) - 1)]


# --- weights ------------------------------------------------------------------------------------------------------------------------


def verdict(kind: str, e_fail: float = 1.0, e_pass: float = 1.0) -> Verdict:
    return Verdict(kind, "", e_fail, e_pass, {})  # type: ignore[arg-type]


@given(st.floats(0.1, 50), st.floats(0, 1e12), st.floats(0, 1e12), st.floats(50, 100))
def test_weight_stays_within_its_limits_and_follows_the_evidence(w0: float, e_fail: float, e_pass: float, w_max: float) -> None:
    found = weight.evidence_weight(w0, e_fail, e_pass, w_max)
    assert w0 <= found <= w_max
    assert weight.evidence_weight(w0, e_fail * 2, e_pass, w_max) <= found <= weight.evidence_weight(w0, e_fail, e_pass * 2, w_max)


def test_steps_end_when_the_evidence_allows_the_next() -> None:
    steps = (10.0, 25.0, 50.0)
    assert not weight.may_advance(steps, 0, verdict("inconclusive", 1, 2.4)) and weight.may_advance(steps, 0, verdict("inconclusive", 1, 2.5))
    assert not weight.may_advance(steps, 1, verdict("inconclusive", 4, 9.9)) and weight.may_advance(steps, 1, verdict("inconclusive", 4, 10))
    assert not weight.may_advance(steps, 2, verdict("inconclusive", 1, 19.9)) and weight.may_advance(steps, 2, verdict("pass", 1, 20))
    for kind in ("fail", "error"):
        assert not any(weight.may_advance(steps, index, verdict(kind, 1, 1e9)) for index in range(3))
