"""The world of every test, and the count of the matrix's cases."""

from collections.abc import Iterator

import matrix
import pytest
import remembered
from memory_world import World


@pytest.fixture(scope="package", autouse=True)
def quick_surgery() -> Iterator[None]:
    with remembered.surgery():
        yield


@pytest.fixture
def world() -> World:
    return World(rate_per_s=40.0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if matrix.RESULTS:
        cases = [case for cell in matrix.RESULTS.values() for case in cell]
        failed = sum(bool(case.reasons) for case in cases)
        if failed:
            for line in matrix.table():
                terminalreporter.write_line(line)
        terminalreporter.write_line(f"faults: {len(cases):,} cases, {failed:,} failed")
