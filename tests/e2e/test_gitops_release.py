"""GitOps beside whole releases on real Ray: Flux applies what stands in git over and over, for certain between any two steps of a release."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import test_adoption
import urllib3
import yaml
from kubernetes import client, config, watch
from patience import seconds, until
from test_adoption import APPLICATIONS, LABELLED, MODELS, OWNERS, SHARED, Everybody, adopt, aliases, assert_only_applications_differ, pid, text_of
from world import NAMESPACE, RAYSERVICE, Clients, command, record_of, tiny, write
from world import rayservice as shared

from kfp_components import errors, names, rollout
from kfp_components.cluster import Manifest, Ref
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.local.environment import Embedded
from kfp_components.local.load import Tally
from kfp_components.release import Release
from kfp_components.serving import ownership, rayservice

pytestmark = pytest.mark.usefixtures("forget")
users_of = test_adoption.users_of

FLUX = "kustomize-controller"
LABELS = {"kustomize.toolkit.fluxcd.io/name": "apps", "kustomize.toolkit.fluxcd.io/namespace": "flux-system"}
EVERY_S = 0.2
"""Between two syncs: so that there are many, not so that they fall somewhere; that is waited for."""
WATCHED = ("llm", "default", "whisper")
"""A model that is promoted, one that is taken back, and one beside them: whose users send."""

IN_CANARY = 5
"""Syncs that a canary sees at least, at each weight."""


class Flux:
    """Applies what stands in ``git`` with its manager, by force, as the real one does; a thread, with a connection of its own."""

    def __init__(self, cluster: KubernetesCluster, git: dict[Ref, Manifest]) -> None:
        self.cluster, self.git = cluster, git
        self.synced = 0
        self.seen: Counter[str] = Counter()
        """Syncs that a release was made to wait for, by its phase."""
        self._went_wrong: list[BaseException] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Flux":
        self._thread.start()
        self.wait()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(timeout=seconds(60))

    def _run(self) -> None:
        try:
            while not self._over.wait(EVERY_S):
                for manifest in self.git.values():
                    self.cluster.apply(manifest, manager=FLUX, force=True)
                self.synced += 1
        except BaseException as error:
            self._went_wrong.append(error)

    def wait(self, syncs: int = 1) -> None:
        """Until so many have begun and ended from now on."""
        last = self.synced + 1 + syncs
        until(lambda: self._went_wrong or self.synced >= last, f"Flux to sync {syncs} more times")
        assert not self._went_wrong, self._went_wrong

    def watch(self, record: Release) -> None:
        """Of a release: no step begins before Flux has had its turn."""
        self.wait(IN_CANARY if record.phase == "canary" else 1)
        self.seen[str(record.phase)] += IN_CANARY if record.phase == "canary" else 1

    def commit(self, manifest: Manifest) -> None:
        """As a change of git, from its next sync on."""
        git = dict(self.git)
        git[Ref.of(manifest)] = manifest
        self.git = git
        self.wait()


class Recorder:
    """Every state of the RayService that the API tells of while a block runs."""

    def __init__(self) -> None:
        self.states: list[Manifest] = []
        self._watch, self._over = watch.Watch(), False

    def __enter__(self) -> "Recorder":
        threading.Thread(target=self._listen, daemon=True).start()
        until(lambda: self.states, "the first state")
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._over = True  # seen at the next change, or when the API is gone

    def _listen(self) -> None:
        api = client.CustomObjectsApi(config.new_client_from_config(os.environ["KUBECONFIG"]))
        asked = {"timeout_seconds": int(seconds(600)), "field_selector": f"metadata.name={RAYSERVICE}"}
        try:
            for event in self._watch.stream(api.list_namespaced_custom_object, "ray.io", "v1", NAMESPACE, "rayservices", **asked):
                if self._over:
                    return
                self.states.append(event["object"])
        except urllib3.exceptions.HTTPError:
            assert self._over

    def up_to(self, state: Manifest) -> list[Manifest]:
        """All until this one was seen."""
        version = state["metadata"]["resourceVersion"]
        until(lambda: any(seen["metadata"]["resourceVersion"] == version for seen in self.states), "the watch to tell of the last state")
        return list(self.states)


@pytest.fixture
def flux(cluster: KubernetesCluster, embedded: Embedded) -> Iterator[Flux]:
    """The owner's set-up of `test_adoption`, from git; it runs."""
    whole = shared()
    whole["metadata"]["labels"] = LABELS
    whole["spec"]["serveConfigV2"] = OWNERS
    git = {SHARED: whole}
    for model in MODELS:
        labels = {**LABELS, **({names.ISVC_LABEL: model} if model in LABELLED else {})}
        spec = {"type": "ExternalName", "externalName": names.service_host(names.serve_service(RAYSERVICE), NAMESPACE)}
        metadata = {"name": names.alias(model), "namespace": NAMESPACE, "labels": labels}
        git[Ref("Service", names.alias(model), NAMESPACE)] = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}
    try:
        with Flux(embedded.cluster(), git) as syncing:
            for model in MODELS:
                until(lambda model=model: pid(cluster, model), f"{model} to answer")
            yield syncing
    finally:
        cluster.patch(SHARED, {"metadata": {"annotations": {names.GITOPS: None}}}, manager="owner")
        for manager in (FLUX, names.MANAGER):  # lets go of all that it applied
            body = {"apiVersion": whole["apiVersion"], "kind": SHARED.kind, "metadata": {"name": SHARED.name, "namespace": NAMESPACE}}
            cluster.apply(body, manager=manager, force=True)
        for model in MODELS:
            cluster.delete(Ref("Service", names.alias(model), NAMESPACE))


def got(cluster: KubernetesCluster, ref: Ref = SHARED) -> Manifest:
    found = cluster.get(ref)
    assert found is not None, ref
    return found


def fields_of(manifest: Manifest, manager: str) -> list[Any]:
    """What a manager holds of an object, its status aside."""
    entries = manifest["metadata"]["managedFields"]
    return [entry["fieldsV1"] for entry in entries if entry["manager"] == manager and entry.get("subresource") != "status"]


def assert_flux_has_its_own(states: list[Manifest], held: list[Any]) -> None:
    """In every state it holds the very fields, at its own values."""
    for state in states:
        assert fields_of(state, FLUX) == held, state["metadata"]
        assert state["metadata"]["labels"] == LABELS, state["metadata"]


def assert_nobody_lost(tallies: dict[str, Tally], bad: str = "") -> None:
    for model, tally in tallies.items():
        assert sum(tally.answered.values()) + sum(tally.failed.values()) == tally.sent, (model, tally)
        assert not [kind for kind in tally.failed if not (model == bad and kind == "v2 status 500")], (model, tally)


def test_a_whole_release_each_way_while_flux_applies_what_stands_in_git(
    flux: Flux, cluster: KubernetesCluster, users_of: Callable[[str], Clients]
) -> None:
    names_before, pids = aliases(cluster), {model: pid(cluster, model) for model in MODELS}
    with Everybody(users_of, WATCHED) as everybody:
        adopt("llm", "--route", MODELS["llm"])
        adopt("default", "--route", MODELS["default"])
        flux.wait()
        handed = command("yield", RAYSERVICE, "-n", NAMESPACE)
        assert handed.returncode == 0 and "take serveConfigV2 out of the file" in handed.stdout, handed.stdout + handed.stderr
        file = yaml.safe_load(yaml.safe_dump(flux.git[SHARED]))
        file["metadata"]["annotations"][names.GITOPS] = "yielded"
        file["spec"].pop("serveConfigV2")
        flux.commit(file)
        left = got(cluster)
        assert text_of(cluster) == OWNERS and ownership.of(left).mode == "yielded"
        assert {manager for manager, _ in ownership.writers(left)} == {names.MANAGER}

        with Recorder() as recorder:
            rollout.promote_with_canary(rollout.open_run(tiny("llm", "v2"), cluster, watch=flux.watch))
            assert {"registered", "deployed", "smoked", "canary", "promoting"} <= set(flux.seen), flux.seen
            assert flux.seen["canary"] >= 2 * IN_CANARY, flux.seen
            flux.wait()
            promoted = text_of(cluster)
            assert_only_applications_differ(OWNERS, promoted, "llm", "llm-v2")

            flux.seen.clear()
            with pytest.raises(errors.CanaryFailed, match="worse in errors"):
                rollout.promote_with_canary(rollout.open_run(tiny("default", "v2", args={"fail_every": 3}), cluster, watch=flux.watch))
            assert {"canary", "rolling_back"} <= set(flux.seen) and flux.seen["canary"] >= IN_CANARY, flux.seen
            flux.wait()
            assert text_of(cluster) == promoted, "taken back to the letter"
            states = recorder.up_to(got(cluster))
        assert len({state["spec"]["serveConfigV2"] for state in states}) > 6
        assert_flux_has_its_own(states, fields_of(left, FLUX))

        before, pids_then = got(cluster), {model: pid(cluster, model) for model in MODELS}
        exported = command("export", RAYSERVICE, "-n", NAMESPACE)
        assert exported.returncode == 0 and "Flux applies this object without serveConfigV2" in exported.stderr, exported.stderr
        anew = yaml.safe_load(exported.stdout)
        anew["metadata"]["labels"] = LABELS  # which the real one puts itself
        flux.commit(anew)
        after = got(cluster)
        assert after["spec"] == before["spec"] and after["metadata"]["generation"] == before["metadata"]["generation"]
        assert {key: after["metadata"].get(key) for key in ("labels", "annotations")} == {
            key: before["metadata"].get(key) for key in ("labels", "annotations")
        }
        everybody.wait()
        assert {model: pid(cluster, model) for model in MODELS} == pids_then

        adopt("--all", "--undo")
        everybody.wait()
        tallies = everybody.stop()
    assert aliases(cluster) == names_before
    assert {model for model in MODELS if pids_then[model] != pids[model]} == {"llm"}, (pids, pids_then)
    assert_nobody_lost(tallies, bad="default")
    assert tallies["llm"].answered["v2"] > 0 and tallies["default"].failed["v2 status 500"] > 0


def test_in_commit_mode_a_version_comes_in_by_commits_and_nothing_of_fluxs_is_written(
    flux: Flux, cluster: KubernetesCluster, users_of: Callable[[str], Clients], tmp_path: Path
) -> None:
    refs = list(flux.git)
    flux.wait()
    before, pids = {ref: got(cluster, ref) for ref in refs}, {model: pid(cluster, model) for model in MODELS}
    request = write(tiny("llm", "v2"), tmp_path / "request.yaml")
    with Everybody(users_of, WATCHED) as everybody, Recorder() as recorder:
        adopt("llm", "--route", MODELS["llm"])
        refused = command("promote", request)
        assert refused.returncode == 2 and f"it is managed by Flux ({FLUX} applies spec.serveConfigV2)" in refused.stderr, refused.stderr
        planned = command("plan", request, "--patch", tmp_path / "git")
        assert planned.returncode == 2 and "commit: Flux applies serveConfigV2" in planned.stdout, planned.stdout + planned.stderr
        flux.wait()
        assert text_of(cluster) == OWNERS and record_of(cluster, "llm")["candidate_version"] == "2024-06"

        texts = [OWNERS]
        for step, owner in (("1-beside", "llm"), ("2-route", "llm-v2"), ("3-tidy", "llm-v2")):
            file = yaml.safe_load((tmp_path / "git" / step / "rayservice.yaml").read_text())
            file["metadata"]["labels"] = LABELS
            flux.commit(file)
            texts.append(file["spec"]["serveConfigV2"])
            found = cluster.wait(
                SHARED, ready=rayservice.ready("llm-v2"), failed=rayservice.failed("llm-v2"), timeout_s=seconds(120), meanwhile=lambda: None
            )
            assert rayservice.owner(rayservice.serve_config(found), MODELS["llm"]) == owner, step
            until(lambda owner=owner: (pid(cluster, "llm") == pids["llm"]) is (owner == "llm"), f"{owner} to answer users")
            everybody.wait()
        assert_only_applications_differ(OWNERS, text_of(cluster), "llm", "llm-v2")
        told = adopt("llm", "--route", MODELS["llm"])
        assert "version v2" in told and record_of(cluster, "llm")["candidate_version"] == "v2", told
        adopt("--all", "--undo")
        flux.wait()
        everybody.wait()
        states = recorder.up_to(got(cluster))
        tallies = everybody.stop()

    assert all((FLUX, "Apply") in ownership.writers(state) and state["metadata"]["labels"] == LABELS for state in states)
    assert not any(fields_of(state, names.MANAGER) for state in states), "we never wrote it, whatever stood in it"
    assert [text for text in dict.fromkeys(state["spec"]["serveConfigV2"] for state in states)] == texts
    for ref in refs[1:]:
        was, now = before[ref], got(cluster, ref)
        assert (now["spec"], now["metadata"]["labels"]) == (was["spec"], was["metadata"]["labels"]), ref
        assert fields_of(now, FLUX) == fields_of(was, FLUX), ref
    assert_nobody_lost(tallies)
    assert {model for model in MODELS if pid(cluster, model) != pids[model]} == {"llm"}
    assert list(rayservice.applications(text_of(cluster))) == [*(name for name in APPLICATIONS.values() if name != "llm"), "llm-v2"]
