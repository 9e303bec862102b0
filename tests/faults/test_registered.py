"""What the registry is told of a version and of its release, and aliases that move with the traffic and are mended where they did not."""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import matrix
import pytest
from kfp import dsl
from memory_world import MODEL, REGISTERED, Chosen, World, asked, live
from registry_servers import Servers

from kfp_components import errors, rollout
from kfp_components.cluster.faults import Record
from kfp_components.ops import runtime
from kfp_components.registry import ENVIRONMENT, Alias, ModelRegistry, ModelVersion
from kfp_components.registry.memory import MemoryRegistry
from kfp_components.rollout import registered
from kfp_components.rollout.run import PATIENCE_S

GOLDEN = "s3://models/golden.jsonl"
PROVENANCE = {
    "framework": "pytorch",
    "family": "embedding",
    "git_commit": "0123abc",
    "run_url": "https://kubeflow.example/runs/7",
    "metrics": {"recall_at_10": 0.1 + 0.2, "loss": 2},
    "golden_set": GOLDEN,
    "golden_set_digest": "sha256:" + 64 * "c",
}


@pytest.fixture
def served(world: World) -> World:
    world.rayservice(live())
    world.front()
    return world


def version(world: World, name: str = "v2") -> ModelVersion:
    found = world.registry.find(REGISTERED, name)
    assert found is not None
    return found


def said(world: World, name: str = "v2") -> tuple[str, str, dict[str, object]]:
    told = version(world, name).properties
    return told["outcome"], told["verdict"], json.loads(told["evidence"])


def away(call: Record) -> BaseException | None:
    return errors.Unreachable("registry away") if call.owner == "registry" else None


def test_a_version_is_registered_with_what_is_known_of_it(served: World) -> None:
    served.promote(asked(provenance=PROVENANCE, quality={"max_pairs": 0}, digest="sha256:" + 64 * "a"))
    found = version(served)
    assert (found.uri, found.digest) == ("s3://models/bge/v2", "sha256:" + 64 * "a")
    assert found.properties["artifact_check"].startswith("not verified: S3 cannot be asked here")
    later = ("artifact_check", "outcome", "verdict", "evidence")
    known = {key: found.properties[key] for key in found.properties if key not in later}
    assert json.loads(known.pop("request"))["version"] == "v2"
    assert known == {
        "model_format": "custom",
        "import_path": "acme.bge:build",
        "framework": "pytorch",
        "family": "embedding",
        "git_commit": "0123abc",
        "kfp_run_url": "https://kubeflow.example/runs/7",
        "metric.recall_at_10": "0.30000000000000004",
        "metric.loss": "2.0",
        "golden_set": GOLDEN,
        "golden_set_digest": "sha256:" + 64 * "c",
    }


def test_what_the_run_knows_of_itself_is_said_too_and_the_request_counts_more() -> None:
    source = {"kfp_run_id": "7", "kfp_run_url": "https://elsewhere", "git_commit": ""}
    assert registered.facts(asked(), source).items() >= {"kfp_run_id": "7", "kfp_run_url": "https://elsewhere"}.items()
    assert "git_commit" not in registered.facts(asked(), source)
    assert registered.facts(asked(provenance=PROVENANCE), source)["kfp_run_url"] == "https://kubeflow.example/runs/7"


def test_the_evidence_hangs_on_a_version_that_was_promoted(served: World) -> None:
    served.promote(asked())
    outcome, verdict, evidence = said(served)
    assert outcome == "promoted" and verdict.startswith("the candidate is not worse")
    assert evidence["kind"] == "pass" and evidence["stable_version"] == "v1" and evidence["steps"] == [20, 50]
    assert evidence["requests"]["candidate"] > 50 and evidence["failures"]["candidate"] == 0  # type: ignore[index]
    assert "errors" in evidence["metrics"]  # type: ignore[operator]


def test_and_on_one_that_was_taken_back(served: World) -> None:
    served.serve.behaviour(f"{MODEL}-v2").answer = lambda n: 500 if n % 3 == 0 else 200
    with pytest.raises(errors.CanaryFailed):
        served.promote(asked())
    outcome, verdict, evidence = said(served)
    assert outcome == "rolled_back" and verdict.startswith("the candidate is worse in errors") and evidence["kind"] == "fail"
    assert evidence["rollback"]["seconds"] >= 0  # type: ignore[index]
    assert served.registry.aliases(REGISTERED) == {"champion": "v1"}


def test_and_on_a_first_one(world: World) -> None:
    world.rayservice("applications: []\n")
    world.deploy(asked("v1"))
    assert said(world, "v1")[:2] == ("promoted", "deployed as the first version")
    assert world.registry.aliases(REGISTERED) == {"champion": "v1"}


def test_what_is_said_fits_into_every_store(served: World) -> None:
    record = served.promote(asked())
    metrics = {f"metric {number}": {"e_fail": 1.0, "e_pass": 2.0} for number in range(200)}
    assert record.verdict is not None
    long = record.model_copy(update={"verdict": record.verdict.model_copy(update={"metrics": metrics, "sentence": "x" * 9000})})
    told = registered.evidence(long)
    assert all(len(value) <= registered.MOST_CHARACTERS for value in told.values())
    assert "characters; the report has all of it" in json.loads(told["evidence"])["left_out"]


def test_the_report_is_named_on_the_version_and_stops_nobody(served: World) -> None:
    process = served.process()
    process.promote(asked())
    run = process.open_rollback(asked())
    assert registered.attach_report(run, b"<html>", "minio://reports/1") is None
    told = version(served).properties
    assert told["report_uri"] == "minio://reports/1" and told["report_digest"].startswith("sha256:")
    script = Chosen(served.clock, away)
    broken = served.process(script).open_rollback(asked())
    assert registered.attach_report(broken, b"<html>", "minio://reports/2") == "the report is not named in the registry: registry away"


def test_a_champion_that_was_left_behind_is_mended_by_the_next_release(served: World) -> None:
    served.registry.register(REGISTERED, "v0", "s3://models/v0", digest=None, properties={})
    served.registry.move(REGISTERED, "champion", "v0")
    served.process().outcome(lambda: served.promote(asked(smoke=[{"name": "wrong", "path": "/", "expect": {"/count": 7}}])))
    assert served.record().phase == "rolled_back" and served.registry.aliases(REGISTERED) == {"champion": "v1"}


def test_tidy_mends_what_a_way_back_without_a_registry_left(served: World) -> None:
    served.serve.behaviour(f"{MODEL}-v2").answer = lambda n: 500 if n % 3 == 0 else 200
    back = False

    def gone(call: Record) -> BaseException | None:
        nonlocal back
        back = back or ("v2" in served.serve.failed and served.record().phase == "rolling_back")
        return away(call) if back else None

    process = served.process(Chosen(served.clock, gone))
    end = process.outcome(lambda: process.promote(asked()))
    assert end.exit_code == 4 and "registry alias candidate (registry away)" in end.words
    assert served.registry.aliases(REGISTERED) == {"champion": "v1", "candidate": "v2"}
    served.process().tidy(asked())
    assert served.registry.aliases(REGISTERED) == {"champion": "v1"} and served.lease() is None


@pytest.mark.parametrize("phase", ["promoted", "rolled_back"])
def test_tidy_puts_aliases_where_they_belong_and_leaves_those_of_others(served: World, phase: str) -> None:
    bad = [{"name": "wrong", "path": "/", "expect": {"/count": 7}}]
    served.process().outcome(lambda: served.promote(asked(smoke=bad) if phase == "rolled_back" else asked()))
    assert served.record().phase == phase
    right = served.registry.aliases(REGISTERED)
    served.registry.register(REGISTERED, "v9", "s3://models/v9", digest=None, properties={})
    served.registry.move(REGISTERED, "champion", "v9")
    served.registry.move(REGISTERED, "candidate", "v9")
    served.process().tidy(asked())
    assert served.registry.aliases(REGISTERED) == right | {"candidate": "v9"}, "somebody else's candidate"
    assert served.lease() is None


def test_tidy_writes_nothing_where_all_is_right(served: World) -> None:
    served.promote(asked())
    script = Chosen(served.clock, lambda _call: None)
    served.process(script).tidy(asked())
    assert not [call for call in script.calls if call.owner == "registry" and call.method != "aliases"]


def test_tidy_of_a_model_that_nothing_serves_any_more_leaves_the_registry(world: World) -> None:
    world.rayservice("applications: []\n")
    world.process().outcome(lambda: world.deploy(asked("v1", smoke=[{"name": "wrong", "path": "/", "expect": {"/count": 7}}])))
    world.registry.move(REGISTERED, "champion", "v1")
    world.process().tidy(asked("v1"))
    assert world.registry.aliases(REGISTERED) == {"champion": "v1"}


def test_the_page_of_a_run_is_kept_and_named(served: World, tmp_path: Path) -> None:
    process = served.process()
    record = process.promote(asked())
    page, run = dsl.HTML(uri="minio://reports/1"), process.open_rollback(asked())
    page.custom_path = str(tmp_path / "report.html")
    runtime.show(run, record, page, dsl.Markdown(uri=str(tmp_path / "summary.md")), dsl.Metrics())
    runtime.name_report(run, page)
    assert version(served).properties["report_uri"] == "minio://reports/1" and "v2" in (tmp_path / "report.html").read_text()


def test_a_run_says_where_it_is_to_be_seen() -> None:
    assert runtime.source("", {}) == {} and runtime.source("7", {}) == {"kfp_run_id": "7"}
    for wrong in ("https://me:SECRET@kubeflow.example", "https://kubeflow.example/?token=SECRET", "https://kubeflow.example/#/x"):
        assert runtime.source("7", {"KFP_SERVING_KFP_UI": wrong}) == {"kfp_run_id": "7"}, "it is shown to everybody"
    known = {"KFP_SERVING_KFP_UI": "https://kubeflow.example/_/pipeline/"}
    assert runtime.source("7", known)["kfp_run_url"] == "https://kubeflow.example/_/pipeline/#/runs/details/7"


def later_away(world: World) -> Chosen:
    """The registry gives no answer any more once users have v2."""
    return Chosen(world.clock, lambda call: away(call) if (record := world.stored()) is not None and record.switched_unix_s is not None else None)


def test_a_registry_that_is_away_after_the_switch_holds_nobody_up_and_is_told_later(served: World) -> None:
    process = served.process(later_away(served))
    end = process.outcome(lambda: process.promote(asked()))
    assert end.exit_code == 0 and served.record().phase == "promoted" and served.users_get() == ("v2",), str(end)
    told = [event.message for event in served.record().events if event.step == "registry"]
    assert told[-1] == "evidence: not done: registry away; `kfp-serving tidy bge -n ai-ml` does it later" and len(told) == 4
    assert served.registry.aliases(REGISTERED) == {"champion": "v1", "candidate": "v2"}
    assert served.said()["stub"] == ("v2",)
    served.process().tidy(asked())
    assert served.registry.aliases(REGISTERED) == {"champion": "v2", "previous": "v1"}


def test_nobody_waits_twice_for_a_registry_that_is_away(served: World) -> None:
    began = served.clock.monotonic()
    served.promote(asked())
    usual_s = served.clock.monotonic() - began
    served.registry.register(REGISTERED, "v3", "s3://models/bge/v3", digest=None, properties={})
    process = served.process(
        Chosen(served.clock, lambda call: away(call) if served.record().switched_unix_s and served.record().candidate_version == "v3" else None)
    )
    began = served.clock.monotonic()
    assert process.promote(asked("v3")).phase == "promoted"
    assert served.clock.monotonic() - began < usual_s + 2 * PATIENCE_S + 5, "what the names were, and the first alias"


def test_a_release_goes_back_where_no_registry_is_set(served: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    process = served.process()
    process.promote(asked(keep_previous_s=3600.0))
    run = rollout.open_rollback(asked(), served.cluster, clock=served.clock, transport=process.transport)
    assert rollout.roll_back(run).phase == "rolled_back" and served.users_get() == ("v1",)
    told = [event.message for event in served.record().events if event.step == "tidy up"]
    assert any("registry alias champion is left behind: registry: none given" in message for message in told), told
    assert served.registry.aliases(REGISTERED) == {"champion": "v2", "previous": "v1"}
    served.process().tidy(asked())
    assert served.registry.aliases(REGISTERED)["champion"] == "v1"


@pytest.mark.parametrize("error", [errors.PermissionDenied("not yours"), errors.RequestInvalid("no such registry")])
def test_tidy_leaves_a_registry_that_refuses(served: World, error: errors.InputError) -> None:
    served.promote(asked())
    process = served.process(Chosen(served.clock, lambda call: error if call.owner == "registry" else None))
    assert process.tidy(asked()).phase == "promoted" and served.lease() is None


def test_a_registry_made_anew_after_the_promotion_learns_of_both_versions(served: World) -> None:
    served.promote(asked(digest="sha256:" + 64 * "a"))
    served.registry = MemoryRegistry()
    served.process().tidy(asked())
    assert version(served).digest == "sha256:" + 64 * "a" and served.registry.aliases(REGISTERED) == {"champion": "v2"}


def test_a_version_that_was_registered_before_gets_what_is_new_and_keeps_what_was_said(served: World) -> None:
    before = {"metric.loss": "1.0", "kfp_run_id": "training"}
    served.registry.register(REGISTERED, "v2", "s3://models/bge/v2", digest=None, properties=before)
    record = served.promote(asked(provenance={"metrics": {"loss": 2.0, "recall": 0.5}, "family": "embedding"}))
    told = version(served).properties
    assert (told["metric.loss"], told["metric.recall"], told["family"], told["kfp_run_id"]) == ("1.0", "0.5", "embedding", "training")
    assert "metric.loss stays 1.0, as it was registered; this request says 2.0" in [event.message for event in record.events]


def test_a_digest_that_stands_in_the_uri_is_registered_whatever_is_read(served: World) -> None:
    digest = "sha256:" + 64 * "d"
    request = asked(artifact={"verify": "off"}).model_copy(update={"uri": f"oci://registry.example/bge@{digest}"})
    served.promote(request)
    assert version(served).digest == digest


# --- killed at any call to a real registry --------------------------------------------------------------------------------------------


class Apart:
    """A registry in which the models of each world are others: making a new one takes seconds."""

    numbers = itertools.count()

    def __init__(self, registry: ModelRegistry) -> None:
        self.registry, self.before = registry, f"world-{next(self.numbers)}."

    def register(self, model: str, version: str, uri: str, *, digest: str | None, properties: Mapping[str, str]) -> ModelVersion:
        return self._ours(self.registry.register(self.before + model, version, uri, digest=digest, properties=properties), model)

    def find(self, model: str, version: str) -> ModelVersion | None:
        found = self.registry.find(self.before + model, version)
        return found and self._ours(found, model)

    def aliases(self, model: str) -> dict[str, str]:
        return self.registry.aliases(self.before + model)

    def move(self, model: str, alias: Alias, version: str | None) -> None:
        self.registry.move(self.before + model, alias, version)

    def annotate(self, model: str, version: str, properties: Mapping[str, str]) -> None:
        self.registry.annotate(self.before + model, version, properties)

    def _ours(self, found: ModelVersion, model: str) -> ModelVersion:
        return replace(found, model=model)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    found = Servers(tmp_path_factory.mktemp("registries"))
    with found.stack:
        yield found


KILLED = [
    pytest.param(kind, scenario, when, marks=[] if (kind, scenario, when) == ("kubeflow-v1", "bad", "killed-after") else [pytest.mark.full])
    for kind in ("kubeflow-v1", "real-kubeflow-v1alpha3", "mlflow-sqlite", "mlflow-server")
    for scenario in ("good", "bad", "first", "first-bad", "adopt", "undo-promotion")
    for when in ("killed-before", "killed-after")
]


@pytest.mark.parametrize(("kind", "scenario", "when"), KILLED)
def test_killed_at_any_call_to_a_real_registry(kind: str, scenario: str, when: str, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the same command by another process: registry, stub and what serves say the same (`matrix.Case`)."""
    numbers = [call.number for call in matrix.calls(scenario) if call.owner == "registry"]
    assert numbers
    monkeypatch.setattr(World, "new_registry", lambda: Apart(servers.registry(kind)))
    cases = [matrix.play(scenario, when, number) for number in numbers]
    assert not any(case.reasons for case in cases), f"\n{matrix.told(cases)}"
