"""The compiled pipelines, run by kfp.local with the same components as in a cluster, against the embedded one."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from patience import seconds
from world import NAMESPACE, RAYSERVICE, TINY, first, record_of, snapshot, tiny

from kfp_components import registry
from kfp_components.cluster.kubernetes import KubernetesCluster

pytestmark = pytest.mark.usefixtures("forget")
ROOT = Path(__file__).parents[2]

RUNNER = """
import json, sys
from kfp import components, local
values = json.loads(sys.argv[2])
local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[3])
components.load_component_from_file(sys.argv[1])(**values)
"""


def run_pipeline(name: str, values: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    script = folder / "run.py"
    script.write_text(textwrap.dedent(RUNNER))
    command = [sys.executable, str(script), str(ROOT / "compiled" / f"{name}.yaml"), json.dumps(values), str(folder / "outputs")]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds(280), cwd=folder)


def outputs(folder: Path) -> dict[tuple[str, str], str]:
    """What the only run in a folder left as artifacts: of which step, and by which name."""
    return {(path.parent.name, path.name): path.read_text() for path in (folder / "outputs").rglob("*") if path.is_file()}


def values(model: str, version: str, args: dict[str, Any] | None = None) -> dict[str, Any]:
    options = tiny(model, version, args=args).options.model_dump(mode="json", exclude_defaults=True)
    return {
        "model": model,
        "version": version,
        "uri": f"s3://models/{model}/{version}",
        "namespace": NAMESPACE,
        "rayservice": RAYSERVICE,
        "import_path": TINY,
        "options": options,
    }


@pytest.mark.core
def test_the_pipeline_promotes_a_good_version(cluster: KubernetesCluster, users: Callable[..., Any], tmp_path: Path) -> None:
    model = "canaried"
    first(cluster, tiny(model, "v1"))
    with users(model) as sending:
        done = run_pipeline("promote_with_canary", {**values(model, "v2"), "steps": [20, 50]}, tmp_path)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        tally = sending.stop()
    assert record_of(cluster, model)["phase"] == "promoted"
    left = outputs(tmp_path)
    assert (
        {step for step, name in left if name == "report"}
        == {step for step, name in left if name == "summary"}
        >= {"deploy-rayservice", "canary-step-2"}
    )
    assert (
        "20 % of the requests go to v2" in left["canary-step", "summary"]
        and "- **Users get**: v2, with every request" in left["finish-release", "summary"]
    )
    described = json.loads(left["register-model", "registered_model"])
    assert (described["uri"], described["aliases"]) == (f"s3://models/{model}/v2", "candidate") and described["kfp_run_id"], described
    assert not tally.failed and tally.answered["v2"] > 0, tally
    registered = registry.connect().find(f"{NAMESPACE}.{model}", "v2")
    assert registered is not None and registered.properties["outcome"] == "promoted" and registered.properties["kfp_run_id"]
    assert Path(registered.properties["report_uri"].removeprefix("file://")).is_file(), registered.properties


def test_deploy_then_promote_then_catch_a_bad_one(cluster: KubernetesCluster, users: Callable[..., Any], tmp_path: Path) -> None:
    model = "piped"
    done = run_pipeline("deploy_model", values(model, "v1"), tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert record_of(cluster, model)["phase"] == "promoted"
    with users(model) as sending:
        done = run_pipeline("promote_with_canary", {**values(model, "v2"), "steps": [20, 50]}, tmp_path)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert record_of(cluster, model)["phase"] == "promoted"
        before = snapshot(cluster)
        done = run_pipeline("promote_with_canary", {**values(model, "v3", {"fail_every": 3}), "steps": [20, 50]}, tmp_path)
        sending.wait_for_answers(20)
        tally = sending.stop()
    assert done.returncode != 0, "a bad version makes a red run"
    record = record_of(cluster, model)
    assert record["phase"] == "rolled_back"
    assert record["failure"]["error"] == "CanaryFailed"
    last = max((tmp_path / "outputs").rglob("finish-release/summary"), key=lambda path: path.stat().st_mtime_ns).read_text()
    assert f"## {model} v2 to v3: rolled back" in last and "- **Users get**: v2, with every request" in last, last
    assert snapshot(cluster) == before
    assert all(kind.startswith("v3 ") for kind in tally.failed), tally


@pytest.mark.core
def test_a_refused_run_touches_nothing(cluster: KubernetesCluster, tmp_path: Path) -> None:
    before = snapshot(cluster)
    wrong = {**values("refused", "v1"), "options": {"leases": 3}}
    done = run_pipeline("deploy_model", wrong, tmp_path)
    assert done.returncode != 0
    assert "options.leases is not a known key; did you mean lease_s?" in done.stdout + done.stderr
    assert snapshot(cluster) == before
