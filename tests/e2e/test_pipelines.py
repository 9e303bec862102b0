"""The compiled pipelines, run by kfp.local with the same components as in a cluster, against the embedded one."""

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from world import NAMESPACE, RAYSERVICE, TINY, clean, record_of, snapshot, tiny

from kfp_components.cluster.kubernetes import KubernetesCluster

pytestmark = [pytest.mark.kfp, pytest.mark.timeout(700)]
ROOT = Path(__file__).parents[2]

RUNNER = """
import json, sys
from kfp import components, local
values = json.loads(sys.argv[2])
local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[3])
components.load_component_from_file(sys.argv[1])(**values)
"""


@pytest.fixture(autouse=True)
def _clean(cluster: KubernetesCluster) -> Iterator[None]:
    yield
    clean(cluster)


def run_pipeline(name: str, values: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    import json

    script = folder / "run.py"
    script.write_text(textwrap.dedent(RUNNER))
    command = [sys.executable, str(script), str(ROOT / "compiled" / f"{name}.yaml"), json.dumps(values), str(folder / "outputs")]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=folder, env={**os.environ, "PYTHONWARNINGS": "ignore"})


def values(model: str, version: str, args: dict[str, Any] | None = None) -> dict[str, Any]:
    options = tiny(model, version, args=args, lease_s=30.0).options.model_dump(mode="json", exclude_defaults=True)
    return {
        "model": model,
        "version": version,
        "uri": f"s3://models/{model}/{version}",
        "namespace": NAMESPACE,
        "rayservice": RAYSERVICE,
        "import_path": TINY,
        "options": options,
    }


def test_deploy_then_promote_then_catch_a_bad_one(cluster: KubernetesCluster, users: Callable[..., Any], tmp_path: Path) -> None:
    model = "piped"
    done = run_pipeline("deploy_model", values(model, "v1"), tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert record_of(cluster, model)["phase"] == "promoted"
    with users(model, 20.0, 900.0) as sending:
        done = run_pipeline("promote_with_canary", {**values(model, "v2"), "steps": [20, 50]}, tmp_path)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert record_of(cluster, model)["phase"] == "promoted"
        assert list((tmp_path / "outputs").rglob("report*")), "the steps leave their report as an artifact"
        before = snapshot(cluster)
        done = run_pipeline("promote_with_canary", {**values(model, "v3", {"error_rate": 0.3}), "steps": [20, 50]}, tmp_path)
        time.sleep(1)
        tally = sending.stop()
    assert done.returncode != 0, "a bad version makes a red run"
    record = record_of(cluster, model)
    assert record["phase"] == "rolled_back"
    assert record["failure"]["error"] == "CanaryFailed"
    assert snapshot(cluster) == before
    assert all(kind.startswith("v3 ") for kind in tally.failed), tally


def test_a_refused_run_touches_nothing(cluster: KubernetesCluster, tmp_path: Path) -> None:
    before = snapshot(cluster)
    wrong = {**values("refused", "v1"), "options": {"leases": 3}}
    done = run_pipeline("deploy_model", wrong, tmp_path)
    assert done.returncode != 0
    assert "options.leases is not a known key; did you mean lease_s?" in done.stdout + done.stderr
    assert snapshot(cluster) == before


def test_a_step_costs_little_more_than_nothing(tmp_path: Path) -> None:
    """A component that only imports the library, against KFP's own no-op, in one process each; the ratio of three runs is printed."""
    script = tmp_path / "noop.py"
    script.write_text(
        textwrap.dedent("""
        import sys, time
        from kfp import dsl, local
        from kfp_components.ops.image import IMAGE
        @dsl.component(base_image=IMAGE, install_kfp_package=False)
        def ours() -> str:
            from kfp_components import rollout
            return rollout.__name__
        @dsl.component(base_image=IMAGE, install_kfp_package=False)
        def theirs() -> str:
            return "nothing"
        local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1])
        spent = {}
        for _ in range(3):
            for name, component in (("ours", ours), ("theirs", theirs)):
                began = time.perf_counter()
                component()
                spent.setdefault(name, []).append(time.perf_counter() - began)
        print("COST", min(spent["ours"]) - min(spent["theirs"]))
        """)
    )
    done = subprocess.run([sys.executable, str(script), str(tmp_path / "out")], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    cost_s = float(done.stdout.split("COST ")[-1].split()[0])
    print(f"our no-op costs {cost_s:.2f} s more than KFP's")
    assert cost_s < 1.0
