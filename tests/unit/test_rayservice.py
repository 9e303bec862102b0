"""Surgery on one application of ``serveConfigV2``: the others, the comments and the order stay; and what a status tells."""

import copy
import json
from typing import Any

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kfp_components import errors
from kfp_components.serving import rayservice, startup

CONFIG = """\
# owned by the platform team
proxy_location: EveryNode
http_options:
  host: 0.0.0.0   # all interfaces of the pod
  port: 8000

applications:
  # speech to text
  - name: whisper-v7
    route_prefix: /.versions/whisper/v7
    import_path: "acme_models.whisper:build"   # do not rename
    args: {model: whisper, version: v7}
    deployments:
      - name: Model
        num_replicas: 2   # two zones
        ray_actor_options:
          num_gpus: 0.25
  # embeddings
  - name: bge
    route_prefix: /bge
    import_path: acme_models.bge:app
    runtime_env:
      env_vars:
        SINCE: 2026-01-01   # a date, not a string
  - name: whisper-router
    route_prefix: /whisper
    import_path: kfp_components.router.app:build
    deployments:
      - name: Router
        user_config:
          stable: {version: v7, route: /.versions/whisper/v7}
          request_timeout_s: 60.0
"""
V8 = {"name": "whisper-v8", "route_prefix": "/.versions/whisper/v8", "import_path": "acme_models.whisper:build", "args": {"beams": 5}}
COMMENTS = [
    "# owned by the platform team",
    "# all interfaces of the pod",
    "# speech to text",
    "# do not rename",
    "# two zones",
    "# embeddings",
    "# a date",
]


def lines_that_differ(before: str, after: str) -> set[str]:
    return set(before.splitlines()) ^ set(after.splitlines())


def test_text_without_a_change_stays_to_the_letter() -> None:
    assert rayservice.without_application(CONFIG, "nobody") == CONFIG
    for entry in rayservice.applications(CONFIG).values():
        assert rayservice.with_application(CONFIG, entry) == CONFIG


def test_an_application_is_added_at_the_end_and_taken_away_again() -> None:
    added = rayservice.with_application(CONFIG, V8)
    assert added.startswith(CONFIG)
    assert list(rayservice.applications(added)) == ["whisper-v7", "bge", "whisper-router", "whisper-v8"]
    assert rayservice.applications(added)["whisper-v8"] == V8
    assert rayservice.without_application(added, "whisper-v8") == CONFIG


def test_an_application_is_replaced_where_it_stands() -> None:
    wanted = {**rayservice.applications(CONFIG)["whisper-v7"], "import_path": "acme_models.whisper2:build"}
    replaced = rayservice.with_application(CONFIG, wanted)
    assert list(rayservice.applications(replaced)) == ["whisper-v7", "bge", "whisper-router"]
    assert {line.split("#")[0].strip() for line in lines_that_differ(CONFIG, replaced)} == {
        'import_path: "acme_models.whisper:build"',
        'import_path: "acme_models.whisper2:build"',
    }
    assert all(comment in replaced for comment in COMMENTS)
    assert rayservice.with_application(replaced, wanted) == replaced


@pytest.mark.parametrize(
    "value", ["no", "Off", "y", "n", "Y", "1e-5", "1_000", "0o7", "12:30", "2026-01-01", "~", "", "-_", "a: b", "# a", "é\n", 1e-05, 1e16, "=", "<<"]
)
def test_every_reader_reads_the_same(value: Any) -> None:
    """The operator reads YAML 1.1, where ``no`` is false (and the code of Norwegian) and 1e-5 a text."""
    written = rayservice.with_application(CONFIG, {**V8, "args": {"value": value, "in a list": [value]}})
    for read in (yaml.safe_load(written)["applications"][-1], rayservice.applications(written)["whisper-v8"]):
        assert read["args"] == {"value": value, "in a list": [value]}


def test_keys_that_are_no_longer_wanted_go() -> None:
    replaced = rayservice.with_application(CONFIG, {"name": "bge", "import_path": "x:y"})
    assert rayservice.applications(replaced)["bge"] == {"name": "bge", "import_path": "x:y"}
    assert "# speech to text" in replaced and "# two zones" in replaced


def test_removing_one_keeps_the_comments_of_the_others() -> None:
    removed = rayservice.without_application(CONFIG, "bge")
    assert list(rayservice.applications(removed)) == ["whisper-v7", "whisper-router"]
    assert all(comment in removed for comment in COMMENTS[:5])
    rayservice.assert_others_unchanged(CONFIG, removed, {"bge"})


def test_user_config_is_one_write() -> None:
    split = {"stable": {"version": "v7"}, "candidate": {"version": "v8"}, "weight_percent": 10.0}
    shifted = rayservice.with_user_config(CONFIG, "whisper-router", "Router", split)
    assert rayservice.user_config(shifted, "whisper-router", "Router") == split
    assert all(comment in shifted for comment in COMMENTS)
    before = rayservice.user_config(CONFIG, "whisper-router", "Router")
    assert before is not None
    back = rayservice.with_user_config(shifted, "whisper-router", "Router", before)
    assert back == CONFIG
    with pytest.raises(errors.Conflict, match="whisper-router"):
        rayservice.assert_others_unchanged(CONFIG, shifted, {"bge"})


def test_user_config_of_nobody() -> None:
    assert rayservice.user_config(CONFIG, "nobody", "Router") is None
    assert rayservice.user_config(CONFIG, "whisper-router", "Model") is None
    assert rayservice.user_config(CONFIG, "whisper-v7", "Model") == {}
    with pytest.raises(errors.NotFound, match="no application 'nobody'"):
        rayservice.with_user_config(CONFIG, "nobody", "Router", {})
    with pytest.raises(errors.NotFound, match="'bge' has no deployment 'Router'"):
        rayservice.with_user_config(CONFIG, "bge", "Router", {})


def test_digests_are_of_the_content() -> None:
    shuffled = {"applications": [dict(reversed(entry.items())) for entry in yaml.safe_load(CONFIG)["applications"]]}
    assert rayservice.digests(json.dumps(shuffled, default=str)) == rayservice.digests(CONFIG)
    assert rayservice.digests(CONFIG.replace("num_gpus: 0.25", "num_gpus: 0.5"))["whisper-v7"] != rayservice.digests(CONFIG)["whisper-v7"]
    assert rayservice.digests(CONFIG.replace("2026-01-01", "2026-01-02"))["bge"] != rayservice.digests(CONFIG)["bge"]


@pytest.mark.parametrize("edit", [("0.25", "0.5"), ("- name: bge", "- name: bgf"), ("/bge", "/bgf"), ("num_replicas: 2", "num_replicas: '2'")])
def test_a_change_of_another_application_is_noticed(edit: tuple[str, str]) -> None:
    after = rayservice.with_application(CONFIG.replace(*edit), V8)
    with pytest.raises(errors.Conflict, match=r"only \['whisper-v8'\] may; nothing was written"):
        rayservice.assert_others_unchanged(CONFIG, after, {"whisper-v8"})


def test_a_number_of_somebody_else_keeps_its_digits() -> None:
    text = "applications:\n  - name: odd\n    args: {x: -5.593603486043341e+16, y: 1_0.50, z: 0x1F}\n"
    assert rayservice.with_application(text, V8).startswith(text)


def test_a_lost_application_is_noticed() -> None:
    with pytest.raises(errors.Conflict, match="'bge'"):
        rayservice.assert_others_unchanged(CONFIG, rayservice.without_application(CONFIG, "bge"), {"whisper-v8"})


@pytest.mark.parametrize("text", ["", "  \n", "applications: []\n", "http_options: {port: 8000}\n"])
def test_a_configuration_without_applications(text: str) -> None:
    assert rayservice.applications(text) == {}
    assert list(rayservice.applications(rayservice.with_application(text, V8))) == ["whisper-v8"]


BROKEN = {
    "not YAML": ("applications: [", "not YAML"),
    "a tab": ("applications:\n\t- name: a\n", "not YAML"),
    "month 13": ("applications:\n  - name: a\n    args: {since: 2026-13-01}\n", "month must be in 1..12"),
    "a key twice": ("applications: []\napplications: []\n", "duplicate key"),
    "two documents": ("applications: []\n---\napplications: []\n", "another document"),
    "a list": ("- name: a\n", "expected a mapping"),
    "a word": ("whisper", "expected a mapping"),
    "applications a mapping": ("applications: {a: 1}\n", "not a list"),
    "an empty name": ("applications:\n  - name: ''\n", "entry 0 of `applications`"),
    "a name that is null": ("applications:\n  - name:\n", "entry 0 of `applications`"),
    "an application that is a word": ("applications:\n  - name: a\n  - b\n", "entry 1 of `applications`"),
    "a name that is a number": ("applications:\n  - name: 7\n", "entry 0 of `applications`"),
    "an alias of nothing": ("applications:\n  - *a\n", "line 2: *a stands for nothing"),
    "an alias within itself": ("applications:\n  - &a {name: a, args: *a}\n", "line 2: *a is within itself"),
    "default twice": ("applications:\n  - import_path: m:a\n  - name: default\n", "application 'default' stands there twice"),
    "an application twice": ("applications:\n  - name: a\n  - name: b\n  - name: a\n", "application 'a' stands there twice"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_configuration_is_refused(kind: str) -> None:
    text, told = BROKEN[kind]
    with pytest.raises(errors.RequestInvalid) as caught:
        rayservice.with_application(text, V8)
    assert told in str(caught.value) and str(caught.value).startswith("serveConfigV2: ") and "\n" not in str(caught.value)


# --- any configuration ------------------------------------------------------------------------------------------------------------

WORDS = st.text(st.sampled_from("abcxyz- :#'\"{}[]&*!|>%@,\n0189é"), max_size=12)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6).map(lambda n: n / 1000), WORDS)
VALUES = st.recursive(SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)), max_leaves=8)
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
APPLICATIONS = st.dictionaries(
    NAMES,
    st.fixed_dictionaries({"import_path": WORDS}, optional={"args": VALUES, "route_prefix": WORDS, "deployments": VALUES}),
    min_size=1,
    max_size=4,
)


def whole(applications: dict[str, dict[str, Any]]) -> str:
    listed = [{"name": name, **entry} for name, entry in applications.items()]
    return "# head\n" + yaml.safe_dump({"http_options": {"port": 8000}, "applications": listed}, sort_keys=False, allow_unicode=True)


@settings(max_examples=60, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(APPLICATIONS, st.fixed_dictionaries({"name": NAMES, "import_path": WORDS}, optional={"args": VALUES}))
def test_replacing_one_never_changes_the_others(applications: dict[str, dict[str, Any]], wanted: dict[str, Any]) -> None:
    text = whole(applications)
    after = rayservice.with_application(text, wanted)
    rayservice.assert_others_unchanged(text, after, {wanted["name"]})
    read = {entry.pop("name"): entry for entry in yaml.safe_load(after)["applications"]}  # by the other parser, as the operator reads it
    expected = copy.deepcopy(applications)
    expected[wanted["name"]] = {key: value for key, value in wanted.items() if key != "name"}
    assert read == expected and list(read) == list(expected)
    assert rayservice.with_application(after, wanted) == after
    removed = rayservice.without_application(after, wanted["name"])
    rayservice.assert_others_unchanged(text, removed, {wanted["name"]})
    assert wanted["name"] not in rayservice.applications(removed)
    if wanted["name"] not in applications:
        assert removed == text


# --- what a status tells (recorded shapes of KubeRay 1.6) -------------------------------------------------------------------------

TRACEBACK = """\
Deploying app 'whisper-v8' failed with exception:
Traceback (most recent call last):
  File "/home/ray/anaconda3/lib/python3.11/site-packages/ray/serve/_private/application_state.py", line 2014, in build_serve_application
    app = call_user_app_builder_with_args_if_necessary(import_attr(import_path), args)
  File "/home/ray/anaconda3/lib/python3.11/site-packages/ray/_common/utils.py", line 70, in import_attr
    module = importlib.import_module(module_name)
  File "/home/ray/app/acme_models/ranker.py", line 3, in <module>
    import xgboost
ModuleNotFoundError: No module named 'xgboost'
"""
REPLICA = """\
The deployment failed to start 3 times in a row. This may be due to a problem with its constructor or initial health check failing. \
See controller logs for details. Error:
ray::ServeReplica:whisper-v8:Model.initialize_and_get_metadata() (pid=412, ip=10.244.0.17)
  File "/home/ray/app/acme_models/whisper.py", line 31, in __init__
    raise RuntimeError("CUDA out of memory")
RuntimeError: CUDA out of memory
"""

CHAIN = """\
Traceback (most recent call last):
  File "/home/ray/app/acme_models/ranker.py", line 5, in load
    import xgboost
ModuleNotFoundError: No module named 'xgboost'

The above exception was the direct cause of the following exception:

\x1b[36mray::build_serve_application()\x1b[39m (pid=412, ip=10.244.0.17)
  File "/home/ray/app/acme_models/ranker.py", line 10, in build
    return load()
           ^^^^^^
  File "/home/ray/app/acme_models/ranker.py", line 7, in load
    raise ModelMissing("the ranker cannot be loaded") from error
acme_models.ranker.ModelMissing: the ranker cannot be loaded

The above exception was the direct cause of the following exception:

\x1b[36mray::build_serve_application()\x1b[39m (pid=412, ip=10.244.0.17)
  File "/home/ray/anaconda3/lib/python3.11/site-packages/ray/serve/_private/application_state.py", line 1768, in build_serve_application
    app = call_user_app_builder_with_args_if_necessary(
  File "/home/ray/app/acme_models/ranker.py", line 12, in build
    raise RuntimeError("whisper-v8 is not complete") from error
RuntimeError: whisper-v8 is not complete
"""
TASK = """\
\x1b[36mray::build_serve_application()\x1b[39m (pid=412, ip=10.244.0.17)
  File "/home/ray/anaconda3/lib/python3.11/site-packages/ray/serve/_private/application_state.py", line 1842, in build_serve_application
    raise RuntimeError(err_str) from None
RuntimeError: """
IN_THE_BUILDER = f"""\
Deploying app 'whisper-v8' failed with exception:
Traceback (most recent call last):
  File "/home/ray/anaconda3/lib/python3.11/site-packages/ray/serve/_private/application_state.py", line 925, in _reconcile_build_app_task
    ) = ray.get(
ray.exceptions.RayTaskError(RuntimeError): {TASK}{CHAIN}
"""
IN_THE_REPLICA = f"A replica failed to start with exception. Retrying 0 more time(s). Error:\n{TASK}{CHAIN}"
"""Both as Ray 2.60 writes them: RayTaskError.__str__ of what build_serve_application and the replica raise."""


def status(*, generation: int = 4, seen: int = 4, active: dict[str, Any] | None = None, pending: dict[str, Any] | None = None) -> dict[str, Any]:
    """A RayService as the operator leaves it."""
    sides: dict[str, Any] = {"activeServiceStatus": {"rayClusterName": "ai-inference-x7k2p", "applicationStatuses": active or {}}}
    if pending is not None:
        sides["pendingServiceStatus"] = {"rayClusterName": "ai-inference-9qwlm", "applicationStatuses": pending}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "ai-inference", "namespace": "ai-ml", "generation": generation},
        "status": {
            "observedGeneration": seen,
            "serviceStatus": "Running",
            "numServeEndpoints": 1,
            "lastUpdateTime": "2026-11-20T10:11:12Z",
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "NonZeroServeEndpoints", "message": "Number of serve endpoints is greater than 0"}
            ],
            **sides,
        },
    }


def application(state: str, message: str = "", **deployments: dict[str, str]) -> dict[str, Any]:
    return {"status": state, "message": message, "serveDeploymentStatuses": deployments}


OTHER = application("RUNNING", Model={"status": "HEALTHY"})


def test_ready_needs_the_application_and_this_generation() -> None:
    ready = rayservice.ready("whisper-v8")
    runs = {"bge": OTHER, "whisper-v8": application("RUNNING", Model={"status": "HEALTHY"})}
    assert ready(status(active=runs))
    assert not ready(status(active=runs, generation=5)), "the status is of the generation before"
    assert not ready(status(active={"bge": OTHER})), "another application running says nothing"
    assert not ready(status(active={"whisper-v8": application("DEPLOYING")}))
    assert not ready({"metadata": {"name": "ai-inference", "generation": 1}}), "no status yet, as while the head is Pending"
    assert not ready({"metadata": {"name": "ai-inference", "generation": 1}, "status": None})


def test_observed_lags_while_the_head_is_pending() -> None:
    assert not rayservice.observed({"metadata": {"generation": 1}, "status": {"conditions": []}})
    assert not rayservice.observed(status(generation=3, seen=2))
    assert rayservice.observed(status(generation=3, seen=3))


def test_the_pending_cluster_counts_where_there_is_one() -> None:
    both = status(active={"whisper-v8": application("RUNNING")}, pending={"whisper-v8": application("DEPLOY_FAILED", "no such image")})
    assert rayservice.application_status(both, "whisper-v8")["status"] == "DEPLOY_FAILED"
    assert not rayservice.ready("whisper-v8")(both) and rayservice.failed("whisper-v8")(both)
    assert rayservice.ready("bge")(status(active={"bge": OTHER}, pending={})), "a pending cluster that says nothing yet: the active one"
    assert rayservice.application_status(status(), "whisper-v8") == {}


def test_an_old_failure_is_not_taken_for_the_new_generation() -> None:
    old = status(generation=5, active={"whisper-v8": application("DEPLOY_FAILED", TRACEBACK)})
    assert rayservice.failed("whisper-v8")(old) is None
    assert rayservice.failed("bge")(status(active={"bge": OTHER, "whisper-v8": application("DEPLOY_FAILED", TRACEBACK)})) is None


def test_a_missing_module_is_told_first() -> None:
    told = rayservice.failed("whisper-v8")(status(active={"bge": OTHER, "whisper-v8": application("DEPLOY_FAILED", TRACEBACK)}))
    assert told is not None
    assert told.startswith("RayService ai-ml/ai-inference: application whisper-v8 DEPLOY_FAILED: ModuleNotFoundError: No module named 'xgboost'")
    assert told.endswith("mend the application and run again") and len(told) < 1200


def test_a_replicas_error_is_told() -> None:
    failed = application("DEPLOY_FAILED", "The deployments ['Model'] are UNHEALTHY.", Model={"status": "DEPLOY_FAILED", "message": REPLICA})
    told = rayservice.failed("whisper-v8")(status(active={"whisper-v8": failed}))
    assert told is not None and "application whisper-v8 DEPLOY_FAILED: RuntimeError: CUDA out of memory" in told
    unhealthy = application(
        "UNHEALTHY", "", Model={"status": "UNHEALTHY", "message": "A replica failed its health check 3 times"}, Other={"status": "HEALTHY"}
    )
    told = rayservice.failed("whisper-v8")(status(active={"whisper-v8": unhealthy}))
    assert told is not None and "deployment Model UNHEALTHY: A replica failed its health check 3 times" in told and "Other" not in told


@pytest.mark.parametrize("message", [IN_THE_BUILDER, IN_THE_REPLICA], ids=["builder", "replica"])
def test_the_root_cause_of_a_chain_is_told_first_and_the_rest_behind_it(message: str) -> None:
    failed = application("DEPLOY_FAILED", message if message is IN_THE_BUILDER else "The deployments ['Model'] are UNHEALTHY.")
    if message is IN_THE_REPLICA:
        failed["serveDeploymentStatuses"]["Model"] = {"status": "DEPLOY_FAILED", "message": message}
    told = rayservice.failed("whisper-v8")(status(active={"whisper-v8": failed}))
    assert told is not None and "\x1b" not in told
    assert "application whisper-v8 DEPLOY_FAILED: ModuleNotFoundError: No module named 'xgboost' (the end of the replica's error: ..." in told
    assert "RuntimeError: whisper-v8 is not complete); mend the application" in told


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (TRACEBACK, "ModuleNotFoundError: No module named 'xgboost'"),
        (REPLICA, "RuntimeError: CUDA out of memory"),
        (CHAIN.replace("xgboost", "torch"), "ModuleNotFoundError: No module named 'torch'"),
        (
            CHAIN.replace(rayservice.DIRECT_CAUSE, "During handling of the above exception, another exception occurred:"),
            "RuntimeError: whisper-v8 is not complete",
        ),
        (f'{CHAIN}\nTraceback (most recent call last):\n  File "x.py", line 1, in f\n    g()\nOSError: another', "OSError: another"),
        ('Traceback (most recent call last):\n  File "x.py", line 1, in f\n    assert False\nAssertionError\n', "AssertionError"),
        (
            'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    g()\nacme.ModelMissing: no weights\nin the bucket',
            "acme.ModelMissing: no weights",
        ),
        ("RuntimeError: told without a traceback", "RuntimeError: told without a traceback"),
        ("A replica failed its health check 3 times", None),
        ("", None),
    ],
)
def test_a_root_cause(message: str, cause: str | None) -> None:
    assert rayservice.root_cause(message) == cause


def test_the_root_cause_stands_in_what_is_said_of_a_replica_that_is_tried_again() -> None:
    starting = application("DEPLOYING", "", Model={"status": "UPDATING", "message": IN_THE_REPLICA})
    told = startup.not_ready(status(active={"whisper-v8": starting}), "RayService ai-ml/ai-inference", "whisper-v8", 40.0)
    assert "deployment Model UPDATING for 40 s \"ModuleNotFoundError: No module named 'xgboost' ... " in told
    assert 'RuntimeError: whisper-v8 is not complete"' in told


def test_each_message_has_a_cause_of_its_own() -> None:
    failed = application("DEPLOY_FAILED", TRACEBACK, Model={"status": "UNHEALTHY", "message": "not started yet"})
    told = rayservice.failed("whisper-v8")(status(active={"whisper-v8": failed}))
    assert told is not None and "DEPLOY_FAILED: ModuleNotFoundError: No module named 'xgboost' (the end" in told


def test_a_diagnosis_is_short_and_never_empty() -> None:
    long = rayservice.diagnosis(status(active={"a": application("DEPLOY_FAILED", "x" * 5000 + " the end")}), "a")
    assert len(long) < 900 and "the end" in long
    assert "no message" in rayservice.diagnosis(status(active={"a": application("DEPLOY_FAILED")}), "a")
    assert "application a is not reported: no message" in rayservice.diagnosis(status(), "a")
