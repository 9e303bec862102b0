"""An end-to-end test that fails runs once more by itself at the end, in a second process with a cluster of its own.

If it passes then, the run is green, and the test is *unsteady*: printed with its first failure and counted in pytest's closing line. More than
`MOST_UNSTEADY` of them make the run red. Tests of the ring ``fast`` get no second look: nothing in them may depend on the machine.

KFP_SERVING_TEST_FAIL_FIRST and KFP_SERVING_TEST_FAIL_ALWAYS (a part of a test's id) make a test fail, the one in the first process only: so one can see
that all this works.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MOST_UNSTEADY = 2
MOST_LOOKS = 5
"""More failures than this are no matter of chance, and a second look at all of them would take too long."""

FAIL_FIRST, FAIL_ALWAYS = "KFP_SERVING_TEST_FAIL_FIRST", "KFP_SERVING_TEST_FAIL_ALWAYS"
RINGS = ("core", "full")
LOOK_AGAIN = pytest.StashKey["SecondLook"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--second-look-result", metavar="FILE", help="this is the second look: write the outcome of each test to FILE")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LOOK_AGAIN] = SecondLook(config)
    config.pluginmanager.register(config.stash[LOOK_AGAIN], "second-look")


class SecondLook:
    """Collects what fails, and looks again when the session ends."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.result = config.getoption("--second-look-result")
        self.outcomes: dict[str, str] = {}  # test -> passed, failed or skipped; failed stays
        self.eligible: set[str] = set()
        self.unsteady: list[pytest.TestReport] = []
        self.told = ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        for name, applies in ((FAIL_FIRST, not self.result), (FAIL_ALWAYS, True)):
            wanted = os.environ.get(name)
            if wanted and wanted in item.nodeid and applies:
                raise AssertionError(f"made to fail by {name}={wanted}")

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if any(item.get_closest_marker(ring) for ring in RINGS):
            self.eligible.add(item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.outcomes.get(report.nodeid) != "failed":
            self.outcomes[report.nodeid] = report.outcome

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.result:
            Path(self.result).write_text(json.dumps(self.outcomes))
            return
        failed = [test for test, outcome in self.outcomes.items() if outcome == "failed"]
        if exitstatus != pytest.ExitCode.TESTS_FAILED or not failed:
            return
        again = [test for test in failed if test in self.eligible]
        if len(again) > MOST_LOOKS or not again:
            self.told = f"{len(again)} end-to-end tests failed; above {MOST_LOOKS} there is no second look" if again else ""
            return
        passed = self._look_again(again)
        self._mark_unsteady(passed)
        if len(passed) == len(failed) and len(passed) <= MOST_UNSTEADY:
            session.exitstatus = pytest.ExitCode.OK
        if len(passed) > MOST_UNSTEADY:
            self.told = f"{len(passed)} unsteady tests; more than {MOST_UNSTEADY} make the run red"

    def _look_again(self, tests: list[str]) -> set[str]:
        """Those of ``tests`` that pass in a second process; what it prints is marked line by line."""
        terminal = self.config.get_terminal_writer()
        terminal.line()
        terminal.sep("=", f"second look at {len(tests)} failed end-to-end test(s), in a process and a cluster of their own", yellow=True)
        terminal.flush()
        result = self.config.rootpath / ".pytest_second_look.json"
        result.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--second-look-result", str(result), *tests]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.config.invocation_params.dir) as looking:
            assert looking.stdout is not None
            for line in looking.stdout:
                terminal.line(f"second look | {line.rstrip()}")
        outcomes = json.loads(result.read_text()) if result.exists() else {}
        result.unlink(missing_ok=True)
        return {test for test in tests if outcomes.get(test) == "passed"}

    def _mark_unsteady(self, tests: set[str]) -> None:
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        assert reporter is not None
        for category in ("failed", "error", "passed"):
            found = reporter.stats.get(category, [])
            mine = [report for report in found if getattr(report, "nodeid", None) in tests]
            if mine:
                reporter.stats[category] = [report for report in found if report not in mine]
                self.unsteady += [report for report in mine if report.outcome == "failed"]
        first = {report.nodeid: report for report in reversed(self.unsteady)}
        if first:
            reporter.stats["unsteady"] = list(first.values())
            reporter._set_main_color()

    @pytest.hookimpl(wrapper=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
        yield
        writer = self.config.get_terminal_writer()
        for report in terminalreporter.stats.get("unsteady", []):
            terminalreporter.write_sep("=", f"UNSTEADY: {report.nodeid}", yellow=True, bold=True)
            terminalreporter.write_line(
                "failed at first, passed when it ran again by itself; find the cause before anything else. Its first failure:"
            )
            report.toterminal(writer)
            for title, text in report.sections:
                if "log" in title:
                    terminalreporter.write_sep("-", title)
                    terminalreporter.write_line(text)
        for report in terminalreporter.stats.get("unsteady", []):
            terminalreporter.write_line(f"UNSTEADY {report.nodeid} - {str(report.longrepr.reprcrash.message).splitlines()[0]}", yellow=True)
        if self.told:
            terminalreporter.write_line(self.told, red=True)
