"""`kfp-serving status`: which version users have, and what is refused."""

import json
from typing import Any

import pytest
import typer

from kfp_components import cli, errors
from kfp_components.cluster.memory import MemoryCluster
from kfp_components.phases import Phase
from kfp_components.release import Release, ReleaseStore


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> MemoryCluster:
    cluster = MemoryCluster()
    monkeypatch.setattr(cli, "_cluster", lambda _kubeconfig: cluster)
    return cluster


def kept(cluster: MemoryCluster, model: str, phase: Phase) -> None:
    fields: dict[str, Any] = {"rayservice": "rs", "request": {}, "request_digest": "d", "candidate_version": "v2", "stable_version": "v1"}
    store = ReleaseStore(cluster, model, "default")
    store.save_canary(store.start(Release(model=model, namespace="default", phase=phase, **fields)))


def rows(capsys: pytest.CaptureFixture[str], **options: Any) -> list[dict[str, Any]]:
    with pytest.raises(typer.Exit) as ended:  # there is no RayService
        cli.status("default", as_json=True, **options)
    assert ended.value.exit_code == 1
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_d18_status_says_which_version_users_have_once_for_each_model(cluster: MemoryCluster, capsys: pytest.CaptureFixture[str]) -> None:
    kept(cluster, "bge", "promoted")
    kept(cluster, "whisper", "held")
    found = rows(capsys)
    assert [(row["model"], row["stable_version"], row["candidate_version"], row["phase"]) for row in found] == [
        ("bge", "v2", "v2", "promoted"),
        ("whisper", "v1", "v2", "held"),
    ]
    assert [row["model"] for row in rows(capsys, model="bge")] == ["bge"]
    assert {(row["ready"], row["traffic"], *row["notes"]) for row in found} == {(False, None, "RayService default/rs does not exist any more")}


def test_tidy_goes_through_all_models_of_a_namespace(cluster: MemoryCluster, capsys: pytest.CaptureFixture[str]) -> None:
    kept(cluster, "bge", "promoted")
    kept(cluster, "whisper", "held")
    with pytest.raises(errors.RequestInvalid, match="the stored request"):
        cli.tidy("default", as_json=True)
    told = capsys.readouterr().err
    assert "bge: model default/bge" in told and "whisper: model default/whisper" in told


def test_d18_a_report_without_a_model_is_refused(cluster: MemoryCluster, tmp_path: Any) -> None:
    with pytest.raises(errors.RequestInvalid, match="name the model too"):
        cli.status("default", report_to=tmp_path / "report.html")
    kept(cluster, "bge", "promoted")
    with pytest.raises(typer.Exit):
        cli.status("default", model="bge", report_to=tmp_path / "report.html", as_json=True)
    assert "bge v1 to v2" in (tmp_path / "report.html").read_text()
