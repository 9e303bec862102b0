"""Answers to a golden set in the whole judge: a metric like the others, and alone where users send too little."""

import json
from collections.abc import Iterator

import pytest

from kfp_components.judge import golden
from kfp_components.judge.counts import ArmCounts, Tick
from kfp_components.judge.golden import Answered, Margins
from kfp_components.judge.quality import Pair
from kfp_components.judge.verdict import Judge, Verdict
from kfp_components.request import JudgeRules, QualityRules

MARGINS: Margins = {"score": 0.01, "garbage": 0.01, "latency_percent": 25.0, "cases": "abc", "of": 200}
QUIET = Tick(ArmCounts(), ArmCounts())
BUSY = Tick(ArmCounts(180), ArmCounts(20))


EQUAL = Answered(Pair(0.9, 0.9, False, False, 0.1, 0.1))
LOST = Answered(Pair(0.9, 0.5, False, False, 0.1, 0.1))
USELESS = Answered(Pair(0.9, 0.0, False, True, 0.1, 0.1))
SLOW = Answered(Pair(0.9, 0.9, False, False, 0.1, 0.2))


def judge(*, latency: bool = False) -> Judge:
    return Judge(JudgeRules(judge_latency=latency, error_margin_percent=5.0), margins=MARGINS)


def looks(found: Judge, tick: Tick, pairs: list[Answered], *, few_users: bool = False, most: int = 200) -> Iterator[Verdict]:
    for _ in range(most):
        yield found.observe(tick, weight_percent=10.0, pairs=pairs, few_users=few_users)


def until_decided(found: Judge, tick: Tick, pairs: list[Answered], *, few_users: bool = False, most: int = 200) -> Verdict:
    last = None
    for last in looks(found, tick, pairs, few_users=few_users, most=most):
        if last.kind != "inconclusive":
            break
    assert last is not None
    return last


def test_pass_needs_the_answers_too() -> None:
    without = until_decided(judge(), BUSY, [])
    assert without.kind == "inconclusive" and without.metrics["errors"]["e_pass"] > 20
    assert without.metrics["quality"] == without.metrics["garbage"] == {"e_fail": 1.0, "e_pass": 1.0}
    decided = until_decided(judge(), BUSY, [EQUAL] * 10)
    assert decided.kind == "pass" and "1 point of 100 in the score of its answers, 1 point in useless ones" in decided.sentence
    assert "alone" not in decided.sentence


@pytest.mark.parametrize(("pair", "worst"), [(LOST, "quality of its answers"), (USELESS, "answers")])
def test_fail_on_the_answers_alone(pair: Answered, worst: str) -> None:
    found = judge()
    verdict = until_decided(found, BUSY, [pair])
    assert verdict.kind == "fail" and "the candidate is worse in" in verdict.sentence and worst in verdict.sentence
    assert found.pairs <= 20 and "of 1" not in verdict.sentence.split("golden requests")[0][-3:]


def test_without_users_the_answers_decide_where_they_may() -> None:
    assert until_decided(judge(), QUIET, [EQUAL] * 10).kind == "inconclusive"
    verdict = until_decided(judge(), QUIET, [EQUAL] * 10, few_users=True)
    assert verdict.kind == "pass" and "by golden requests alone (users send too few for a verdict in time)" in verdict.sentence


def test_alone_they_must_be_as_quick_too() -> None:
    assert until_decided(judge(latency=True), QUIET, [EQUAL] * 10, few_users=True).kind == "pass"
    verdict = until_decided(judge(latency=True), QUIET, [SLOW] * 10, few_users=True)
    assert verdict.kind == "fail" and "worse in latency of golden requests" in verdict.sentence
    unjudged = until_decided(judge(), QUIET, [SLOW] * 10, few_users=True)
    assert unjudged.kind == "pass" and "paired_latency" not in unjudged.metrics


def test_the_first_pairs_latency_is_not_judged() -> None:
    state = golden.update(golden.start(MARGINS), [SLOW] * golden.WARM_UP_PAIRS)
    assert golden.evidence(state)["paired_latency"] == {"e_fail": 1.0, "e_pass": 1.0}
    assert golden.evidence(golden.update(state, [SLOW]))["paired_latency"]["e_fail"] > 1


def test_nothing_more_is_asked_once_they_have_shown_what_they_can() -> None:
    found = judge()
    assert not found.pairs_suffice
    until_decided(found, QUIET, [EQUAL] * 10, few_users=True)
    assert found.pairs_suffice and 299 <= found.pairs < 450


def test_a_set_that_stable_does_not_answer_is_an_error() -> None:
    both = Answered(Pair(0.0, 0.0, True, True, 0.1, 0.1), "404")
    verdict = until_decided(judge(), BUSY, [both] * 5)
    assert verdict.kind == "error" and "does not fit: stable's own answer to 20 of 20 requests is useless (404)" in verdict.sentence


def test_a_judge_goes_on_from_json_where_the_other_stopped() -> None:
    one = judge(latency=True)
    last = list(looks(one, BUSY, [EQUAL, LOST, SLOW], most=4))[-1]
    two = Judge(one.rules, json.loads(json.dumps(one.state)))
    assert (two.pairs, two.golden_cases) == (12, "abc")
    assert two.observe(BUSY, weight_percent=10.0, pairs=[LOST]) == one.observe(BUSY, weight_percent=10.0, pairs=[LOST])
    assert last.kind in ("inconclusive", "fail")


def test_a_state_without_a_golden_set_begins_with_one() -> None:
    before = Judge(JudgeRules(judge_latency=False))
    before.observe(BUSY, weight_percent=10.0)
    assert before.golden_cases is None and not before.pairs_suffice and "pairs" not in before.totals()
    after = Judge(before.rules, json.loads(json.dumps(before.state)), margins=MARGINS)
    after.observe(BUSY, weight_percent=10.0, pairs=[EQUAL])
    assert after.pairs == 1 and after.candidate_requests == 40
    assert after.totals()["scores"] == {"stable": 0.9, "candidate": 0.9} and after.totals()["garbage"] == {"stable": 0, "candidate": 0}


def test_margins_are_the_familys_where_none_are_given() -> None:
    assert QualityRules().margins("embedding") == (0.01, 0.01, 25.0) == QualityRules().margins(None)
    assert QualityRules().margins("tts") == (0.02, 0.02, 25.0)
    assert QualityRules(margin_percent=3, latency_margin_percent=50).margins("llm") == (0.03, 0.02, 50.0)
