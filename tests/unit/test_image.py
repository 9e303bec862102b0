"""What the component image installs: a part of the one lock, all that a component pod imports, and nothing beside."""

import json
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import Distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from patience import seconds

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
"""Not sys.path: where a test of this process has imported ray, packages that ray brings along come first there."""
EXTRAS = ("mlflow", "s3", "signing", "quality")


def locked(path: Path) -> dict[tuple[str, str], set[str]]:
    """(name, version) -> hashes, of what ``path`` installs on this machine."""
    found: dict[tuple[str, str], set[str]] = {}
    for line in re.sub(r"\\\n", " ", path.read_text()).splitlines():
        if line and not line.lstrip().startswith("#"):
            requirement = Requirement(re.sub(r"\s--hash=\S+", "", line))
            if requirement.marker is None or requirement.marker.evaluate():
                (version,) = requirement.specifier
                found[canonicalize_name(requirement.name), version.version] = set(re.findall(r"--hash=(\S+)", line))
    return found


def closure(requirements: list[str]) -> dict[str, str]:
    """name -> version, of ``requirements`` and all that they require in turn, as installed here."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(line), "") for line in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        installed = next(iter(Distribution.discover(name=requirement.name, path=INSTALLED)))
        assert installed.version in requirement.specifier, f"{requirement}: {installed.version} is installed"
        name = canonicalize_name(requirement.name)
        found[name] = installed.version
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(Requirement(line), wanted) for line in installed.requires or []]
    return found


@pytest.fixture(scope="module")
def image() -> dict[tuple[str, str], set[str]]:
    return locked(ROOT / "deploy" / "requirements.image.lock")


@pytest.fixture(scope="module")
def required() -> list[str]:
    """By the library with the image's extras: what setup.py says now, not what it said when it was installed."""
    code = """
import json, sys, setuptools
sys.argv = ["setup.py"]
setuptools.setup = lambda **told: print(json.dumps([*told["install_requires"], *(one for extra in EXTRAS for one in told["extras_require"][extra])]))
exec(compile(open("setup.py").read(), "setup.py", "exec"), {"__file__": "setup.py", "__name__": "__main__"})
"""
    done = subprocess.run(
        [sys.executable, "-c", f"EXTRAS = {EXTRAS!r}{code}"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=seconds(60)
    )
    told: list[str] = json.loads(done.stdout)
    return told


def test_d21_the_image_installs_a_part_of_the_one_lock(image: dict[tuple[str, str], set[str]]) -> None:
    whole = locked(ROOT / "requirements.lock")
    assert {entry: hashes for entry, hashes in image.items() if whole.get(entry) != hashes} == {}
    assert all(image.values())


def test_d21_the_image_installs_exactly_what_a_pod_requires(image: dict[tuple[str, str], set[str]], required: list[str]) -> None:
    assert dict(image.keys()) == closure(required), "run `make lock` and commit"


def test_d21_the_image_has_no_ray_and_no_test_tools(image: dict[tuple[str, str], set[str]]) -> None:
    names = {name for name, _ in image}
    assert {"kfp", "kubernetes", "mlflow-skinny", "httpx"} <= names
    assert not names & {"ray", "pytest", "hypothesis", "mypy", "ruff", "kserve", "import-linter", "aiohttp", "tokenizers"}
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert "COPY deploy/requirements.image.lock requirements.lock\n" in dockerfile
    assert re.findall(r"pip install .*", dockerfile.split("\nFROM ")[1]) == [
        "pip install --no-cache-dir --require-hashes -r requirements.lock",
        "pip install --no-cache-dir --no-deps . && rm -rf /src",
    ]


def test_d21_the_components_work_with_what_the_image_has(image: dict[tuple[str, str], set[str]]) -> None:
    """Every module that a component reaches, early or late, is imported where nothing else can be."""
    inside = {name for name, _ in image} | {"kfp-serving-components"}
    absent = {module for module, names in packages_distributions().items() if not inside & {canonicalize_name(name) for name in names}}
    assert {"ray", "pytest", "aiohttp"} <= absent
    code = f"""
import importlib, pkgutil, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {sorted(absent)!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
import kfp_components
inside_ray = ("kfp_components.router", "kfp_components.models", "kfp_components.local")
for module in pkgutil.walk_packages(kfp_components.__path__, "kfp_components."):
    if not module.name.startswith(inside_ray):
        importlib.import_module(module.name)
import httpx, kubernetes.client, mlflow.tracking
mlflow.tracking.MlflowClient(tracking_uri="http://127.0.0.1:9", registry_uri="http://127.0.0.1:9")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=seconds(60))
    assert done.returncode == 0, done.stderr[-3000:]
