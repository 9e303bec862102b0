"""What `kfp-serving compile --packages` writes, run as a pod would: on a Python that has only pip."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import built_wheel
import pytest
import yaml
from patience import seconds

from kfp_components.workflows import compile as compiling

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from many_models import NAMESPACE, RAYSERVICE, many


@pytest.mark.full
def test_a_component_installs_the_library_and_runs(tmp_path: Path) -> None:
    wheel = built_wheel.build(tmp_path)
    library = f"{compiling.LIBRARY}=={wheel.name.split('-')[1]}"
    compiling.compile_all(tmp_path / "compiled", (50,), compiling.AtStart((library,)))
    (executor,) = yaml.safe_load((tmp_path / "compiled/components/list_champions.yaml").read_text())["deploymentSpec"]["executors"].values()
    container: dict[str, Any] = executor["container"]
    assert container["image"] == "python:3.11-slim"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "plain")], check=True, timeout=seconds(60))
    artifact = {"artifacts": [{"name": "x", "uri": "", "metadata": {}}]}
    outputs: dict[str, Any] = {"outputFile": str(tmp_path / "out/executor_output.json"), "artifacts": {"summary": artifact, "metrics": artifact}}
    asked: dict[str, Any] = {"inputs": {"parameterValues": {"namespace": NAMESPACE, "rayservice": RAYSERVICE}}, "outputs": outputs}
    for name in ("summary", "metrics"):
        outputs["artifacts"][name] = {"artifacts": [{"name": name, "uri": str(tmp_path / "out" / name), "metadata": {}}]}
    line = [part.replace("{{$}}", json.dumps(asked)) for part in (*container["command"], *container["args"])]
    with many(tmp_path, 3) as world:
        path = f"{tmp_path / 'plain/bin'}:{os.environ['PATH']}"
        environment = {**os.environ, **world.environment, "PATH": path, "HOME": "/nowhere", "PIP_FIND_LINKS": str(tmp_path)}
        done = subprocess.run(line, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=seconds(380))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "out/summary").read_text().startswith("## Champions: 3\n")
    found = json.loads((tmp_path / "out/executor_output.json").read_text())["parameterValues"]["Output"]
    assert [one["rayservice"] for one in found] == 3 * [RAYSERVICE]
