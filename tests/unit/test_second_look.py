"""The second look at what failed end to end, and what a failed test leaves to read: pytest runs on a small suite, as `make test` runs on ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import second_look
from patience import seconds

SUITE = """
import pytest

@pytest.fixture
def prepared():
    pass

@pytest.mark.core
def test_steady(): pass

@pytest.mark.core
@pytest.mark.parametrize("number", range(3))
def test_switched(number): pass

@pytest.mark.core
def test_has_an_error_in_its_setup(request):
    pass

def test_without_a_cluster(): pass
"""
CONFTEST = """
from pathlib import Path

import failure_logs
import pytest

failure_logs.SOURCES.append(lambda: Path("logs").glob("*.log"))

@pytest.fixture(autouse=True)
def broken_at_first(request, pytestconfig):
    if "setup" in request.node.name and not pytestconfig.getoption("--second-look-result"):
        assert False, "the fixture failed"

@pytest.fixture(autouse=True)
def server():
    Path("logs").mkdir(exist_ok=True)
    with open("logs/server.log", "a") as log:
        log.write("".join(f"line {number}\\n" for number in range(100)))
"""


def run_suite(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code, and what pytest printed."""
    (folder / "test_suite.py").write_text(SUITE)
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = core\naddopts = --strict-markers -ra\n")
    tests = str(Path(second_look.__file__).parent)
    command = [sys.executable, "-m", "pytest", *arguments]
    plugins = {"PYTEST_PLUGINS": "second_look,failure_logs", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": tests}
    whole = {**os.environ, **plugins, "COLUMNS": "160", **environment}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=whole, timeout=seconds(100))
    return done.returncode, done.stdout + done.stderr


def closing_line(printed: str) -> str:
    return printed.strip().splitlines()[-1]


def test_one_that_fails_only_at_first_is_unsteady_and_the_run_is_green(tmp_path: Path) -> None:
    code, printed = run_suite(tmp_path, "--deselect=test_suite.py::test_has_an_error_in_its_setup", **{second_look.FAIL_FIRST: "test_switched[1]"})
    assert code == 0, printed
    assert "4 passed" in closing_line(printed) and "1 unsteady" in closing_line(printed)
    assert "failed" not in closing_line(printed)
    assert "UNSTEADY: test_suite.py::test_switched[1]" in printed
    assert "made to fail by KFP_SERVING_TEST_FAIL_FIRST=test_switched[1]" in printed.split("UNSTEADY:")[1]


def test_one_that_fails_in_its_setup_gets_its_second_look_too(tmp_path: Path) -> None:
    code, printed = run_suite(tmp_path)
    assert code == 0, printed
    assert "5 passed" in closing_line(printed) and "1 unsteady" in closing_line(printed) and "error" not in closing_line(printed)


def test_one_that_always_fails_makes_the_run_red(tmp_path: Path) -> None:
    code, printed = run_suite(tmp_path, "-k", "not setup", **{second_look.FAIL_ALWAYS: "test_switched[1]"})
    assert code == 1
    assert "1 failed" in closing_line(printed) and "unsteady" not in closing_line(printed)
    assert "second look | FAILED test_suite.py::test_switched[1]" in printed


def test_more_than_two_unsteady_ones_make_the_run_red(tmp_path: Path) -> None:
    code, printed = run_suite(tmp_path, "-k", "not setup", **{second_look.FAIL_FIRST: "test_switched"})
    assert code == 1
    assert "3 unsteady" in closing_line(printed)
    assert "more than 2 make the run red" in printed


def test_unsteady_beside_failed_is_red(tmp_path: Path) -> None:
    switches = {second_look.FAIL_FIRST: "test_steady", second_look.FAIL_ALWAYS: "test_switched[1]"}
    code, printed = run_suite(tmp_path, "-k", "not setup", **switches)
    assert code == 1
    assert "1 failed" in closing_line(printed) and "1 unsteady" in closing_line(printed)


def test_one_without_a_cluster_gets_no_second_look(tmp_path: Path) -> None:
    code, printed = run_suite(tmp_path, "-k", "not setup", **{second_look.FAIL_FIRST: "test_without_a_cluster"})
    assert code == 1
    assert "1 failed" in closing_line(printed) and "second look |" not in printed


@pytest.mark.parametrize("switch", [second_look.FAIL_FIRST, second_look.FAIL_ALWAYS])
def test_logs_of_a_failed_test_are_kept_and_their_ends_printed(tmp_path: Path, switch: str) -> None:
    _, printed = run_suite(tmp_path, "-k", "not setup", **{switch: "test_switched[1]"})
    kept = tmp_path / ".test-logs" / "test_suite.py-test_switched-1-" / "server.log"
    assert kept.read_text().splitlines() == [f"line {number}" for number in range(100)], "only what was logged during the test"
    assert "log of server: last 30 of 100 lines, all in" in printed
    assert "\nline 70\n" in printed and "\nline 69\n" not in printed
