"""The built wheel beside upstream's `kfp-components`, and what importing the library costs."""

import ast
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("ray", "kfp", "kubernetes", "mlflow", "kserve", "starlette", "torch")
IMPORT_LIMIT_S = 0.5


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, so that no build folder is left in the checkout; offline, with the setuptools that is installed."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    source.mkdir()
    for name in ("kfp_components", "pipelines"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "VERSION", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(place),
        str(source),
    ]
    built = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr[-3000:]
    (found,) = place.glob("*.whl")
    return zipfile.ZipFile(found)


def test_the_distribution_has_a_name_of_its_own(wheel: zipfile.ZipFile) -> None:
    version = (ROOT / "VERSION").read_text().strip()
    folder = f"kfp_serving_components-{version}.dist-info"
    metadata = wheel.read(f"{folder}/METADATA").decode()
    assert f"\nName: kfp-serving-components\nVersion: {version}\n" in metadata
    assert "kfp-serving = kfp_components.cli:main" in wheel.read(f"{folder}/entry_points.txt").decode()


def test_the_package_init_is_a_docstring_only(wheel: zipfile.ZipFile) -> None:
    body = ast.parse(wheel.read("kfp_components/__init__.py")).body
    assert len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str)


def test_upstreams_folders_are_not_touched(wheel: zipfile.ZipFile) -> None:
    inside = wheel.namelist()
    assert not [name for name in inside if name.startswith(("kfp_components/components", "kfp_components/pipelines"))]
    assert {name.split("/")[0] for name in inside if ".dist-info/" not in name} == {"kfp_components", "pipelines"}


def test_the_wheel_is_whole(wheel: zipfile.ZipFile) -> None:
    """Every module, and every data file that a module reads; nothing compiled, no tests."""
    inside = set(wheel.namelist())
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "kfp_components").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert wanted <= inside, f"not in the wheel: {sorted(wanted - inside)}"
    assert "kfp_components/py.typed" in inside
    assert not [name for name in inside if name.endswith(".pyc") or name.startswith("tests")]


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60).stdout.strip()


def test_importing_the_library_imports_nothing_heavy() -> None:
    told = run_python(f"import sys, kfp_components.rollout; print([name for name in {HEAVY} if name in sys.modules])")
    assert told == "[]"


def test_importing_the_library_is_fast(capsys: pytest.CaptureFixture[str]) -> None:
    """Best of three, less an empty interpreter's start. Processor time decides, so that a busy machine does not; the clock's is printed too."""
    clock = "import resource; u = resource.getrusage(resource.RUSAGE_SELF); print(u.ru_utime + u.ru_stime)"

    def measured(code: str) -> tuple[float, float]:
        """Seconds of the processor and of the clock."""
        runs = []
        for _ in range(3):
            began = time.monotonic()
            runs.append((float(run_python(code)), time.monotonic() - began))
        return min(cpu for cpu, _ in runs), min(wall for _, wall in runs)

    empty, whole = measured(clock), measured(f"import kfp_components.rollout; {clock}")
    cpu_s, wall_s = whole[0] - empty[0], whole[1] - empty[1]
    with capsys.disabled():
        print(f"\nimport kfp_components.rollout: {cpu_s:.3f} s of processor time, {wall_s:.3f} s by the clock")
    assert cpu_s < IMPORT_LIMIT_S, f"it takes {cpu_s:.3f} s; look at `python -X importtime -c 'import kfp_components.rollout'`"
