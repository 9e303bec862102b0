"""What is said of each component, as kubeflow/pipelines-components has it: its validator's rules, and that no version says something else elsewhere."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from kfp_components.kube_api import schemas
from kfp_components.traffic.router_source import RAY_WITH_PIP_OPTIONS
from kfp_components.workflows.compile import COMPONENTS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "kfp_components" / "ops" / "metadata"
STABILITY = ("experimental", "alpha", "beta", "stable")
TAGS = {
    *("model_serving", "adoption", "model_registry", "provenance", "inference_service", "routing", "deployment", "smoke_test", "canary", "evaluation"),
    *("promotion", "rollback", "cleanup", "exit_handler", "steering", "revalidation"),
}


def stated() -> dict[str, str]:
    """Of what the components need: the version that this repository says elsewhere."""
    pinned = dict(re.findall(r'"([a-z-]+)==([\d.]+)"', (ROOT / "setup.py").read_text()))
    followed = dict(re.findall(r"(KubeRay|KServe) (\d+\.\d+)", schemas.__doc__ or ""))
    registry = re.search(r"github.com/kubeflow/hub v([\d.]+)", (ROOT / "tests" / "registries_go" / "go.mod").read_text())
    assert registry is not None
    return {
        "Pipelines": pinned["kfp"],
        "MLflow": pinned["mlflow-skinny"],
        "Model Registry": registry[1],
        "Ray": ".".join(map(str, RAY_WITH_PIP_OPTIONS)) + ".0",
        **{name: f"{number}.0" for name, number in followed.items()},
    }


def test_each_component_has_one() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(COMPONENTS)


@pytest.mark.parametrize("name", COMPONENTS)
def test_it_is_whole_and_right(name: str) -> None:
    found: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert list(found) == ["name", "stability", "dependencies", "tags", "lastVerified"], "in the order of the validator"
    assert found["name"] == name and found["stability"] in STABILITY
    needs = found["dependencies"]
    assert set(needs) <= {"kubeflow", "external_services"} and needs["kubeflow"][0]["name"] == "Pipelines"
    for need in (*needs["kubeflow"], *needs.get("external_services", ())):
        assert set(need) == {"name", "version"} and need["version"] == f">={stated()[need['name']]}", need
        assert re.fullmatch(r">=\d+\.\d+\.\d+", need["version"])
    services = {need["name"] for kind in needs.values() for need in kind}
    assert ("MLflow" in services) == ("Model Registry" in services), "either registry does"
    assert found["tags"][0] == "model_serving" and set(found["tags"]) <= TAGS and len(set(found["tags"])) == len(found["tags"]) > 1
    assert isinstance(found["lastVerified"], datetime), "RFC 3339 with a time"
    assert found["lastVerified"] <= datetime.now(UTC)


def test_no_tag_is_of_no_component() -> None:
    assert {tag for path in FOLDER.iterdir() for tag in yaml.safe_load(path.read_text())["tags"]} == TAGS
