"""Adoption: people who serve a model already go on serving it, and it can be released from then on."""

import json
import sys

import pytest
from memory_world import MODEL, NAMESPACE, OTHERS, RAYSERVICE, Chosen, World, asked

from kfp_components import cli, errors, names, rollout
from kfp_components.cluster import Manifest, Ref
from kfp_components.cluster.faults import Killed, Record
from kfp_components.cluster.memory import MemoryCluster
from kfp_components.release import Release
from kfp_components.request import parse_target
from kfp_components.rollout import Asked, open_run
from kfp_components.serving import rayservice

TARGET = parse_target({"model": MODEL, "namespace": NAMESPACE, "rayservice": RAYSERVICE})
ALIAS, STUB = Ref("Service", names.alias(MODEL), NAMESPACE), Ref("InferenceService", MODEL, NAMESPACE)
OWNERS = """\
# the platform team's
applications:
# speech
- name: whisper
  route_prefix: "/whisper"
  import_path: acme.whisper:app

# embeddings: call us before you touch it
- name:   bge        # since 2024
  route_prefix: '/bge'
  import_path: acme.bge:app
  deployments: [{name: Bge, num_replicas: 3}]
logging_config: {log_level: INFO}
"""


def brownfield(text: str = OWNERS, *, alias: bool = True, route: str = "/bge") -> World:
    world = World(rate_per_s=400.0, route=route)
    world.rayservice(text, manager="kubectl-client-side-apply", adopted=False)
    if alias:
        world.alias()
    return world


def managers(world: World) -> dict[str, list[str]]:
    """Manager -> fields of the RayService's spec."""
    found = world.found()
    assert found is not None
    return {entry["manager"]: sorted(entry["fieldsV1"].get("f:spec") or {}) for entry in found["metadata"]["managedFields"]}


def test_case_04_what_runs_is_adopted_promoted_over_and_given_back() -> None:
    world = brownfield()
    before, alias_before = managers(world), world.cluster.get(ALIAS)
    record = world.process().adopt(TARGET, Asked())
    assert record.phase == "promoted" and record.stable_now == record.candidate_version and record.candidate_version.startswith("found-")
    assert world.text() == OWNERS and managers(world) == before, "nothing of it is written"
    known = world.registry.aliases(f"{NAMESPACE}.{MODEL}")
    assert known == {"champion": record.candidate_version}
    alias = world.cluster.get(ALIAS)
    assert alias is not None and alias["metadata"]["labels"] == {names.ISVC_LABEL: MODEL}
    stub = world.cluster.get(STUB)
    assert stub is not None and stub["status"]["components"]["predictor"]["traffic"][0]["tag"] == record.candidate_version
    assert [event.message for event in record.events if event.step == "adopt"] == [
        f"application bge at /bge (acme.bge:app) is version {record.candidate_version}: nothing of it is touched",
        "Service ai-ml/bge-predictor -> ai-inference-serve-svc.ai-ml.svc.cluster.local is there: the label is put on",
    ]

    assert world.promote(asked("v2")).phase == "promoted"
    assert not world.serve.lost and not world.serve.failed
    applications = rayservice.applications(world.text())
    assert list(applications) == ["whisper", f"{MODEL}-v2"] and applications[f"{MODEL}-v2"]["route_prefix"] == "/bge"
    kept = OWNERS[: OWNERS.index("# embeddings")]
    assert world.text().startswith(kept) and world.text().endswith("logging_config: {log_level: INFO}\n")

    run = world.process().open_rollback(TARGET)
    assert rollout.undo_adoption(run).phase == "rolled_back"
    alias = world.cluster.get(ALIAS)
    assert alias is not None and alias_before is not None
    assert alias["spec"] == alias_before["spec"] and not alias["metadata"].get("labels")
    assert world.cluster.get(STUB) is None and world.lease() is None and not world.registry.aliases(f"{NAMESPACE}.{MODEL}")
    with pytest.raises(errors.NotFound, match="it was not adopted; there is nothing to undo"):
        rollout.undo_adoption(world.process().open_rollback(TARGET))


@pytest.mark.parametrize(
    ("text", "route", "named"),
    [
        (OWNERS, "/bge", "bge"),
        ("applications:\n- name: llm\n  import_path: acme.bge:app\n", "/", "llm"),
        ("applications:\n- import_path: acme.bge:app\n" + OTHERS.replace("  -", "-").replace("\n    ", "\n  "), "/", "default"),
        ("applications: [{name: My_LLM, import_path: 'acme.bge:app', route_prefix: /v1}]\n", "/v1", "My_LLM"),
        ('{"applications": [{"name": "bge", "route_prefix": "/bge", "import_path": "acme.bge:app"}]}', "/bge", "bge"),
    ],
    ids=["as the record shows it", "at / without saying so", "case_15, without a name", "another route and name", "JSON"],
)
def test_case_04_a_version_that_is_taken_back_leaves_the_very_text(text: str, route: str, named: str) -> None:
    world = brownfield(text, alias=False, route=route)
    record = world.process().adopt(TARGET, Asked(application=named))
    assert (record.address.route, record.application(record.candidate_version)) == (route, named) and world.text() == text
    seen: list[str | None] = []
    world.serve.behaviour(f"{MODEL}-v2").answer = lambda n: 500 if n % 3 == 0 else 200
    process = world.process(watch=lambda record: seen.append(rayservice.owner(world.text(), route)))
    end = process.outcome(lambda: process.promote(asked("v2")))
    assert end.exit_code == 4 and f"{MODEL}-router" in seen and not world.serve.lost, str(end)
    assert world.text() == text
    assert world.record().stable_now == record.candidate_version


def test_case_04_promote_says_that_it_is_to_be_adopted_and_touches_nothing() -> None:
    world = brownfield()
    process = world.process()
    end = process.outcome(lambda: process.promote(asked("v2")))
    assert isinstance(end.error, errors.NotAdopted) and end.exit_code == 2
    assert f"`kfp-serving adopt {MODEL} -n {NAMESPACE} --rayservice {RAYSERVICE}`" in end.words and "options.adopt" in end.words
    assert "another route_prefix" not in end.words, "that is an outage"
    first = process.outcome(lambda: process.deploy(asked("v2")))
    assert isinstance(first.error, errors.NotAdopted)
    assert world.text() == OWNERS and world.stored() is None and world.lease() is None and world.cluster.get(STUB) is None


def test_case_04_promote_adopts_first_where_it_is_told_to() -> None:
    world = brownfield()
    world.serve.behaviour(f"{MODEL}-v2").answer = lambda n: 500 if n % 3 == 0 else 200
    process = world.process()
    end = process.outcome(lambda: process.promote(asked("v2", adopt=True)))
    assert isinstance(end.error, errors.CanaryFailed) and world.text() == OWNERS and not world.serve.lost
    record = world.record()
    assert record.adoption is not None and record.stable_now == record.adoption.version and world.users_get() == ("bge",)
    assert set(world.serve.failed) == {"v2"}


def test_case_04_a_request_that_is_refused_adopts_nothing() -> None:
    world = brownfield()
    process = world.process()
    request = asked("v2", adopt=True).model_copy(update={"import_path": "evil.module:app"})
    end = process.outcome(lambda: process.promote(request))
    assert end.exit_code == 2 and "allow-list" in end.words and world.stored() is None


def test_case_04_everything_that_is_in_the_way_is_told_at_once() -> None:
    world = brownfield(alias=False)
    body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": ALIAS.name, "namespace": NAMESPACE}}
    world.cluster.apply({**body, "spec": {"type": "ExternalName", "externalName": "elsewhere.ai-ml.svc.cluster.local"}}, manager="owner")
    world.registry.register(f"{NAMESPACE}.{MODEL}", "v1", "s3://another", digest=None, properties={})
    text, before = world.text(), world.cluster.get(ALIAS)
    with pytest.raises(errors.NameTaken) as caught:
        world.process().adopt(TARGET, Asked(version="v1", uri="s3://mine"))
    assert "it points to elsewhere" in str(caught.value) and "registered with s3://another" in str(caught.value)
    assert world.text() == text and world.cluster.get(ALIAS) == before and world.stored() is None and world.lease() is None


def test_what_is_not_there_cannot_be_adopted() -> None:
    world = brownfield()
    for wrong, told in (
        (Asked(application="gone"), "there is no application gone; there are: whisper at /whisper, bge at /bge"),
        (Asked(route="/v1"), "there is no application at /v1"),
        (Asked(application="bge", route="/v1"), "application bge is at /bge, not at /v1"),
    ):
        with pytest.raises(errors.NotFound, match=told):
            rollout.adoption_of(world.cluster, TARGET, wrong)
    hidden = brownfield("applications: [{name: bge, import_path: 'a:b', route_prefix: null}]\n")
    with pytest.raises(errors.NotFound, match="application bge is at no route"):
        rollout.adoption_of(hidden.cluster, TARGET, Asked(application="bge"))


def test_all_applications_get_the_names_that_their_aliases_have() -> None:
    text = (
        "applications:\n"
        "- {name: Whisper_Large, route_prefix: /whisper, import_path: 'a:b'}\n"
        "- {name: bge, route_prefix: /embed, import_path: 'a:b'}\n"
        "- {name: hidden, route_prefix: null, import_path: 'a:b'}\n"
        "- {import_path: 'a:b'}\n"
    )
    world = brownfield(text, alias=True)
    spec = {"type": "ExternalName", "externalName": "x.y.svc"}
    for model in ("whisper", "embed"):
        body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": names.alias(model), "namespace": NAMESPACE}, "spec": spec}
        world.cluster.apply(body, manager="owner")
    found = rollout.adoptable(world.cluster, NAMESPACE, RAYSERVICE)
    assert found == {"Whisper_Large": "whisper", "bge": "bge", "default": "default"}, "the application's name before the route"
    assert rollout.adopted(world.cluster, NAMESPACE, RAYSERVICE) == []
    world.process().adopt(TARGET, Asked(application="bge", route="/embed"))
    assert rollout.adopted(world.cluster, NAMESPACE, RAYSERVICE) == [MODEL] and rollout.adoptable(world.cluster, NAMESPACE, RAYSERVICE) == found
    odd = brownfield("applications: [{name: 'm-:a', import_path: 'a:b'}, {name: x--y, route_prefix: /x, import_path: 'a:b'}]\n")
    assert rollout.adoptable(odd.cluster, NAMESPACE, RAYSERVICE) == {"m-:a": "m-a", "x--y": "x--y"}
    clash = brownfield("applications: [{name: a_b, import_path: 'a:b'}, {name: a-b, route_prefix: /x, import_path: 'a:b'}]\n")
    with pytest.raises(errors.RequestInvalid, match="adopt it by `adopt MODEL --application a_b`"):
        rollout.adoptable(clash.cluster, NAMESPACE, RAYSERVICE)


def test_an_application_that_was_promoted_is_its_models_wherever_it_stands() -> None:
    world = brownfield("applications:\n- {name: chat, route_prefix: /v1, import_path: 'acme.chat:app'}\n", route="/v1")
    world.process().adopt(TARGET, Asked(route="/v1"))
    world.promote(asked("v2"))
    assert rollout.adoptable(world.cluster, NAMESPACE, RAYSERVICE) == {f"{MODEL}-v2": MODEL}
    assert rollout.adopted(world.cluster, NAMESPACE, RAYSERVICE) == [MODEL]


def test_the_same_adoption_again_is_harmless_and_another_one_of_a_release_is_refused() -> None:
    world = brownfield()
    first = world.process().adopt(TARGET, Asked())
    again = world.process().adopt(TARGET, Asked())
    assert (again.epoch, again.candidate_version) == (first.epoch, first.candidate_version)
    world.killed_when(lambda record: record.weight_percent > 0, asked("v2"))
    world.clock.sleep(60.0)
    with pytest.raises(errors.NameTaken, match="is of a release by this library already"):
        rollout.adoption_of(world.cluster, TARGET, Asked(route="/bge"))
    with pytest.raises(errors.ReleaseHeld, match="the release of v2 is canary; end it first"):
        rollout.undo_adoption(world.process().open_rollback(TARGET))


def test_a_plan_of_an_adoption_says_what_is_there_and_what_is_made() -> None:
    world = brownfield(
        "applications:\n- {name: bge, route_prefix: /, import_path: 'a:b'}\n- {name: x, route_prefix: /x, import_path: 'a:b'}\n", alias=False
    )
    run = world.process().open(rollout.adoption_of(world.cluster, TARGET, Asked(application="bge")))
    told, changes = rollout.plan_adoption(run)
    assert "requests below /x go to application x, not to what is at /" in told
    assert [change.ref.kind for change in changes] == ["Service", "InferenceService", "InferenceService"]
    assert world.stored() is None and world.cluster.get(STUB) is None


def test_the_record_of_an_adopted_model_keeps_its_address() -> None:
    world = brownfield("applications:\n- {name: bge, route_prefix: /v1/models, import_path: 'acme.bge:app'}\n", route="/v1/models")
    world.process().adopt(TARGET, Asked(application="bge"))
    with pytest.raises(errors.RequestInvalid, match=r"options.route: users of model bge call /v1/models, not /bge; leave it out"):
        world.promote(asked("v2", route="/bge"))
    record: Release = world.promote(asked("v2"))
    assert record.address == names.Address(names.alias(MODEL), "/v1/models")
    stub = world.cluster.get(STUB)
    assert stub is not None and stub["status"]["url"] == "http://bge-predictor.ai-ml.svc.cluster.local:8000/v1/models"


def gateway(world: World, name: str, path: str, service: str) -> Ref:
    body = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": name, "namespace": NAMESPACE}}
    rules = [{"matches": [{"path": {"value": path}}], "backendRefs": [{"name": service, "port": 8000}]}]
    return Ref.of(world.cluster.apply({**body, "spec": {"hostnames": ["models.example"], "rules": rules}}, manager="owner"))


def test_http_routes_by_which_users_come_are_told_and_not_touched() -> None:
    world = brownfield()
    refs = [
        gateway(world, "by-alias", "/bge", ALIAS.name),
        gateway(world, "by-ray", "/", names.serve_service(RAYSERVICE)),
        gateway(world, "of-whisper", "/whisper", names.serve_service(RAYSERVICE)),
        gateway(world, "elsewhere", "/bge", "web"),
    ]
    before = [world.cluster.get(ref) for ref in refs]
    wanted = [
        f"HTTPRoute {NAMESPACE}/by-alias sends /bge of models.example to Service {ALIAS.name}: it is not touched",
        f"HTTPRoute {NAMESPACE}/by-ray sends / of models.example to Service {RAYSERVICE}-serve-svc: it is not touched",
    ]
    told, _ = rollout.plan_adoption(world.process().open(rollout.adoption_of(world.cluster, TARGET, Asked())))
    assert [sentence for sentence in told if "HTTPRoute" in sentence] == wanted
    record = world.process().adopt(TARGET, Asked())
    assert [event.message for event in record.events if "HTTPRoute" in event.message] == wanted
    world.promote(asked("v2"))
    rollout.undo_adoption(world.process().open_rollback(TARGET))
    assert [world.cluster.get(ref) for ref in refs] == before


class WithoutHttpRoutes(MemoryCluster):
    """A cluster that does not list them."""

    def __init__(self, why: errors.KfpServingError) -> None:
        super().__init__()
        self.why = why

    def list(self, kind: str, namespace: str, *, labels: str | None = None) -> list[Manifest]:
        if kind == "HTTPRoute":
            raise self.why
        return super().list(kind, namespace, labels=labels)


@pytest.mark.parametrize(
    ("why", "told"),
    [
        (errors.NotFound("this cluster does not know the kind"), "this cluster does not have Gateway API"),
        (errors.PermissionDenied("forbidden"), "this identity may not list them; the Role of deploy/rbac.yaml grants it"),
        (errors.Unreachable("the Kubernetes API answered 500"), "the Kubernetes API answered 500"),
    ],
)
def test_http_routes_that_cannot_be_looked_at_are_said_to_be_so(why: errors.KfpServingError, told: str) -> None:
    world = brownfield()
    cluster = WithoutHttpRoutes(why)
    cluster._verbs, cluster._clock = world.cluster._verbs, world.clock
    run = open_run(rollout.adoption_of(cluster, TARGET, clock=world.clock), cluster, clock=world.clock, registry=world.registry)
    assert f"HTTPRoutes were not looked at: {told}" in rollout.plan_adoption(run)[0]
    assert rollout.adopt_model(run).phase == "promoted"


# --- what a newcomer found ------------------------------------------------------------------------------------------------------------


def test_an_application_serves_one_model_only() -> None:
    world = brownfield()
    other = parse_target({"model": "other", "namespace": NAMESPACE, "rayservice": RAYSERVICE})
    world.process().adopt(TARGET, Asked())
    for application in ("bge", f"{MODEL}-v2"):
        with pytest.raises(errors.NameTaken, match=f"application {application} belongs to model {MODEL} already"):
            rollout.adoption_of(world.cluster, other, Asked(application=application))
        world.promote(asked("v2"))
        if application == "bge":
            continue
    assert rollout.adoptable(world.cluster, NAMESPACE, RAYSERVICE) == {"whisper": "whisper", f"{MODEL}-v2": MODEL}


def test_what_was_promoted_before_an_undo_is_adopted_again() -> None:
    world = brownfield()
    world.process().adopt(TARGET, Asked())
    world.promote(asked("v2"))
    rollout.undo_adoption(world.process().open_rollback(TARGET))
    assert world.promote(asked("v3", adopt=True)).phase == "promoted"
    known = world.registry.find(f"{NAMESPACE}.{MODEL}", "v2")
    assert known is not None and known.uri == f"s3://models/{MODEL}/v2" and not world.serve.lost


def test_a_route_that_is_merged_in_comes_back_to_the_letter() -> None:
    text = "x: &d {route_prefix: /bge, import_path: 'acme.bge:app'}\napplications:\n- name: bge\n  <<: *d\n"
    world = brownfield(text)
    world.process().adopt(TARGET, Asked())
    world.serve.behaviour(f"{MODEL}-v2").answer = lambda n: 500 if n % 3 == 0 else 200
    process = world.process()
    end = process.outcome(lambda: process.promote(asked("v2")))
    assert isinstance(end.error, errors.CanaryFailed) and world.text() == text, world.text()


def test_a_route_that_others_stand_on_is_refused_at_the_door() -> None:
    text = (
        "applications:\n"
        "- {name: bge, route_prefix: &r /bge, import_path: 'acme.bge:app'}\n"
        "- {name: x, route_prefix: /x, import_path: 'acme.x:app', args: {beside: *r}}\n"
    )
    world = brownfield(text)
    world.process().adopt(TARGET, Asked())
    process = world.process()
    end = process.outcome(lambda: process.promote(asked("v2")))
    assert end.exit_code == 2 and "&r" in end.words, str(end)
    assert world.text() == text and world.lease() is None


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("{name: bge-router, route_prefix: /x, import_path: 'acme.x:app'}", "application bge-router is there already, at /x"),
        ("{name: bge-router, import_path: 'acme.x:app'}", "application bge-router is there already, at /;"),
        ("{name: y, route_prefix: /bge, import_path: 'acme.x:app'}", "applications bge and y have the same route /bge"),
    ],
)
def test_what_would_stop_a_release_is_told_when_it_is_adopted(entry: str, told: str) -> None:
    world = brownfield(f"applications:\n- {{name: bge, route_prefix: /bge, import_path: 'acme.bge:app'}}\n- {entry}\n")
    with pytest.raises(errors.NameTaken, match=told) as caught:
        world.process().adopt(TARGET, Asked(application="bge"))
    assert "rename" not in str(caught.value) and world.stored() is None


def test_what_does_not_run_is_said_and_shown_as_it_is() -> None:
    world = brownfield()
    world.serve.behaviour("bge").status = "DEPLOY_FAILED"
    record = world.process().adopt(TARGET, Asked())
    assert any("application bge is DEPLOY_FAILED now" in event.message for event in record.events)
    stub = world.cluster.get(STUB)
    assert stub is not None and {c["status"] for c in stub["status"]["conditions"]} == {"False"}


def test_what_this_library_does_not_take_is_named() -> None:
    world = brownfield("applications: [{name: bge, route_prefix: /bge/, import_path: 'a:b'}]\n")
    with pytest.raises(errors.RequestInvalid, match="application bge cannot be adopted as it is"):
        rollout.adoption_of(world.cluster, TARGET, Asked(application="bge"))


# --- one look, and what comes between it and the Lease -------------------------------------------------------------------------------


def adopted_while(world: World, between: str) -> Release:
    """Somebody does something after everything was looked at, while the adoption waits for its Lease."""

    def somebody(call: Record) -> None:
        if call.method == "create" and call.what.startswith("Lease"):
            if between == "an alias":
                world.alias()
            elif between == "a stub":
                world.front()
            elif between == "the route":
                world.rayservice(rayservice.with_route(world.text(), MODEL, "/elsewhere"), adopted=False)

    return world.process(Chosen(world.clock, somebody)).adopt(TARGET, Asked(application=MODEL))


def test_an_adoption_looks_once() -> None:
    world = brownfield()
    script = Chosen(world.clock, lambda _call: None)
    world.process(script).adopt(TARGET, Asked())
    calls = [(call.owner, call.method, call.what.split(",")[0]) for call in script.calls]
    assert calls.count(("cluster", "missing", calls[[c[1] for c in calls].index("missing")][2])) == 1
    assert [call[:2] for call in calls].count(("registry", "find")) == 1
    rayservices = [call for call in calls if call[1:] == ("get", f"RayService {NAMESPACE}/{RAYSERVICE}")]
    assert len(rayservices) == 3, "for the request, for the look, and once the Lease is ours"


@pytest.mark.parametrize(("between", "kept"), [("an alias", ALIAS), ("a stub", STUB)])
def test_what_somebody_made_before_the_lease_was_ours_is_his(between: str, kept: Ref) -> None:
    world = brownfield(alias=False)
    record = adopted_while(world, between)
    assert record.adoption is not None and kept.kind not in record.adoption.made, record.adoption
    rollout.undo_adoption(world.process().open_rollback(TARGET))
    assert world.cluster.get(kept) is not None, "an undo of the adoption takes away what it made, and nothing else"


def test_a_route_that_is_taken_before_the_lease_was_ours_is_not_adopted() -> None:
    world = brownfield()
    with pytest.raises(errors.NameTaken, match="route /bge belongs to no application, not to bge"):
        adopted_while(world, "the route")
    assert world.stored() is None and world.lease() is None


def test_an_undo_that_a_release_comes_before_takes_nothing_away() -> None:
    world = brownfield(alias=False)
    world.process().adopt(TARGET, Asked())

    def somebody(call: Record) -> None:
        if call.method == "create" and call.what.startswith("Lease"):
            world.promote(asked("v2"))

    with pytest.raises(errors.ReleaseHeld, match=f"another run has released {MODEL} since this one looked"):
        rollout.undo_adoption(world.process(Chosen(world.clock, somebody)).open_rollback(TARGET))
    assert world.cluster.get(ALIAS) is not None and world.cluster.get(STUB) is not None and world.lease() is None
    assert rollout.undo_adoption(world.process().open_rollback(TARGET)).phase == "rolled_back" and world.cluster.get(ALIAS) is None


def test_an_application_that_is_called_as_the_model_is_found_at_whatever_route() -> None:
    world = brownfield("applications:\n- {name: bge, route_prefix: /v1, import_path: 'acme.bge:app'}\n", route="/v1")
    found = rollout.adoption_of(world.cluster, TARGET)
    assert (found.options.application, found.options.route) == (MODEL, "/v1")
    with pytest.raises(errors.NotFound, match="there is no application at /bge"):
        rollout.adoption_of(world.cluster, TARGET, Asked(route="/bge"))


def test_a_promotion_finishes_an_adoption_that_was_killed_where_it_is_told_to() -> None:
    world = brownfield(alias=False)

    def killed(call: Record) -> BaseException | None:
        return Killed("as the test wants it") if call.method == "apply" and call.what.startswith("InferenceService") else None

    process = world.process(Chosen(world.clock, killed))
    assert process.outcome(lambda: process.adopt(TARGET, Asked())).killed
    assert world.record().adopts and not world.record().done
    world.clock.sleep(120.0)
    with pytest.raises(errors.ReleaseHeld, match="is unfinished"):
        world.promote(asked("v2"))
    assert world.promote(asked("v2", adopt=True)).phase == "promoted" and not world.serve.lost
    assert world.record().adoption is not None


def test_an_undo_takes_the_alias_away_that_the_adoption_made() -> None:
    world = brownfield(alias=False)
    world.process().adopt(TARGET, Asked())
    assert world.cluster.get(ALIAS) is not None
    rollout.undo_adoption(world.process().open_rollback(TARGET))
    assert world.cluster.get(ALIAS) is None and world.cluster.get(STUB) is None and world.text() == OWNERS


def adopt_command(world: World, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """``kfp-serving adopt``, on the world's cluster."""
    common = {"clock": world.clock, "registry": world.registry}
    opened, back = rollout.open_run, rollout.open_rollback
    monkeypatch.setattr(cli, "_cluster", lambda _kubeconfig: world.cluster)
    with monkeypatch.context() as ours:
        ours.setattr(rollout, "open_run", lambda request, _cluster: opened(request, world.cluster, **common))
        ours.setattr(rollout, "open_rollback", lambda target, _cluster: back(target, world.cluster, **common))
        ours.setattr(sys, "argv", ["kfp-serving", "adopt", *words, "-n", NAMESPACE, "--rayservice", RAYSERVICE])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0)


def everything(world: World) -> dict[str, object]:
    kinds = ("RayService", "Service", "InferenceService", "ConfigMap", "Lease", "Event")
    return {kind: world.cluster.list(kind, NAMESPACE) for kind in kinds} | {"aliases": world.registry.aliases(f"{NAMESPACE}.{MODEL}")}


def test_a_dry_undo_tells_what_would_go_and_touches_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    world = brownfield()
    world.process().adopt(TARGET, Asked())
    before = everything(world)
    assert adopt_command(world, monkeypatch, MODEL, "--undo", "--dry-run") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"delete InferenceService {NAMESPACE}/{MODEL}" in told and "registry alias champion -> none" in told
    assert adopt_command(world, monkeypatch, MODEL, "--undo", "--version", "v7") == 2
    assert "--version is not for --undo" in capsys.readouterr().err and everything(world) == before
    assert adopt_command(world, monkeypatch, MODEL, "--undo", "--dry-run", "--json") == 0
    assert f"InferenceService {NAMESPACE}/{MODEL}" in str(json.loads(capsys.readouterr().out)["changes"])
    assert adopt_command(world, monkeypatch, MODEL, "--undo") == 0 and world.cluster.get(STUB) is None


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_what_is_in_the_way_of_one_is_in_the_way_of_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dry: tuple[str, ...]
) -> None:
    world = brownfield()
    spec = {"type": "ClusterIP", "ports": [{"port": 80}]}
    body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "whisper-predictor", "namespace": NAMESPACE}, "spec": spec}
    world.cluster.apply(body, manager="somebody")
    before = everything(world)
    assert adopt_command(world, monkeypatch, "--all", *dry) == 2
    told = capsys.readouterr().err
    assert f"Service {NAMESPACE}/whisper-predictor" in told and "by name" in told and everything(world) == before
    assert adopt_command(world, monkeypatch, MODEL) == 0


def test_the_owners_service_is_his_again_after_two_adoptions() -> None:
    world = brownfield()
    before = world.cluster.get(ALIAS)
    assert before is not None
    for _ in range(2):
        world.process().adopt(TARGET, Asked())
        rollout.undo_adoption(world.process().open_rollback(TARGET))
        after = world.cluster.get(ALIAS)
        assert after is not None and after["metadata"].get("labels") == before["metadata"].get("labels") and after["spec"] == before["spec"]
        ours = [entry["fieldsV1"] for entry in after["metadata"]["managedFields"] if entry["manager"] == names.MANAGER]
        assert not any("f:labels" in str(fields) for fields in ours), ours
