"""Builds Kubeflow's Model Registry from a pinned Go module, once for each content of the pins: `python tests/registries_go/build_model_registry.py`.

The program goes into a folder of the user's cache. Minutes of work the first time; one that is there already is used as it is.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


class NotPossible(Exception):
    """Go or its modules cannot be had here; the message says which."""


def program() -> Path:
    """Where the program of these pins is or will be."""
    key = hashlib.sha256()
    for path in (HERE / "go.mod", HERE / "go.sum", Path(__file__)):
        key.update(path.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "kfp-serving-tests" / key.hexdigest()[:16] / "model-registry"


def build() -> Path:
    """The program, built when it is not there; one process builds, others wait. Raises `NotPossible`, or `subprocess.CalledProcessError` when the build
    itself fails, and leaves no program then.

    It is built less its ``catalog`` command, a nested module that module proxies do not serve: the module of go.sum's hash is copied, that command and
    its requirement are taken out, and the rest is built as it is.
    """
    target = program()
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _build(target)
    return target


def _build(target: Path) -> None:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
    if not shutil.which("go"):
        raise NotPossible("Kubeflow's Model Registry is not built, and Go is not installed")
    try:
        module = json.loads(_go(HERE, environment, "mod", "download", "-json", "github.com/kubeflow/hub"))
    except subprocess.CalledProcessError as error:
        raise NotPossible(f"Kubeflow's Model Registry is not built, and its module cannot be had: {error.stdout.strip()[-300:]}") from error
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        shutil.copytree(module["Dir"], source, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns("clients", "catalog.go"))
        openapi, catalog = "github.com/kubeflow/hub/pkg/openapi", "github.com/kubeflow/hub/catalog/pkg/openapi"
        edits = [f"-replace={openapi}=github.com/kubeflow/model-registry/pkg/openapi@{module['Version']}"]
        _go(source, environment, "mod", "edit", *edits, f"-droprequire={catalog}", f"-dropreplace={catalog}")
        with (source / "go.sum").open("a", encoding="utf-8") as sums:
            sums.write((HERE / "go.sum").read_text(encoding="utf-8"))
        made = target.with_suffix(".new")
        _go(source, environment, "build", "-trimpath", "-ldflags", "-s -w", "-o", str(made), ".")
        made.rename(target)


def _go(folder: Path, environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(["go", *arguments], cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


if __name__ == "__main__":
    print(build())
