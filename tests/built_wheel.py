"""The library's wheel, as it would be published."""

import shutil
import subprocess
import sys
from pathlib import Path

from patience import seconds

ROOT = Path(__file__).resolve().parents[1]


def build(place: Path) -> Path:
    """The wheel in ``place``, built from a copy, so that no build folder is left in the checkout; offline, with the setuptools that is installed."""
    source = place / "source"
    source.mkdir()
    for name in ("kfp_components", "pipelines"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "VERSION", "README.md"):
        shutil.copy(ROOT / name, source)
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(place)]
    built = subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], capture_output=True, text=True, timeout=seconds(120))
    assert built.returncode == 0, built.stderr[-3000:]
    (found,) = place.glob("*.whl")
    return found
