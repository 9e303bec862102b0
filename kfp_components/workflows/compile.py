"""Write every component and pipeline as YAML. ``--check`` compares byte for byte and writes nothing.

python -m kfp_components.workflows.compile --out compiled [--check] [--steps 5,20,60]
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from pathlib import Path

from kfp import compiler

from kfp_components.workflows import promote_with_canary

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


def compile_all(target: Path, steps: tuple[int, ...]) -> None:
    """Write every file below ``target``."""
    (target / "components").mkdir(parents=True, exist_ok=True)
    for name in COMPONENTS:
        component = getattr(importlib.import_module(f"kfp_components.ops.{name}"), name)
        compiler.Compiler().compile(component, str(target / "components" / f"{name}.yaml"))
    for name, module in PIPELINES.items():
        pipeline = getattr(importlib.import_module(f"kfp_components.workflows.{module}"), name)
        compiler.Compiler().compile(pipeline, str(target / f"{name}.yaml"))
    compiler.Compiler().compile(promote_with_canary.build(steps), str(target / "promote_with_canary.yaml"))


def differences(target: Path, steps: tuple[int, ...]) -> list[str]:
    """What in ``target`` is not what the sources compile to."""
    with tempfile.TemporaryDirectory() as folder:
        compile_all(Path(folder), steps)
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
