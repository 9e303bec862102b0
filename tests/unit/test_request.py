"""Bad input: every kind of it gives one `RequestInvalid` that names the field, and good input is read the same from every side."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from kfp_components import errors, request

GOOD: dict[str, Any] = {
    "model": "whisper",
    "version": "v8",
    "namespace": "ai-ml",
    "rayservice": "ai-inference",
    "uri": "s3://models/whisper/v8",
    "import_path": "acme_models.whisper:build",
}
SECRET = "hunter2secret"
DIGEST = "sha256:" + "0" * 64


def options(**values: Any) -> dict[str, Any]:
    return {"options": values}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "model: empty": ({"model": ""}, "model"),
    "model: upper case": ({"model": "Whisper"}, "model"),
    "model: begins with a digit": ({"model": "7b-chat"}, "model"),
    "model: ends with a dash": ({"model": "whisper-"}, "model"),
    "model: underscore": ({"model": "whisper_large"}, "model"),
    "model: a path": ({"model": "../whisper"}, "model"),
    "model: a newline at the end": ({"model": "whisper\n"}, "model"),
    "model: no room for -predictor": ({"model": "w" * 54}, "at most 53 leave room for -predictor"),
    "model: a number": ({"model": 7}, "model"),
    "model: null": ({"model": None}, "model"),
    "namespace: upper case": ({"namespace": "AI"}, "namespace"),
    "namespace: too long": ({"namespace": "n" * 64}, "namespace"),
    "namespace: dots": ({"namespace": "ai.ml"}, "namespace"),
    "rayservice: begins with a digit": ({"rayservice": "7b"}, "rayservice"),
    "rayservice: no room for -serve-svc": ({"rayservice": "r" * 54}, "room for -serve-svc"),
    "version: upper case": ({"version": "V8"}, "version"),
    "version: slash": ({"version": "v/8"}, "version"),
    "version: too long": ({"version": "v" * 64}, "version"),
    "version: router": ({"version": "router"}, "version"),
    "uri: no scheme": ({"uri": "models/whisper"}, "uri"),
    "uri: only a scheme": ({"uri": "s3://"}, "uri"),
    "uri: a drive of Windows": ({"uri": "C:\\models\\whisper"}, "uri"),
    "uri: half an IPv6 address": ({"uri": "http://[::1/x"}, "uri"),
    "uri: a password": ({"uri": f"https://me:{SECRET}@host/model"}, "uri"),
    "uri: a token as the user": ({"uri": f"https://{SECRET}@host/model"}, "uri"),
    "uri: a password and no scheme": ({"uri": f"//me:{SECRET}@host/model"}, "uri"),
    "import_path: no attribute": ({"import_path": "acme_models"}, "import_path"),
    "import_path: a file": ({"import_path": "models/whisper.py:build"}, "import_path"),
    "import_path: code": ({"import_path": "__import__('os').system('id')"}, "import_path"),
    "steps: empty": ({"steps": []}, "steps"),
    "steps: an empty string": ({"steps": ""}, "steps"),
    "steps: zero": ({"steps": [0, 50]}, "steps"),
    "steps: 100 is the promotion": ({"steps": [10, 100]}, "steps"),
    "steps: above 100": ({"steps": [10, 150]}, "steps"),
    "steps: negative": ({"steps": [-10, 50]}, "steps"),
    "steps: falling": ({"steps": [50, 25]}, "steps"),
    "steps: twice the same": ({"steps": [10, 10]}, "steps"),
    "steps: words": ({"steps": "10, twenty"}, "steps.1"),
    "steps: not a number (NaN)": ({"steps": [math.nan]}, "steps"),
    "steps: one bare number": ({"steps": 10}, "steps"),
    "steps: null": ({"steps": None}, "steps"),
    "unknown key": ({"modle": "x"}, "modle is not a known key; did you mean model?"),
    "unknown key like nothing": ({"zzzzzz": "x"}, "zzzzzz is not a known key"),
    "unknown option": (options(lease_ss=5), "options.lease_ss is not a known key; did you mean lease_s?"),
    "unknown rule": (options(judge={"alpha_fial": 0.1}), "options.judge.alpha_fial is not a known key; did you mean alpha_fail?"),
    "unknown part of a case": (options(smoke=[{"expext": {}}]), "options.smoke.0.expext is not a known key; did you mean expect?"),
    "options: a list": ({"options": [1]}, "options"),
    "digest: short": (options(digest="sha256:abc"), "options.digest"),
    "digest: upper case": (options(digest="sha256:" + "A" * 64), "options.digest"),
    "digest: another algorithm": (options(digest="md5:" + "0" * 32), "options.digest"),
    "alias target: outside": (options(alias_target="evil.example.com"), "options.alias_target"),
    "alias target: an address": (options(alias_target="169.254.169.254"), "options.alias_target"),
    "alias target: looks like one": (options(alias_target="a.b.svc.cluster.local.evil.com"), "options.alias_target"),
    "alias target: no namespace": (options(alias_target="x.svc"), "options.alias_target"),
    "alias target: an URL": (options(alias_target="http://a.b.svc.cluster.local"), "options.alias_target"),
    "sticky header: a space": (options(sticky_header="x user"), "options.sticky_header"),
    "sticky header: two lines": (options(sticky_header="x-user\r\nx-admin: 1"), "options.sticky_header"),
    "lease: too short to renew": (options(lease_s=1), "options.lease_s"),
    "lease: for ever": (options(lease_s=math.inf), "options.lease_s"),
    "lease: words": (options(lease_s="a minute"), "options.lease_s"),
    "watch: negative": (options(watch_s=-1), "options.watch_s"),
    "watch: longer than the old version is kept": (options(watch_s=61), "keep_previous_s must be at least watch_s"),
    "ready timeout: zero": (options(ready_timeout_s=0), "options.ready_timeout_s"),
    "protocol: unknown": (options(protocol="v3"), "options.protocol"),
    "model format: empty": (options(model_format=""), "options.model_format"),
    "route: encoded": (options(route="/%7Ebge"), "options.route: '/%7Ebge' is not in normal form"),
    "route: encoded, what to write": (options(route="/v1/%62ge"), "write /v1/bge"),
    "route: encoded, and not to be written": (options(route="/a%20b"), "give it another one"),
    "route: a dot": (options(route="/./bge"), "write /bge"),
    "deployments: no name": (options(deployments=[{"num_replicas": 2}]), "options.deployments"),
    "deployments: not a mapping": (options(deployments=["Model"]), "options.deployments.0"),
    "args: a list": (options(args=[1, 2]), "options.args"),
    "judge: alpha above a half": (options(judge={"alpha_fail": 0.7}), "options.judge.alpha_fail"),
    "judge: two margins": (options(judge={"latency_margins_percent": [10, 20]}), "options.judge.latency_margins_percent"),
    "judge: a margin of zero": (options(judge={"latency_margins_percent": [0, 20, 30]}), "options.judge.latency_margins_percent"),
    "judge: half a request": (options(judge={"warm_up_requests": 0.5}), "options.judge.warm_up_requests"),
    "smoke: a path without /": (options(smoke=[{"path": "infer"}]), "options.smoke.0.path"),
    "smoke: a path out of the route": (options(smoke=[{"path": "/../other"}]), "options.smoke.0.path"),
    "smoke: another host": (options(smoke=[{"path": "/http://evil"}]), "options.smoke.0.path"),
    "smoke: not a pointer": (options(smoke=[{"expect": {"outputs.0": 1}}]), "options.smoke.0.expect"),
    "smoke: no such status": (options(smoke=[{"expect_status": 99}]), "options.smoke.0.expect_status"),
    "smoke: no such method": (options(smoke=[{"method": "DELETE"}]), "options.smoke.0.method"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_refused_by_name(kind: str) -> None:
    values, names_it = BAD[kind]
    with pytest.raises(errors.RequestInvalid) as caught:
        request.parse({**GOOD, **values})
    message = str(caught.value)
    assert message.startswith("request: ")
    assert names_it in message
    cause = caught.value.__cause__
    assert isinstance(cause, ValidationError) and cause.error_count() == 1, "one fault gives one sentence"
    assert SECRET not in message and SECRET not in str(cause), "a traceback would show it"
    assert caught.value.exit_code == 2


def test_there_are_enough_kinds() -> None:
    assert len(BAD) >= 30


@pytest.mark.parametrize("field", GOOD)
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(errors.RequestInvalid, match=rf"^request: {field} is missing$"):
        request.parse({key: value for key, value in GOOD.items() if key != field})


def test_several_faults_are_told_at_once() -> None:
    with pytest.raises(errors.RequestInvalid) as caught:
        request.parse({**GOOD, "model": "Whisper", "steps": [5, 4], "options": {"digest": "x"}})
    assert all(field in str(caught.value) for field in ("model: ", "steps: ", "options.digest: "))


@pytest.mark.parametrize("values", [["model"], "model", None, 7])
def test_what_is_not_a_mapping_is_refused(values: Any) -> None:
    for read in (request.parse, request.parse_options, request.parse_target):
        with pytest.raises(errors.RequestInvalid, match="expected a mapping"):
            read(values)


def test_the_shorter_forms_name_themselves() -> None:
    with pytest.raises(errors.RequestInvalid, match=r"^options: lease_s: "):
        request.parse_options({"lease_s": 0})
    with pytest.raises(errors.RequestInvalid, match=r"^target: model: "):
        request.parse_target({"model": "X", "namespace": "ai-ml", "rayservice": "r"})
    with pytest.raises(errors.RequestInvalid, match=r"^target: version is not a known key$"):
        request.parse_target({"model": "x", "namespace": "ai-ml", "rayservice": "r", "version": "v1"})


def test_limits_are_inclusive() -> None:
    asked = request.parse({**GOOD, "model": "w" * 53, "rayservice": "r" * 53, "namespace": "0" * 63, "version": "v" * 63, "steps": [0.1, 99.9]})
    assert asked.steps == (0.1, 99.9)


def test_names_that_are_allowed() -> None:
    for uri in ("s3://b/m", "gs://b/m", "pvc://claim/path", "hf://org/model", "https://host:8443/m", "models:/whisper/3", "file:///srv/model"):
        assert request.parse({**GOOD, "uri": uri}).uri == uri
    for version in ("8", "2026-11-24", "v1.2.3_rc1"):
        assert request.parse({**GOOD, "version": version}).version == version
    for header in ("x-user", "X-Session-Id", "cookie"):
        assert request.parse({**GOOD, **options(sticky_header=header)}).options.sticky_header == header


def test_the_alias_points_into_the_cluster() -> None:
    assert request.parse(GOOD).target_host == "ai-inference-serve-svc.ai-ml.svc.cluster.local"
    for target in ("gateway.istio-system.svc.cluster.local", "gateway.istio-system.svc"):
        assert request.parse({**GOOD, **options(alias_target=target)}).target_host == target
    meant = options(alias_target="serve.example.com", allow_external_alias=True)
    assert request.parse({**GOOD, **meant}).target_host == "serve.example.com"


def test_steps_may_be_text() -> None:
    assert request.parse({**GOOD, "steps": "5, 20,50"}).steps == (5.0, 20.0, 50.0)


def floats(value: Any) -> Any:
    """As numbers inside KFP's dict and list parameters arrive."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return float(value)
    if isinstance(value, dict):
        return {key: floats(item) for key, item in value.items()}
    return [floats(item) for item in value] if isinstance(value, list) else value


def backwards(value: Any) -> Any:
    """The same with all keys in the other order, as a protobuf Struct may return them."""
    if isinstance(value, dict):
        return {key: backwards(value[key]) for key in reversed(value)}
    return [backwards(item) for item in value] if isinstance(value, list) else value


RICH = {
    **GOOD,
    "steps": [20, 40],
    "options": {
        "args": {"beams": 5, "deep": {"sizes": [1, 2, 3]}, "flag": True, "half": 0.5},
        "deployments": [{"name": "Model", "num_replicas": 2, "ray_actor_options": {"num_cpus": 1, "num_gpus": 0.25}}],
        "smoke": [{"body": {"inputs": [{"shape": [1, 3], "data": [1, 2, 3]}]}, "expect_shape": {"/outputs/0/data": [3]}, "expect_status": 200}],
        "judge": {"warm_up_requests": 5, "latency_margins_percent": [10, 20, 30]},
        "lease_s": 20,
        "digest": DIGEST,
    },
}


def test_a_request_is_the_same_from_every_side() -> None:
    asked = request.parse(RICH)
    for same in (floats(RICH), backwards(RICH), json.loads(json.dumps(RICH)), asked.model_dump(mode="json"), json.loads(asked.model_dump_json())):
        assert request.parse(same).digest == asked.digest
    given = request.parse(floats(RICH)).options
    assert given.args is not None
    assert [type(size) for size in given.args["deep"]["sizes"]] == [int, int, int] and given.args["flag"] is True
    assert type(given.deployments[0]["num_replicas"]) is int and given.deployments[0]["ray_actor_options"]["num_gpus"] == 0.25


def test_another_request_has_another_digest() -> None:
    seen = {request.parse({**RICH, **change}).digest for change in ({}, {"version": "v9"}, {"steps": [20]}, {"uri": "s3://b/o"}, {"options": {}})}
    assert len(seen) == 5


def test_a_request_is_frozen() -> None:
    asked = request.parse(GOOD)
    for change in (
        lambda: setattr(asked, "model", "x"),
        lambda: setattr(asked.options, "lease_s", 5),
        lambda: setattr(asked.options.judge, "tick_s", 5),
    ):
        with pytest.raises(ValidationError, match="frozen"):
            change()


def test_import_paths_need_the_allow_list() -> None:
    asked = request.parse(GOOD)
    with pytest.raises(errors.RequestInvalid, match=r"import_path 'acme_models.whisper:build'.*RayService ai-ml/ai-inference.*allowed-import-paths"):
        request.assert_allowed(asked, {}, set())
    for allowed in ("acme_models.*", "other.*, acme_models.whisper:build", "*"):
        request.assert_allowed(asked, {"kfp-serving/allowed-import-paths": allowed}, set())
    for not_allowed in ("acme.*", "ACME_MODELS.*", "", " , "):
        with pytest.raises(errors.RequestInvalid):
            request.assert_allowed(asked, {"kfp-serving/allowed-import-paths": not_allowed}, set())
    request.assert_allowed(asked, {}, {"acme_models.whisper:build"})
    request.assert_allowed(request.parse({**GOOD, "import_path": "kfp_components.models.minilm:build"}), {}, set())


def test_code_by_runtime_env_needs_the_owner() -> None:
    known = {GOOD["import_path"]}
    for name, value in {"pip": ["xgboost"], "working_dir": "https://host/x.zip", "py_modules": ["s3://b/m.zip"], "container": {"image": "x"}}.items():
        asked = request.parse({**GOOD, **options(runtime_env={"env_vars": {"A": "1"}, name: value})})
        with pytest.raises(errors.RequestInvalid, match=rf"options\.runtime_env\.{name}: .*RayService ai-ml/ai-inference"):
            request.assert_allowed(asked, {"kfp-serving/allow-runtime-env": "yes"}, known)
        request.assert_allowed(asked, {"kfp-serving/allow-runtime-env": "true"}, known)
    request.assert_allowed(request.parse({**GOOD, **options(runtime_env={"env_vars": {"A": "1"}})}), {}, known)


def test_d15_with_protocol_json_something_is_asked_or_it_is_said_that_nothing_is() -> None:
    def json_options(**more: Any) -> request.Options:
        return request.parse({**GOOD, "options": {"protocol": "json", **more}}).options

    with pytest.raises(errors.RequestInvalid, match="give at least one case, or the word none; a family that has cases of its own"):
        json_options()
    assert json_options(smoke="none").skip_smoke
    assert len(json_options(smoke=[{"path": "/"}]).smoke) == 1
    again = json_options(smoke="none").model_dump(mode="json", exclude_defaults=True)
    assert json_options(**again) == json_options(smoke="none")


def test_d21_a_default_that_is_written_out_is_the_same_request() -> None:
    """So a default that a later library adds does not make an unfinished release another request's."""
    plain = request.parse({**GOOD, "options": {}})
    written_out = request.parse({**GOOD, "options": plain.options.model_dump(mode="json")})
    assert plain.digest == written_out.digest
    assert "hold_ttl_s" not in str(plain.plain)

    class NewerOptions(request.Options):
        novelty: int = 3

    class NewerRequest(request.PromoteRequest):
        options: NewerOptions = NewerOptions()

    assert NewerRequest.model_validate(GOOD).digest == request.parse(GOOD).digest
    assert NewerRequest.model_validate({**GOOD, "options": {"novelty": 4}}).digest != request.parse(GOOD).digest


HYPHENS = [
    "my-repo.serving.chat:app", "serve-two-models:model", "team.models-v2.chat:build", "serve:app", "pkg.mod.attribute", "a-b.c-d:e", "a-b.c-d.e",
    "3d-models.serve:app", "2024.q-3:app", "_private.mod:_app", "app-.mod:build", "modèles.lecture-à-voix:appli", "a.b.c.d.e:f1",
]  # fmt: skip
NO_PATHS = [
    "app", "a b:c", "../x:y", "a:b;c", "", "a::b", "-x:y", "a.-x:y", "a..b:c", ".a:b", "a.:b", "a:", ":a", "a.b:c:d", "a/b:c", "a\\b:c", "a:b-c", "a.b-c",
    "a-b:c.d", "a:3b", "a.3", "a:b()", "a:b\n", "a\n:b", "a:b ", "$(id):x", "a:b|c", "a:\u200bb", "my-app", "a\x00:b", "~/a:b", "a:b#c", "a:b?c", "a@b:c",
]  # fmt: skip


@pytest.mark.parametrize("path", HYPHENS)
def test_case_12_what_ray_imports_by_name_may_have_hyphens(path: str) -> None:
    assert request.parse({**GOOD, "import_path": path}).import_path == path


@pytest.mark.parametrize("path", NO_PATHS)
def test_case_12_what_ray_cannot_import_is_refused(path: str) -> None:
    with pytest.raises(errors.RequestInvalid, match=r"^request: import_path: .* is not of the form package\.module:attribute$"):
        request.parse({**GOOD, "import_path": path})


def test_case_12_a_folder_with_a_hyphen_is_imported_by_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the very function that Serve calls, for each form that the request takes."""
    from ray._common.utils import import_attr

    (tmp_path / "my-repo").mkdir()
    for name in ("chat-v2", "3d"):
        (tmp_path / "my-repo" / f"{name}.py").write_text("app = 7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for path in ("my-repo.chat-v2:app", "my-repo.chat-v2.app", "my-repo.3d:app"):
        assert import_attr(request.parse({**GOOD, "import_path": path}).import_path) == 7
    with pytest.raises(AttributeError):
        import_attr("my-repo.chat-v2:app.real")


ARGS = {"llm_configs": [{"model_loading_config": {"model_id": "chat"}}]}


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({}, {"model": "whisper", "version": "v8"}),
        ({"args": ARGS}, {"model": "whisper", "version": "v8", **ARGS}),
        ({"args": ARGS, "builder": True}, {"model": "whisper", "version": "v8", **ARGS}),
        ({"args": ARGS, "builder": "exact"}, ARGS),
        ({"builder": "exact"}, {}),
        ({"builder": False}, {}),
        ({"args": {"model": "mine"}}, {"model": "mine", "version": "v8"}),
    ],
)
def test_case_07_the_builder_gets_what_the_request_says(more: dict[str, Any], wanted: dict[str, Any]) -> None:
    asked = request.parse({**GOOD, **options(**more)})
    assert asked.builder_args == wanted
    assert request.parse(asked.model_dump(mode="json")).builder_args == wanted


@pytest.mark.parametrize("builder", ["plain", "Exact", 2, None, ["exact"], {}])
def test_case_07_another_builder_is_refused_in_one_sentence(builder: Any) -> None:
    with pytest.raises(errors.RequestInvalid, match=r"^request: options\.builder: it is true, exact or false: [^;]*$"):
        request.parse({**GOOD, **options(builder=builder)})


def test_case_07_requests_of_before_are_the_same() -> None:
    """The default is written out nowhere, so an unfinished release goes on with a newer library."""
    plain = request.parse({**GOOD, **options(args=ARGS)})
    assert plain.digest == request.parse({**GOOD, **options(args=ARGS, builder=True)}).digest and "builder" not in str(plain.plain)
    assert request.parse({**GOOD, **options(builder=False)}).plain["options"]["builder"] is False
    assert request.parse({**GOOD, **options(args=ARGS, builder="exact")}).plain["options"]["builder"] == "exact"
    with pytest.raises(errors.RequestInvalid, match="a bound application takes no arguments"):
        request.parse({**GOOD, **options(args=ARGS, builder=False)})
