"""Every call to cluster, router, registry and probes of a run, disturbed in every way (`matrix`).

One test for each scenario and kind of fault. In the fast ring it runs some of the calls that can come to something different, in the full one every call.
One case alone:

    FAULT=good/away/57 .venv/bin/python -m pytest tests/faults/test_matrix.py
"""

import itertools
import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.pool import Pool

import matrix
import pytest

ONE = os.environ["FAULT"].split("/") if os.environ.get("FAULT") else None
CELLS = list(itertools.product(matrix.SCENARIOS, matrix.KINDS))


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Processes that know what the undisturbed runs remembered."""
    for scenario in matrix.SCENARIOS:
        matrix.calls(scenario)
    with multiprocessing.get_context("fork").Pool(min(8, os.cpu_count() or 1)) as found:
        yield found
        found.close()
        found.join()


def play(pool: Pool, scenario: str, kind: str, calls: list[int]) -> None:
    cases = pool.starmap(matrix.play, [(scenario, kind, at) for at in calls], chunksize=4)
    matrix.RESULTS.setdefault((scenario, kind), []).extend(cases)
    assert not any(case.reasons for case in cases), f"\n{matrix.told(cases)}"


if ONE:

    def test_one_case() -> None:
        case = matrix.play(ONE[0], ONE[1], int(ONE[2]))
        assert not case.reasons, f"\n{matrix.told([case])}"

else:

    @pytest.mark.parametrize(("scenario", "kind"), CELLS)
    def test_whatever_call_is_disturbed(pool: Pool, scenario: str, kind: str) -> None:
        play(pool, scenario, kind, matrix.spread(scenario, kind))

    @pytest.mark.full
    @pytest.mark.parametrize(("scenario", "kind"), CELLS)
    def test_every_other_call_too(pool: Pool, scenario: str, kind: str) -> None:
        known = matrix.spread(scenario, kind)
        play(pool, scenario, kind, [call.number for call in matrix.calls(scenario) if call.number not in known])
