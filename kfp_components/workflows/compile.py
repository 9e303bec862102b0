"""Write every component and pipeline as YAML. ``--check`` compares byte for byte and writes nothing.

python -m kfp_components.workflows.compile --out compiled [--check] [--steps 5,20,60]
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from kfp import compiler

from kfp_components import errors, uris
from kfp_components.workflows import promote_with_canary

LIBRARY = "kfp-serving-components"
INSTALL = """
[ -n "$HOME" ] && [ -w "$HOME" ] || export HOME="$(mktemp -d)"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
python3 -m pip install --quiet --no-warn-script-location {arguments} && exec "$0" "$@"
"""
"""What a pod that installs does before the component's own command. A user who owns nothing, as many clusters have it, gets a home to install into,
which KFP's own ``packages_to_install`` does not give."""

COMPONENTS = (
    "adopt_model",
    "register_model",
    "create_inference_service",
    "create_alias",
    "deploy_rayservice",
    "smoke_inference",
    "shift_traffic",
    "judge_canary",
    "canary_step",
    "promote_model",
    "roll_back",
    "tidy_release",
    "finish_release",
    "abort_release",
    "pause_release",
    "resume_release",
    "approve_release",
    "revalidate_model",
    "list_champions",
    "collect_revalidations",
)
PIPELINES = {"deploy_model": "deploy_model", "rollback": "rollback", "revalidate": "revalidate", "revalidate_namespace": "revalidate"}
"""Pipeline -> its module."""


@dataclass(frozen=True)
class AtStart:
    """What a component's pod installs by pip when it starts, on an image that has only Python and pip. Raises `RequestInvalid`."""

    packages: tuple[str, ...]
    """Requirements; one of them is this library, in this version, because a component's body calls its functions."""
    index_urls: tuple[str, ...] = ()
    base_image: str = "python:3.11-slim"

    def __post_init__(self) -> None:
        wanted = f"{LIBRARY}=={version(LIBRARY)}"
        named = [("--packages", uri) for one in self.packages for uri in uris.in_text(one)] + [("--index-url", one) for one in self.index_urls]
        for option, uri in named:
            if found := uris.credential_in(uri):
                raise errors.RequestInvalid(
                    f"{option} {uris.shown(uri)}: there is {found}, and what is compiled lies where many read it; put it into pip.conf of an image "
                    "and name that by --base-image, or use an index that needs none"
                )
        if wrong := [one for one in self.packages if not re.match(r"[A-Za-z0-9]", one)]:
            raise errors.RequestInvalid(f"--packages {wrong[0]!r}: it is no requirement; expected one such as {wanted}")
        if wrong := [one for one in self.index_urls if urlsplit(one).scheme not in ("http", "https") or not urlsplit(one).hostname]:
            raise errors.RequestInvalid(f"--index-url {wrong[0]!r}: expected https://host/path of a package index")
        if not any(map(_is_this_library, self.packages)):
            raise errors.RequestInvalid(f"--packages {', '.join(self.packages)}: none of them is {wanted}, which the components need; add it")

    @property
    def command(self) -> list[str]:
        """What comes before the component's own command. An index over plain http is trusted, as it was named."""
        options = [
            f"--index-url {shlex.quote(url)}" if not number else f"--extra-index-url {shlex.quote(url)}" for number, url in enumerate(self.index_urls)
        ]
        options += [f"--trusted-host {shlex.quote(urlsplit(url).netloc)}" for url in self.index_urls if urlsplit(url).scheme == "http"]
        return ["sh", "-c", INSTALL.format(arguments=" ".join([*options, *map(shlex.quote, self.packages)]))]


def _is_this_library(package: str) -> bool:
    """Whether a requirement, or the URI of a wheel, is this library in this version; one from a repository is believed to be."""
    name = re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", package, maxsplit=1)[0]).lower()
    if name == LIBRARY and "==" in package:
        return package.partition("==")[2].partition(";")[0].strip() == version(LIBRARY)
    return (name == LIBRARY and "@" in package) or f"/{LIBRARY.replace('-', '_')}-{version(LIBRARY)}-" in package


def compile_all(target: Path, steps: tuple[int, ...], at_start: AtStart | None = None) -> None:
    """Write every file below ``target``; with ``at_start`` for an image without this library."""
    (target / "components").mkdir(parents=True, exist_ok=True)
    for name in COMPONENTS:
        component = getattr(importlib.import_module(f"kfp_components.ops.{name}"), name)
        _write(component, target / "components" / f"{name}.yaml", at_start)
    for name, module in PIPELINES.items():
        pipeline = getattr(importlib.import_module(f"kfp_components.workflows.{module}"), name)
        _write(pipeline, target / f"{name}.yaml", at_start)
    _write(promote_with_canary.build(steps), target / "promote_with_canary.yaml", at_start)


def _write(what: Any, path: Path, at_start: AtStart | None) -> None:
    compiler.Compiler().compile(what, str(path))
    if at_start is None:
        return
    text = path.read_text(encoding="utf-8")
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    found = yaml.safe_load(text)
    for executor in found["deploymentSpec"]["executors"].values():
        container = executor["container"]
        container["image"], container["command"] = at_start.base_image, [*at_start.command, *container["command"]]
    path.write_text(head + yaml.safe_dump(found, sort_keys=True), encoding="utf-8")


def differences(target: Path, steps: tuple[int, ...], at_start: AtStart | None = None) -> list[str]:
    """What in ``target`` is not what the sources compile to."""
    with tempfile.TemporaryDirectory() as folder:
        compile_all(Path(folder), steps, at_start)
        fresh = {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*.yaml")}
    there = {path.relative_to(target): path.read_bytes() for path in target.rglob("*.yaml")}
    return [str(path) for path in sorted({*fresh, *there}) if fresh.get(path) != there.get(path)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with what is there instead of writing")
    parser.add_argument("--steps", default=",".join(map(str, promote_with_canary.DEFAULT_STEPS)), help="one canary box for each")
    parser.add_argument("--out", "--output", type=Path, default=Path("compiled"), metavar="DIR", help="default: %(default)s")
    options = parser.parse_args()
    steps = tuple(int(step) for step in options.steps.split(","))
    if options.check:
        different = differences(options.out, steps)
        if different:
            raise SystemExit(f"{options.out}: {', '.join(different)} differ from the sources; compile again without --check and commit")
        print(f"{options.out}: all {len(COMPONENTS) + len(PIPELINES) + 1} files are what the sources compile to")
        return
    compile_all(options.out, steps)
    print(f"wrote {len(COMPONENTS) + len(PIPELINES) + 1} files to {options.out}")


if __name__ == "__main__":
    main()
