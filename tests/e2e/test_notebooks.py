"""Every notebook from top to bottom, as a reader runs it: a kernel each, on the session's embedded cluster instead of one of its own."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from conftest import running
from nbclient import NotebookClient
from patience import seconds, until
from world import NAMESPACE, RAYSERVICE, clean, rayservice, record_of

from kfp_components.cluster import Ref
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.local.demo import RAYSERVICE as OF_THE_NOTEBOOKS
from kfp_components.local.environment import Embedded

FOLDER = Path(__file__).parents[2] / "notebooks"
SHOWN = {
    "Release": '<ol class="flow"',
    "Plan": "<details open><summary><b>",
    "Verdict": "evidence that the candidate is",
    "Revalidation": "Re-validation of",
}
"""What only the HTML of that value has."""


@pytest.fixture(scope="module")
def lent(embedded: Embedded) -> Iterator[KubernetesCluster]:
    """The embedded cluster serves one RayService: the session's goes, the notebooks have theirs, the session's comes back."""
    cluster = running(embedded)
    clean(embedded)
    cluster.delete(Ref("RayService", RAYSERVICE, NAMESPACE))
    yield cluster
    cluster.delete(Ref("RayService", OF_THE_NOTEBOOKS, NAMESPACE))
    until(lambda: cluster.get(Ref("RayService", OF_THE_NOTEBOOKS, NAMESPACE)) is None, "the notebooks' RayService to go")
    cluster.apply(rayservice(), manager="owner")
    ref = Ref("RayService", RAYSERVICE, NAMESPACE)
    until(lambda: ((cluster.get(ref) or {}).get("status") or {}).get("serviceStatus") == "Running", f"{ref} to run")
    clean(embedded)


def run(name: str) -> tuple[str, list[dict[str, str]]]:
    """The text that the notebook printed, and what it shows richly: MIME type -> content of each output."""
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    NotebookClient(book, timeout=int(seconds(280)), resources={"metadata": {"path": str(FOLDER)}}).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs), [output["data"] for output in outputs if "data" in output]


def assert_shown(rich: list[dict[str, str]], *values: str, plots: int) -> None:
    pages = [data["text/html"] for data in rich if "text/html" in data]
    assert [value for value in values if not any(SHOWN[value] in page for page in pages)] == [], "shown as text alone"
    assert sum("image/png" in data for data in rich) == plots
    assert not any("<!DOCTYPE" in page or "<body" in page for page in pages), "a whole page in an output"


@pytest.mark.core
def test_01_promotes_by_hand(lent: KubernetesCluster) -> None:
    printed, rich = run("01_promote_by_hand")
    record = record_of(lent, "minilm")
    assert (record["phase"], record["candidate_version"]) == ("promoted", "v2")
    assert "failed {}" in printed, "no request of a user was lost"
    assert_shown(rich, "Plan", "Release", "Verdict", plots=1)


def test_02_runs_the_pipeline_and_reads_it(lent: KubernetesCluster) -> None:
    printed, rich = run("02_run_and_read_the_pipeline")
    record = record_of(lent, "search")
    assert (record["phase"], record["candidate_version"]) == ("promoted", "v2") and "failed {}" in printed
    boxes = ("register-model", "smoke-inference", "canary-step-2", "promote-model", "finish-release")
    assert [box for box in boxes if f"Task '{box}' finished with status SUCCESS" not in printed] == [], printed
    assert_shown(rich, "Release", plots=1)


def test_03_reads_a_release_and_compares_rules(lent: KubernetesCluster) -> None:
    printed, rich = run("03_read_a_release")
    record = record_of(lent, "faulty")
    assert (record["phase"], record["candidate_version"], record["failure"]["error"]) == ("rolled_back", "v3", "CanaryFailed")
    assert record["past"][-1]["candidate_version"] == "v2"
    told = {
        line[:20].strip(): line[20:54].strip() + " | " + line[54:] for line in printed.splitlines() if re.match("the judge|so far > .*s|each", line)
    }
    judged_at = next(point for point in record["timeline"] if point["e_fail"] >= 100)
    assert told["the judge, 100 : 1"].endswith(f" s, {judged_at['requests']['candidate']} requests")
    assert len(told) == 7 and all(re.fullmatch(r"((back after|not in) [\d.]+ s, \d+ requests( \| )?){2}", line) for line in told.values()), told
    assert_shown(rich, "Release", "Verdict", plots=2)


def test_04_finds_the_champion_that_decayed(lent: KubernetesCluster) -> None:
    printed, rich = run("04_revalidation_and_scheduling")
    record = record_of(lent, "retriever")
    assert record["phase"] == "rolled_back" and "users have v1" in printed and "demoted, users get v1" in printed
    assert "kind: CronJob" in printed and "schedule: 0 3 * * *" in printed
    (failed,) = re.findall(r"failed (\{.*\})$", printed, re.MULTILINE)
    assert all(kind.startswith(("v2 ", "unnamed ")) for kind in ast.literal_eval(failed)), failed
    assert_shown(rich, "Revalidation", plots=1)


def test_05_brings_a_model_of_its_own(lent: KubernetesCluster) -> None:
    printed, rich = run("05_bring_your_own_model")
    record = record_of(lent, "tickets")
    assert (record["candidate_version"], record["failure"]["error"], record["stable_version"]) == ("v3", "SmokeFailed", "v2")
    assert "not on the allow-list" in printed and "failed {}" in printed and "sha256:" in printed
    assert_shown(rich, "Plan", "Release", plots=1)
