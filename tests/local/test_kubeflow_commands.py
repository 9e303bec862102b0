"""submit and schedule: the real kfp.Client against a stand-in of its API server (tests/standins/kfp_server.py), releases on the embedded Kubernetes API."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest
import typer.testing
import yaml
from patience import seconds, until

from kfp_components import cli, errors, names, rollout
from kfp_components.cluster import Ref
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.kube_api.access import ADMIN, Account, Rule
from kfp_components.local.apiserver.server import ApiServer, write_kubeconfig
from kfp_components.registry.memory import MemoryRegistry
from kfp_components.release import Failure, Held, Release, ReleaseStore
from kfp_components.release.revalidation import Look, Revalidations, RevalidationStore
from kfp_components.request import RevalidateRules, parse
from kfp_components.workflows import client, cron, cronjob
from kfp_components.workflows.client import Access, Pipelines

sys.path.insert(0, str(Path(__file__).parents[1] / "standins"))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import many_models
from kfp_server import COOKIE, TOKEN, KfpServer, Outcome, faults, kfp_server
from loopback import Answering, served

NAMESPACE = "ai-ml"
REQUEST: dict[str, Any] = {
    "model": "bge",
    "version": "v2",
    "uri": "s3://models/bge/v2",
    "namespace": NAMESPACE,
    "rayservice": "shared",
    "import_path": "acme_models.bge:build",
    "steps": [5, 50],
    "options": {"smoke": [{"path": "/", "body": {"text": "x"}}], "judge": {"tick_s": 2}},
}
ROLLBACK = ["submit", "rollback", "--model", "bge", "-n", NAMESPACE, "--rayservice", "shared"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KfpServer]:
    with kfp_server() as found:
        for name in (client.SA_TOKEN, "KUBECONFIG", "KFP_SERVING_KFP_UI"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(client.ENDPOINT, found.url)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("THE_TOKEN", TOKEN)
        monkeypatch.setenv("KFP_SERVING_IMAGE", "registry.example/kfp-serving-components-python:0.1.0")
        monkeypatch.setattr("kfp.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
        monkeypatch.setattr(client, "FOLLOW_S", 0.02)
        monkeypatch.setattr(client, "SETTLE_S", 0.0)
        yield found
        assert not found.strange, f"bodies that the contract does not know: {found.strange}"
        assert not (tmp_path / "context.json").exists(), "kfp's client wrote to the home folder"


@pytest.fixture
def cluster(server: KfpServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KubernetesCluster]:
    kube = ApiServer(":memory:", {"admin": ADMIN})
    kube.start()
    try:
        write_kubeconfig(tmp_path / "kubeconfig", kube.url, "admin", NAMESPACE, kube.ca)
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        found = KubernetesCluster()
        found.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        yield found
    finally:
        kube.stop()


def run(*arguments: str, login: tuple[str, ...] = ("--token", "env:THE_TOKEN")) -> typer.testing.Result:
    """A command in this process, with what `main` makes of an error of ours."""
    done = typer.testing.CliRunner().invoke(cli.app, [*arguments, *login])
    assert done.exception is None or isinstance(done.exception, SystemExit | errors.KfpServingError), done.exc_info
    assert TOKEN not in done.output + str(done.exception) and COOKIE.partition("=")[2] not in done.output + str(done.exception)
    return done


def refused(kind: type[errors.KfpServingError], *arguments: str, login: tuple[str, ...] = ("--token", "env:THE_TOKEN")) -> str:
    done = run(*arguments, login=login)
    assert type(done.exception) is kind, (done.exception, done.output)
    return str(done.exception)


def written(tmp_path: Path, **changed: Any) -> str:
    path = tmp_path / f"request{''.join(changed)}.yaml"
    path.write_text(yaml.safe_dump(REQUEST | changed))
    return str(path)


def process(server: KfpServer, tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "THE_COOKIE": COOKIE, "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "kfp_components.cli", *arguments, "--cookie", "env:THE_COOKIE"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def of_run(run_id: str, **changed: Any) -> Release:
    asked = parse(REQUEST)
    about = {"model": "bge", "namespace": NAMESPACE, "rayservice": "shared", "candidate_version": "v2", "stable_version": "v1"}
    return Release(**about | {"request": asked.plain, "request_digest": asked.digest, "holder": f"kfp/{run_id}", "steps": [5, 50]} | changed)  # type: ignore[arg-type]


def releasing(cluster: KubernetesCluster, end: dict[str, Any], state: str = "FAILED", tasks: Any = ()) -> Outcome:
    """A run whose register step begins a release, and whose last one ends it so."""

    def looked(run_id: str, look: int) -> None:
        store = ReleaseStore(cluster, "bge", NAMESPACE)
        if look == 1:
            store.start(of_run(run_id, started_unix_s=1.0))
        if look == 2:
            begun = store.load()
            assert begun is not None
            ended = begun.model_copy(update=end)
            found = cluster.get(store.ref)
            assert found is not None
            cluster.replace({**found, "data": {"release.json": ended.model_dump_json()} | {key: ended.model_dump_json() for key in found["data"]}})

    return Outcome(("PENDING", "RUNNING", state), tasks, looked)


def test_a_release_is_followed_in_its_record_and_ends_as_a_local_one(server: KfpServer, cluster: KubernetesCluster, tmp_path: Path) -> None:
    server.outcomes["promote-with-canary"] = releasing(cluster, {"phase": "promoted"}, "SUCCEEDED")
    done = process(server, tmp_path, "submit", "promote", written(tmp_path), "--json")
    stdout, stderr = done.communicate(timeout=seconds(60))
    assert done.returncode == 0, stderr
    found = json.loads(stdout)
    assert (found["state"], found["release"]["phase"], found["experiment"]) == ("SUCCEEDED", "promoted", "bge")
    assert found["run_url"] == f"{server.url}/#/runs/details/{found['run_id']}"
    (made,) = server.runs.values()
    parameters = made["runtime_config"]["parameters"]
    assert parameters["steps"] == [5.0, 50.0] and parameters["options"] == {"smoke": [{"body": {"text": "x"}}], "judge": {"tick_s": 2.0}}
    (version,) = server.texts.values()
    boxes = [name for name in version["root"]["dag"]["tasks"] if name.startswith("exit-handler")]
    assert boxes and sum(name.startswith("canary-step") for name in version["components"]["comp-exit-handler-1"]["dag"]["tasks"]) == 2
    assert "registry.example/kfp-serving-components-python:0.1.0" in json.dumps(version)


@pytest.mark.parametrize(
    ("end", "kind", "words"),
    [
        (
            {"phase": "rolled_back", "failure": Failure(error="CanaryFailed", message="model bge: v2 is worse")},
            errors.CanaryFailed,
            "model bge: v2 is worse",
        ),
        ({"phase": "held", "held": Held(error="Inconclusive", message="held: too little")}, errors.Inconclusive, "held: too little"),
        ({"phase": "held", "held": Held(error="MeterBroken", message="the split is wrong")}, errors.MeterBroken, "the split is wrong"),
        ({"phase": "canary"}, errors.ReleaseLeft, "v2 is canary, and its run has ended; v1 serves"),
    ],
)
def test_it_ends_with_the_error_of_its_record(
    end: dict[str, Any], kind: type[errors.KfpServingError], words: str, server: KfpServer, cluster: KubernetesCluster, tmp_path: Path
) -> None:
    server.outcomes["promote-with-canary"] = releasing(cluster, end, tasks=(("canary step 1", "FAILED", "Error (exit code 1)"),))
    assert words in refused(kind, "submit", "promote", written(tmp_path))


def test_another_runs_release_is_not_taken_for_ones_own(server: KfpServer, cluster: KubernetesCluster, tmp_path: Path) -> None:
    ReleaseStore(cluster, "bge", NAMESPACE).start(of_run("another", phase="canary", started_unix_s=1.0))
    server.outcomes["promote-with-canary"] = Outcome(("FAILED",), (("register-model", "FAILED", "Error (exit code 1)"),))
    assert "kfp/another is at one of v2 (canary)" in refused(errors.ReleaseHeld, "submit", "promote", written(tmp_path))


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("CanaryFailed: model bge: v2 is worse", errors.CanaryFailed, "roll-back: CanaryFailed: model bge: v2 is worse"),
        ("Error (exit code 1)", errors.RunFailed, "roll-back: Error (exit code 1); `kubectl logs"),
        ("ValueError: KeyError: InputFile: no", errors.RunFailed, "ValueError: KeyError"),
    ],
)
def test_without_a_record_the_runs_own_word_counts(said: str, kind: type[errors.KfpServingError], words: str, server: KfpServer) -> None:
    server.outcomes["rollback"] = Outcome(("RUNNING", "FAILED"), (("roll-back", "FAILED", said),))
    done = run(*ROLLBACK)
    assert type(done.exception) is kind and words in str(done.exception)
    assert "roll-back: FAILED" in done.stdout and "Kubernetes configuration" in done.stderr


def test_a_look_that_found_decay_is_the_runs_end(server: KfpServer, cluster: KubernetesCluster) -> None:
    ReleaseStore(cluster, "bge", NAMESPACE).start(of_run("before", phase="promoted", finished_unix_s=1.0))

    def looked(run_id: str, _look: int) -> None:
        look = Look(unix_s=5.0, outcome="decayed", sentence="v2 decayed: 97 to 92 %", run_id=run_id)
        store = RevalidationStore(cluster, "bge", NAMESPACE)
        store.load()
        store.save(Revalidations(model="bge", namespace=NAMESPACE, version="v2", looks=[look]))

    server.outcomes["revalidate"] = server.outcomes["revalidate-namespace"] = Outcome(("FAILED",), (), looked)
    told = refused(errors.Decayed, "submit", "revalidate", "--model", "bge", "-n", NAMESPACE)  # the RayService is the release's
    assert "ai-ml/bge: v2 decayed: 97 to 92 %" in told
    refused(errors.Decayed, "submit", "revalidate-namespace", "-n", NAMESPACE)
    assert [one["runtime_config"]["parameters"] for one in server.runs.values()] == [
        {"model": "bge", "namespace": NAMESPACE, "rayservice": "shared"},
        {"namespace": NAMESPACE},
    ]
    assert [one["display_name"] for one in server.experiments.values()] == ["bge", "ai-ml-revalidation"]


def test_bad_input_is_refused_before_anything_is_contacted(server: KfpServer, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("request: 5\n")
    for words, arguments in (
        ("modle is not a known key; did you mean model?", ["submit", "promote", written(tmp_path, modle="x")]),
        ("takes a request: a file as for", ["submit", "promote"]),
        ("--model is not for promote", ["submit", "promote_with_canary", written(tmp_path), "--model", "x"]),
        ("pipeline 'promot' is not known; known are promote, deploy", ["submit", "promot"]),
        ("rayservice is missing", ["submit", "rollback", "--model", "bge", "-n", NAMESPACE]),
        ("reason is not a known key; known are namespace, rayservice, rules", ["submit", "revalidate-namespace", "-n", NAMESPACE, "--reason", "x"]),
        ("request is not a known key; did you mean requests?", ["submit", "revalidate-namespace", "-n", NAMESPACE, "--rules", str(rules)]),
        ("it is the pipeline rollback, and deploy is deploy-model", ["submit", "deploy", written(tmp_path), "--package", "compiled/rollback.yaml"]),
        ("minute '61'", ["schedule", "create", "-n", NAMESPACE, "--cron", "61 6 * * 1"]),
    ):
        assert words in refused(errors.RequestInvalid, *arguments)
    assert "kfp-serving compile" in refused(errors.NotFound, *ROLLBACK, "--package", "compiled/none.yaml")
    assert not server.asked


def test_one_content_is_one_version_also_when_two_race(server: KfpServer) -> None:
    for name in ("pipelines", "versions"):
        server.together[name] = threading.Barrier(2)
    found: list[client.Version] = []

    def upload() -> None:
        found.append(Pipelines(Access(token="env:THE_TOKEN")).upload(Path("compiled/rollback.yaml")))

    threads = [threading.Thread(target=upload) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds(60))
    assert len(found) == 2 and found[0] == found[1] and len(server.pipelines) == len(server.versions) == 1
    assert Pipelines(Access(token="env:THE_TOKEN")).upload(Path("compiled/rollback.yaml")) == found[0]


def test_no_follow_gives_the_id_and_a_server_that_restarts_is_asked_again(server: KfpServer) -> None:
    done = run(*ROLLBACK, "--no-follow", "--reason", "night shift")
    (run_id,) = server.runs
    assert done.stdout.split() == [run_id] and server.runs[run_id]["runtime_config"]["parameters"]["reason"] == "night shift"
    pipelines = Pipelines(Access(token="env:THE_TOKEN"))
    server.away = 3
    assert pipelines.follow(run_id).state == "SUCCEEDED" and server.away == 0
    server.away = 1000
    pipelines._patience.seconds = 0.3
    with pytest.raises(errors.Unreachable, match="503 restarting; try again"):
        pipelines.state(run_id)


def test_ctrl_c_leaves_the_run_going_and_says_so(server: KfpServer, tmp_path: Path) -> None:
    server.outcomes["rollback"] = Outcome(("RUNNING",) * 100_000)
    following = process(server, tmp_path, *ROLLBACK)
    until(lambda: any(server.looks.values()), "the run to be followed")
    following.send_signal(signal.SIGINT)
    _, stderr = following.communicate(timeout=seconds(60))
    (run_id,) = server.runs
    assert following.returncode == 130 and f"Run {run_id} goes on in Kubeflow" in stderr and f"kfp-serving abort bge -n {NAMESPACE}" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize("door", ["401", "403", "login"])
def test_who_is_not_let_in_is_told_how_and_no_secret_is_shown(door: str, server: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.door = door
    monkeypatch.setenv("WRONG", "not-it")
    told = refused(errors.PermissionDenied, "schedule", "list", login=("--token", "env:WRONG"))
    assert "not-it" not in told and "secret" not in told and "give --token or --cookie" in told
    assert server.asked[0] == "GET /healthz" and len(server.asked) == 1
    pipelines = Pipelines(Access(token="env:THE_TOKEN"))
    monkeypatch.setattr("kfp_server.TOKEN", "another since then")  # a session that ends while a run is followed
    with pytest.raises(errors.PermissionDenied, match=r"reading run x|looking|reading"):
        pipelines.state("x")
    assert "/dex/auth" not in " ".join(server.asked)


def test_a_secret_is_given_by_where_it_is(server: KfpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text(TOKEN + "\n")
    assert run("schedule", "list", login=("--token", f"file:{secret}")).exit_code == 0
    monkeypatch.setenv(client.SA_TOKEN, str(secret))
    assert run("schedule", "list", login=()).exit_code == 0  # as kfp's own client has it in a pod
    monkeypatch.setenv("EMPTY", "")
    for given, words in (
        (TOKEN, "--token: give env:NAME or file:/path"),
        ("env:", "give env:NAME"),
        ("env:NOT_THERE", "NOT_THERE is not set"),
        ("env:EMPTY", "EMPTY is not set, or empty"),
        (f"file:{tmp_path}/none", "No such file"),
    ):
        assert words in refused(errors.RequestInvalid, "schedule", "list", login=("--token", given))


def test_what_is_no_server_of_kubeflow_is_said_at_once(server: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.door = "open page"
    assert "a web page answers: correct --host" in refused(errors.RequestInvalid, "schedule", "list")
    began = time.monotonic()
    assert "is it running, and reachable" in refused(errors.Unreachable, "schedule", "list", "--host", "http://127.0.0.1:9")
    assert time.monotonic() - began < seconds(20), "kfp's client alone knocks for 25 s"
    assert "give scheme, host and path only" in refused(errors.RequestInvalid, "schedule", "list", "--host", f"http://me:{TOKEN}@x")
    monkeypatch.delenv(client.ENDPOINT)
    assert "kubectl port-forward" in refused(errors.RequestInvalid, "schedule", "list")


@pytest.mark.parametrize(
    "status,body,kind,said",
    [
        (200, b"OK", errors.RequestInvalid, "what answers is not its API"),
        (200, b"[1]", errors.RequestInvalid, "what answers is not its API"),
        (200, b"null", errors.RequestInvalid, "what answers is not its API"),
        (200, b"\xff\xfe", errors.RequestInvalid, "what answers is not its API"),
        (502, b"g\xe9ant", errors.Unreachable, "502 g"),
    ],
)
def test_what_speaks_otherwise_is_not_a_server_without_schedules(
    server: KfpServer, status: int, body: bytes, kind: type[errors.KfpServingError], said: str
) -> None:
    class Other(Answering):
        def do_GET(self) -> None:
            self.answer(status, body, "text/plain")

    with served(Other) as host:
        assert said in refused(kind, "schedule", "list", "--host", f"http://{host}")


@pytest.mark.parametrize("host", ["ftp://kubeflow.example", "http://", "http://kubeflow.example:99999", "http://[::1"])
def test_an_address_that_is_none_is_refused(server: KfpServer, host: str) -> None:
    assert "it is no address" in refused(errors.RequestInvalid, "schedule", "list", "--host", host)


@pytest.mark.parametrize(
    "content",
    [b"model: b\xe9ge", b"model: [\nuri: https://me:hunter2@x", b"a: " + b"[" * 5000, b"at: 2026-13-45"],
    ids=["latin", "open", "deep", "date"],
)
def test_a_file_that_is_no_yaml_is_refused_and_not_repeated(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "request.yaml").write_bytes(content)
    told = refused(errors.RequestInvalid, "submit", "promote", str(tmp_path / "request.yaml"))
    assert str(tmp_path / "request.yaml") in told and "hunter2" not in told and len(told) < 400
    told = refused(errors.RequestInvalid, *ROLLBACK, "--package", str(tmp_path / "request.yaml"))
    assert "not a compiled pipeline" in told


def test_keys_that_are_no_words_are_named(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("1: 2\n")
    assert "1 is not a known key" in refused(errors.RequestInvalid, "submit", "revalidate", str(tmp_path / "rules.yaml"), "--model", "bge")


def test_where_there_are_many_users_everything_is_of_one_profile(server: KfpServer) -> None:
    server.multi_user = True
    assert "say whose namespace by --kfp-namespace" in refused(errors.RequestInvalid, *ROLLBACK)
    assert run(*ROLLBACK, "--kfp-namespace", "team-a").exit_code == 0
    assert run(*ROLLBACK, "--kfp-namespace", "team-b").exit_code == 0
    assert (
        {one["namespace"] for one in server.pipelines.values()} == {one["namespace"] for one in server.experiments.values()} == {"team-a", "team-b"}
    )


def test_schedules_are_made_once_listed_paused_resumed_and_deleted(server: KfpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("error_margin_percent: 2\nrequests: 100\n")
    create = ["schedule", "create", "-n", NAMESPACE, "--rules", str(rules), "--cron"]
    made = json.loads(run(*create, "0 6 * * 1", "--json").stdout)
    assert (made["name"], made["made"], made["cron"], len(made["next_if_utc"])) == (f"revalidate-namespace-{NAMESPACE}", True, "0 0 6 * * 1", 3)
    kept = server.recurring[made["id"]]
    assert (kept["max_concurrency"], kept["no_catchup"], kept["mode"]) == ("1", True, "ENABLE")
    assert kept["runtime_config"]["parameters"] == {"namespace": NAMESPACE, "rules": {"error_margin_percent": 2.0, "requests": 100}}
    again = run(*create, "0 6 * * mon")
    assert isinstance(again.exception, errors.NameTaken) and "cron is '0 0 6 * * 1', asked for '0 0 6 * * mon'" in str(again.exception)
    again = run(*create, "0 6 * * 1")
    assert "is there already, as asked for" in again.stdout and "UTC unless its administrator" in again.stdout
    monkeypatch.setattr(client, "PAGE", 2)
    for number in range(5):  # of somebody else, made by hand
        server.recurring[str(number)] = {**kept, "recurring_run_id": str(number), "display_name": "theirs", "pipeline_version_reference": {}}
    server.runs["r"] = {"run_id": "r", "recurring_run_id": made["id"], "state": "FAILED", "created_at": "2026-11-28T00:00:00Z"}
    assert "2 have" not in run("schedule", "pause", made["name"]).output
    (listed,) = json.loads(run("schedule", "list", "--json").stdout)
    assert (listed["enabled"], listed["pipeline"], listed["last_run"]) == (False, "revalidate-namespace", "FAILED")
    assert len(json.loads(run("schedule", "list", "--all", "--json").stdout)) == 6
    assert "it is paused" in run(*create, "0 6 * * 1").stdout
    assert json.loads(run("schedule", "resume", made["id"], "--json").stdout)["done"] == "resumed" and kept["mode"] == "ENABLE"
    table = run("schedule", "list").stdout
    assert "FAILED" in table and "on" in table
    assert "5 have that name; give the id: 0, 1, 2, 3, 4" in refused(errors.RequestInvalid, "schedule", "delete", "theirs")
    assert run("schedule", "delete", made["name"]).stdout == f"schedule {made['name']} is deleted\n" and made["id"] not in server.recurring
    assert "it does not exist; there are theirs" in refused(errors.NotFound, "schedule", "delete", made["name"])


def test_two_that_make_the_same_schedule_at_once_leave_one(server: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "SETTLE_S", seconds(0.5))
    server.together["recurringruns"] = threading.Barrier(2)
    pipelines = [Pipelines(Access(token="env:THE_TOKEN")) for _ in range(2)]
    version = pipelines[0].upload(Path("compiled/revalidate_namespace.yaml"))
    found: list[tuple[client.Schedule, bool]] = []

    def make(one: Pipelines) -> None:
        found.append(one.schedule(version, {"namespace": NAMESPACE}, name="weekly", cron=cron.parse("0 6 * * 1"), experiment="e"))

    threads = [threading.Thread(target=make, args=(one,)) for one in pipelines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds(60))
    assert len(server.recurring) == 1 and sorted(made for _, made in found) == [False, True] and found[0][0].id == found[1][0].id


def test_kfp_is_not_imported_before_a_command_needs_it() -> None:
    code = "import sys, kfp_components.cli; print([name for name in ('kfp', 'kfp_server_api', 'kubernetes', 'mlflow') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_stand_in_refuses_what_the_contract_does_not_have() -> None:
    assert faults({"display_name": "x", "no_catch_up": True}, "V2beta1RecurringRun", "body") == [
        "body.no_catch_up: V2beta1RecurringRun has no such field"
    ]
    assert faults({"trigger": {"cron_schedule": {"cron": 7}}}, "V2beta1RecurringRun", "body") == [
        "body.trigger.cron_schedule.cron: str expected, not int"
    ]
    assert faults({"mode": "SOMETIMES"}, "V2beta1RecurringRun", "body")


def test_the_cronjob_is_one_that_kubernetes_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("max_minutes: 10\ndemote: true\n")
    create = ["schedule", "create", "-n", NAMESPACE, "--cronjob", "--cron", "0 6 * * 1", "--models", "3"]
    for name in ("KFP_SERVING_IMAGE", client.ENDPOINT):
        monkeypatch.delenv(name, raising=False)
    done = run(*create, "--rules", str(rules), "--registry-secret", "registry", login=())
    held, job = yaml.safe_load_all(done.stdout)
    assert "has no registry: set KFP_SERVING_IMAGE" in done.stderr and "&id" not in done.stdout
    assert not faults(job, "V1CronJob", "", kubernetes.client) and not faults(held, "V1ConfigMap", "", kubernetes.client)
    assert held["data"]["rules.yaml"] == "max_minutes: 10.0\ndemote: true\n"
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["kfp-serving", "revalidate", "--namespace", NAMESPACE, "--rules", "/etc/kfp-serving/rules.yaml"]
    assert job["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"] == 3 * (600 + cronjob.SPARE_S) + cronjob.DEMOTION_S
    assert container["env"][1]["valueFrom"]["secretKeyRef"] == {"name": "registry", "key": "KFP_SERVING_REGISTRY_URI"}
    bound = yaml.safe_load_all(Path("deploy/rbac.yaml").read_text())
    accounts = [subject["name"] for one in bound for subject in one.get("subjects", [])]
    assert pod["serviceAccountName"] in accounts
    found = json.loads(run(*create, "revalidate", "--model", "bge", "--rayservice", "shared", "--image", "x/y:1", "--json", login=()).stdout)
    (alone,) = found["items"]
    assert alone["metadata"]["name"] == "revalidate-bge" and found["kind"] == "List", "kubectl takes no array"
    for words, more in (
        ("Kubernetes takes five fields", ["--cron", "5 0 6 * * 1"]),
        ("a CronJob's is of a-z", ["--name", "Nightly"]),
        ("--service-account: it is no name of an object", ["--service-account", "Some Body"]),
        ("--registry-secret: it is no name of an object", ["--registry-secret", "https://me:pass@registry"]),
        ("it carries a credential", ["--registry-uri", "https://me:pass@registry"]),
        ("--cronjob runs a re-validation, not rollback", ["rollback", "--model", "bge", "--rayservice", "shared"]),
    ):
        assert words in refused(errors.RequestInvalid, *create, *more, login=())


def test_a_revalidation_needs_the_rights_that_the_cronjob_names_and_no_others(tmp_path: Path) -> None:
    granted = {
        f"{verb} {resource}": group
        for rule in cronjob.LEAST
        for verb in rule["verbs"]
        for resource in rule["resources"]
        for group in rule["apiGroups"]
    }
    outside = Rule(("list",), ("endpointslices",), ("discovery.k8s.io",))  # only who is not in the cluster walks to an address

    def account(without: str) -> Account:
        rules = (Rule((right.split()[0],), (right.split()[1],), (group,), (NAMESPACE,)) for right, group in granted.items() if right != without)
        return Account("cronjob", (*rules, outside))

    tokens = {"whole": account(""), **{right.replace(" ", "-"): account(right) for right in granted}}
    rules = RevalidateRules(requests=50, record_requests=100, apart_hours=0)
    with many_models.many(tmp_path, 1, accounts=tokens) as world:
        config = (tmp_path / "kubeconfig").read_text()
        for token in tokens:
            (tmp_path / token).write_text(config.replace('"token": "admin"', f'"token": "{token}"'))
            world.cluster.delete(Ref("ConfigMap", names.revalidation(many_models.name(0)), NAMESPACE))
            cluster = KubernetesCluster(tmp_path / token)
            try:
                for _ in range(2):
                    (target,) = rollout.champions(cluster, NAMESPACE)
                    found = rollout.revalidate_model(rollout.open_rollback(target, cluster, registry=MemoryRegistry()), rules)
                    told = "" if found.outcome != "unreachable" else found.sentence
            except errors.PermissionDenied as error:
                told = str(error)
            assert ("forbidden" in told.lower() or "may not" in told) == (token != "whole"), (token, told)
