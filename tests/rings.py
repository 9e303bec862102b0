"""Each test belongs to one ring, by its folder or by a marker of its own; an outer ring holds the inner ones.

======  ==============================  ===============================================================================================
ring    run by                          what
======  ==============================  ===============================================================================================
fast    ``make test-fast``              unit, contract, compiled, local, faults: no Ray, two processes; the default of those folders
core    ``make test``, CI               fast, and the few end-to-end tests on real Ray that carry the marker, in one process
full    ``make test-all``               core, and everything else end to end; the default of ``tests/e2e``
======  ==============================  ===============================================================================================
"""

from pathlib import Path

import patience
import pytest

RINGS = {
    "fast": "runs in make test-fast, make test and make test-all",
    "core": "runs in make test and make test-all",
    "full": "runs in make test-all",
}
DEFAULTS = {"unit": "fast", "contract": "fast", "compiled": "fast", "local": "fast", "faults": "fast", "e2e": "full"}
LIMITS_S = {"fast": 120.0, "core": 400.0, "full": 400.0}
"""Of one test on an idle machine, against hanging for ever; times the patience of this run."""


def pytest_configure(config: pytest.Config) -> None:
    for ring, told in RINGS.items():
        config.addinivalue_line("markers", f"{ring}: {told}")


def pytest_report_header() -> str:
    return str(patience.calibrated())


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        own = ring_of(item)
        item.add_marker(own)
        item.add_marker(pytest.mark.timeout(patience.seconds(LIMITS_S[own])))


def ring_of(item: pytest.Item) -> str:
    """The ring of a test. Raises `pytest.UsageError` when it has none or two."""
    marked = {mark.name for mark in item.iter_markers() if mark.name in RINGS}
    folder = Path(item.path).relative_to(Path(__file__).parent).parts[0]
    if len(marked) > 1 or not (marked or folder in DEFAULTS):
        raise pytest.UsageError(f"{item.nodeid}: rings {sorted(marked)} in folder {folder!r}; a test has one ring, of {', '.join(RINGS)}")
    return marked.pop() if marked else DEFAULTS[folder]
