"""An owner's set-up of many months is adopted, released into and given back: nothing of it restarts, nobody's request is lost, and it is his text at the end."""

import difflib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import failure_logs
import httpx
import pytest
from patience import seconds, until
from world import NAMESPACE, RAYSERVICE, Clients, command, record_of, snapshot, tiny

from kfp_components import errors, names, registry, rollout
from kfp_components.cluster import Manifest, Ref
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.local.load import Tally
from kfp_components.release import Release
from kfp_components.request import PromoteRequest
from kfp_components.serving import rayservice

pytestmark = pytest.mark.usefixtures("forget")

OWNER = "kubectl-client-side-apply"
SHARED = Ref("RayService", RAYSERVICE, NAMESPACE)
OWNERS = """\
# What runs on the shared GPUs. Ask #speech before you touch it!

applications:
# speech to text
- name: whisper
  route_prefix: "/whisper"        # quoted, like everything that is called from outside
  import_path: tests.e2e.apps:build
  args: {model: whisper-large}
  deployments: [{name: Tiny, ray_actor_options: {num_cpus: 0.1}}]

# chat: OpenAI's clients want /v1
- name: llm
  import_path: 'tests.e2e.apps:build'
  route_prefix: /v1
  args:
      model:   llm          # not the one of 2023
      version: "2024-06"
- name: bge_m3
  route_prefix: '/bge'
  import_path: tests.e2e.apps:build
  args: {model: bge, version: v1}


# whatever is left
- import_path: tests.e2e.apps:build
  args:
    model: classify
    version: "2025.1"
  # one is enough
  deployments:
  - name: Tiny
    max_ongoing_requests: 50
logging_config: {log_level: INFO}      # DEBUG is too much
"""
MODELS = {"whisper": "/whisper", "llm": "/v1", "bge": "/bge", "default": "/"}
"""As the aliases call them -> where they are."""
APPLICATIONS = {"whisper": "whisper", "llm": "llm", "bge": "bge_m3", "default": "default"}
LABELLED = ("llm", "bge")
RATE_PER_S, BUSY_PER_S, CALM_PER_S = 12.0, 40.0, 3.0
"""Of one model's users. Those of four at once are calm: a command beside them would otherwise wait for the processors more than it works."""


@pytest.fixture
def brownfield(cluster: KubernetesCluster) -> Iterator[KubernetesCluster]:
    """The owner's set-up, as kubectl would have made it; it runs."""
    applied = {names.LAST_APPLIED: json.dumps({"spec": {"serveConfigV2": OWNERS}})}
    cluster.patch(SHARED, {"metadata": {"annotations": applied}, "spec": {"serveConfigV2": OWNERS}}, manager=OWNER)
    for model in MODELS:
        labels = {"labels": {names.ISVC_LABEL: model}} if model in LABELLED else {}
        spec = {"type": "ExternalName", "externalName": names.service_host(names.serve_service(RAYSERVICE), NAMESPACE)}
        metadata = {"name": names.alias(model), "namespace": NAMESPACE, **labels}
        cluster.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}, manager=OWNER)
    for model in MODELS:
        until(lambda model=model: pid(cluster, model), f"{model} to answer")
    yield cluster
    cluster.patch(SHARED, {"metadata": {"annotations": {names.LAST_APPLIED: None}}}, manager=OWNER)
    for model in MODELS:
        cluster.delete(Ref("Service", names.alias(model), NAMESPACE))


def ask(cluster: KubernetesCluster, model: str, path: str, method: str = "GET", **options: Any) -> httpx.Response:
    """As a user does, through the alias."""
    endpoint = cluster.endpoint(names.alias(model), NAMESPACE, names.SERVE_PORT)
    url = endpoint.base_url + names.address(model, route=MODELS[model]).prefix + path
    return httpx.request(method, url, timeout=seconds(60), trust_env=False, **options)


def pid(cluster: KubernetesCluster, model: str) -> int:
    """Of the replica that answers users of a model that is in no release."""
    answer = ask(cluster, model, "/pid")
    assert answer.status_code == 200 and names.VERSION_HEADER not in answer.headers, answer.text
    return int(answer.text)


def aliases(cluster: KubernetesCluster) -> dict[str, Any]:
    found: dict[str, Manifest] = {model: cluster.get(Ref("Service", names.alias(model), NAMESPACE)) or {} for model in MODELS}
    return {model: [service["spec"], service["metadata"].get("labels"), service["metadata"].get("annotations")] for model, service in found.items()}


@pytest.fixture
def users_of(cluster: KubernetesCluster, tmp_path: Path) -> Callable[..., Clients]:
    def start(model: str, rate_per_s: float = RATE_PER_S) -> Clients:
        endpoint = cluster.endpoint(names.alias(model), NAMESPACE, names.SERVE_PORT)
        prefix = names.address(model, route=MODELS[model]).prefix
        return Clients(endpoint, prefix, tmp_path / f"users-{model}-{rate_per_s:g}.json", rate_per_s=rate_per_s, clients=4)

    return start


def text_of(cluster: KubernetesCluster) -> str:
    return rayservice.serve_config(cluster.get(SHARED))


def adopt(*more: str) -> str:
    done = command("adopt", *more, "--namespace", NAMESPACE, "--rayservice", RAYSERVICE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Everybody:
    """Users of all models at once, a few of each; those of one model are many while a block runs."""

    def __init__(self, users_of: Callable[..., Clients]) -> None:
        self._users_of = users_of
        self._sending = [(model, users_of(model, CALM_PER_S)) for model in MODELS]
        self._stack = ExitStack()

    def __enter__(self) -> "Everybody":
        logs = lambda: [sending.log for _, sending in self._sending]  # noqa: E731
        failure_logs.SOURCES.append(logs)
        self._stack.callback(failure_logs.SOURCES.remove, logs)
        with self._stack:
            for _, sending in self._sending:
                self._stack.enter_context(sending)
            self.wait()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    @contextmanager
    def busy(self, model: str) -> Iterator[None]:
        with self._users_of(model, BUSY_PER_S) as sending:
            self._sending.append((model, sending))
            yield

    def wait(self) -> None:
        """For five answers more of each model."""
        calm = [sending for _, sending in self._sending[: len(MODELS)]]
        wanted = [sum(sending.tally.answered.values()) + 5 for sending in calm]
        until(
            lambda: all(sum(sending.tally.answered.values()) >= least for sending, least in zip(calm, wanted, strict=True)), "answers of all models"
        )

    def stop(self) -> dict[str, Tally]:
        """What the users of each model saw, those of all blocks included."""
        found = {model: Tally() for model in MODELS}
        for model, sending in self._sending:
            seen, so_far = sending.stop(), found[model]
            found[model] = Tally(
                so_far.sent + seen.sent, so_far.answered + seen.answered, so_far.failed + seen.failed, [*so_far.examples, *seen.examples]
            )
        return found


def assert_only_applications_differ(before: str, after: str, gone: str, come: str) -> None:
    """The lines of ``gone`` are missing, with those of ``come`` more: each once, in one piece, and nothing else."""
    removed, added = [], []
    for line in difflib.ndiff(before.splitlines(), after.splitlines()):
        if line.startswith("- "):
            removed.append(line[2:])
        elif line.startswith("+ "):
            added.append(line[2:])
    old, new = rayservice.applications(before), rayservice.applications(after)
    assert {name: entry for name, entry in old.items() if name != gone} == {name: entry for name, entry in new.items() if name != come}
    assert [line for line in removed if line.strip()] == [line for line in gone_lines(before, gone) if line.strip()], "\n".join(removed)
    alone = rayservice.applications("applications:\n" + "\n".join(added))
    assert alone == {come: new[come]}, "\n".join(added)


def gone_lines(text: str, application: str) -> list[str]:
    """What a person would delete with the application: its lines, and the comment above it."""
    without = rayservice.without_application(text, application)
    return [line[2:] for line in difflib.ndiff(text.splitlines(), without.splitlines()) if line.startswith("- ")]


@pytest.mark.core
def test_case_04_an_owners_set_up_is_adopted_released_into_and_given_back(brownfield: KubernetesCluster, users_of: Callable[..., Clients]) -> None:
    cluster = brownfield
    before, names_before, pids = snapshot(cluster), aliases(cluster), {model: pid(cluster, model) for model in MODELS}
    assert text_of(cluster) == OWNERS
    with Everybody(users_of) as everybody:
        told = adopt("--all")
        assert all(f"{model}: " in told for model in MODELS), told
        assert text_of(cluster) == OWNERS and {model: pid(cluster, model) for model in MODELS} == pids
        assert {model: labels for model, (_, labels, _) in aliases(cluster).items()} == {model: {names.ISVC_LABEL: model} for model in MODELS}
        for model, route in MODELS.items():
            found = cluster.get(Ref("InferenceService", model, NAMESPACE))
            assert found is not None and found["status"]["url"].endswith(f":8000{route.rstrip('/')}")
            record = record_of(cluster, model)
            assert record["adoption"]["application"] == APPLICATIONS[model] and record["phase"] == "promoted"
        versions = {model: record_of(cluster, model)["candidate_version"] for model in MODELS}
        assert {model: versions[model] for model in ("llm", "bge", "default")} == {"llm": "2024-06", "bge": "v1", "default": "2025.1"}
        assert versions["whisper"].startswith("found-")
        everybody.wait()

        with everybody.busy("llm"):
            rollout.promote_with_canary(rollout.open_run(tiny("llm", "v2"), cluster))
        promoted = text_of(cluster)
        assert rayservice.applications(promoted)["llm-v2"]["route_prefix"] == "/v1"
        assert_only_applications_differ(OWNERS, promoted, "llm", "llm-v2")

        with everybody.busy("default"), pytest.raises(errors.CanaryFailed, match="worse in errors"):
            rollout.promote_with_canary(rollout.open_run(tiny("default", "v2", args={"fail_every": 3}), cluster))
        assert text_of(cluster) == promoted, "taken back to the letter"
        assert registry.connect().aliases(f"{NAMESPACE}.default") == {"champion": versions["default"]}

        again = adopt("--all")
        assert "llm-v2: " not in again and cluster.get(Ref("InferenceService", "llm-v2", NAMESPACE)) is None, again
        adopt("--all", "--undo")
        everybody.wait()
        tallies = everybody.stop()
    assert text_of(cluster) == promoted
    assert aliases(cluster) == names_before
    assert not any(registry.connect().aliases(f"{NAMESPACE}.{model}") for model in MODELS)
    shared = f"{SHARED.kind} {SHARED.name}"
    assert {**snapshot(cluster), shared: None} == {**before, shared: None}
    now = {model: pid(cluster, model) for model in MODELS}
    assert {model for model in MODELS if now[model] != pids[model]} == {"llm"}, (pids, now)
    for model, tally in tallies.items():
        assert sum(tally.answered.values()) + sum(tally.failed.values()) == tally.sent, (model, tally)
        caused = [kind for kind in tally.failed if not (model == "default" and kind == "v2 status 500")]
        assert not caused, (model, tally)
    assert tallies["llm"].answered["v2"] > 0 and tallies["default"].failed["v2 status 500"] > 0
    assert all(set(tallies[model].answered) == {"unnamed"} for model in ("whisper", "bge")), tallies


def test_case_04_a_promotion_of_an_adopted_model_is_rolled_back_by_the_command(
    brownfield: KubernetesCluster, users_of: Callable[..., Clients]
) -> None:
    cluster = brownfield
    before, names_before, pids = snapshot(cluster), aliases(cluster), {model: pid(cluster, model) for model in MODELS}
    with Everybody(users_of) as everybody:
        adopt("--all")
        with everybody.busy("llm"):
            rollout.promote_with_canary(rollout.open_run(tiny("llm", "v2", keep_previous_s=seconds(900)), cluster))
        beside = rayservice.applications(text_of(cluster))
        assert (beside["llm-v2"]["route_prefix"], beside["llm"]["route_prefix"]) == ("/v1", "/.versions/llm/2024-06")
        everybody.wait()
        done = command("rollback", "llm", "--namespace", NAMESPACE, "--rayservice", RAYSERVICE)
        assert done.returncode == 0, done.stdout + done.stderr
        assert text_of(cluster) == OWNERS, "to the letter"
        assert registry.connect().aliases(f"{NAMESPACE}.llm") == {"champion": "2024-06"}
        everybody.wait()
        adopt("--all", "--undo")
        tallies = everybody.stop()
    assert snapshot(cluster) == before and aliases(cluster) == names_before
    assert {model: pid(cluster, model) for model in MODELS} == pids
    assert not any(tally.failed for tally in tallies.values()), tallies
    assert tallies["llm"].answered["v2"] > 0 and all(sum(tally.answered.values()) == tally.sent for tally in tallies.values()), tallies


class Long:
    """A user whose answer, and one whose stream, end only when they are told to."""

    def __init__(self, cluster: KubernetesCluster, model: str, name: str, version: str | None = None) -> None:
        self._cluster, self._model, self._name = cluster, model, name
        self._headers = {names.VERSION_HEADER: version} if version else {}
        self.pieces: list[str] = []
        self.answers: list[httpx.Response] = []
        self._threads = [threading.Thread(target=doing, daemon=True) for doing in (self._hold, self._listen)]

    def _hold(self) -> None:
        self.answers.append(ask(self._cluster, self._model, f"/held/{self._name}-held", headers=self._headers))

    def _listen(self) -> None:
        endpoint = self._cluster.endpoint(names.alias(self._model), NAMESPACE, names.SERVE_PORT)
        url = f"{endpoint.base_url}{MODELS[self._model].rstrip('/')}/stream/{self._name}"
        with httpx.stream("GET", url, headers=self._headers, timeout=seconds(60), trust_env=False) as answer:
            assert answer.status_code == 200
            self.pieces.extend(answer.iter_lines())

    def begin(self, at: str) -> None:
        """Returns when the version, which is to be reached ``at`` this route, has both."""
        for thread in self._threads:
            thread.start()
        mine = {self._name, f"{self._name}-held"}
        until(lambda: mine <= set(self._call("GET", f"{at}/waiting").json()), f"{mine} to begin")

    def end(self, at: str) -> None:
        """Tell both to end, of a version that is ``at`` this route by now; returns when they have."""
        until(lambda: self._call("GET", f"{at}/v2/health/live").status_code == 200, f"the version to be at {at}")
        self._call("POST", f"{at}/held/{self._name}-held/go")
        stream = self._threads[1]

        def on() -> bool:
            if stream.is_alive():
                self._call("POST", f"{at}/stream/{self._name}/next")
            return not stream.is_alive()

        until(on, "the stream to end")
        self._threads[0].join(timeout=seconds(60))
        assert [piece for piece in self.pieces if piece] == [f"data: {number}" for number in range(5)]
        assert [answer.status_code for answer in self.answers] == [200], self.answers

    def _call(self, method: str, path: str) -> httpx.Response:
        endpoint = self._cluster.endpoint(names.serve_service(RAYSERVICE), NAMESPACE, names.SERVE_PORT)
        return httpx.request(method, endpoint.base_url + path, timeout=seconds(30), trust_env=False)


@pytest.mark.parametrize("good", [True, False], ids=["promoted", "taken back"])
def test_d7_answers_and_streams_that_a_change_of_the_route_finds_in_flight_end_as_they_should(
    brownfield: KubernetesCluster, embedded: Any, users_of: Callable[..., Any], good: bool
) -> None:
    cluster, model, stable = brownfield, "llm", "2024-06"
    aside, public = f"/.versions/{model}/{stable}", MODELS[model]
    adopt(model, "--route", public)
    request = tiny(model, "v2", args={} if good else {"fail_every": 3}, keep_previous_s=seconds(5))
    early = Long(cluster, model, "early")
    early.begin(public)
    ended: list[Release | BaseException] = []
    releasing = threading.Thread(target=lambda: ended.append(outcome(embedded.cluster(), request)), daemon=True)
    releasing.start()
    until(lambda: ended or ask(cluster, model, "/-/router").json()["weight_percent"] == 20.0, "the router to give v2 its share", 120)
    late = {version: Long(cluster, model, f"late-{version}", version) for version in (stable, "v2")}
    late[stable].begin(aside)
    late["v2"].begin(f"/.versions/{model}/v2")
    early.end(aside)
    with users_of(model) as sending:
        winner = "llm-v2" if good else "llm"
        until(lambda: ended or rayservice.owner(text_of(cluster), public) == winner, f"{winner} to have the route", 120)
        late[stable].end(aside if good else public)
        late["v2"].end(public if good else f"/.versions/{model}/v2")
        releasing.join(timeout=seconds(120))
        sending.wait_for_answers(5)
        tally = sending.stop()
    (end,) = ended
    assert isinstance(end, Release) if good else isinstance(end, errors.CanaryFailed), end
    assert (list(rayservice.applications(text_of(cluster))) == ["whisper", "bge_m3", "default", "llm-v2"]) if good else text_of(cluster) == OWNERS
    assert not [kind for kind in tally.failed if good or kind != "v2 status 500"], tally
    assert early.answers[0].headers.get(names.VERSION_HEADER) is None
    assert {version: one.answers[0].headers[names.VERSION_HEADER] for version, one in late.items()} == {stable: stable, "v2": "v2"}


def outcome(cluster: KubernetesCluster, request: PromoteRequest) -> Release | BaseException:
    try:
        return rollout.promote_with_canary(rollout.open_run(request, cluster))
    except BaseException as error:
        return error
