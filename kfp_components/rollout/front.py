"""What clients and Kubeflow's UI see: the alias that clients call, and the InferenceService stub with the live split."""

from __future__ import annotations

from functools import partial

from kfp_components import names
from kfp_components.cluster import Manifest, Ref
from kfp_components.cluster.changes import write
from kfp_components.release import Release
from kfp_components.rollout import journal, manifests
from kfp_components.rollout.run import Run
from kfp_components.rollout.step import step
from kfp_components.serving import alias


def create_alias(run: Run) -> Release:
    """The ExternalName Service that clients call. Idempotent. Raises `ReleaseLeft` when it is somebody else's; it stays his."""
    with step(run, "alias", until="smoked") as record:
        if record is not None:
            request = run.request
            found, stub = run.cluster.get(manifests.alias_ref(run)), run.cluster.get(manifests.stub_ref(run))
            alias.assert_free(request.model, request.namespace, found, stub, request.target_host)
            label = [alias.LABEL] if alias.is_unlabelled(request.model, found) else []
            _leave_to_its_maker(run, record, found, label)
            wanted = manifests.alias_change(run, found)
            write(run.cluster, wanted, fence=partial(journal.assert_ours, run))
            journal.note(run, "alias", f"{run.address.host(request.namespace)} -> {request.target_host}")
    return journal.current(run)


def create_inference_service(run: Run) -> Release:
    """The InferenceService that Kubeflow's models page shows, with URL, readiness and traffic. Idempotent.

    One that is there keeps its spec until the new version is promoted: a version that is taken back leaves it as it was. Raises `ReleaseLeft` when it
    cannot be written: the version stays, and the same command goes on.
    """
    with step(run, "stub", until="smoked") as record:
        if record is not None:
            serving = record.stable_version or run.request.version
            fence = partial(journal.assert_ours, run)
            stub = run.cluster.get(manifests.stub_ref(run))
            _leave_to_its_maker(run, record, stub, [])
            if stub is None or record.stable_version is None:
                stub = write(run.cluster, manifests.stub_change(run, serving, stub), fence=fence)
            stub = write(run.cluster, manifests.traffic_change(run, {serving: 100.0}, "waits for smoke inference", stub), fence=fence)
            assert stub is not None
            uid = str(stub["metadata"]["uid"])
            journal.note(run, "stub", f"{Ref.of(stub)} shows the model", stub_uid=uid)
    return journal.current(run)


def _leave_to_its_maker(run: Run, record: Release, found: Manifest | None, ours: list[str]) -> None:
    """An object that was missing when the release began, and that somebody else has made since, does not go when the version is taken back.

    But ``ours``, which is put on it. Written before anything is: a process that is killed in between leaves it too.
    """
    if found is None or found["kind"] not in record.made:
        return
    if names.MANAGER in {entry.get("manager") for entry in found["metadata"].get("managedFields") or []}:
        return  # this step has run before
    made = [what for what in record.made if what != found["kind"]] + ours
    journal.note(run, "front", f"{Ref.of(found)} was made by somebody else since the release began: it stays whatever comes", made=made)
