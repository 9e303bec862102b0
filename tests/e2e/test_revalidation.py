"""Re-validation end to end: the compiled pipelines, run by kfp.local, ask models on real Ray whether they are as good as they were."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_pipelines import run_pipeline
from test_rollout import assert_promoted
from world import NAMESPACE, RAYSERVICE, first, record_of, snapshot, tiny

from kfp_components import names, registry, rollout
from kfp_components.cluster import Ref
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.release.revalidation import Look, Revalidations, RevalidationStore
from kfp_components.request import RevalidateRules, parse_target

pytestmark = pytest.mark.usefixtures("forget")
RULES = {"requests": 120, "record_requests": 300, "latency_margin_percent": 1000.0, "apart_hours": 0.0}
"""A few seconds each; latency is that of this machine, so it never matters."""
SMOKE = {"name": "two", "path": "/embed", "body": {"texts": ["one", "two"]}, "expect": {"/count": 2}}


MOST_LOOKS = 12
"""A sixth of the answers is wrong while the fault is there, of which a look or two say enough; a model that needs more than these is not accused at all."""


def kept(cluster: KubernetesCluster, model: str) -> Revalidations:
    found = RevalidationStore(cluster, model, NAMESPACE).load()
    assert found is not None
    return found


def look(cluster: KubernetesCluster, model: str, models: int = 1) -> Look:
    """What a step of the pipeline does, without its process."""
    run = rollout.open_rollback(parse_target({"model": model, "namespace": NAMESPACE, "rayservice": RAYSERVICE}), cluster)
    return rollout.revalidate_model(run, RevalidateRules.model_validate(RULES), models=models).look


def look_until_decayed(cluster: KubernetesCluster, model: str, models: int = 1) -> None:
    looks = []
    while not looks or looks[-1].outcome != "decayed":
        looks.append(look(cluster, model, models))
        assert len(looks) < MOST_LOOKS, [one.sentence for one in looks]


def told(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout[-6000:] + done.stderr[-3000:]


def revalidate_all(folder: Path) -> tuple[subprocess.CompletedProcess[str], list[tuple[str, str]]]:
    """The pipeline over the namespace, and the lines of the page that it leaves: model and outcome, in their order."""
    folder.mkdir()
    done = run_pipeline("revalidate_namespace", {"namespace": NAMESPACE, "rayservice": RAYSERVICE, "rules": RULES}, folder)
    (page,) = (folder / "outputs").rglob("collect-revalidations/report")
    found = re.findall(rf'<td class="step">{NAMESPACE}/([^<]*)</td><td>[^<]*</td><td class="step [a-z]*">([^<]*)</td>', page.read_text())
    return done, found


@pytest.mark.core
def test_a_champion_is_recorded_and_then_compared_with_its_record(cluster: KubernetesCluster, tmp_path: Path) -> None:
    model = "nightly"
    first(cluster, tiny(model, "v1", smoke=[SMOKE]))
    values: dict[str, Any] = {"model": model, "namespace": NAMESPACE, "rayservice": RAYSERVICE, "rules": RULES}
    for outcome, requests in (("not enough", 300), ("healthy", 120)):
        done = run_pipeline("revalidate", values, tmp_path)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        look = kept(cluster, model).looks[-1]
        assert (look.outcome, look.requests, look.failures) == (outcome, requests, 0), look
        assert f"{outcome}: {look.sentence}" in done.stdout
    looks = kept(cluster, model).looks
    assert len(looks) == 2 and len({one.run_id for one in looks}) == 2, "each run is named on its look"
    pages = sorted((tmp_path / "outputs").rglob("revalidate-model/report"), key=lambda page: page.stat().st_mtime_ns)
    assert len(pages) == 2 and looks[-1].sentence in pages[-1].read_text(), "each run leaves its page as an artifact"
    registered = registry.connect().find(f"{NAMESPACE}.{model}", "v1")
    assert registered is not None and registered.properties["revalidation"] == "healthy"


def test_the_one_that_decayed_comes_first_and_none_stops_the_others(cluster: KubernetesCluster, tmp_path: Path) -> None:
    fault = tmp_path / "fault"
    for model in ("fading", "lost", "steady"):
        first(cluster, tiny(model, "v1", args={"wrong_while": str(fault)} if model == "fading" else None, smoke=[SMOKE]))
    done, page = revalidate_all(tmp_path / "recorded")
    assert done.returncode == 0, told(done)
    assert page == [("fading", "not enough"), ("lost", "not enough"), ("steady", "not enough")]

    cluster.delete(Ref("Service", names.alias("lost"), NAMESPACE))
    done, page = revalidate_all(tmp_path / "unreachable")
    assert done.returncode != 0 and f"Unreachable: 1 of 3 champion(s) could not be asked: {NAMESPACE}/lost: " in told(done), told(done)
    assert page == [("lost", "unreachable"), ("fading", "healthy"), ("steady", "healthy")]

    fault.touch()
    look_until_decayed(cluster, "fading", models=3)
    done, page = revalidate_all(tmp_path / "decayed")
    assert done.returncode != 0 and f"Decayed: 1 of 3 champion(s) decayed: {NAMESPACE}/fading: v1 decayed: " in told(done), told(done)
    assert page == [("fading", "decayed"), ("lost", "unreachable"), ("steady", "healthy")]


def test_a_champion_that_decayed_is_demoted_and_nobody_notices(cluster: KubernetesCluster, users: Callable[..., Any], tmp_path: Path) -> None:
    model, fault = "demoted", tmp_path / "fault"
    first(cluster, tiny(model, "v1", smoke=[SMOKE]))
    before = snapshot(cluster)
    with users(model) as sending:
        rollout.promote_with_canary(rollout.open_run(tiny(model, "v2", args={"wrong_while": str(fault)}, smoke=[SMOKE]), cluster))
        assert_promoted(cluster, model, "v2", "v1")
        recorded = look(cluster, model)
        assert (recorded.requests, recorded.failures) == (300, 0), recorded
        fault.touch()
        look_until_decayed(cluster, model)
        assert_promoted(cluster, model, "v2", "v1")  # a look alone changes nothing
        values = {"model": model, "namespace": NAMESPACE, "rayservice": RAYSERVICE, "rules": {**RULES, "demote": True}}
        done = run_pipeline("revalidate", values, tmp_path)
        sending.wait_for_answers(20)
        tally = sending.stop()
    assert done.returncode != 0 and "Decayed: 1 of 1 champion(s) decayed" in told(done), told(done)
    assert "demoted, users get v1" in done.stdout, told(done)
    assert_promoted(cluster, model, "v1", "v2")
    assert {20.0, 50.0} <= {point["weight_percent"] for point in record_of(cluster, model)["timeline"]}, "it is judged by a canary, as any version"
    revalidation = f"ConfigMap {names.revalidation(model)}"
    assert {name: found for name, found in snapshot(cluster).items() if name != revalidation} == before
    assert not tally.failed and sum(tally.answered.values()) == tally.sent and tally.answered["v1"] > 0, tally
    assert kept(cluster, model).version == "v2" and kept(cluster, model).decayed_unix_s is not None
    assert look(cluster, model).sentence.startswith("v1 is recorded: 0 of 300 answers failed")
