"""What is stored of the notebooks: no outputs, words between the code, and nothing that is valid in one place only."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_CODE_IN_A_ROW = 2


def test_each_notebook_is_run() -> None:
    executed = re.findall(r'run\("(\w+)"\)', (ROOT / "tests/e2e/test_notebooks.py").read_text())
    assert NOTEBOOKS and sorted(executed) == [path.stem for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_without_outputs_and_teaches(path: Path) -> None:
    book = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    kinds = "".join(cell.cell_type[0] for cell in book.cells)
    assert kinds.startswith("mc") and "c" * (MOST_CODE_IN_A_ROW + 1) not in kinds and kinds.count("m") >= 0.45 * len(kinds), kinds
    assert book.metadata.kernelspec.name == "python3"
    assert [cell.id for cell in book.cells] == [f"cell-{number:02}" for number in range(1, len(kinds) + 1)]
    assert path.stat().st_size < 30_000
