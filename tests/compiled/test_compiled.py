"""compiled/ is what the sources compile to, byte for byte, and what the sources promise holds in it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from patience import seconds

ROOT = Path(__file__).parents[2]
COMPILED = ROOT / "compiled"
COMPONENTS = sorted((COMPILED / "components").glob("*.yaml"))
PIPELINES = sorted(COMPILED.glob("*.yaml"))
KINDS: dict[str, Any] = {"String": "x", "Dict": {}, "Float": 10.0}
"""A value for an input that has no default."""
TWICE = ("collect-revalidations", "collect-revalidations-2")


def load(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def test_every_byte_is_as_compiled() -> None:
    done = subprocess.run([sys.executable, "-m", "pipelines.compile", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=seconds(60))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_changed_file_is_found(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.compile", "--output", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=seconds(60))
    (tmp_path / "rollback.yaml").write_text("changed: true\n")
    done = subprocess.run([*command, "--check"], cwd=ROOT, capture_output=True, text=True, timeout=seconds(60))
    assert done.returncode != 0
    assert "rollback.yaml" in done.stderr


def test_d21_the_folder_pipelines_only_re_exports() -> None:
    code = """
import importlib
for name in ("compile", "deploy_model", "promote_with_canary", "rollback", "steps"):
    here, package = importlib.import_module(f"pipelines.{name}"), importlib.import_module(f"kfp_components.workflows.{name}")
    print(name, bool(here.__all__) and all(getattr(here, each) is getattr(package, each) for each in here.__all__))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=seconds(60))
    assert done.stdout.split()[1::2] == ["True"] * 5, done.stdout + done.stderr


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda path: path.stem)
def test_one_name_from_file_to_ui(path: Path) -> None:
    from kfp import components

    (document,) = load(path)
    assert document["pipelineInfo"]["name"] == path.stem.replace("_", "-")
    assert components.load_component_from_file(str(path)).component_spec.description
    source = (ROOT / "kfp_components" / "ops" / f"{path.stem}.py").read_text()
    body = source.split('"""\n', 3)[-1]
    assert len([line for line in body.splitlines() if line.strip()]) <= 16, "a component body is 5 to 15 lines"


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_nothing_that_touches_a_cluster_is_cached(path: Path) -> None:
    (document,) = load(path)
    dags = [document["root"]["dag"], *(part["dag"] for part in document["components"].values() if "dag" in part)]
    tasks = {name: task for dag in dags for name, task in dag["tasks"].items()}
    leaves = {name: task for name, task in tasks.items() if not name.startswith("exit-handler")}
    assert leaves
    for name, task in leaves.items():
        assert not (task.get("cachingOptions") or {}).get("enableCache"), name


def test_the_run_form_is_typed_and_short() -> None:
    (document,) = load(COMPILED / "promote_with_canary.yaml")
    form = document["root"]["inputDefinitions"]["parameters"]
    kinds = {name: field["parameterType"] for name, field in form.items()}
    assert kinds == {
        **dict.fromkeys(("model", "version", "uri", "namespace", "rayservice", "import_path"), "STRING"),
        "steps": "LIST",
        "options": "STRUCT",
    }


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_every_field_of_a_form_is_described_and_what_is_asked_for_is_said(path: Path) -> None:
    (document,) = load(path)
    form = document["root"]["inputDefinitions"]["parameters"]
    told = document["pipelineInfo"]["description"]
    for name, field in form.items():
        assert len(field["description"]) > 10, name
        assert re.search(rf"\b{name}\b", told), f"the description says nothing of {name}"
    assert "Fill in" in told


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda path: path.stem)
def test_every_step_leaves_a_page_a_summary_and_numbers(path: Path) -> None:
    (document,) = load(path)
    (part,) = document["components"].values()
    found = {name: output["artifactType"]["schemaTitle"] for name, output in part["outputDefinitions"]["artifacts"].items()}
    expected = {"report": "system.HTML", "summary": "system.Markdown", "metrics": "system.Metrics"}
    if path.stem == "register_model":
        expected["registered_model"] = "system.Model"
    if path.stem == "list_champions":
        del expected["report"]
    assert found == expected
    assert all(field.get("description") for field in part["inputDefinitions"]["parameters"].values())


def test_the_pages_of_a_red_run_are_those_of_green_steps() -> None:
    """KFP's launcher keeps no output of a step that failed."""
    for name in ("deploy_model", "promote_with_canary"):
        (document,) = load(COMPILED / f"{name}.yaml")
        assert document["root"]["dag"]["tasks"]["finish-release"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    for name, green, red in (("revalidate", "revalidate-model", "collect-revalidations"), ("revalidate_namespace", *TWICE)):
        (document,) = load(COMPILED / f"{name}.yaml")
        tasks = document["root"]["dag"]["tasks"]
        assert tasks[green]["inputs"]["parameters"]["red"] == {"runtimeValue": {"constant": False}}
        assert "red" not in tasks[red]["inputs"]["parameters"] and tasks[red]["dependentTasks"] == [green]
        assert tasks[red]["taskInfo"]["name"] == "verdict"


@pytest.mark.parametrize("path", [*COMPONENTS, *PIPELINES], ids=lambda path: path.stem)
def test_what_is_compiled_is_a_step_of_anybodys_pipeline(path: Path, tmp_path: Path) -> None:
    from kfp import compiler, components, dsl

    loaded = components.load_component_from_file(str(path))
    given = {name: KINDS[field.type] for name, field in (loaded.component_spec.inputs or {}).items() if not field.optional}

    @dsl.pipeline(name="anybody")
    def anybody() -> None:
        loaded(**given)

    compiler.Compiler().compile(anybody, str(tmp_path / "anybody.yaml"))
    document = load(tmp_path / "anybody.yaml")[0]
    (task,) = document["root"]["dag"]["tasks"].values()
    assert set(task["inputs"]["parameters"]) == set(given)
    here = {part["container"]["image"] for part in load(path)[0]["deploymentSpec"]["executors"].values()}
    assert {part["container"]["image"] for part in document["deploymentSpec"]["executors"].values()} == here


def test_the_canary_is_flat_with_an_exit_handler() -> None:
    (document,) = load(COMPILED / "promote_with_canary.yaml")
    assert set(document["root"]["dag"]["tasks"]) == {"exit-handler-1", "finish-release"}
    inner = document["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert [name for name in inner if name.startswith("canary-step")] == ["canary-step", "canary-step-2", "canary-step-3"]
    assert "promote-model" in inner
    assert not any("condition" in name or "loop" in name for name in inner)


def test_what_makes_a_run_over_many_models_red_is_no_exit_hook() -> None:
    """KFP's backend makes a task with a trigger policy a hook of the task before it, and loses those of loops: the run would be green."""
    (document,) = load(COMPILED / "revalidate_namespace.yaml")
    tasks = document["root"]["dag"]["tasks"]
    assert set(tasks) == {"list-champions", "for-loop-1", "collect-revalidations", "collect-revalidations-2"}
    assert tasks["collect-revalidations"]["dependentTasks"] == ["for-loop-1"]
    assert tasks["collect-revalidations-2"]["dependentTasks"] == ["collect-revalidations"]
    assert not any("triggerPolicy" in task for task in tasks.values())
    (step,) = document["components"]["comp-for-loop-1"]["dag"]["tasks"].values()
    assert step["inputs"]["parameters"]["red"] == {"runtimeValue": {"constant": False}}
