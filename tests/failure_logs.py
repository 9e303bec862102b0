"""To read a red run: what servers and load generators logged during a failed test is kept in ``.test-logs/`` and its end printed with the failure.

A fixture that starts something adds its logs to `SOURCES`. The ten slowest tests, skips and their reasons are pytest's own (``addopts``).
"""

import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

LINES = 30
"""Printed of each log; the whole is in the folder."""

FOLDER = ".test-logs"
SOURCES: list[Callable[[], Iterable[Path]]] = []
"""Each gives the log files that there are now."""

BEFORE = pytest.StashKey[dict[Path, int]]()


def pytest_sessionstart(session: pytest.Session) -> None:
    if not session.config.getoption("--second-look-result"):
        shutil.rmtree(session.config.rootpath / FOLDER, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[BEFORE] = {path: path.stat().st_size for path in _logs()}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: pytest.TestReport = yield
    if report.failed and BEFORE in item.stash:
        folder = item.config.rootpath / FOLDER / re.sub(r"[^\w.-]+", "-", item.nodeid.split("/")[-1])
        keep(report, item.stash[BEFORE], folder)
    return report


def keep(report: pytest.TestReport, before: dict[Path, int], folder: Path) -> None:
    """Copy what was logged since ``before`` to ``folder``, and add the end of each log to the report."""
    for path in _logs():
        with path.open("rb") as log:
            log.seek(min(before.get(path, 0), path.stat().st_size))
            text = log.read().decode(errors="replace")
        if not text.strip():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / path.name
        kept.write_text(text)
        lines = text.splitlines()
        report.sections.append((f"log of {path.stem}: last {min(LINES, len(lines))} of {len(lines)} lines, all in {kept}", "\n".join(lines[-LINES:])))


def _logs() -> list[Path]:
    return sorted({path for source in SOURCES for path in source() if path.is_file()})
