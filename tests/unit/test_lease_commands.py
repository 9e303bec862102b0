"""A command on a Lease: what is read from it, whoever wrote it and however it looks (D8)."""

from typing import Any

import pytest

from kfp_components import errors, names, request
from kfp_components.clock import ManualClock
from kfp_components.cluster import Ref
from kfp_components.cluster.faults import Script, wrap
from kfp_components.cluster.memory import MemoryCluster
from kfp_components.release import Command, Lease, commands
from kfp_components.release.lease import at_work

REF = Ref("Lease", names.release("bge"), "default")


def annotated(told: dict[str, Any], manager: str | None = None, time: str = "2026-01-02T03:04:05Z") -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": "bge-release", "annotations": told}
    if manager:
        fields = {"f:metadata": {"f:annotations": {f"f:{names.COMMAND}": {}}}}
        metadata["managedFields"] = [{"manager": "else", "time": "2020-01-01T00:00:00Z", "fieldsV1": {}}]
        metadata["managedFields"].append({"manager": manager, "time": time, "fieldsV1": fields})
    return {"kind": "Lease", "metadata": metadata}


def test_d8_what_is_put_is_found_and_taken_off_again() -> None:
    lease = annotated({"owner": "me"})
    command = Command("abort", "ann@host", 1_767_323_045.0, "wrong model")
    there = commands.put(lease, command)
    assert commands.find(there) == command and commands.find(lease) is None and lease == annotated({"owner": "me"})
    assert commands.without(there) == lease
    assert command.told == "asked for by ann@host at 2026-01-02T03:04:05Z: wrong model" and command.told.startswith(command.asked)
    assert commands.find(commands.put(there, Command("pause", "bob", 1.0))) == Command("pause", "bob", 1.0)


def test_d8_who_and_when_of_kubectl_stand_in_managed_fields() -> None:
    left = {names.COMMAND: "pause", names.COMMAND_BY: "of an earlier one", names.COMMAND_AT: "2020-01-01T00:00:00Z", names.COMMAND_REASON: "old"}
    assert commands.find(annotated(left, "kubectl-annotate")) == Command("pause", "kubectl-annotate", 1_767_323_045.0)
    assert commands.find(annotated(left, names.MANAGER)) == Command("pause", "of an earlier one", 1_577_836_800.0, "old")


@pytest.mark.parametrize("lease", [None, {}, {"metadata": None}, {"metadata": {"annotations": None}}, annotated({names.COMMAND: " "})])
def test_d8_no_command(lease: Any) -> None:
    assert commands.find(lease) is None


@pytest.mark.parametrize("at", ["", "yesterday", "2026-13-01T00:00:00Z", None, 7])
def test_d8_a_broken_time_or_word_raises_nothing(at: Any) -> None:
    found = commands.find(annotated({names.COMMAND: "stop", names.COMMAND_AT: at}))
    assert found is not None and found.by == "somebody" and not found.known and found.asked.startswith("asked for by somebody")


def test_d8_a_lease_is_looked_at_once_a_second_and_a_command_survives_renewals() -> None:
    clock = ManualClock()
    cluster = MemoryCluster(clock=clock)
    script = Script(clock=clock)
    lease = Lease(wrap(cluster, script), "bge", "default", "kfp/1", 60.0, clock)
    lease.acquire()
    assert [call.method for call in script.calls] == ["get", "create"]
    for _ in range(40):
        clock.sleep(0.25)
        lease.keep()
    assert [call.method for call in script.calls[2:]] == ["get"] * 10
    cluster.patch(REF, {"metadata": {"annotations": {names.COMMAND: "pause"}}}, manager="kubectl-annotate")
    for _ in range(30):
        clock.sleep(1.0)
        lease.keep()
        assert lease.command is not None and lease.command.by == "kubectl-annotate"
    command = lease.command
    assert command is not None
    cluster.patch(REF, {"metadata": {"annotations": {"somebody": "else"}}}, manager="kubectl-annotate")
    lease.take_off(command)
    assert lease.command is None and lease.held and cluster.get(REF)["metadata"]["annotations"] == {"somebody": "else"}  # type: ignore[index]
    cluster.patch(REF, {"metadata": {"annotations": {names.COMMAND: "resume"}}}, manager="kubectl-annotate")
    lease.take_off(command)
    assert commands.find(cluster.get(REF)) is not None, "another one that came meanwhile stays"


def test_d8_park_and_release_write_once_and_keep_what_is_asked() -> None:
    clock = ManualClock()
    cluster = MemoryCluster(clock=clock)
    script = Script(clock=clock)
    lease = Lease(wrap(cluster, script), "bge", "default", "kfp/1", 60.0, clock)
    lease.acquire()
    assert at_work(cluster.get(REF))
    lease.park()
    assert [call.method for call in script.calls] == ["get", "create", "replace"] and not at_work(cluster.get(REF))
    lease.acquire()
    cluster.patch(REF, {"metadata": {"annotations": {names.COMMAND: "abort"}}}, manager="kubectl-annotate")
    lease.park()
    assert [call.method for call in script.calls[3:]] == ["get", "replace", "replace", "get", "replace"]
    lease.acquire()
    assert lease.command is not None and lease.command.kind == "abort"
    lease.release()
    assert [call.method for call in script.calls[8:]] == ["get", "replace", "delete"] and cluster.get(REF) is None


VALUES = {"model": "bge", "version": "v2", "uri": "s3://m/v2", "namespace": "ai-ml", "rayservice": "rs", "import_path": "acme.bge:build"}


@pytest.mark.parametrize(
    ("approval", "words"),
    [
        ({"before": ["promote", 30]}, "options.approval.before: 30 is not one of the steps"),
        ({"before": ["later"]}, "'later' is neither the word promote nor the weight of a step"),
        ({"before": []}, "approval.before"),
        ({"timeout_s": 0}, "approval.timeout_s"),
        ({"on_timeout": "wait"}, "approval.on_timeout"),
    ],
)
def test_d8_an_approval_that_contradicts_the_request_is_refused_at_birth(approval: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.RequestInvalid, match=words):
        request.parse({**VALUES, "options": {"approval": approval}})


def test_d8_approval_as_kfp_passes_it() -> None:
    asked = request.parse({**VALUES, "steps": [10.0, 25.0], "options": {"approval": {"before": [25.0, "promote"], "timeout_s": 60.0}}})
    assert asked.options.approval is not None and asked.options.approval.before == (25.0, "promote")
    assert request.parse(asked.plain) == asked
    assert request.parse({**VALUES, "options": {"approval": {}}}).options.approval == request.Approval()
