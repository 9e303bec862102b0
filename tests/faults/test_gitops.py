"""GitOps beside a release: a Flux that applies its manifest every few seconds, whoever writes what meanwhile."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from memory_world import CLUSTER, MODEL, NAMESPACE, RAYSERVICE, Outcome, World, asked, live
from test_adopt import TARGET
from test_owned_fields import everything
from test_plan import opened

from kfp_components import cli, errors, names, rollout
from kfp_components.cluster import Manifest, Ref
from kfp_components.cluster.memory import MemoryCluster
from kfp_components.rollout import open_run
from kfp_components.serving import alias, ownership, rayservice

FLUX = "kustomize-controller"
LABELS = {"kustomize.toolkit.fluxcd.io/name": "apps", "kustomize.toolkit.fluxcd.io/namespace": "flux-system"}
REF = Ref("RayService", RAYSERVICE, NAMESPACE)


class Flux:
    """Applies what stands in git with its manager every ``every_s`` of the world's seconds, by force, as the real one does."""

    def __init__(self, world: World, every_s: float = 3.0) -> None:
        self.world, self.every_s, self.synced, self._passed_s = world, every_s, 0, 0.0
        metadata = {"name": RAYSERVICE, "namespace": NAMESPACE, "labels": LABELS, "annotations": {names.ALLOWED_IMPORTS: "acme.*"}}
        spec: dict[str, Any] = {"serveConfigV2": live(), "rayClusterConfig": CLUSTER}
        self.git: Manifest = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "spec": spec}
        self.sync()
        world.known("v1")
        self._second, world.clock.second = world.clock.second, self.second

    def second(self, part_s: float) -> None:
        self._second(part_s)
        self._passed_s += part_s
        if self._passed_s >= self.every_s:
            self._passed_s = 0.0
            self.sync()

    def sync(self) -> None:
        self.synced += 1
        self.world.cluster.apply(self.git, manager=FLUX, force=True)

    def drops_the_field(self) -> None:
        self.git["spec"].pop("serveConfigV2")
        self.sync()


def fluxed(every_s: float = 3.0) -> tuple[World, Flux]:
    world = World(rate_per_s=400.0)
    return world, Flux(world, every_s)


def got(world: World) -> Manifest:
    found = world.found()
    assert found is not None
    return found


def writers(world: World) -> set[str]:
    return {manager for manager, _ in ownership.writers(got(world))}


def promoted(world: World, watch: Callable[[rollout.Release], None] = lambda _release: None) -> Outcome:
    process = world.process(watch=watch)
    return process.outcome(lambda: process.promote(asked("v2")))


def yielded(*, every_s: float = 3.0) -> tuple[World, Flux]:
    world, flux = fluxed(every_s)
    rollout.yield_field(world.cluster, NAMESPACE, RAYSERVICE)
    flux.drops_the_field()
    return world, flux


def test_a_field_that_git_drops_first_goes_with_every_application() -> None:
    """Why the hand-over is a command."""
    world, flux = fluxed()
    world.cluster.patch(REF, {"metadata": {"annotations": {names.GITOPS: "yielded"}}}, manager="kubectl-annotate")
    flux.drops_the_field()
    assert "serveConfigV2" not in got(world)["spec"] and world.users_get() != ("v1",)


def test_a_field_that_was_handed_over_stays_to_the_letter() -> None:
    world, flux = fluxed()
    before = world.text()
    told = rollout.yield_field(world.cluster, NAMESPACE, RAYSERVICE)
    assert told.manager == "Flux" and told.done == (f"{names.MANAGER} owns serveConfigV2 too, as it is", f"annotation {names.GITOPS}: yielded")
    assert "take serveConfigV2 out of the file" in told.todo and "Now, and not before, have Flux leave the field alone" in str(told)
    assert writers(world) == {FLUX, names.MANAGER} and got(world)["metadata"]["generation"] == 1
    flux.drops_the_field()
    assert world.text() == before and writers(world) == {names.MANAGER}
    assert ownership.of(got(world)).mode == "yielded" and world.users_get() == ("v1",)


def test_handing_over_twice_changes_nothing() -> None:
    world, flux = yielded()
    for _ in range(2):
        before = got(world)
        told = rollout.yield_field(world.cluster, NAMESPACE, RAYSERVICE)
        assert told.done == () and told.todo == "" and got(world) == before
        flux.sync()


def test_a_good_version_is_promoted_while_flux_syncs() -> None:
    world, flux = yielded(every_s=1.0)
    synced = flux.synced
    assert world.promote(asked("v2")).phase == "promoted"
    assert flux.synced - synced > 5
    assert not world.serve.lost and not world.serve.failed and world.users_get() == ("v2",)
    applications = rayservice.applications(world.text())
    assert list(applications) == ["whisper", f"{MODEL}-v2"] and applications[f"{MODEL}-v2"]["route_prefix"] == f"/{MODEL}"
    assert got(world)["metadata"]["labels"] == LABELS and writers(world) == {names.MANAGER}


def test_a_bad_version_is_taken_back_while_flux_syncs() -> None:
    world, flux = yielded(every_s=1.0)
    before, synced = world.text(), flux.synced
    world.serve.behaviour(f"{MODEL}-v2").answer = lambda n: 500 if n % 2 else 200
    end = promoted(world)
    assert isinstance(end.error, errors.CanaryFailed), str(end)
    assert flux.synced > synced and world.text() == before and not world.serve.lost and world.users_get() == ("v1",)
    assert set(world.serve.failed) == {"v2"}


def test_a_field_that_its_owner_forgot_in_git_is_refused_before_anything_is_written() -> None:
    """Flux owns exactly what stands in git: what it holds, it writes back."""
    world, flux = fluxed()
    rollout.yield_field(world.cluster, NAMESPACE, RAYSERVICE)
    before = everything(world)
    end = promoted(world)
    assert isinstance(end.error, errors.ManagedElsewhere) and everything(world) == before
    assert f"says yielded, but Flux ({FLUX}) applies serveConfigV2 still and writes it back with its next sync" in end.words
    assert str(rollout.plan(opened(world, asked("v2"))).refused) == str(end.error)
    flux.git["metadata"]["annotations"]["kustomize.toolkit.fluxcd.io/ssa"] = "IfNotPresent"
    flux.sync()
    assert rollout.plan(opened(world, asked("v2"))).refused is None, "it is told to leave the object alone"


@pytest.mark.parametrize("phase", ["registered", "deployed", "smoked", "canary", "promoting"])
@pytest.mark.parametrize("every_s", [1.0, 3.0])
def test_a_field_that_comes_back_to_git_meanwhile_ends_the_release_and_users_are_served(phase: str, every_s: float) -> None:
    world, flux = yielded(every_s=every_s)

    def watch(record: rollout.Release) -> None:
        if record.phase == phase:
            flux.git["spec"]["serveConfigV2"] = live()
            world.soon = flux.sync

    end = promoted(world, watch)
    assert end.exit_code in (3, 4), str(end)
    flux.sync()
    assert world.users_get() == ("v1",) and not world.serve.failed
    for _ in range(2):  # one that was left is taken back by the same command
        world.clock.sleep(60.0)
        end = promoted(world)
    assert end.exit_code == 2 and FLUX in end.words, str(end)
    assert world.users_get() == ("v1",) and not world.serve.failed


def test_what_git_still_holds_is_told_by_the_plan() -> None:
    world, flux = fluxed()
    world.cluster.patch(REF, {"metadata": {"annotations": {names.GITOPS: "yielded"}}}, manager="kubectl-annotate")
    told = str(rollout.plan(opened(world, asked("v2"))))
    assert f"Flux holds the field alone: run `kfp-serving yield {RAYSERVICE} -n {NAMESPACE}` before it is taken out of git" in told
    rollout.yield_field(world.cluster, NAMESPACE, RAYSERVICE)
    assert "Flux applies it all the same, so a run is refused until it is taken out of git" in str(rollout.plan(opened(world, asked("v2"))))
    flux.drops_the_field()
    (owner, *_) = rollout.plan(opened(world, asked("v2"))).owners
    assert (owner.mode, owner.follows) == ("yielded", f"left to us by its owner (annotation {names.GITOPS}: yielded)")


def test_without_a_word_of_its_owner_nothing_is_written_and_the_plan_tells_all() -> None:
    world, _flux = fluxed()
    before = everything(world)
    plan = rollout.plan(opened(world, asked("v2")))
    assert isinstance(plan.refused, errors.ManagedElsewhere) and f"`kfp-serving yield {RAYSERVICE} -n {NAMESPACE}`" in str(plan.refused)
    assert [(owner.mode, owner.manager) for owner in plan.owners] == [("commit", "Flux"), ("ours", ""), ("ours", "")]
    told = str(plan)
    assert told.startswith(f"{REF}: commit: Flux applies serveConfigV2 ({FLUX} applies spec.serveConfigV2) and would write it back")
    assert f"application {MODEL}-v2 beside the others" in told
    end = promoted(world)
    assert isinstance(end.error, errors.ManagedElsewhere) and end.exit_code == 2
    assert everything(world) == before, "managedFields and resourceVersions too"


@pytest.mark.parametrize("front", [True, False], ids=["alias and stub are there", "they are missing"])
def test_the_files_to_commit_bring_the_version_in_without_losing_anybody(front: bool) -> None:
    world, flux = fluxed()
    if front:
        world.front()
    run = opened(world, asked("v2"))
    files = rollout.patch_files(rollout.plan(run), run)
    steps = [path for path in files if path.endswith("rayservice.yaml")]
    assert steps == [f"{step}/rayservice.yaml" for step in ("0-now", "1-beside", "2-route", "3-tidy")]
    assert (len(files) == 6) is not front
    assert yaml.safe_load(files["0-now/rayservice.yaml"])["spec"]["serveConfigV2"] == world.text()
    for step, users in zip(steps, ("v1", "v1", "v2", "v2"), strict=True):
        flux.git = yaml.safe_load(files[step])
        assert "status" not in flux.git and "managedFields" not in flux.git["metadata"] and "labels" not in flux.git["metadata"]
        flux.sync()
        world.clock.sleep(30.0)
        assert world.users_get() == (users,) and not world.serve.lost, step
    assert list(rayservice.applications(world.text())) == ["whisper", f"{MODEL}-v2"]
    assert world.process().adopt(TARGET, rollout.Asked()).stable_now == "v2"  # and the next release knows it


def test_in_commit_mode_nothing_of_fluxs_is_written_from_an_adoption_to_its_undoing() -> None:
    world = World(rate_per_s=400.0, route="/v1")
    flux = Flux(world)
    flux.git["spec"]["serveConfigV2"] = "applications: [{name: chat, route_prefix: /v1, import_path: 'acme.bge:app'}]\n"
    flux.sync()
    metadata = {"name": names.alias(MODEL), "namespace": NAMESPACE, "labels": LABELS}
    spec = {"type": "ExternalName", "externalName": names.service_host(names.serve_service(RAYSERVICE), NAMESPACE)}
    service = world.cluster.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}, manager=FLUX, force=True)
    there, before = got(world), world.registry.aliases(f"{NAMESPACE}.{MODEL}")
    first = world.process().adopt(TARGET, rollout.Asked(route="/v1", version="v1"))
    assert first.adoption is not None and set(first.adoption.made) == {"InferenceService", alias.LABEL}
    run = opened(world, asked("v2"))
    files = rollout.patch_files(rollout.plan(run), run)
    assert promoted(world).exit_code == 2 and got(world) == there
    for step in ("1-beside", "2-route", "3-tidy"):
        flux.git = yaml.safe_load(files[f"{step}/rayservice.yaml"])
        flux.sync()
        world.clock.sleep(30.0)
    committed = got(world)
    assert not world.serve.lost and world.users_get() == ("v2",)
    second = world.process().adopt(TARGET, rollout.Asked(route="/v1"))
    assert second.stable_now == "v2" and second.adoption is not None and second.adoption.made == first.adoption.made
    rollout.undo_adoption(world.process().open_rollback(TARGET))
    after = world.cluster.get(Ref.of(service))
    assert after is not None and {**after, "metadata": None} == {**service, "metadata": None} and after["metadata"]["labels"] == LABELS
    assert world.cluster.get(Ref("InferenceService", MODEL, NAMESPACE)) is None
    assert world.registry.aliases(f"{NAMESPACE}.{MODEL}") == before
    assert got(world) == committed and names.MANAGER not in {entry["manager"] for entry in committed["metadata"]["managedFields"]}


def test_the_field_goes_back_to_git_once_it_stands_there() -> None:
    world, flux = yielded()
    world.promote(asked("v2"))
    before = got(world)
    with pytest.raises(
        errors.ManagedElsewhere, match=r"nobody but kfp-components applies serveConfigV2, .* `kfp-serving export ai-inference -n ai-ml`"
    ):
        rollout.undo_yield(world.cluster, NAMESPACE, RAYSERVICE)
    assert got(world) == before
    exported = rollout.export(world.cluster, NAMESPACE, RAYSERVICE)
    assert "Flux applies this object without serveConfigV2" in exported.note
    flux.git = yaml.safe_load(str(exported))
    flux.git["metadata"]["annotations"].pop(names.GITOPS)
    text = world.text()
    flux.sync()
    assert writers(world) == {FLUX, names.MANAGER}
    told = rollout.undo_yield(world.cluster, NAMESPACE, RAYSERVICE)
    assert told.manager == "Flux" and len(told.done) == 2 and world.text() == text and writers(world) == {FLUX}
    assert ownership.of(got(world)).mode == "commit" and world.users_get() == ("v2",)
    assert rollout.undo_yield(world.cluster, NAMESPACE, RAYSERVICE).done == ()


def test_what_git_says_of_the_annotation_is_not_written_over() -> None:
    world, flux = fluxed()
    flux.git["metadata"]["annotations"][names.GITOPS] = "commit"
    flux.sync()
    before = got(world)
    with pytest.raises(errors.ManagedElsewhere, match=f"stands in git, Flux applies it; write `{names.GITOPS}: yielded` into the file"):
        rollout.yield_field(world.cluster, NAMESPACE, RAYSERVICE)
    assert got(world) == before
    flux.git["metadata"]["annotations"][names.GITOPS] = "yielded"
    flux.sync()
    assert rollout.yield_field(world.cluster, NAMESPACE, RAYSERVICE).done == (f"{names.MANAGER} owns serveConfigV2 too, as it is",)
    with pytest.raises(errors.ManagedElsewhere, match="take it out of the file"):
        rollout.undo_yield(world.cluster, NAMESPACE, RAYSERVICE)


TOOLS = {
    "argocd-controller": ("Argo CD", "jsonPointers: [/spec/serveConfigV2]"),
    "kapp-server": ("kapp", "sources: [existing, new]"),
    "helm": ("Helm", "take the field out of what it applies"),
    "helm-controller": ("Flux", "take the field out of what it applies"),
}


@pytest.mark.parametrize("manager", TOOLS)
def test_each_tool_is_told_in_its_own_words(manager: str) -> None:
    world = World(rate_per_s=0.0)
    world.rayservice(live(), manager=manager)
    told = rollout.yield_field(world.cluster, NAMESPACE, RAYSERVICE)
    name, words = TOOLS[manager]
    assert told.manager == name and words in told.todo and f"{names.GITOPS}: yielded" in told.todo
    assert writers(world) == {manager, names.MANAGER}


def test_what_was_written_client_side_stays_in_the_chart() -> None:
    world = World(rate_per_s=0.0)
    world.rayservice(live())
    world.cluster.patch(REF, {"spec": {"serveConfigV2": live() + "# ours\n"}}, manager="helm")
    told = rollout.yield_field(world.cluster, NAMESPACE, RAYSERVICE)
    assert "taken out of what it applies, the field would be deleted, with every application. Leave it there" in told.todo


def test_nobody_elses_field_is_not_handed_over() -> None:
    world = World(rate_per_s=0.0)
    world.rayservice(live())
    before = got(world)
    told = rollout.yield_field(world.cluster, NAMESPACE, RAYSERVICE)
    assert told.done == () and "there is nothing to hand over" in str(told) and got(world) == before
    with pytest.raises(errors.NotFound, match="correct the name"):
        rollout.yield_field(world.cluster, NAMESPACE, "other")


class Racing(MemoryCluster):
    """Flux applies something else right after each of the first reads."""

    def __init__(self, *texts: str | None) -> None:
        super().__init__()
        self.texts = list(texts)

    def get(self, ref: Ref) -> Manifest | None:
        found = super().get(ref)
        if self.texts:
            self.flux(self.texts.pop(0))
        return found

    def flux(self, text: str | None) -> None:
        metadata = {"name": "ai", "namespace": "default", "labels": LABELS}
        spec = {"rayClusterConfig": CLUSTER, **({} if text is None else {"serveConfigV2": text})}
        self.apply({"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "spec": spec}, manager=FLUX, force=True)


def test_a_write_in_between_is_not_written_over() -> None:
    cluster = Racing(live() + "# 1\n", live() + "# 2\n")
    cluster.flux(live())
    rollout.yield_field(cluster, "default", "ai")
    found = cluster.get(Ref("RayService", "ai", "default"))
    assert found is not None and found["spec"]["serveConfigV2"] == live() + "# 2\n"
    assert {manager for manager, _ in ownership.writers(found)} == {FLUX, names.MANAGER}


@pytest.mark.parametrize("said", [True, False])
def test_a_field_that_git_drops_while_it_is_given_back_stays(said: bool) -> None:
    cluster, ref = Racing(), Ref("RayService", "ai", "default")
    cluster.flux(live())
    rollout.yield_field(cluster, "default", "ai")
    if not said:
        cluster.patch(ref, {"metadata": {"annotations": {names.GITOPS: None}}}, manager="kubectl-annotate")
    cluster.texts = [None]
    with pytest.raises(errors.ManagedElsewhere, match="nobody but kfp-components applies serveConfigV2"):
        rollout.undo_yield(cluster, "default", "ai")
    found = cluster.get(ref)
    assert found is not None and found["spec"]["serveConfigV2"] == live() and ownership.says_yielded(found) is said


TEXTS = {
    "plain": live(),
    "blanks at the ends of lines": "applications:   \n- name: bge  # ours  \n  route_prefix: /bge\n",
    "indented": "  applications: []\n",
    "no line end": "applications: []",
    "many line ends": "# a\n\n\napplications: []\n\n\n",
    "blank lines first": "\n\n  applications: []\n",
    "carriage returns": "applications:\r\n- name: bge\r\n",
    "one line of blanks": "applications: []\n   ",
    "not ASCII": "# größer 模型\napplications: []\n",
    "a tab": "applications: []\t# x\n",
    "empty": "",
}


@pytest.mark.parametrize("case", TEXTS)
def test_an_exported_text_is_the_same_to_the_letter(case: str) -> None:
    cluster = MemoryCluster()
    metadata = {
        "name": "ai",
        "namespace": "default",
        "labels": {**LABELS, "team": "1e3", "beta": "no"},
        "annotations": {names.LAST_APPLIED: "{}", names.ALLOWED_IMPORTS: "acme.*"},
    }
    body = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata}
    cluster.apply({**body, "spec": {"serveConfigV2": TEXTS[case], "rayClusterConfig": CLUSTER}}, manager=FLUX)
    text = str(rollout.export(cluster, "default", "ai"))
    found = yaml.safe_load(text)
    assert found["spec"] == {"serveConfigV2": TEXTS[case], "rayClusterConfig": CLUSTER}
    kept = {"labels": {"team": "1e3", "beta": "no"}, "annotations": {names.ALLOWED_IMPORTS: "acme.*"}}
    assert found["metadata"] == {"name": "ai", "namespace": "default", **kept} and 'team: "1e3"' in text
    assert set(found) == {"apiVersion", "kind", "metadata", "spec"}
    assert "serveConfigV2: |" in text or case in ("carriage returns", "one line of blanks", "empty", "a tab"), text


def command(world: World, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The command line, on the world's cluster."""
    monkeypatch.setattr(cli, "_cluster", lambda _kubeconfig: world.cluster)
    monkeypatch.setattr(rollout, "open_run", lambda request, _cluster: open_run(request, world.cluster, clock=world.clock, registry=world.registry))
    monkeypatch.setattr(sys, "argv", ["kfp-serving", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_from_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    world, flux = fluxed()
    file, where = tmp_path / "request.yaml", [RAYSERVICE, "-n", NAMESPACE]
    file.write_text(yaml.safe_dump(asked("v2").model_dump(mode="json", exclude_unset=True)))

    assert command(world, monkeypatch, "plan", str(file), "--json", "--patch", str(tmp_path / "git")) == 2
    told = capsys.readouterr()
    plan = json.loads(told.out)
    assert [owner["mode"] for owner in plan["owners"]] == ["commit", "ours", "ours"] and plan["changes"]
    assert plan["refused"] in told.err and told.err.splitlines()[-1].startswith("ManagedElsewhere: ")
    found = yaml.safe_load((tmp_path / "git" / "1-beside" / "rayservice.yaml").read_text())
    assert list(rayservice.applications(rayservice.serve_config(found))) == ["whisper", f"{MODEL}-v1", f"{MODEL}-v2"]

    assert command(world, monkeypatch, "yield", *where, "--json") == 0
    assert json.loads(capsys.readouterr().out)["manager"] == "Flux"
    flux.drops_the_field()
    assert command(world, monkeypatch, "plan", str(file)) == 0
    assert capsys.readouterr().out.startswith(f"{REF}: yielded: left to us by its owner")

    assert command(world, monkeypatch, "export", *where) == 0
    told = capsys.readouterr()
    assert yaml.safe_load(told.out)["spec"]["serveConfigV2"] == world.text() and "Flux applies this object without serveConfigV2" in told.err
    assert command(world, monkeypatch, "export", *where, "-o", str(tmp_path / "rayservice.yaml")) == 0
    assert (tmp_path / "rayservice.yaml").read_text() == told.out
    capsys.readouterr()
    assert command(world, monkeypatch, "export", *where, "--json") == 0
    assert json.loads(capsys.readouterr().out)["text"] == told.out

    assert command(world, monkeypatch, "yield", *where, "--undo") == 2
    flux.git = yaml.safe_load(told.out)
    flux.git["metadata"]["annotations"].pop(names.GITOPS)
    flux.sync()
    assert command(world, monkeypatch, "yield", *where, "--undo") == 0
    assert writers(world) == {FLUX}
