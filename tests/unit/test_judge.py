"""The judge as a whole: counts from the ledger, verdicts, restarts from JSON, and when a step may end."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfp_components.judge import batch, counts, weight
from kfp_components.judge.counts import ArmCounts, Tick
from kfp_components.judge.verdict import Judge, Verdict
from kfp_components.request import JudgeRules
from kfp_components.router import ledger
from kfp_components.router.ledger import LATENCY_BOUNDS_S, RECENT_REQUESTS, VersionCounts

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


@pytest.mark.parametrize(
    ("history", "margins"),
    [
        (None, (0.005, 0.01, 0.01)),
        (ArmCounts(100, 90, client_errors=5, disconnects=90), (0.005, 0.01, 0.01)),
        (ArmCounts(1000, 1, client_errors=1, disconnects=1), (0.005, 0.01, 0.01)),
        (ArmCounts(1000, 15, client_errors=30, disconnects=40), (0.015, 0.03, 40 / 1040)),
        (ArmCounts(1000, 300, client_errors=600, disconnects=1000), (0.02, 0.05, 0.05)),
    ],
)
def test_margins_follow_stables_own_rates_when_they_are_known(history: ArmCounts | None, margins: tuple[float, float, float]) -> None:
    names = ("errors", "client_errors", "disconnects")
    rates = Judge(RULES, history=history).state["rates"]
    assert tuple(rates[name]["margin"] for name in names) == margins
    given = JudgeRules(error_margin_percent=3.0, client_error_margin_percent=6.0, disconnect_margin_percent=0.5)
    rates = Judge(given, history=history).state["rates"]
    assert tuple(rates[name]["margin"] for name in names) == (0.03, 0.06, 0.005)


# --- outcomes that are no failures --------------------------------------------------------------------------------------------------


def outcomes(rng: np.random.Generator, rate_per_s: float, weight: float, seconds: int, client_errors: tuple[float, float]) -> list[Tick]:
    """Looks of a second; ``client_errors`` are the rates of 4xx of stable and candidate."""
    made = []
    for _ in range(seconds):
        n_c, n_s = (int(rng.poisson(rate_per_s * share)) for share in (weight, 1 - weight))
        made.append(
            Tick(
                ArmCounts(n_s, client_errors=int(rng.binomial(n_s, client_errors[0]))),
                ArmCounts(n_c, client_errors=int(rng.binomial(n_c, client_errors[1]))),
            )
        )
    return made


def test_d2_a_candidate_that_refuses_what_stable_answers_is_failed() -> None:
    for seed in range(5):
        judge = Judge(RULES)
        verdict = decide(judge, outcomes(np.random.default_rng(seed), 100, 0.1, 30, (0.02, 1.0)))
        assert verdict.kind == "fail" and judge.candidate_requests <= 40
        refused = judge.totals()["client_errors"]["candidate"]
        assert "worse in client errors (4xx)" in verdict.sentence and f"refused {refused} (4xx)" in verdict.sentence
    assert decide(Judge(RULES), outcomes(np.random.default_rng(9), 100, 0.1, 60, (0.05, 0.3))).kind == "fail"


def test_d2_where_neither_refuses_the_candidate_passes_with_as_many_requests_as_errors_alone_need() -> None:
    judge = Judge(JudgeRules(judge_latency=False))
    for tick in outcomes(np.random.default_rng(1), 100, 0.1, 600, (0.0, 0.0)):
        verdict = judge.observe(tick, weight_percent=10)
        assert verdict.e_pass == verdict.metrics["errors"]["e_pass"]
        if verdict.kind == "pass":
            break
    assert verdict.kind == "pass"


def test_d2_where_both_refuse_as_often_the_candidate_passes() -> None:
    """20 % of the requests are refused by both: stable's recent rate gives a margin of 5 points."""
    needed = []
    for seed in range(10):
        judge = Judge(JudgeRules(judge_latency=False), history=ArmCounts(2000, client_errors=400))
        assert decide(judge, outcomes(np.random.default_rng(seed), 100, 0.1, 600, (0.2, 0.2))).kind == "pass"
        needed.append(judge.candidate_requests)
    assert np.median(needed) <= 2000


def hanging(rng: np.random.Generator, timeout_s: int) -> list[Tick]:
    """20 requests a second at 10 %; stable answers at once, the candidate never, and clients give up after ``timeout_s``."""
    sent = [int(rng.poisson(2)) for _ in range(120)]
    made = []
    for second in range(len(sent)):
        n_s = int(rng.poisson(18))
        gone = sent[second - timeout_s] if second >= timeout_s else 0
        waiting = sum(sent[max(0, second - timeout_s + 1) : second + 1])
        made.append(Tick(ArmCounts(n_s, routed=n_s, waiting=1), ArmCounts(0, routed=sent[second], waiting=waiting, disconnects=gone)))
    return made


def test_d2b_clients_that_give_up_on_a_hanging_candidate_fail_it_within_seconds() -> None:
    for seed in range(20):
        judge = Judge(RULES)
        seconds = 0
        for tick in hanging(np.random.default_rng(seed), 5):
            verdict = judge.observe(tick, weight_percent=10)
            seconds += 1
            if verdict.kind != "inconclusive":
                break
        assert verdict.kind == "fail" and seconds <= 15
        assert "clients give up" in verdict.sentence and "hangs" in verdict.sentence and "clients gave up" in verdict.sentence


def test_d2b_where_clients_give_up_on_both_the_candidate_is_not_blamed() -> None:
    rng = np.random.default_rng(3)
    judge = Judge(JudgeRules(judge_latency=False), history=ArmCounts(1800, disconnects=200))
    for _ in range(600):
        n_s, n_c = 90, 10
        gone_s, gone_c = int(rng.binomial(n_s, 0.1)), int(rng.binomial(n_c, 0.1))
        verdict = judge.observe(Tick(ArmCounts(n_s - gone_s, disconnects=gone_s), ArmCounts(n_c - gone_c, disconnects=gone_c)), weight_percent=10)
        assert verdict.kind != "fail"
        if verdict.kind == "pass":
            break
    assert verdict.kind == "pass" and "5 in clients that give up" in verdict.sentence


def test_d13_margins_are_capped_and_named_and_a_healthy_candidate_passes_a_broken_stable() -> None:
    """Stable fails everything, which is why it is being replaced: the margin was 1.0, the evidence NaN."""
    rng = np.random.default_rng(1)
    judge = Judge(RULES, history=ArmCounts(1000, 1000))
    assert judge.state["rates"]["errors"]["margin"] == 0.02
    for _ in range(400):
        verdict = judge.observe(Tick(arm(rng, 90, 1.0), arm(rng, 10, 0.0), LATENCY_BOUNDS_S), weight_percent=10)
        assert np.isfinite([verdict.e_fail, verdict.e_pass]).all()
        if verdict.kind != "inconclusive":
            break
    assert verdict.kind == "pass"
    assert (
        "not worse by more than 2 points in errors, 1 in client errors (4xx), 1 in clients that give up, 10 % in p50, 20 % in p95, 30 % in p99"
        in verdict.sentence
    )


def test_d13_an_outage_long_ago_does_not_widen_the_margin() -> None:
    """20 % failures once, then 2,000 good requests: a candidate that fails 10 % against 0.1 % passed after 20 requests."""
    router = Router()
    for number in range(5000):
        router.answer("r1", "v1", number < 3000 and number % 5 == 0)
    judge = Judge(RULES, history=counts.history(router.page(), "v1"))
    assert judge.state["rates"]["errors"]["margin"] == 0.005
    assert decide(judge, ticks(5, 200, failure_rate=0.1)).kind == "fail"


# --- few requests -------------------------------------------------------------------------------------------------------------------

NOBODY = ArmCounts()


def alternating(judge: Judge, weight_percent: float, failing: bool, most: int = 40) -> tuple[Verdict, int]:
    """One request a look: as many of stable's as are due to it, then one of the candidate's."""
    number = 0
    while number < most:
        number += 1
        for _ in range(round(100 / weight_percent) - 1):
            judge.observe(Tick(ArmCounts(1), NOBODY), weight_percent=weight_percent, sticky=True)
        verdict = judge.observe(Tick(NOBODY, ArmCounts(1, int(failing))), weight_percent=weight_percent, sticky=True)
        if verdict.kind != "inconclusive":
            break
    return verdict, number


@pytest.mark.parametrize(("weight_percent", "most"), [(5, 5), (10, 5), (25, 8), (50, 14)])
def test_case_03_one_request_a_look_is_evidence(weight_percent: float, most: int) -> None:
    """With sticky routing failures are held against counted requests alone: looks that hold one version must be kept for that."""
    verdict, number = alternating(Judge(JudgeRules(judge_latency=False)), weight_percent, failing=True)
    assert verdict.kind == "fail" and number <= most
    assert alternating(Judge(JudgeRules(judge_latency=False)), weight_percent, failing=False)[0].e_pass > 1


@pytest.mark.parametrize(("weight_percent", "most"), [(5, 9), (10, 9), (25, 9), (50, 12)])
@pytest.mark.parametrize("rate_per_s", [0.1, 1.0])
def test_case_03_a_version_that_fails_everything_is_seen_at_once_at_any_rate(rate_per_s: float, weight_percent: float, most: int) -> None:
    needed = []
    for seed in range(20):
        rng = np.random.default_rng([29, seed, int(weight_percent)])
        judge = Judge(RULES)
        verdict = judge.observe(Tick(NOBODY, NOBODY), weight_percent=weight_percent)
        while verdict.kind == "inconclusive":
            n = int(rng.poisson(rate_per_s)) if rate_per_s >= 1 else 1  # looks without requests add nothing
            n_c = int(rng.binomial(n, weight_percent / 100))
            if n:
                verdict = judge.observe(Tick(arm(rng, n - n_c, 0.0), arm(rng, n_c, 1.0), LATENCY_BOUNDS_S), weight_percent=weight_percent)
        assert verdict.kind == "fail"
        needed.append(judge.candidate_requests)
    assert np.quantile(needed, 0.95) <= most


def test_case_03_latency_is_judged_with_one_request_a_look() -> None:
    rng = np.random.default_rng(3)
    judge = Judge(JudgeRules(latency_margins_percent=(30, 60, 60)))
    for _ in range(3000):
        one = arm(rng, 1, 0.0)
        verdict = judge.observe(Tick(*((NOBODY, one) if rng.random() < 0.2 else (one, NOBODY)), LATENCY_BOUNDS_S), weight_percent=20)
    assert verdict.metrics["latency"]["e_pass"] > 20


def test_case_03_when_a_batch_closes_depends_on_how_many_requests_ended_only() -> None:
    for n_s, n_c in ((0, 0), (0, 40), (40, 0)):
        assert not batch.closes(Tick(ArmCounts(n_s, n_s), ArmCounts(n_c, n_c)), 10)
    assert batch.closes(Tick(ArmCounts(9), ArmCounts(1)), 10) and not batch.closes(Tick(ArmCounts(3), ArmCounts(1)), 10)
    assert batch.closes(Tick(ArmCounts(1), ArmCounts(15)), 10)
    for failed in (0, 1):
        for gone in (0, 1):
            c = ArmCounts(1 - gone, failed * (1 - gone), disconnects=gone)
            assert batch.closes(Tick(ArmCounts(9, failed), c), 10)


def test_case_03_a_batch_never_mixes_weights() -> None:
    """What waits for the other version when the weight changes, or the lease may have lapsed, is counted and is no evidence."""
    for change in ({"weight_percent": 50}, {"weight_percent": 5, "unwatched": True}):
        judge = Judge(RULES)
        judge.observe(Tick(NOBODY, NOBODY), weight_percent=5)
        judge.observe(Tick(ArmCounts(3, 3), NOBODY), weight_percent=5)
        assert judge.state["pending"]["stable"]["failures"] == 3
        judge.observe(Tick(NOBODY, NOBODY), **change)  # type: ignore[arg-type]
        assert judge.state["pending"] is None
        for evidence in ("fail", "pass"):
            assert judge.state["rates"]["errors"][evidence] == Judge(RULES).state["rates"]["errors"][evidence]
        judge.observe(Tick(NOBODY, ArmCounts(1)), weight_percent=change["weight_percent"])
        assert judge.totals()["failures"]["stable"] == 3 and judge.state["pending"]["stable"]["requests"] == 0


def test_case_03_a_batch_of_both_is_judged_when_the_weight_changes() -> None:
    judge = Judge(RULES)
    judge.observe(Tick(NOBODY, NOBODY), weight_percent=5)
    judge.observe(Tick(ArmCounts(3), ArmCounts(1, 1)), weight_percent=5)
    assert judge.state["pending"] is not None and not any(judge.state["rates"]["errors"]["fail"])
    judge.observe(Tick(NOBODY, NOBODY), weight_percent=50)
    assert judge.state["pending"] is None and judge.state["rates"]["errors"]["fail"][-1] > 0


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.integers(0, 2), st.integers(0, 3), st.sampled_from([5.0, 5.0, 5.0, 50.0]), st.sampled_from([False] * 4 + [True])
        ),
        max_size=40,
    )
)
@settings(max_examples=60, deadline=None)
def test_whatever_waits_each_request_is_counted_once_and_a_restart_at_any_look_changes_nothing(
    looks: list[tuple[int, int, int, float, bool]],
) -> None:
    rules = JudgeRules(warm_up_requests=2)
    rng = np.random.default_rng(len(looks))
    steady, restarted = Judge(rules), Judge(rules)
    wanted = {key: {"stable": 0, "candidate": 0} for key in ("requests", "failures", "client_errors", "disconnects")}
    for n_s, n_c, kind, weight_percent, unwatched in looks:
        made = []
        for name, n in (("stable", n_s), ("candidate", n_c)):
            bad = min(n, kind)
            latency_counts = arm(rng, n).latency_counts
            counted = ArmCounts(n, bad // 2, latency_counts, client_errors=bad - bad // 2, disconnects=kind // 3)
            for key in wanted:
                wanted[key][name] += getattr(counted, key)
            made.append(counted)
        tick = Tick(*made, LATENCY_BOUNDS_S)
        restarted = Judge(rules, state=json.loads(json.dumps(restarted.state)))
        said = [judge.observe(tick, weight_percent=weight_percent, unwatched=unwatched) for judge in (steady, restarted)]
        assert said[0] == said[1]
    found = steady.totals()
    assert {key: found[key] for key in wanted} == wanted
    assert json.loads(json.dumps(steady.state)) == json.loads(json.dumps(restarted.state))


# --- what an older version wrote ----------------------------------------------------------------------------------------------------

OLD_STATE: dict[str, Any] = {
    "margin": 0.3,
    "fail": [1.0] * 10,
    "pass": [2.0] * 6,
    "latency": {"history": [], "fail": [[0.0] * 9] * 3, "pass": [[0.0] * 9] * 3},
    "split": [0.0] * 5,
    "weight_percent": 10.0,
    "stuck_looks": 0,
    "stable": {"requests": 90, "failures": 1, "latency_counts": []},
    "candidate": {"requests": 10, "failures": 2, "latency_counts": []},
    "bounds_s": [],
}


def test_the_state_of_an_older_judge_is_read() -> None:
    kept = json.dumps(OLD_STATE)
    judge = Judge(RULES, state=OLD_STATE)
    verdict = judge.observe(Tick(ArmCounts(90, client_errors=1), ArmCounts(10, disconnects=1)), weight_percent=10)
    assert json.dumps(OLD_STATE) == kept
    found = judge.totals()
    assert found["requests"] == {"stable": 180, "candidate": 20} and found["failures"] == {"stable": 1, "candidate": 2}
    assert found["client_errors"] == {"stable": 1, "candidate": 0} and found["disconnects"] == {"stable": 0, "candidate": 1}
    assert judge.state["rates"]["errors"]["fail"] == [1.0] * 10 and verdict.e_fail > 1
    assert judge.state["rates"]["errors"]["margin"] == 0.02  # 30 points were an outage of stable's
    narrow = Judge(RULES, state={**OLD_STATE, "margin": 0.01})
    assert narrow.state["rates"]["errors"]["pass"] == [2.0] * 6 and narrow.state["rates"]["errors"]["margin"] == 0.01
    assert Judge(JudgeRules(error_margin_percent=30), state=OLD_STATE).state["rates"]["errors"]["margin"] == 0.3


def test_the_ledger_page_of_an_older_router_is_read() -> None:
    router = Router()
    router.answer("r1", "v1", True)
    page = router.page()
    for key in ("recent", "pinned_disconnects", "client_errors_4xx", "client_disconnects"):
        page["replicas"]["r1"]["versions"]["v1"].pop(key)
    assert counts.history(page, "v1") == ArmCounts(1, 1)
    cursor = counts.start(page)
    router.answer("r1", "v1", False)
    router.replicas["r1"]["v1"].count_disconnect(False)
    tick, _ = counts.advance(cursor, router.page(), "v1", "v2")
    assert tick.broken is None and (tick.stable.requests, tick.stable.disconnects) == (1, 1)


# --- latency ------------------------------------------------------------------------------------------------------------------------


def timed(seconds: list[float] | np.ndarray) -> ArmCounts:
    buckets = np.bincount(np.searchsorted(LATENCY_BOUNDS_S, seconds), minlength=len(LATENCY_BOUNDS_S) + 1)
    return ArmCounts(len(seconds), 0, tuple(buckets.tolist()))


def judged_by_latency(seconds_s: list[float], seconds_c: list[float], looks: int = 300) -> tuple[Verdict, int]:
    """Latencies drawn from those given, 100 requests a second at 10 %."""
    rng = np.random.default_rng(7)
    judge = Judge(RULES)
    made = [Tick(timed(rng.choice(seconds_s, 90)), timed(rng.choice(seconds_c, 10)), LATENCY_BOUNDS_S) for _ in range(looks)]
    return decide(judge, made), judge.candidate_requests


def test_d14_very_regular_latency_passes_as_fast_as_any() -> None:
    verdict, requests = judged_by_latency([0.0501, 0.0502], [0.0501, 0.0502])
    assert verdict.kind == "pass" and requests <= 1000  # what errors alone take
    assert verdict.metrics["latency"]["e_pass"] > 1000
    assert judged_by_latency([0.0501, 0.0502], [0.0601, 0.0602])[0].kind == "fail"


def test_d23_a_candidate_beyond_the_margin_in_p99_alone_does_not_pass() -> None:
    """PASS asks for each quantile's evidence."""
    judge = Judge(RULES)
    judge.state["latency"]["pass"] = [[10.0] * 9, [10.0] * 9, [-1.0] * 9]
    verdict = judge.observe(Tick(NOBODY, NOBODY), weight_percent=10)
    assert verdict.metrics["latency"]["e_pass"] == pytest.approx(np.exp(-1))


@pytest.mark.parametrize("slow_s", [120.0, 1200.0, 9000.0])
def test_d23_latency_counts_however_long_it_is(slow_s: float) -> None:
    assert judged_by_latency([100.0], [slow_s])[0].kind == "fail"
    assert judged_by_latency([slow_s], [slow_s])[0].kind == ("pass" if slow_s < 3600 else "inconclusive")


def test_d23_the_state_and_the_cursor_stay_small() -> None:
    rng = np.random.default_rng(1)
    router = Router()
    for seconds in 0.05 * rng.lognormal(0, 0.4, 20_000):
        router.replicas["r1"].setdefault("v1", VersionCounts()).count(float(seconds), 200, None, pinned=False)
    cursor = counts.start(router.page())
    assert len(json.dumps(cursor)) < 4000
    judge = Judge(RULES)
    for tick in ticks(1, 200, rate=1000):
        judge.observe(tick, weight_percent=10)
    assert len(json.dumps(judge.state)) < 12_000


def test_d23_a_router_that_was_updated_meanwhile_counts_in_other_buckets() -> None:
    older = tuple(0.0005 * 1.1**step for step in range(131))
    state = json.loads(json.dumps(OLD_STATE))
    state.update(bounds_s=list(older), latency={**state["latency"], "history": [5] * 132})
    for name in ("stable", "candidate"):
        state[name]["latency_counts"] = [1] * 132
    same = Judge(RULES, state=json.loads(json.dumps(state)))
    same.observe(Tick(ArmCounts(90, 0, (0,) * 100 + (90,) + (0,) * 31), NOBODY, older), weight_percent=10)
    assert counts.unpack(same.state["stable"]["latency_counts"]) == (1,) * 100 + (91,) + (1,) * 31
    updated = Judge(RULES, state=state)
    given_ticks = ticks(1, 20)
    for tick in given_ticks:
        verdict = updated.observe(tick, weight_percent=10)
    found = sum(counts.unpack(updated.state["stable"]["latency_counts"]))
    assert found == sum(tick.stable.requests for tick in given_ticks) and np.isfinite(verdict.e_pass)


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


def of_router(now_unix_s: float, started_unix_s: dict[str, float], requests: int = 100) -> dict[str, Any]:
    """A page of replicas that started then and have answered so many requests of v2."""
    counted = VersionCounts()
    for _ in range(requests):
        counted.count(0.05, 200, None, pinned=False)
    replicas = {name: {"started_unix_s": started, "versions": {"v2": counted.as_dict()}} for name, started in started_unix_s.items()}
    return json.loads(json.dumps({"now_unix_s": now_unix_s, "replicas": replicas, "latency_bounds_s": LATENCY_BOUNDS_S}))  # type: ignore[no-any-return]


def test_d23_a_replica_that_came_back_is_one_and_one_beside_another_breaks_the_meter() -> None:
    cursor = counts.start(of_router(100.0, {"r1": 10.0}))
    tick, restarted = counts.advance(cursor, of_router(104.0, {"r2": 101.0}, requests=7), "v1", "v2")
    assert tick.broken is None and tick.candidate.requests == 7
    tick, restarted = counts.advance(json.loads(json.dumps(restarted)), of_router(106.0, {"r2": 101.0}, requests=9), "v1", "v2")
    assert tick.broken is None and tick.candidate.requests == 2
    tick, both = counts.advance(cursor, of_router(104.0, {"r2": 10.5}), "v1", "v2")
    assert tick.broken is not None and "the router has several replicas, r1 and r2" in tick.broken and "take num_replicas" in tick.broken
    assert tick.candidate == ArmCounts(), "its past is nobody's evidence"
    tick, _ = counts.advance(both, of_router(106.0, {"r2": 10.5}, requests=103), "v1", "v2")
    assert tick.broken is None and tick.candidate.requests == 3, "where the other one is gone it goes on"


def test_d23_a_replica_that_answers_again_after_a_younger_one_breaks_the_meter() -> None:
    cursor = counts.start(of_router(100.0, {"r1": 10.0}))
    tick, cursor = counts.advance(cursor, of_router(104.0, {"r2": 101.0}), "v1", "v2")
    assert tick.broken is None, "so far it may have been a restart"
    tick, cursor = counts.advance(json.loads(json.dumps(cursor)), of_router(105.0, {"r1": 10.0}, requests=120), "v1", "v2")
    assert tick.broken is not None and "several replicas, r2 and r1" in tick.broken
    assert counts.requests_at(cursor, "v2") == 220


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


def test_history_is_what_a_version_did_last() -> None:
    router = Router()
    router.start_replica()
    for replica in ("r1", "r2"):
        router.answer(replica, "v1", replica == "r2")
    assert counts.history(router.page(), "v1") == ArmCounts(2, 1) and counts.total_requests(router.page(), "v1") == 2
    assert counts.history(router.page(), "v9") == ArmCounts()
    for _ in range(RECENT_REQUESTS):
        router.answer("r2", "v1", False)
    assert counts.history(router.page(), "v1") == ArmCounts(1 + RECENT_REQUESTS) and counts.total_requests(router.page(), "v1") == 2 + RECENT_REQUESTS


def test_requests_at_a_cursor_are_those_of_all_replicas() -> None:
    router = Router()
    router.start_replica()
    for replica in ("r1", "r2", "r2"):
        router.answer(replica, "v2", False)
    cursor = counts.start(router.page())
    assert counts.requests_at(cursor, "v2") == 3 and counts.requests_at(cursor, "v1") == 0
    router.answer("r1", "v2", False)
    _, cursor = counts.advance(cursor, router.page(only="r1"), "v1", "v2")
    assert counts.requests_at(json.loads(json.dumps(cursor)), "v2") == 4
    assert "recent" not in json.dumps(cursor)


@given(st.lists(st.sampled_from(["ok", "failed", "refused", "gone", "probe", "probe gone"]), max_size=60), st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_recent_outcomes_are_those_of_the_last_unpinned_requests(outcomes: list[str], size: int) -> None:
    found = VersionCounts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "RECENT_REQUESTS", size)
        for outcome in outcomes:
            if outcome.endswith("gone"):
                found.count_disconnect(pinned=outcome.startswith("probe"))
            else:
                status = {"failed": 500, "refused": 404}.get(outcome, 200)
                found.count(0.01, status, "http_5xx" if outcome == "failed" else None, pinned=outcome == "probe")
    last = [outcome for outcome in outcomes if not outcome.startswith("probe")][-size:]
    wanted = {"failures": last.count("failed"), "client_errors": last.count("refused"), "disconnects": last.count("gone")}
    assert found.as_dict()["recent"] == {"requests": len(last) - wanted["disconnects"], **wanted}
    assert found.client_disconnects == outcomes.count("gone") and found.pinned_disconnects == outcomes.count("probe gone")
    assert json.loads(json.dumps(found.as_dict())) == found.as_dict()


@pytest.mark.parametrize("key", ["client_errors_4xx", "client_disconnects"])
def test_outcomes_that_count_backwards_break_the_meter(key: str) -> None:
    router = Router()
    router.answer("r1", "v2", False)
    setattr(router.replicas["r1"]["v2"], key, 1)
    cursor = counts.start(router.page())
    setattr(router.replicas["r1"]["v2"], key, 0)
    tick, _ = counts.advance(cursor, router.page(), "v1", "v2")
    assert tick.broken is not None and tick.candidate == ArmCounts()


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


def test_case_20_eight_clients_who_all_wait_for_a_candidate_that_hangs_are_enough() -> None:
    """No time limit, and nothing is answered any more, so there is nothing to count: the looks hold what waits, and for how long."""
    rules = RULES.model_copy(update={"tick_s": 1.0})
    judge = Judge(rules)
    for tick in ticks(6, 5):
        judge.observe(tick, weight_percent=10)
    kinds = []
    for waited_s in range(30):
        waiting = ArmCounts(routed=0, waiting=8, waits_s=(float(waited_s),) * 8)
        verdict = judge.observe(Tick(ArmCounts(), waiting, LATENCY_BOUNDS_S), weight_percent=10)
        kinds.append(verdict.kind)
    assert kinds[0] == "inconclusive" and kinds[-1] == "fail" and kinds.index("fail") < 10, kinds
    assert "the candidate hangs: 8 of its requests wait for an answer, 0 of stable's" in verdict.sentence
    slow = Judge(rules)
    for tick in ticks(6, 5):
        slow.observe(tick, weight_percent=10)
    for _ in range(30):
        both = ArmCounts(routed=0, waiting=4, waits_s=(20.0,) * 4)
        assert slow.observe(Tick(both, both, LATENCY_BOUNDS_S), weight_percent=10).kind == "inconclusive", "stable's wait as long"
