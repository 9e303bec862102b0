"""The built wheel beside upstream's `kfp-components`, and what importing the library brings along."""

import ast
import os
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import built_wheel
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from patience import seconds

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("ray", "kfp", "kubernetes", "mlflow", "kserve", "starlette", "torch")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(built_wheel.build(tmp_path_factory.mktemp("wheel"))) as opened:
        yield opened


def required_by(wheel: zipfile.ZipFile, extra: str = "") -> list[Requirement]:
    """What the library requires here, with one of its extras."""
    (metadata,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    lines = re.findall(r"^Requires-Dist: (.*)$", wheel.read(metadata).decode(), re.MULTILINE)
    return [one for one in map(Requirement, lines) if one.marker is None or one.marker.evaluate({"extra": extra})]


def test_the_distribution_has_a_name_of_its_own(wheel: zipfile.ZipFile) -> None:
    version = (ROOT / "VERSION").read_text().strip()
    folder = f"kfp_serving_components-{version}.dist-info"
    metadata = wheel.read(f"{folder}/METADATA").decode()
    assert f"\nName: kfp-serving-components\nVersion: {version}\n" in metadata
    assert "kfp-serving = kfp_components.cli:main" in wheel.read(f"{folder}/entry_points.txt").decode()


def test_what_is_said_of_each_component_is_in_it(wheel: zipfile.ZipFile) -> None:
    inside = {Path(name).stem for name in wheel.namelist() if name.startswith("kfp_components/ops/metadata/")}
    assert inside == {path.stem for path in (ROOT / "compiled" / "components").iterdir()}


def test_the_package_init_is_a_docstring_only(wheel: zipfile.ZipFile) -> None:
    body = ast.parse(wheel.read("kfp_components/__init__.py")).body
    assert len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str)


def test_upstreams_folders_are_not_touched(wheel: zipfile.ZipFile) -> None:
    inside = wheel.namelist()
    assert not [name for name in inside if name.startswith(("kfp_components/components", "kfp_components/pipelines"))]


def test_d21_pipelines_is_not_an_installed_name(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" not in name} == {"kfp_components"}


def test_d21_an_installed_wheel_compiles_outside_of_the_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    installed, compiled = tmp_path / "installed", tmp_path / "compiled"
    wheel.extractall(installed)

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=seconds(60))

    where = python("-c", "import kfp_components.workflows as found; print(found.__file__)").stdout.strip()
    assert Path(where).is_relative_to(installed), where
    wrote = python("-m", "kfp_components.workflows.compile", "--out", str(compiled))
    assert wrote.returncode == 0, wrote.stderr[-3000:]
    assert {path.relative_to(compiled): path.read_bytes() for path in compiled.rglob("*.yaml")} == {
        path.relative_to(ROOT / "compiled"): path.read_bytes() for path in (ROOT / "compiled").rglob("*.yaml")
    }
    assert python("-m", "kfp_components.workflows.compile", "--out", str(compiled), "--check").returncode == 0
    (compiled / "rollback.yaml").write_text("changed: true\n")
    assert "rollback.yaml" in python("-m", "kfp_components.workflows.compile", "--out", str(compiled), "--check").stderr


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
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=seconds(60)).stdout.strip()


def test_importing_the_library_imports_nothing_heavy() -> None:
    told = run_python(f"import sys, kfp_components.rollout; print([name for name in {HEAVY} if name in sys.modules])")
    assert told == "[]"


def test_d24_no_module_of_the_library_loads_kserve() -> None:
    code = """
import importlib, pkgutil, sys
import kfp_components
names = [module.name for module in pkgutil.walk_packages(kfp_components.__path__, "kfp_components.") if not module.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(len(names) > 30, "kserve" in sys.modules)
"""
    assert run_python(code) == "True False"


def test_d24_what_is_required_is_imported(wheel: zipfile.ZipFile) -> None:
    """Somewhere in the library, perhaps late; the extras kserve and dev are for the tests."""
    behind = {
        "alembic",
        "sqlalchemy",
        "pyopenssl",
    }  # mlflow-skinny loads the first two for a registry in a file, model-signing the last; neither says so
    sources = "\n".join(wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".py"))
    imported = {*re.findall(r"^\s*(?:import|from) (\w+)", sources, re.MULTILINE), *re.findall(r'find_spec\("(\w+)"\)', sources)}
    distributions = packages_distributions()
    modules = {canonicalize_name(name) for module in imported for name in distributions.get(module, [])}
    required = {canonicalize_name(one.name) for extra in ("", "local", "models", "mlflow", "s3", "signing") for one in required_by(wheel, extra)}
    assert len(required) > 15
    assert required - modules == behind


def test_d24_a_warning_is_an_error() -> None:
    with pytest.raises(UserWarning, match="seen"):
        warnings.warn("seen", stacklevel=1)
