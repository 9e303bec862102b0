"""Pairs as e-processes: exact expectations, restarts and batches, what is found and passed in how many pairs (see benchmarks/quality.py)."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfp_components.judge import quality
from kfp_components.judge.quality import BETS, Pair

scores = st.floats(0, 1)
seconds = st.none() | st.floats(0.001, 10)
pairs = st.lists(st.builds(Pair, scores, scores, st.booleans(), st.booleans(), seconds, seconds), max_size=20)


def wealth(steps: np.ndarray, bets: quality.Bets) -> np.ndarray:
    """Of each bet, after one pair."""
    return 1 + bets.sizes * steps[0]


@given(pairs, st.integers(0, 20))
@settings(max_examples=30)
def test_a_batch_is_its_pairs_one_by_one_and_a_restart_changes_nothing(given_pairs: list[Pair], cut: int) -> None:
    whole = quality.update(quality.start(), given_pairs)
    single = quality.start()
    for pair in given_pairs:
        single = quality.update(single, [pair])
    restarted = json.loads(json.dumps(quality.update(quality.start(), given_pairs[:cut]), allow_nan=False))
    assert whole == single == quality.update(restarted, given_pairs[cut:])
    assert whole["pairs"] == len(given_pairs) and len(json.dumps(whole)) < 2500
    assert whole["sums"] == pytest.approx([sum(pair[index] for pair in given_pairs) for index in range(4)])
    assert all(value > 0 for found in quality.evidence(whole).values() for value in found.values())


@pytest.mark.parametrize("low", [-1.0, -0.3, -0.1, -0.04])
@pytest.mark.parametrize("high", [0.02, 0.1, 0.7, 1.0])
@pytest.mark.parametrize(("metric", "margin"), [("quality", 0.0), ("quality", 0.005), ("garbage", 0.0)])
def test_fail_is_an_e_value_for_every_two_losses_whose_clipped_mean_is_the_margin_or_less(
    low: float, high: float, metric: str, margin: float
) -> None:
    """Every distribution with a mean is a mixture of two-point ones with that mean, so two points are all there is to try."""
    bets = BETS[metric]["fail"]
    for index, bound in enumerate(bets.bounds):
        clipped_low, clipped_high = max(low, -bound), min(high, bound)
        most = (margin - clipped_low) / (clipped_high - clipped_low)
        for chance in (most, most / 2, 0.0):
            expected = sum(p * wealth(quality.fail_steps([d], bets, margin), bets)[index] for p, d in ((chance, high), (1 - chance, low)))
            assert expected <= 1 + 1e-12
            assert chance != most or expected == pytest.approx(1)


@pytest.mark.parametrize("low", [-1.0, -0.1, 0.0, 0.009])
@pytest.mark.parametrize("high", [0.01, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("margin", [0.01, 0.05])
def test_pass_is_an_e_value_for_every_two_losses_with_a_mean_of_the_margin_or_more(low: float, high: float, margin: float) -> None:
    """The true mean, not the clipped one: rare large losses count in full."""
    least = max(0.0, (margin - low) / (high - low))
    for metric, chance in itertools.product(("quality", "garbage"), {least, (1 + least) / 2, 1.0} if least <= 1 else ()):
        bets = BETS[metric]["pass"]
        expected = sum(p * wealth(quality.pass_steps([d], bets, margin), bets) for p, d in ((chance, high), (1 - chance, low)))
        assert np.all(expected <= 1 + 1e-12), chance


def test_the_weights_of_all_bets_are_shares_and_their_sizes_never_lose_everything() -> None:
    for bets in (bets for sides in BETS.values() for bets in sides.values()):
        assert bets.weights.sum() == pytest.approx(1) and bets.weights.min() > 0
        assert np.all((bets.sizes > 0) & (bets.sizes < 1) & (bets.bounds > 0) & (bets.bounds <= 1))
    assert all(found == pytest.approx({"e_fail": 1, "e_pass": 1}) for found in quality.evidence(quality.start()).values())


@given(st.lists(st.tuples(st.tuples(scores, st.booleans(), st.floats(0.1, 9)), st.tuples(scores, st.booleans(), st.floats(0.1, 9))), max_size=5))
@settings(max_examples=20)
def test_versions_that_are_alike_win_nothing_whatever_their_answers(answers: list[tuple[tuple[float, bool, float], ...]]) -> None:
    """Exchange the two answers of each pair at random, exactly: the expectation of each metric's FAIL is 1 at most."""
    total = dict.fromkeys(BETS, 0.0)
    for swaps in itertools.product((False, True), repeat=len(answers)):
        drawn = [(b, a) if swap else (a, b) for swap, (a, b) in zip(swaps, answers, strict=True)]
        given_pairs = [Pair(s[0], c[0], s[1], c[1], s[2], c[2]) for s, c in drawn]
        for name, found in quality.evidence(quality.update(quality.start(), given_pairs)).items():
            total[name] += found["e_fail"] / 2 ** len(answers)
    assert all(value <= 1 + 1e-9 for value in total.values()), total


@pytest.mark.parametrize("apart", [1.001, 1.2, 9.0])
def test_latency_is_an_e_value_while_the_candidate_is_slower_by_the_margin_and_chance_treats_both_alike(apart: float) -> None:
    """FAIL at its margin, PASS at its own; faster (FAIL) or slower (PASS) than that the expectation is below 1."""
    for times, side in ((1.05, "fail"), (1.1, "pass")):
        bets = BETS["paired_latency"][side]
        for more, likely in ((1.0, 1.0), (0.99 if side == "fail" else 1.01, 1 - 1e-9)):
            seconds = [[0.2, 0.2 * times * more * noise] for noise in (apart, 1 / apart)]
            steps = quality.latency_steps(seconds, bets, 5.0 if side == "fail" else 10.0) * (1 if side == "fail" else -1)
            expected = (1 + bets.sizes * steps).mean(axis=0)
            assert np.all(expected <= likely + 1e-9) and np.all(bets.sizes * np.abs(steps) < 1)
    tie = quality.update(quality.start(), [Pair(1, 1, stable_s=1.0, candidate_s=1.0)], latency_fail_margin_percent=0.0)
    assert tie["paired_latency"]["fail"] == quality.start()["paired_latency"]["fail"]


def test_as_fast_passes_and_what_is_slow_for_a_third_does_not() -> None:
    rng = np.random.default_rng(3)
    stable = 0.05 * rng.lognormal(0, 0.4, 600)
    noise = rng.lognormal(0, 0.25, (2, 600))
    for slow, passes in ((1.0, True), (2.0, False)):
        candidate = stable * np.where(np.arange(600) % 3 == 0, slow, 1.0) * noise[1]
        given_pairs = [Pair(1, 1, stable_s=s, candidate_s=c) for s, c in zip(stable * noise[0], candidate, strict=True)]
        found = quality.evidence(quality.update(quality.start(), given_pairs))["paired_latency"]
        assert (found["e_pass"] >= 20, found["e_fail"] >= 100) == (passes, not passes)


def test_a_large_loss_on_few_answers_does_not_pass() -> None:
    """Half the score is lost on one answer in ten, five times the margin, and the rest is alike."""
    given_pairs = [Pair(1.0, 0.5 if index % 10 == 9 else 1.0) for index in range(3000)]
    assert quality.evidence(quality.update(quality.start(), given_pairs))["quality"]["e_pass"] < 1e-6


def test_what_is_obvious_is_found_in_about_a_dozen_pairs_and_garbage_of_both_says_nothing() -> None:
    worse = quality.evidence(quality.update(quality.start(), [Pair(0.8, 0.0, False, True, 0.1, 0.5)] * 10))
    assert min(found["e_fail"] for found in worse.values()) >= 100
    both = quality.evidence(quality.update(quality.start(), [Pair(0.0, 0.0, True, True)] * 50))
    assert max(found["e_fail"] for found in both.values()) <= 1
    better = quality.evidence(quality.update(quality.start(), [Pair(0.0, 1.0, True, False)] * 50))
    assert better["garbage"]["e_fail"] < 0.2 and better["garbage"]["e_pass"] > 20


@pytest.mark.parametrize(
    ("loss", "margin", "median", "p95"), [(0.02, 0.0, 82, 209), (0.1, 0.0, 12, 16), (0.02, 0.005, 140, 330), (0.1, 0.005, 13, 17)]
)
def test_known_losses_are_found_in_no_more_pairs_than_known(loss: float, margin: float, median: int, p95: int) -> None:
    """JUDGE.md's figures for a margin of 0; a deviation of 0.05 in a pair's difference gives them."""
    bets, rng = BETS["quality"]["fail"], np.random.default_rng(1)
    paths = [np.cumsum(np.log1p(bets.sizes * quality.fail_steps(rng.normal(loss, 0.05, 600), bets, margin)), axis=0) for _ in range(60)]
    needed = [next((count for count, logs in enumerate(path, 1) if np.exp(logs) @ bets.weights >= 100), 600) for path in paths]
    assert np.median(needed) <= median and np.quantile(needed, 0.95) <= 1.1 * p95


def test_small_losses_of_few_cases_asked_again_and_again_are_no_failure() -> None:
    """Two cases on which the candidate loses 0.4 points in the mean, half a point being allowed, each asked a thousand times."""
    state = quality.update(quality.start(), [Pair(0.8, 0.8 + gain) for gain in (-0.05, 0.042)] * 1000, margin=0.01)
    assert quality.evidence(state)["quality"]["e_fail"] < 100
    assert quality.evidence(quality.update(quality.start(), [Pair(0.8, 0.8 - 0.02)] * 100, margin=0.01))["quality"]["e_fail"] >= 100


@pytest.mark.parametrize("margin", [0.01, 0.02, 0.05])
def test_answers_that_do_not_differ_pass_in_about_as_few_pairs_as_any_test_needs(margin: float) -> None:
    least = math.ceil(math.log(0.05) / math.log(1 - margin))  # so many answers may all be good by chance
    needed = quality.smallest_pass(margin, 0.05)
    assert least <= needed <= 1.16 * least
    for count, enough in ((needed, True), (needed - 1, False)):
        found = quality.evidence(quality.update(quality.start(), [Pair(0.8, 0.8)] * count, margin=margin, garbage_margin=margin))
        assert {found[name]["e_pass"] >= 20 for name in ("quality", "garbage")} == {enough}


@given(pairs)
@settings(max_examples=15)
def test_the_state_stays_finite_and_the_evidence_too(given_pairs: list[Pair]) -> None:
    state = quality.update(quality.start(), given_pairs * 100)
    assert all(math.isfinite(value) and value >= 0 for found in quality.evidence(state).values() for value in found.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.01, 1.01])
def test_what_is_no_score_and_no_time_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"pair 1: scores \[.*\] are not within \[0, 1\]"):
        quality.update(quality.start(), [Pair(0.5, 0.5), Pair(0.5, bad)])
    with pytest.raises(ValueError, match="above zero"):
        quality.update(quality.start(), [Pair(0.5, 0.5, stable_s=1.0, candidate_s=bad if bad < 0 or not math.isfinite(bad) else 0.0)])
    with pytest.raises(ValueError, match="margin"):
        quality.update(quality.start(), [Pair(0.5, 0.5)], margin=1.0)
