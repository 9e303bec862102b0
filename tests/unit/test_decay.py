"""Re-validation's statistics: whom they accuse, how soon, and that they never accuse what is as it was promoted."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kfp_components.judge import decay
from kfp_components.judge.counts import ArmCounts

BOUNDS_S = tuple(0.001 * 1.02**step for step in range(460))
DAY_S = 86_400
PROMOTED_UNIX_S = 1_789_970_400
MODELS = 200


def latency(rng: np.random.Generator, requests: int, slower: float = 1.0) -> tuple[int, ...]:
    """Counts per bucket of log-normal latencies around 135 ms."""
    found = np.searchsorted(BOUNDS_S, slower * rng.lognormal(-2, 0.5, requests))
    return tuple(map(int, np.bincount(found, minlength=len(BOUNDS_S) + 1)))


def counted(rng: np.random.Generator, requests: int, failing: float, slower: float = 1.0) -> ArmCounts:
    return ArmCounts(requests, int(rng.binomial(requests, failing)), latency(rng, requests, slower))


def run(number: int, counts: ArmCounts, scores: tuple[tuple[float, float], ...] = ()) -> decay.Run:
    return decay.Run(PROMOTED_UNIX_S + number * DAY_S, counts, BOUNDS_S, scores)


def errors_only(record: tuple[int, int], *runs: tuple[int, int]) -> decay.State:
    """(requests, failures) of the record and of each run."""
    state = decay.start(ArmCounts(*record))
    for number, seen in enumerate(runs, 1):
        state = decay.advance(state, run(number, ArmCounts(*seen)))
    return state


def evidence(state: decay.State, test: str = "errors") -> float:
    return decay.log_evidence(state.tests[test])


# --- what is said ---------------------------------------------------------------------------------------------------------------------


def test_a_version_that_was_always_at_92_percent_is_healthy_and_one_that_fell_to_it_is_not() -> None:
    always, fell = errors_only((3000, 240), *[(100, 8)] * 30), errors_only((3000, 90), *[(100, 3)] * 10, *[(100, 8)] * 30)
    assert decay.decide(always, "v1", models=MODELS).kind == "healthy"
    said = decay.decide(fell, "v2", models=MODELS)
    assert said.kind == "decayed" and said.test == "errors" and said.e >= said.bound == 20_000
    assert said.since_unix_s is not None and abs(said.since_unix_s - PROMOTED_UNIX_S - 11 * DAY_S) <= 2 * DAY_S
    assert said.sentence.startswith("v2 decayed: 8.0% of 3,000 requests failed since 2026-10-02, 3.0% of 3,000 in its canary; evidence ")


def test_a_slow_version_is_told_by_its_quantile() -> None:
    rng = np.random.default_rng(7)
    state = decay.start(counted(rng, 1500, 0.01), BOUNDS_S)
    for number in range(1, 25):
        state = decay.advance(state, run(number, counted(rng, 100, 0.01, slower=2 if number > 8 else 1)))
    said = decay.decide(state, "v3", models=MODELS)
    assert said.kind == "decayed" and said.test in decay.QUANTILES and "took longer than" in said.sentence
    assert said.since_unix_s is not None and abs(said.since_unix_s - PROMOTED_UNIX_S - 9 * DAY_S) <= DAY_S


def test_what_is_a_third_slower_is_not_accused() -> None:
    rng = np.random.default_rng(8)
    state = decay.start(counted(rng, 1500, 0.01), BOUNDS_S)
    for number in range(1, 60):
        state = decay.advance(state, run(number, counted(rng, 100, 0.01, slower=1.33)))
    assert decay.decide(state, "v3").kind == "healthy"


def test_worse_scores_of_the_golden_set_are_told() -> None:
    rng = np.random.default_rng(9)
    then = rng.uniform(0.7, 1.0, 50)

    def asked(loss: float) -> tuple[tuple[float, float], ...]:
        return tuple((float(score), float(np.clip(score + rng.normal(0, 0.03) - loss, 0, 1))) for score in then)

    state = decay.start(ArmCounts(1000), scores=asked(0.0))
    for number in range(1, 31):
        state = decay.advance(state, run(number, ArmCounts(100), asked(0.0)))
    assert decay.decide(state, "v4").kind == "healthy"
    for number in range(31, 61):
        state = decay.advance(state, run(number, ArmCounts(100), asked(0.15)))
    said = decay.decide(state, "v4", models=MODELS)
    assert said.kind == "decayed" and said.test == "scores" and "of their score in the mean of" in said.sentence


def test_too_little_is_not_enough() -> None:
    for record, runs in (((1000, 10), []), ((1000, 10), [(99, 1)]), ((0, 0), [(500, 5)])):
        said = decay.decide(errors_only(record, *runs), "v1")
        assert said.kind == "not enough" and "at least 100 of both are needed" in said.sentence
    doubtful = errors_only((3000, 90), *[(100, 9)] * 7)
    said = decay.decide(doubtful, "v1", models=MODELS)
    assert said.kind == "not enough" and "may have decayed" in said.sentence and said.since_unix_s is not None


def test_one_night_in_which_everything_fails_accuses_nobody_and_the_sentence_counts_all() -> None:
    once = errors_only((3000, 30), *[(100, 1)] * 5, (100, 100))
    said = decay.decide(once, "v1", models=MODELS)
    assert said.kind == "not enough" and said.sentence.startswith("v1 may have decayed, which is not sure yet: 100.0% of 100 requests failed")
    again = errors_only((3000, 30), *[(100, 1)] * 5, *[(100, 100)] * 4)
    said = decay.decide(again, "v1", models=MODELS)
    assert said.kind == "decayed" and "100.0% of 400 requests failed" in said.sentence
    healed = errors_only((3000, 30), (100, 100), *[(100, 1)] * 5)
    assert decay.decide(healed, "v1", models=MODELS).kind == "healthy"


# --- why it may be believed -----------------------------------------------------------------------------------------------------------


def binomial(n: int, p: float) -> list[float]:
    return [math.comb(n, x) * p**x * (1 - p) ** (n - x) for x in range(n + 1)]


@pytest.mark.parametrize("p0", [0.0, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("of", [0, 5, 30])
def test_its_mean_is_one_at_most_over_all_records_and_runs_whatever_the_share_is(p0: float, of: int) -> None:
    """Summed exactly, with the share on the margin in the first run and anything below in the second."""
    for second in (p0 + decay.ERROR_MARGIN, p0 / 2):
        mean = 0.0
        for (x0, m0), (x1, m1), (x2, m2) in itertools.product(
            enumerate(binomial(of, p0)), enumerate(binomial(6, p0 + decay.ERROR_MARGIN)), enumerate(binomial(4, second))
        ):
            if m0 * m1 * m2 > 1e-12:
                mean += m0 * m1 * m2 * math.exp(evidence(errors_only((of, x0), (6, x1), (4, x2))))
        assert mean <= 1 + 1e-6


def test_of_latency_too_although_the_quantile_is_taken_from_the_record() -> None:
    """Answers of 1, 2 or 3 s, exactly as often as before: every record of eight and every run of three."""
    chances = (0.7, 0.2, 0.1)
    mean = 0.0
    for record, seen in itertools.product(multinomials(8, chances), multinomials(3, chances)):
        state = decay.start(ArmCounts(8, 0, (*record[0], 0)), (1.0, 2.0, 3.0), latency_margin=0.0)
        state = decay.advance(state, decay.Run(0, ArmCounts(3, 0, (*seen[0], 0)), (1.0, 2.0, 3.0)))
        mean += record[1] * seen[1] * sum(math.exp(evidence(state, name)) for name in decay.QUANTILES) / 2
    assert mean <= 1 + 1e-6


def multinomials(n: int, chances: tuple[float, float, float]) -> list[tuple[tuple[int, int, int], float]]:
    found = []
    for a, b in itertools.product(range(n + 1), repeat=2):
        if (c := n - a - b) >= 0:
            ways = math.comb(n, a) * math.comb(n - a, b)
            found.append(((a, b, c), ways * chances[0] ** a * chances[1] ** b * chances[2] ** c))
    return found


RUNS = st.lists(st.tuples(st.integers(1, 300), st.floats(0, 1)).map(lambda seen: (seen[0], round(seen[0] * seen[1] ** 4))), max_size=40)
RECORDS = st.tuples(st.integers(1, 5000), st.floats(0, 1)).map(lambda seen: (seen[0], round(seen[0] * seen[1] ** 4)))


@given(RECORDS, RUNS)
def test_the_state_goes_through_json_and_on_as_if_nothing_had_happened(record: tuple[int, int], runs: list[tuple[int, int]]) -> None:
    state = decay.start(ArmCounts(*record))
    for number, seen in enumerate(runs, 1):
        following = decay.advance(state, run(number, ArmCounts(*seen)))
        read = decay.State.model_validate_json(state.model_dump_json())
        assert read == state and decay.advance(read, run(number, ArmCounts(*seen))) == following
        state = following
    assert decay.advance(state, run(99, ArmCounts())) == state, "a run that saw nothing"


@given(RECORDS, RUNS.filter(bool), st.data())
def test_a_failure_more_is_never_less_evidence_and_one_in_the_record_never_more(
    record: tuple[int, int], runs: list[tuple[int, int]], data: st.DataObject
) -> None:
    before = evidence(errors_only(record, *runs))
    at = data.draw(st.integers(0, len(runs) - 1))
    of, failed = runs[at]
    if failed < of:
        assert evidence(errors_only(record, *runs[:at], (of, failed + 1), *runs[at + 1 :])) >= before - 1e-2  # of rounding where a run is cut
    if record[1] < record[0] and not any(block.weighed < block.against for block in errors_only(record, *runs).tests["errors"].blocks):
        assert evidence(errors_only((record[0], record[1] + 1), *runs)) <= before + 1e-6


@given(RECORDS, RUNS)
def test_what_is_put_together_never_adds_evidence(record: tuple[int, int], runs: list[tuple[int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(decay, "MOST_BLOCKS", 1000)
        whole = evidence(errors_only(record, *runs))
    assert evidence(errors_only(record, *runs)) <= whole + 1e-6


def test_counts_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="errors: 3 of 2 answers"):
        errors_only((100, 1), (2, 3))


def test_ten_years_of_nights_are_a_small_state_and_a_decay_after_them_is_found() -> None:
    rng = np.random.default_rng(3)
    asked = tuple((0.91234, 0.90123) for _ in range(100))
    state = decay.start(counted(rng, 5000, 0.01), BOUNDS_S, scores=asked)
    nights = [counted(rng, 1000, 0.01) for _ in range(50)]
    for number in range(1, 3651):
        state = decay.advance(state, run(number, nights[number % 50], asked))
    assert len(state.model_dump_json()) < 4000 and decay.decide(state, "v1").kind == "healthy"
    for number in range(3651, 3660):
        state = decay.advance(state, run(number, counted(rng, 1000, 0.05), asked))
    said = decay.decide(state, "v1", models=MODELS)
    assert said.kind == "decayed" and said.since_unix_s is not None
    assert abs(said.since_unix_s - PROMOTED_UNIX_S - 3651 * DAY_S) <= 3 * DAY_S
    assert len(state.model_dump_json()) < 4000


# --- two hundred models ---------------------------------------------------------------------------------------------------------------


def highest(seed: int, record: int, nights: list[tuple[int, float]], rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Log evidence of each night and model, all models at once, and the last night's by one `decay.State`: (nights, models) and (models,).

    ``nights`` are (requests, share of failures); a model's record has the share ``rate``.
    """
    rng = np.random.default_rng(seed)
    failed = rng.binomial(record, rate, MODELS)
    limits = np.array([decay.limits(int(x), record, decay.ERROR_MARGIN) for x in failed])
    states = [decay.start(ArmCounts(record, int(x))) for x in failed]
    logs, found = np.full((*limits.shape, len(decay.KAPPAS)), -np.inf), []
    for night, (requests, failing) in enumerate(nights, 1):
        seen = rng.binomial(requests, failing, MODELS)
        weighed = [
            decay.cut(int(x), requests, float(limit[decay.CUT_AT]), decay.MOST_PER_RUN["errors"]) for x, limit in zip(seen, limits, strict=True)
        ]
        gains = np.array(weighed)[:, None, None] * np.log(decay.KAPPAS) - requests * np.log1p(limits[..., None] * (decay.KAPPAS - 1))
        logs = np.logaddexp(logs, math.log(decay.SOON / (night + decay.SOON - 1) / (night + decay.SOON))) + gains
        waiting = math.log(decay.SOON / (night + decay.SOON))
        mean = np.logaddexp(np.logaddexp.reduce(logs, axis=2) - math.log(len(decay.KAPPAS)), waiting)
        found.append((mean + decay.RECORD_LOGS).min(axis=1))
        states[0] = decay.advance(states[0], run(night, ArmCounts(requests, int(seen[0]))))
    return np.array(found), np.array(evidence(states[0]))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 20))])
@pytest.mark.parametrize("rate", [0.0, 0.01, 0.08])
@pytest.mark.parametrize("requests", [20, 100])
def test_nobody_is_accused_in_sixty_nights(requests: int, rate: float, seed: int) -> None:
    """Nor does anybody come near: even by ``SUSPECT``, which one in twenty may reach, none is suspected."""
    found, _ = highest(seed, 1500, [(requests, rate)] * 60, rate)
    assert found.max() < math.log(decay.SUSPECT)


@pytest.mark.parametrize(("requests", "median"), [(100, 16), (20, 75)])
def test_how_many_nights_it_takes_to_find_that_8_percent_fail_instead_of_3(requests: int, median: int) -> None:
    """After twenty good nights, with a record of 3,000 requests, among 200 models with three tests each."""
    found, one = highest(5, 3000, [(requests, 0.03)] * 20 + [(requests, 0.08)] * 2 * median, 0.03)
    accused = found >= math.log(3 * MODELS / 0.01)
    assert not accused[:20].any()
    nights = np.where(accused.any(axis=0), accused.argmax(axis=0) + 1 - 20, 10 * median)
    assert np.median(nights) <= median
    assert one <= found[-1][0] + 1e-6, "of a state that puts older runs together"
    assert one >= found[-1][0] - 5, "and it loses little by that"


def accused(seed: int, nights: int) -> dict[int, tuple[str | None, int]]:
    """Model -> test and night of its accusation: number 17 fails 8 % instead of 1 % from the sixth night on, number 121 takes twice as long."""
    rng = np.random.default_rng(seed)
    usual = rng.choice([0.0, 0.01, 0.03, 0.08], MODELS)
    usual[17] = 0.01
    states = [decay.start(counted(rng, 1500, rate), BOUNDS_S) for rate in usual]
    found: dict[int, tuple[str | None, int]] = {}
    for night in range(1, nights + 1):
        for model in range(MODELS):
            failing = 0.08 if model == 17 and night > 5 else usual[model]
            seen = counted(rng, 100, failing, 2.0 if model == 121 and night > 5 else 1.0)
            states[model] = decay.advance(states[model], run(night, seen))
            said = decay.decide(states[model], "v1", models=MODELS)
            if said.kind == "decayed":
                found.setdefault(model, (said.test, night))
    return found


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 20))])
def test_of_two_hundred_models_the_one_that_fails_and_the_one_that_is_slow_are_found(seed: int) -> None:
    found = accused(seed, nights=20)
    assert set(found) == {17, 121}
    assert found[17][0] == "errors" and found[121][0] in decay.QUANTILES and min(night for _, night in found.values()) > 6
