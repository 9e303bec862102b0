"""compiled/ is what the sources compile to, byte for byte, and what the sources promise holds in it."""

import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler
from patience import seconds

from kfp_components import cli
from kfp_components.workflows import compile as compiling
from kfp_components.workflows.promote_with_canary import DEFAULT_STEPS

ROOT = Path(__file__).parents[2]
COMPILED = ROOT / "compiled"
COMPONENTS = sorted((COMPILED / "components").glob("*.yaml"))
PIPELINES = sorted(COMPILED.glob("*.yaml"))
KINDS: dict[str, Any] = {"String": "x", "Dict": {}, "Float": 10.0}
"""A value for an input that has no default."""
INDEXES = ("http://index.ai-ml.svc:8080/simple", "https://pypi.example/simple")
LIBRARY = (compiling.LIBRARY, f"=={version(compiling.LIBRARY)}")
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


@pytest.fixture(scope="module")
def installing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files, as they are compiled for an image without the library."""
    folder = tmp_path_factory.mktemp("installing")
    compiling.compile_all(folder, DEFAULT_STEPS, compiling.AtStart((f"{LIBRARY[0]}[mlflow]{LIBRARY[1]}", "acme-models>=2"), INDEXES))
    return folder


def test_without_an_image_every_pod_installs_and_nothing_else_differs(installing: Path) -> None:
    for path in (*COMPONENTS, *PIPELINES):
        (here,), (there,) = load(path), load(installing / path.relative_to(COMPILED))
        for name, executor in there["deploymentSpec"]["executors"].items():
            container, ours = executor["container"], here["deploymentSpec"]["executors"][name]["container"]
            assert (container["image"], container["command"][:2]) == ("python:3.11-slim", ["sh", "-c"])
            assert container["command"][3:] == ours["command"] and "pip install" not in "".join(ours["command"])
            (line,) = (line for line in container["command"][2].splitlines() if "pip install" in line)
            install, then = line.split(" && ")
            options = ["--index-url", INDEXES[0], "--extra-index-url", INDEXES[1], "--trusted-host", "index.ai-ml.svc:8080"]
            assert shlex.split(install)[-8:] == [*options, f"{LIBRARY[0]}[mlflow]{LIBRARY[1]}", "acme-models>=2"]
            assert then == 'exec "$0" "$@"'
            executor["container"] = ours
        assert there == here and path.read_text().split("components:")[0] in (installing / path.relative_to(COMPILED)).read_text()


def test_the_command_gives_a_home_to_who_has_none_and_hands_over(tmp_path: Path) -> None:
    (tmp_path / "python3").write_text('#!/bin/sh\necho "$HOME|$*"\n')
    (tmp_path / "python3").chmod(0o755)
    command = [*compiling.AtStart((LIBRARY[0] + LIBRARY[1],)).command, "sh", "-ec", 'echo "then $0 $1"', "name", "a b"]
    for home, kept in ((str(tmp_path), True), ("/nowhere", False), ("", False)):
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": home, "TMPDIR": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=seconds(60))
        first, second = done.stdout.splitlines()
        got, line = first.split("|")
        assert line == f"-m pip install --quiet --no-warn-script-location {LIBRARY[0]}{LIBRARY[1]}" and second == "then name a b"
        assert (got == home) is kept and Path(got).is_dir() and Path(got).is_relative_to(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--packages", "kfp-serving-components==0.0.1"], "none of them is kfp-serving-components==" + LIBRARY[1][2:]),
        (["--packages", "kfp-serving-components"], "which the components need; add it"),
        (["--packages", "-r requirements.txt"], "it is no requirement"),
        (["--packages", "".join(LIBRARY), "--index-url", "https://me:SECRET@index.example/simple"], "index.example/...: there is a user and a password"),
        (["--packages", "".join(LIBRARY), "--index-url", "me:SECRET@index.example"], "there is a user"),
        (["--packages", "kfp-serving-components @ git+https://SECRET@git.example/x"], "there is a user or token"),
        (["--packages", "".join(LIBRARY), "--index-url", "index.example"], "expected https://host/path"),
        (["--base-image", "python:3.12"], "give --packages"),
    ],
)
def test_what_cannot_be_installed_is_refused_and_no_secret_is_told(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["kfp-serving", "compile", "--output", str(tmp_path / "out"), *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2 and words in told and "SECRET" not in told, told
    assert not (tmp_path / "out").exists()


def test_a_check_compares_with_the_same_options(installing: Path) -> None:
    same = compiling.AtStart((f"{LIBRARY[0]}[mlflow]{LIBRARY[1]}", "acme-models>=2"), INDEXES)
    assert compiling.differences(installing, DEFAULT_STEPS, same) == []
    assert len(compiling.differences(installing, DEFAULT_STEPS)) == len(COMPONENTS) + len(PIPELINES)


@pytest.mark.parametrize("package", ["{0}@git+https://git.example/x", "{0} @ git+https://git.example/x@v1", "https://files.example/{1}-{2}-py3-none-any.whl"])
def test_other_ways_to_name_the_library(package: str) -> None:
    name = compiling.LIBRARY
    assert compiling.AtStart((package.format(name, name.replace("-", "_"), LIBRARY[1][2:]),)).command


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


def test_the_pipeline_of_the_how_to_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "how-to-ui.md").read_text(), re.DOTALL)
    space: dict[str, Any] = {}
    exec(compile(snippet, "how-to-ui.md", "exec"), space)
    compiler.Compiler().compile(space["after_training"], str(tmp_path / "pipeline.yaml"))
    assert "comp-revalidate-model" in (tmp_path / "pipeline.yaml").read_text()
