"""What README says can be typed can be typed; its Python runs in tests/e2e/test_real_model.py."""

import importlib.util
import inspect
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from kfp_components import errors, notify, request
from kfp_components.cli import app
from kfp_components.rollout import handover, preflight

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))
YAML = [(page.name, text) for page in PAGES for text in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)]
PYTHON = [(page.name, text) for page in PAGES for text in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]
COMMANDS = sorted(set(re.findall(r"kfp-serving ((?:(?:local|schedule) )?[a-z]+(?:-[a-z]+)*)", README)) - {"components"})


def test_the_request_of_the_readme_is_valid() -> None:
    text, *_ = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert request.parse(yaml.safe_load(text)).steps == (10.0, 25.0, 50.0)


def test_the_snippet_for_argo_cd_is_the_one_that_yield_prints() -> None:
    _, _, text = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    filled = handover.ARGO_CD.format(name="ai-inference", namespace="ai-ml", file="")
    (printed,) = re.findall(r"^spec:\n.*?\n\n", filled, re.DOTALL | re.MULTILINE)
    told, wanted = yaml.safe_load(text), yaml.safe_load(printed)
    assert wanted["spec"]["ignoreDifferences"][0].pop("namespace") == "ai-ml" and told == wanted


def test_the_rules_for_re_validation_are_taken_and_show_the_defaults() -> None:
    _, text, _ = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    told = yaml.safe_load(text)
    assert request.parse_rules(told) == request.RevalidateRules(golden_set=told["golden_set"])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_exists(command: str) -> None:
    done = CliRunner().invoke(app, [*command.split(), "--help"])
    assert done.exit_code == 0, done.output
    for option in re.findall(rf"kfp-serving {command}[^\n`]*?(--[a-z-]+)", README):
        assert option in done.stdout, f"{command} has no {option}"


def test_every_path_of_the_readme_exists() -> None:
    for path in re.findall(r"`((?:deploy|compiled|benchmarks|kfp_components|pipelines)/[\w./-]*)`", README):
        assert (ROOT / path).exists(), path


def test_rbac_grants_what_preflight_asks_for_and_what_reading_needs() -> None:
    role = next(document for document in yaml.safe_load_all((ROOT / "deploy" / "rbac.yaml").read_text()) if document["kind"] == "Role")
    granted = {(verb, resource) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    plural = {
        "ConfigMap": "configmaps",
        "Lease": "leases",
        "Service": "services",
        "InferenceService": "inferenceservices",
        "RayService": "rayservices",
        "Event": "events",
    }
    asked = {(verb, plural[kind] + (f"/{sub}" if sub else "")) for verb, kind, sub in preflight.PERMISSIONS}
    assert asked <= granted
    optional = {("list", "configmaps"), ("list", "endpointslices"), ("create", "rayservices"), ("delete", "rayservices"), ("list", "httproutes")}
    assert granted - asked == optional


@pytest.mark.parametrize(("page", "text"), YAML)
def test_every_request_in_the_docs_is_valid_and_the_rest_is_yaml(page: str, text: str) -> None:
    found = yaml.safe_load(text)
    if "model" in found:
        request.parse(found)
    elif isinstance(found, list):
        assert [request.parse_case(case, page) for case in found]
    else:
        assert {"apiVersion", "kind"} <= set(found), f"{page}: neither a request nor an object"


def test_the_snippet_for_receivers_of_webhooks_runs() -> None:
    (text,) = (text for page, text in PYTHON if page == "notifications.md")
    space: dict[str, Any] = {}
    exec(text, space)
    body = json.dumps({"type": "org.kubeflow.kfp-serving.decay", "subject": "v2", "data": {"model": "bge"}}).encode()
    headers = notify.sign(space["KEY"], "an-id", int(time.time()), body)
    assert space["received"](headers, body) == "bge v2: decay"
    assert space["received"](headers, body + b" ") is None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_commands_of_the_docs_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for target in re.findall(r"`((?:deploy|compiled|benchmarks|kfp_components|pipelines|notebooks)/[\w./-]*)`", text):
        assert (ROOT / target).exists(), target
    if page.name != "troubleshooting.md":
        for command in set(re.findall(r"kfp-serving ((?:(?:local|schedule) )?[a-z]+(?:-[a-z]+)*)", text)) - {"components"}:
            done = CliRunner().invoke(app, [*command.split(), "--help"])
            assert done.exit_code == 0, f"{command}: {done.output}"


def test_every_error_has_its_place_in_the_page_for_trouble() -> None:
    """`make lint` compares the whole page."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    grouping = (errors.KfpServingError, errors.InputError, errors.TemporaryError, errors.RolloutStopped)
    for name, one in inspect.getmembers(errors, inspect.isclass):
        assert one in grouping or f"## {name}: exit code {one.exit_code}" in text


@pytest.mark.parametrize("file", sorted((ROOT / "pipelines" / "requests").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_request_of_each_family_is_short_and_right(file: Path) -> None:
    text = file.read_text()
    asked = request.parse(yaml.safe_load(text))
    assert len(text.splitlines()) <= 12 and asked.family == file.stem and f"promote pipelines/requests/{file.name}" in text
    assert importlib.util.find_spec(asked.import_path.partition(":")[0]) is not None
