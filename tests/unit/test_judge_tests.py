"""The e-processes one by one: false alarms under looking at every tick, batches, power, symmetry."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfp_components.judge import error_rate, latency, split, stuck
from kfp_components.judge.counts import ArmCounts, Tick, pack, pack_bounds, unpack, unpack_bounds
from kfp_components.request import JudgeRules
from kfp_components.router.ledger import LATENCY_BOUNDS_S

RATES = (0.0, 0.001, 0.01, 0.05, 0.3, 0.9)


def binomial(n: int, p: float) -> list[float]:
    return [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]


def expectation(step: np.ndarray, n_c: int, n_s: int, p_c: float, p_s: float) -> np.ndarray:
    """Exact expectation of exp(step[x_c, x_s]) over independent binomial failures."""
    return np.einsum("i,j,ijk->k", binomial(n_c, p_c), binomial(n_s, p_s), np.exp(step))


# --- FAIL, error rate ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_c", "n_s"), [(1, 1), (1, 9), (5, 5), (3, 20), (12, 4)])
def test_fail_is_an_e_value_for_every_batch(n_c: int, n_s: int) -> None:
    steps = np.array([[error_rate.fail_update(error_rate.fail_start(), n_c, n_s, x_c, x_s) for x_s in range(n_s + 1)] for x_c in range(n_c + 1)])
    for p_s in RATES:
        for p_c in [rate for rate in RATES if rate <= p_s]:
            assert np.all(expectation(steps, n_c, n_s, p_c, p_s) <= 1 + 1e-12), (p_c, p_s)


@pytest.mark.parametrize(("n_c", "n_s"), [(1, 1), (10, 90)])
def test_false_alarms_when_looking_at_each_tick(n_c: int, n_s: int) -> None:
    """Alpha 1 %, both fail 1 %: at most 1 % of the runs ever cross. 1,000 runs: 1 % + three standard deviations is 1.9 %."""
    rng = np.random.default_rng(5)
    table = {
        (x_c, x_s): np.array(error_rate.fail_update(error_rate.fail_start(), n_c, n_s, x_c, x_s))
        for x_c, x_s in itertools.product(range(min(n_c, 6) + 1), range(min(n_s, 12) + 1))
    }
    alarms = 0
    for _ in range(1000):
        ticks = np.stack([rng.binomial(n_c, 0.01, 400), rng.binomial(n_s, 0.01, 400)], axis=1)
        path = np.cumsum([table[x_c, x_s] for x_c, x_s in ticks if x_c + x_s], axis=0)
        alarms += bool(len(path)) and bool(np.exp(path).mean(axis=1).max() >= 100)
    assert alarms <= 19


@pytest.mark.parametrize("weight_percent", [1.0, 10.0, 50.0, 90.0])
def test_case_03_fail_by_weight_is_an_e_value_for_every_request(weight_percent: float) -> None:
    """One request: it goes to the candidate with chance w, and fails with its version's rate. Exact expectation over both."""
    w, zeros = weight_percent / 100, error_rate.fail_start()
    gain = {x: np.exp(error_rate.weight_update(zeros, x, 1 - x, weight_percent)) for x in (0, 1)}
    for p_s in RATES:
        for p_c in [rate for rate in RATES if rate <= p_s]:
            found = w * p_c * gain[1] + (1 - w) * p_s * gain[0] + w * (1 - p_c) + (1 - w) * (1 - p_s)
            assert np.all(found <= 1 + 1e-12), (p_c, p_s)
    assert error_rate.weight_update(zeros, 0, 0, weight_percent) == zeros
    both = error_rate.weight_update(error_rate.weight_update(zeros, 2, 1, weight_percent), 1, 0, weight_percent)
    assert both == pytest.approx(error_rate.weight_update(zeros, 3, 1, weight_percent))


def test_fail_says_nothing_without_failures_or_without_one_arm() -> None:
    logs = [0.5] * len(error_rate.KAPPAS)
    for sizes in ((100, 900, 0, 0), (0, 900, 0, 5), (100, 0, 5, 0)):
        assert error_rate.fail_update(logs, *sizes) == logs


def test_hard_failure_is_found_at_once() -> None:
    for n_s, most in ((1, 9), (9, 3)):
        logs, requests = error_rate.fail_start(), 0
        while error_rate.mixed(logs) < 100:
            logs = error_rate.fail_update(logs, 1, n_s, 1, 0)
            requests += 1
        assert requests <= most


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 200)), min_size=1, max_size=8), st.data())
def test_fail_grows_with_the_candidates_failures_and_falls_with_stables(sizes: list[tuple[int, int]], data: st.DataObject) -> None:
    logs = error_rate.fail_start()
    for n_c, n_s in sizes:
        x_c, x_s = data.draw(st.integers(0, n_c)), data.draw(st.integers(0, n_s))
        here = np.array(error_rate.fail_update(logs, n_c, n_s, x_c, x_s))
        if n_s and x_s < n_s:
            assert np.all(np.array(error_rate.fail_update(logs, n_c, n_s, x_c, x_s + 1)) <= here + 1e-9)
        if n_s and x_c < n_c:
            assert np.all(np.array(error_rate.fail_update(logs, n_c, n_s, x_c + 1, x_s)) >= here - 1e-9)
        logs = list(here)


# --- PASS, error rate ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_c", "n_s"), [(1, 1), (1, 9), (4, 12), (6, 0), (0, 6)])
@pytest.mark.parametrize("margin", [0.005, 0.02, 0.2, 0.5])
@pytest.mark.parametrize("wide", [False, True])
def test_pass_is_an_e_value_for_every_batch(n_c: int, n_s: int, margin: float, wide: bool) -> None:
    start = error_rate.pass_start(wide=wide)
    steps = np.array([[error_rate.pass_update(start, n_c, n_s, x_c, x_s, margin, wide=wide) for x_s in range(n_s + 1)] for x_c in range(n_c + 1)])
    for p_s in (0.0, 0.0005, 0.003, 0.01, 0.1, 0.5):
        for extra in (0.0, 0.001, 0.1):
            if p_s + margin + extra <= 1:
                assert np.all(expectation(steps, n_c, n_s, p_s + margin + extra, p_s) <= 1 + 1e-6)


@given(st.floats(0.001, 0.999), st.floats(0.0005, 0.5))
@settings(max_examples=200, deadline=None)
def test_projection_is_the_nearest_point_of_the_null(w: float, margin: float) -> None:
    def distance(a: np.ndarray) -> np.ndarray:
        p, b = error_rate.WIDE_RATES, a + margin
        to = [p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)) for q in (a, b)]
        return (1 - w) * to[0] + w * to[1]

    a = error_rate.projection(w, margin, wide=True)
    assert np.all((a > 0) & (a + margin < 1))
    for factor in (0.99, 1.01):
        assert np.all(distance(np.clip(a * factor, 1e-13, 1 - margin - 1e-12)) >= distance(a) - 1e-12)


def test_pass_needs_about_as_many_requests_as_it_should() -> None:
    """Both fail 0.1 %, margin 0.5 %: JUDGE.md's figure is 1,212 at the median."""
    rng, needed = np.random.default_rng(3), []
    for _ in range(40):
        logs, requests = error_rate.pass_start(), 0
        while error_rate.mixed(logs) < 20:
            logs = error_rate.pass_update(logs, 20, 20, int(rng.binomial(20, 0.001)), int(rng.binomial(20, 0.001)), 0.005)
            requests += 20
        needed.append(requests)
    assert 800 <= np.median(needed) <= 1600


# --- latency ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_c", "n_s"), [(1, 1), (1, 9), (7, 5), (3, 30)])
def test_exceedances_are_an_e_value_given_how_many_there_were(n_c: int, n_s: int) -> None:
    """Alike arms: the candidate's part of m slow requests is hypergeometric, and the step's expectation is exactly 1."""
    for thetas in (latency.FAIL_THETAS, latency.PASS_THETAS):
        zeros = [0.0] * len(thetas)
        for m in range(n_c + n_s + 1):
            total = np.zeros(len(thetas))
            for x_c in range(max(0, m - n_s), min(m, n_c) + 1):
                chance = math.comb(n_c, x_c) * math.comb(n_s, m - x_c) / math.comb(n_c + n_s, m)
                total += chance * np.exp(latency._step(zeros, thetas, n_c, n_s, x_c, m - x_c))
            assert total == pytest.approx(np.ones(len(thetas)), abs=1e-9)


def test_normaliser_of_a_large_batch_is_not_below_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = latency._log_mgf(latency.FAIL_THETAS, 60, 300, 90)
    monkeypatch.setattr(latency, "EXACT_SUPPORT", 10)
    assert np.all(latency._log_mgf(latency.FAIL_THETAS, 60, 300, 90) >= exact - 1e-9)


def test_latency_waits_for_a_history_and_for_both_arms() -> None:
    bounds_s = (0.1, 0.2, 0.4)
    margins = {"fail_margins": (5.0, 10.0, 15.0), "pass_margins": (10.0, 20.0, 30.0)}
    start = latency.start()
    first = latency.update(start, Tick(ArmCounts(300, 0, (290, 8, 2, 0)), ArmCounts(5, 0, (0, 0, 0, 5)), bounds_s), **margins)
    assert (first["fail"], first["pass"]) == (start["fail"], start["pass"])
    assert sum(unpack(first["history"])) == 300
    alone = latency.update(first, Tick(ArmCounts(9, 0, (9, 0, 0, 0)), ArmCounts(0, 0, ()), bounds_s), **margins)
    assert alone["fail"] == first["fail"]
    second = latency.update(first, Tick(ArmCounts(9, 0, (9, 0, 0, 0)), ArmCounts(5, 0, (0, 0, 0, 5)), bounds_s), **margins)
    assert second["fail"] != first["fail"] and error_rate.mixed([v for row in second["fail"] for v in row]) > 1
    assert error_rate.mixed([v for row in second["pass"] for v in row]) < 1


@given(st.lists(st.integers(0, 50), min_size=5, max_size=5).filter(any), st.floats(0.1, 50))
def test_d23_rounding_to_buckets_never_favours_the_verdict(history: list[int], margin: float) -> None:
    """PASS: the candidate's bound is at most the margin above stable's; FAIL: at least. What lies above all bounds is always too slow."""
    bounds_s = (0.1, 0.11, 0.121, 0.2)
    for near, wide in latency.bounds(history, bounds_s, (margin,) * 3, round_up=False):
        assert near <= wide <= len(bounds_s)
        assert bounds_s[wide - 1] <= bounds_s[near - 1] * (1 + margin / 100) * (1 + 1e-6)
    for near, wide in latency.bounds(history, bounds_s, (margin,) * 3, round_up=True):
        assert near <= wide <= len(bounds_s)
        assert wide == len(bounds_s) or bounds_s[wide - 1] >= bounds_s[near - 1] * (1 + margin / 100) * (1 - 1e-6)


@given(st.lists(st.integers(0, 5), max_size=8))
def test_counts_and_bounds_are_packed_exactly(latency_counts: list[int]) -> None:
    assert unpack(pack(latency_counts)) == tuple(latency_counts) == unpack(latency_counts)
    for bounds_s in (LATENCY_BOUNDS_S, tuple(0.0005 * 1.1**step for step in range(131)), (0.1, 0.2, 0.4, 0.9), (0.1,), ()):
        assert unpack_bounds(json.loads(json.dumps(pack_bounds(bounds_s)))) == bounds_s
    assert len(json.dumps(pack_bounds(LATENCY_BOUNDS_S))) < 100


# --- the meter ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, 10.0, 50.0, 90.0])
def test_split_is_an_e_value_and_finds_a_wrong_split(weight: float) -> None:
    w, rng = weight / 100, np.random.default_rng(2)
    one = [np.exp(split.update(split.start(), x, 1 - x, weight)) for x in (0, 1)]
    assert (1 - w) * one[0] + w * one[1] == pytest.approx(np.ones(len(split.THETAS)), abs=1e-9)
    logs = split.start()
    for _ in range(50):
        n_c = int(rng.binomial(100, w))
        logs = split.update(logs, n_c, 100 - n_c, weight)
    assert error_rate.mixed(logs) < 1 / JudgeRules().alpha_split
    for wrong in (0.0, min(0.99, 3 * w)) if w < 0.9 else (0.5,):
        logs = split.start()
        for _ in range(50):
            n_c = int(rng.binomial(100, wrong))
            logs = split.update(logs, n_c, 100 - n_c, weight)
        assert error_rate.mixed(logs) >= 1 / JudgeRules().alpha_split


def test_stuck_sees_a_hanging_candidate_and_no_other() -> None:
    assert stuck.looks_stuck(30, 2, 10) and stuck.looks_stuck(60, 0, 50) is False  # at 50 % four times as long is a share of 80 %
    assert stuck.looks_stuck(100, 0, 50)
    for waiting_c, waiting_s in ((0, 0), (1, 9), (5, 9), (3, 0), (40, 90)):
        assert not stuck.looks_stuck(waiting_c, waiting_s, 10)
    for weight in (0, 100):
        assert not stuck.looks_stuck(1000, 0, weight)


@given(st.lists(st.floats(-500, 500), min_size=1, max_size=10))
def test_mixture_is_between_its_parts(logs: list[float]) -> None:
    assert math.exp(min(logs)) * (1 - 1e-9) <= error_rate.mixed(logs) <= math.exp(max(logs)) * (1 + 1e-9)


def test_case_20_a_version_that_hangs_is_told_from_one_that_is_slow_by_how_long_stables_requests_took() -> None:
    """Without any time limit; eight clients, each waiting for its answer."""
    hangs = [41.0] * 8
    assert stuck.looks_hung(hangs, 10.0, 20, 100) and stuck.looks_hung(hangs, 10.0, 8, 30)
    assert not stuck.looks_hung([39.0] * 8, 10.0, 20, 100), "not longer than four times stable's slowest"
    assert not stuck.looks_hung(hangs, 10.0, 8, 10), "too little is known of stable"
    assert not stuck.looks_hung(hangs[:2], 10.0, 20, 100) and stuck.looks_hung(hangs[:2], 10.0, 20, 30_000), "two slow ones need more"
    assert not stuck.looks_hung(hangs, None, 8, 0) and not stuck.looks_hung([], 10.0, 8, 1000) and not stuck.looks_hung(hangs, 10.0, 0, 1000)


def test_case_20_no_version_is_called_hanging_that_answers_as_stable_does() -> None:
    """A heavy tail (lognormal, sigma 2), two to eight clients, every look counted, no persistence: 400 canaries of 500 requests."""
    rng, blamed = np.random.default_rng(20), 0
    for _ in range(400):
        clients, weight = int(rng.integers(2, 9)), float(rng.choice([0.1, 0.5, 0.9]))
        free = np.zeros(clients)
        open_c: list[tuple[float, float]] = []
        all_c = all_s = 0
        slowest_s = 0.0
        for _ in range(500):
            client = int(free.argmin())
            now, took = float(free[client]), float(rng.lognormal(0.0, 2.0))
            free[client] += took
            if rng.random() < weight:
                all_c += 1
                open_c.append((now, now + took))
            else:
                all_s, slowest_s = all_s + 1, max(slowest_s, took)
            open_c = [(began, ends) for began, ends in open_c if ends > now]
            blamed += stuck.looks_hung([now - began for began, _ in open_c], slowest_s or None, all_c, all_s)
    assert blamed == 0
