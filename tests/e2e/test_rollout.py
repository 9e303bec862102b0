"""Releases end to end: real Ray, a real Kubernetes API, users sending all the time."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from patience import seconds, until
from world import NAMESPACE, RAYSERVICE, STEADY, command, first, promote_and_die, record_of, snapshot, tiny, write

from kfp_components import errors, names, registry, rollout
from kfp_components.cluster import Ref
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.release import Release, ReleaseStore
from kfp_components.request import parse_target
from kfp_components.serving import rayservice
from kfp_components.traffic.ray_router import RayRouter

pytestmark = pytest.mark.usefixtures("forget")


def serve_config(cluster: KubernetesCluster) -> str:
    found = cluster.get(Ref("RayService", RAYSERVICE, NAMESPACE))
    assert found is not None
    return str(found["spec"]["serveConfigV2"])


def effective(cluster: KubernetesCluster, model: str) -> tuple[str, float]:
    """The version that users get beside the candidate, and that one's share."""
    record = ReleaseStore(cluster, model, NAMESPACE).load()
    assert record is not None
    traffic = rollout.read_status(cluster, record).traffic or {}
    stable = record.stable_now or "none"
    return (stable if stable in traffic else ", ".join(traffic)), sum(share for version, share in traffic.items() if version != stable)


def assert_promoted(cluster: KubernetesCluster, model: str, version: str, old: str) -> None:
    """Weight, stub, registry and applications all say the same."""
    assert record_of(cluster, model)["phase"] == "promoted"
    assert effective(cluster, model) == (version, 0.0)
    applications = rayservice.applications(serve_config(cluster))
    assert names.application(model, version) in applications
    assert names.application(model, old) not in applications
    stub = cluster.get(Ref("InferenceService", model, NAMESPACE))
    assert stub is not None
    assert [(entry["tag"], entry["percent"]) for entry in stub["status"]["components"]["predictor"]["traffic"]] == [(version, 100)]
    aliases = registry.connect().aliases(f"{NAMESPACE}.{model}")
    assert aliases == {"champion": version, "previous": old}
    assert cluster.get(Ref("Lease", names.release(model), NAMESPACE)) is None


def test_a_good_version_is_promoted_and_nobody_notices(cluster: KubernetesCluster, users: Callable[..., Any]) -> None:
    first(cluster, tiny("good", "v1"))
    with users("good") as sending:
        rollout.promote_with_canary(rollout.open_run(tiny("good", "v2"), cluster))
        tally = sending.stop()
    assert_promoted(cluster, "good", "v2", "v1")
    assert not tally.failed, tally
    assert tally.answered["v2"] > 0
    assert sum(tally.answered.values()) == tally.sent
    assert "# ours" in serve_config(cluster)
    # the same command again is harmless
    assert rollout.promote_with_canary(rollout.open_run(tiny("good", "v2"), cluster)).phase == "promoted"


def test_a_bad_version_is_rolled_back_and_leaves_nothing(cluster: KubernetesCluster, users: Callable[..., Any]) -> None:
    first(cluster, tiny("erring", "v1"))
    before = snapshot(cluster)
    with users("erring") as sending:
        with pytest.raises(errors.CanaryFailed, match="worse in errors"):
            rollout.promote_with_canary(rollout.open_run(tiny("erring", "v2", args={"fail_every": 3}), cluster))
        sending.wait_for_answers(20)
        tally = sending.stop()
    record = record_of(cluster, "erring")
    assert record["phase"] == "rolled_back"
    assert max(point["weight_percent"] for point in record["timeline"]) < 50
    assert all(kind.startswith("v2 ") for kind in tally.failed), tally
    assert snapshot(cluster) == before
    assert registry.connect().aliases(f"{NAMESPACE}.erring") == {"champion": "v1"}
    # the next one works at once
    with users("erring"):
        rollout.promote_with_canary(rollout.open_run(tiny("erring", "v3"), cluster))
    assert_promoted(cluster, "erring", "v3", "v1")


def test_a_version_that_fails_only_when_it_has_all_traffic_goes_back(cluster: KubernetesCluster, users: Callable[..., Any], tmp_path: Path) -> None:
    first(cluster, tiny("late", "v1"))
    before, fault = snapshot(cluster), tmp_path / "fault"

    def watch(record: Release) -> None:
        if record.switched_unix_s is not None:
            fault.touch()

    request = tiny("late", "v2", args={"fails_while": str(fault)}, watch_s=seconds(60), keep_previous_s=seconds(60))
    with users("late") as sending:
        with pytest.raises(errors.CanaryFailed, match="failed after the switch, when it had all traffic: worse in errors"):
            rollout.promote_with_canary(rollout.open_run(request, cluster, watch=watch))
        sending.wait_for_answers(20)
        tally = sending.stop()
    assert all(kind.startswith("v2 ") for kind in tally.failed), tally
    assert record_of(cluster, "late")["phase"] == "rolled_back" and snapshot(cluster) == before
    assert registry.connect().aliases(f"{NAMESPACE}.late") == {"champion": "v1"}


def test_a_version_that_does_not_start_is_diagnosed(cluster: KubernetesCluster, users: Callable[..., Any]) -> None:
    first(cluster, tiny("broken", "v1"))
    before = snapshot(cluster)
    request = tiny("broken", "v2").model_copy(update={"import_path": "tests.e2e.nothing_here:build"})
    with users("broken") as sending:
        with pytest.raises(errors.DeployFailed, match=r"application broken-v2 DEPLOY_FAILED.*No module named 'tests.e2e.nothing_here'"):
            rollout.promote_with_canary(rollout.open_run(request, cluster))
        tally = sending.stop()
    assert not tally.failed, tally
    assert snapshot(cluster) == before


def test_a_first_version_that_fails_leaves_nothing(cluster: KubernetesCluster) -> None:
    before = snapshot(cluster)
    wrong = {"name": "never", "path": "/embed", "body": {"texts": []}, "expect": {"/count": 7}}
    with pytest.raises(errors.SmokeFailed, match=r"expected /count = 7.*got 0"):
        first(cluster, tiny("first", "v1", smoke=[wrong]))
    assert snapshot(cluster) == before


@pytest.mark.parametrize("phase", ["registered", "deployed", "smoked", pytest.param("canary", marks=pytest.mark.core), "promoting"])
def test_a_killed_run_is_finished_by_the_same_command(cluster: KubernetesCluster, users: Callable[..., Any], tmp_path: Path, phase: str) -> None:
    model = f"killed-{phase}"
    first(cluster, tiny(model, "v1"))
    request = write(tiny(model, "v2"), tmp_path / "request.yaml")
    with users(model) as sending:
        promote_and_die(request, phase)
        assert record_of(cluster, model)["phase"] == phase
        sending.wait_for_answers(20)
        again = command("promote", request, idle_s=200)
        assert again.returncode == 0, again.stdout + again.stderr
        tally = sending.stop()
    assert_promoted(cluster, model, "v2", "v1")
    assert not tally.failed and tally.answered["v2"] > 0, tally


def test_when_nobody_runs_traffic_returns_by_itself(cluster: KubernetesCluster, users: Callable[..., Any], tmp_path: Path) -> None:
    model, lease_s = "abandoned", seconds(10)
    first(cluster, tiny(model, "v1"))
    request = write(tiny(model, "v2", lease_s=lease_s, judge=NEVER), tmp_path / "request.yaml")
    with users(model) as sending:
        process = subprocess.Popen([sys.executable, "-m", "kfp_components.cli", "promote", str(request)], stdout=subprocess.DEVNULL)
        try:
            first_end = until(lambda: lease_end(cluster, model), "the router to give v2 its share", 240)
            # a share that is there after the first lease's end has been renewed
            until(lambda: (lease_end(cluster, model) or 0.0) > first_end + lease_s / 2 and effective(cluster, model) == ("v1", 20.0), "renewals")
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        until(lambda: effective(cluster, model) == ("v1", 0.0), "the share to lapse", idle_s=3 * lease_s)
        sending.wait_for_answers(20)
        assert not sending.stop().failed
    target = parse_target({"model": model, "namespace": NAMESPACE, "rayservice": RAYSERVICE})
    assert rollout.roll_back(rollout.open_rollback(target, cluster), "test").phase == "rolled_back"
    assert names.application(model, "v2") not in rayservice.applications(serve_config(cluster))


NEVER = {"judge_latency": False, "error_margin_percent": 0.01, "tick_s": 0.3, "max_minutes": 60.0, **STEADY}
"""So strict that it does not end by itself."""


def test_an_abort_from_another_terminal_ends_a_canary(cluster: KubernetesCluster, users: Callable[..., Any], tmp_path: Path) -> None:
    model = "aborted"
    first(cluster, tiny(model, "v1"))
    before = snapshot(cluster)
    request = write(tiny(model, "v2", judge=NEVER), tmp_path / "request.yaml")
    with users(model) as sending:
        promote = [sys.executable, "-m", "kfp_components.cli", "promote", str(request)]
        process = subprocess.Popen(promote, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            until(lambda: effective(cluster, model) == ("v1", 20.0), "the router to give v2 its share", 240)
            asked = command("abort", model, "--namespace", NAMESPACE, "--rayservice", RAYSERVICE, "--reason", "enough")
            _, told = process.communicate(timeout=seconds(120))
        finally:
            process.kill()
            process.wait()
        assert asked.returncode == 0, asked.stdout + asked.stderr
        assert process.returncode == 4 and "Aborted" in told and "enough" in told and "v1 serves all requests" in told, told
        assert effective(cluster, model) == ("v1", 0.0)
        sending.wait_for_answers(20)
        tally = sending.stop()
    assert record_of(cluster, model)["failure"]["error"] == "Aborted" and snapshot(cluster) == before
    assert tally.answered["v2"] > 0 and not tally.failed and sum(tally.answered.values()) == tally.sent, tally


def test_a_paused_process_that_wakes_changes_nothing(cluster: KubernetesCluster, users: Callable[..., Any], tmp_path: Path) -> None:
    """Stopped for longer than its Lease, while another process gives the release up; then it goes on."""
    model = "paused"
    first(cluster, tiny(model, "v1"))
    request = write(tiny(model, "v2", lease_s=seconds(10), judge=NEVER), tmp_path / "request.yaml")
    with users(model) as sending:
        promote = [sys.executable, "-m", "kfp_components.cli", "promote", str(request)]
        process = subprocess.Popen(promote, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            until(lambda: effective(cluster, model) == ("v1", 20.0), "the router to give v2 its share", 240)
            os.kill(process.pid, signal.SIGSTOP)
            given_up = command("rollback", model, "--namespace", NAMESPACE, "--rayservice", RAYSERVICE)
            assert given_up.returncode == 0, given_up.stdout + given_up.stderr
            before = snapshot(cluster)
            os.kill(process.pid, signal.SIGCONT)
            _, told = process.communicate(timeout=seconds(120))
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 3 and "ReleaseHeld" in told, told
        sending.wait_for_answers(20)
        assert snapshot(cluster) == before and record_of(cluster, model)["phase"] == "rolled_back"
        assert effective(cluster, model) == ("v1", 0.0)
        rollout.promote_with_canary(rollout.open_run(tiny(model, "v3"), cluster))
        tally = sending.stop()
    assert_promoted(cluster, model, "v3", "v1")
    assert not tally.failed and tally.answered["v3"] > 0, tally


def test_a_terminated_step_gives_the_traffic_back_itself(cluster: KubernetesCluster, users: Callable[..., Any], tmp_path: Path) -> None:
    """Kubeflow's Terminate: SIGTERM, and no exit handler."""
    model = "terminated"
    first(cluster, tiny(model, "v1"))
    request = write(tiny(model, "v2", lease_s=600.0, judge=NEVER), tmp_path / "request.yaml")
    with users(model) as sending:
        promote = [sys.executable, "-m", "kfp_components.cli", "promote", str(request)]
        process = subprocess.Popen(promote, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until(lambda: effective(cluster, model) == ("v1", 20.0), "the router to give v2 its share", 240)
            process.terminate()
            assert process.wait(timeout=seconds(120)) == 128 + signal.SIGTERM
        finally:
            process.kill()
            process.wait()
        assert effective(cluster, model) == ("v1", 0.0), "at once: the lease is ten minutes long"
        assert record_of(cluster, model)["phase"] == "canary"
        assert names.application(model, "v2") in rayservice.applications(serve_config(cluster))
        assert not sending.stop().failed
    target = parse_target({"model": model, "namespace": NAMESPACE, "rayservice": RAYSERVICE})
    assert rollout.roll_back(rollout.open_rollback(target, cluster), "test").phase == "rolled_back"


def lease_end(cluster: KubernetesCluster, model: str) -> float | None:
    """When the candidate's share ends unless it is renewed, as the router says; None while it has none."""
    split = RayRouter(cluster, parse_target({"model": model, "namespace": NAMESPACE, "rayservice": RAYSERVICE})).observed_weight()
    return split.lease_expires_unix_s if split.weight_percent else None


def test_two_models_at_once_and_the_same_model_twice(embedded: Any, cluster: KubernetesCluster, users: Callable[..., Any]) -> None:
    for model in ("left", "right"):
        first(cluster, tiny(model, "v1"))
    failures: list[BaseException] = []

    def go(model: str) -> None:
        try:
            rollout.promote_with_canary(rollout.open_run(tiny(model, "v2"), embedded.cluster(), holder=f"run-of-{model}"))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=go, args=(model,)) for model in ("left", "right")]
    with users("right", 25.0) as right:
        for thread in threads:
            thread.start()
        until(lambda: cluster.get(Ref("Lease", names.release("left"), NAMESPACE)), "the Lease of left")
        # left has no users yet, so its release cannot end while these are refused
        with pytest.raises(errors.ReleaseHeld, match="run-of-left"):
            rollout.promote_with_canary(rollout.open_run(tiny("left", "v3"), embedded.cluster(), holder="another"))
        with pytest.raises(errors.ReleaseHeld, match="run-of-left"):
            rollout.promote_with_canary(rollout.open_run(tiny("left", "v2"), embedded.cluster(), holder="the same request"))
        with users("left", 25.0) as left:
            for thread in threads:
                thread.join(timeout=seconds(200))
                assert not thread.is_alive()
            tallies = [left.stop(), right.stop()]
    assert not failures
    for model, tally in zip(("left", "right"), tallies, strict=True):
        assert_promoted(cluster, model, "v2", "v1")
        assert not tally.failed, tally


def test_plan_and_status_as_commands(cluster: KubernetesCluster, tmp_path: Path) -> None:
    first(cluster, tiny("told", "v1"))
    before = snapshot(cluster)
    planned = command("plan", write(tiny("told", "v2"), tmp_path / "request.yaml"))
    assert planned.returncode == 0, planned.stderr
    assert "application told-v2 beside the others" in planned.stdout
    added = [line for line in planned.stdout.splitlines() if line.startswith("+")]
    assert any("name: told-v2" in line for line in added), planned.stdout
    assert "targetPort" not in planned.stdout, "the alias is as it should be"
    assert snapshot(cluster) == before
    status = command("status", "--namespace", NAMESPACE, "--json")
    (row,) = json.loads(status.stdout)
    assert (row["model"], row["traffic"], row["phase"]) == ("told", {"v1": 100}, "promoted")
    page = tmp_path / "report.html"
    assert command("status", "told", "--namespace", NAMESPACE, "--report", page).returncode == 0
    assert "<svg" in page.read_text() or "told" in page.read_text()
    nothing = command("status", "nobody", "--namespace", NAMESPACE)
    assert nothing.returncode == 2 and "was never released" in nothing.stderr
    finished = command("rollback", "told", "--namespace", NAMESPACE, "--rayservice", RAYSERVICE)
    assert finished.returncode == 0, finished.stderr
    assert snapshot(cluster) == before
