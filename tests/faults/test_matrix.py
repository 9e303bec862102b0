"""Every call to cluster, router, registry and probes of a run, disturbed in every way (`matrix`).

One test for each scenario and kind of fault; each runs all calls. One case alone, with what was wrong:

    FAULT=good/away/57 .venv/bin/python -m pytest tests/faults/test_matrix.py
"""

import os

import matrix
import pytest

ONE = os.environ.get("FAULT", "").split("/") if os.environ.get("FAULT") else None
CELLS = [(ONE[0], ONE[1])] if ONE else [(scenario, kind) for scenario in matrix.SCENARIOS for kind in matrix.KINDS]


@pytest.mark.parametrize(("scenario", "kind"), CELLS)
def test_whatever_call_is_disturbed(scenario: str, kind: str) -> None:
    wanted = [int(ONE[2])] if ONE else range(1, len(matrix.calls(scenario)) + 1)
    cases = matrix.RESULTS[scenario, kind] = [matrix.Case(matrix.SCENARIOS[scenario], kind, at).play() for at in wanted]
    assert not any(case.reasons for case in cases), f"\n{matrix.told(cases)}"
