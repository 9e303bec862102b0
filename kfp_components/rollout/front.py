"""What clients and Kubeflow's UI see: the alias that clients call, and the InferenceService stub with the live split."""

from __future__ import annotations

from functools import partial

from kfp_components.cluster import Ref
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
            if stub is None or record.stable_version is None:
                stub = write(run.cluster, manifests.stub_change(run, serving, stub), fence=fence)
            stub = write(run.cluster, manifests.traffic_change(run, {serving: 100.0}, "waits for smoke inference", stub), fence=fence)
            assert stub is not None
            uid = str(stub["metadata"]["uid"])
            journal.note(run, "stub", f"{Ref.of(stub)} shows the model", stub_uid=uid)
    return journal.current(run)
