"""Re-validation as a process, against an endpoint of many models (a stand-in, see benchmarks/many_models.py) on the embedded API."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kfp import dsl
from patience import seconds, until

from kfp_components import errors, rollout
from kfp_components.cluster import Ref
from kfp_components.ops import runtime
from kfp_components.request import RevalidateRules, parse_target

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from many_models import NAMESPACE, RAYSERVICE, Many, many, name

MODELS = 4
OPTIONS = ["--namespace", NAMESPACE, "--requests", "120"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Many]:
    with many(tmp_path, MODELS) as found:
        for key, value in found.environment.items():
            monkeypatch.setenv(key, value)
        yield found


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "kfp_components.cli", "revalidate", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=seconds(100))


def test_a_namespace_is_looked_at_and_the_one_that_decayed_is_named(world: Many, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("record_requests: 200\nlatency_margin_percent: 1000\napart_hours: 0\n")
    rules = ["--rules", str(tmp_path / "rules.yaml")]
    first = command(*OPTIONS, *rules, "--json")
    assert first.returncode == 0, first.stderr
    assert [(one["model"], one["outcome"], one["requests"]) for one in json.loads(first.stdout)] == [
        (name(number), "not enough", 200) for number in range(MODELS)
    ]
    world.models[name(1)].wrong = 0.6
    for _ in range(3):
        rollout.revalidate_model(
            rollout.open_rollback(parse_target({"model": name(1), "namespace": NAMESPACE, "rayservice": RAYSERVICE}), world.cluster),
            RevalidateRules(requests=120, latency_margin_percent=1000, apart_hours=0),
            models=MODELS,
        )
    done = command(*OPTIONS, *rules, "--report", str(tmp_path / "page.html"))
    assert done.returncode == 7, done.stdout + done.stderr
    assert f"Decayed: 1 of {MODELS} champion(s) decayed: {NAMESPACE}/{name(1)}: v1 decayed:" in done.stderr
    assert "healthy" in done.stdout and name(3) in done.stdout
    page = (tmp_path / "page.html").read_text()
    assert page.index(name(1)) < page.index(name(0)) and "<svg" in page and "<script" not in page


def test_what_cannot_be_asked_is_named_and_stops_nobody(world: Many) -> None:
    world.cluster.delete(Ref("Service", f"{name(2)}-predictor", NAMESPACE))
    done = command(*OPTIONS, "--record-requests", "200", "--json")
    assert done.returncode == 3, done.stdout + done.stderr
    found = {one["model"]: one["outcome"] for one in json.loads(done.stdout)}
    assert found[name(2)] == "unreachable" and found[name(3)] == "not enough"
    assert f"1 of {MODELS} champion(s) could not be asked: {NAMESPACE}/{name(2)}" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--namespace", "elsewhere"], "no model was released or adopted there"),
        ([name(0), *OPTIONS, "--golden-set", "gs://x/y"], "it is read from file:///, https:// or s3://; a golden set may be builtin:embedding too"),
        ([name(0), *OPTIONS, "--golden-set", "file:///nowhere/golden.jsonl"], "golden set file:///nowhere/golden.jsonl: "),
        (["unknown", *OPTIONS], "there is no release of it"),
        ([*OPTIONS, "--report", "/nowhere/page.html"], "--report /nowhere/page.html: it cannot be written there"),
        (["--namespace", NAMESPACE, "--requests", "0"], "requests: Input should be greater than or equal to 1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_asked(world: Many, arguments: list[str], words: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2 and words in done.stderr, done.stdout + done.stderr
    assert world.answered == 0


def outputs(at: Path) -> tuple[dsl.HTML, dsl.Markdown, dsl.Metrics]:
    return dsl.HTML(uri=f"{at}.html"), dsl.Markdown(uri=f"{at}.md"), dsl.Metrics()


def test_a_step_of_many_notes_its_fault_and_the_last_one_is_red(world: Many, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = {"record_requests": 100}
    for number in range(MODELS - 1):  # the pod of the last one was lost
        given = rules | ({"golden_set": "file:///nowhere/golden.jsonl"} if number == 0 else {})
        runtime.revalidate(name(number), NAMESPACE, RAYSERVICE, given, MODELS, "run-1", *outputs(tmp_path / str(number)), red=False)
    assert "unreachable: golden set file:///nowhere/golden.jsonl: " in capsys.readouterr().out
    assert "golden set file:///nowhere" in (tmp_path / "0.html").read_text()
    counts = outputs(tmp_path / "page")
    runtime.collect_revalidations(NAMESPACE, RAYSERVICE, "", "run-1", *counts, red=False)
    assert counts[2].metadata == {"decayed": 0, "unreachable": 2, "not_enough": 2, "healthy": 0}
    with pytest.raises(errors.Unreachable, match=f"2 of {MODELS} champion.s. could not be asked: ") as caught:
        runtime.collect_revalidations(NAMESPACE, RAYSERVICE, "", "run-1", *outputs(tmp_path / "all"), red=True)
    assert f"{name(0)}: golden set file:///nowhere" in str(caught.value) and f"{name(MODELS - 1)}: its step noted nothing" in str(caught.value)
    assert "2 unreachable, 2 not enough" in (tmp_path / "page.html").read_text()
    assert (tmp_path / "page.html").read_text() == (tmp_path / "all.html").read_text()
    assert (tmp_path / "page.md").read_text().startswith("## Re-validation: 2 unreachable, 2 not enough\n")
    with pytest.raises(errors.Unreachable, match=rf"1 of 1 champion.s. could not be asked: {NAMESPACE}/nobody: its step noted nothing"):
        runtime.collect_revalidations(NAMESPACE, RAYSERVICE, "nobody", "run-1", *outputs(tmp_path / "one"), red=True)
    with pytest.raises(errors.NotFound):
        runtime.revalidate(
            name(0), NAMESPACE, RAYSERVICE, {"golden_set": "file:///nowhere/golden.jsonl"}, 1, "run-2", *outputs(tmp_path / "red"), red=True
        )


def test_what_was_found_is_one_document_whatever_the_end_is(world: Many, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = command(name(0), *OPTIONS, "--golden-set", "file:///nowhere/golden.jsonl", "--json", "--report", str(page))
    (found,) = json.loads(done.stdout)
    assert done.returncode == 2 and found["outcome"] == "unreachable" and "file:///nowhere/golden.jsonl" in found["sentence"]
    assert found["sentence"] in page.read_text()
    line = [sys.executable, "-m", "kfp_components.cli", "revalidate", *OPTIONS, "--record-requests", "300", "--json"]
    world.models[name(1)].delay_s = 0.1
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: world.answered > 310, "the second model to be asked")
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=seconds(60))
    assert process.returncode == 130 and [one["model"] for one in json.loads(stdout)] == [name(0)]
