"""What clients and Kubeflow's UI see: the alias that clients call, and the InferenceService stub with the live split."""

from __future__ import annotations

from kfp_components import names
from kfp_components.apply import apply
from kfp_components.release import Release
from kfp_components.rollout import journal
from kfp_components.rollout.manifests import alias_plan, show_traffic, stub_plan, stub_ref
from kfp_components.rollout.run import Run
from kfp_components.rollout.step import step


def create_alias(run: Run) -> Release:
    """The ExternalName Service that clients call. Idempotent. Raises `NameTaken` (and nothing is written) when it is somebody else's."""
    with step(run, "alias", until="smoked") as record:
        if record is not None:
            plan = alias_plan(run)
            journal.assert_ours(run)
            apply(run.cluster, plan)
            journal.note(run, "alias", f"{names.alias_host(run.request.model, run.request.namespace)} -> {run.request.target_host}")
    return journal.current(run)


def create_inference_service(run: Run) -> Release:
    """The InferenceService that Kubeflow's models page shows, with URL, readiness and traffic. Idempotent.

    One that is there keeps its spec until the new version is promoted: a version that is taken back leaves it as it was.
    """
    with step(run, "stub", until="smoked") as record:
        if record is not None:
            serving = record.stable_version or run.request.version
            stub = run.cluster.get(stub_ref(run))
            journal.assert_ours(run)
            if stub is None or record.stable_version is None:
                apply(run.cluster, stub_plan(run, serving))
            show_traffic(run, {serving: 100.0}, "waits for smoke inference")
            journal.note(run, "stub", f"InferenceService {run.request.namespace}/{run.request.model} shows the model")
    return journal.current(run)
