"""Credentials in URIs: what is surely none is taken, what is one is refused by the name of its key, and its value is shown nowhere."""

import re
from typing import Any

import pytest

from kfp_components import errors, registry, release, request, uris
from kfp_components.registry import ModelVersion
from kfp_components.registry.mlflow import MlflowRegistry

SECRET = "hunter2secret"
GITHUB = "ghp_abcdefghijklmnopqrstuvwxyz0123456789"
VALUES: dict[str, Any] = {
    "model": "m",
    "version": "v2",
    "namespace": "ml",
    "rayservice": "ai",
    "import_path": "m:a",
    "uri": "s3://bucket/m",
}
GOOD = [
    "abfss://models@account.dfs.core.windows.net/whisper/v2", "wasbs://models@account.blob.core.windows.net/m", "s3://anonymous@bucket/whisper/v2",
    "gs://anonymous@bucket/m", "gs://bucket/m?generation=12", "s3://bucket/m?region=us-east-1&scheme=http&endpoint_override=minio:9000",
    "s3://bucket/m?versionId=3sL4kqtJlcpXroDTDmJrmSpXd3dIbrHY", "hf://org/Model-7B", "hf://org/Model-7B@main", "models:/whisper/3",
    "models:/whisper@champion", "runs:/0a1b/model", "pvc://claim/whisper", "file:///srv/model", "hdfs://alice@namenode:8020/m",
    "ssh://git@github.com/o/r", "git+ssh://git@github.com/o/r@main", "https://host/m@v2/x", "https://[::1]:8443/m", "https://host/m#sha256=abc",
    "https://host/m?download=true&max_tokens=5&tokenizer=bpe&monkey=1&keyboard=us&token_limit=7", "https://host/m?token=", "https://host/m?key",
    "https://host/m?sv=2024-01-01&se=2027-01-01&sr=c&sp=r", "oci://registry.example/m@sha256:" + "a" * 64, "mlflow-artifacts:/1/x",
]  # fmt: skip
BEFORE_THE_HOST = [
    f"https://user:{SECRET}@host/m", f"https://{SECRET}@github.com/o/m", f"https://{SECRET}:@host/m", f"http://:{SECRET}@host/m",
    f"https://oauth2:{SECRET}@gitlab.com/o/m", f"git+https://{SECRET}@github.com/o/r", f"s3://{SECRET}@bucket/m", f"s3://anonymous:{SECRET}@bucket/m",
    f"abfss://models:{SECRET}@account.dfs.core.windows.net/m", f"hf://{SECRET}@org/m", f"oci://{SECRET}@registry.example/m", f"//me:{SECRET}@host/m",
    f"me:{SECRET}@host/m", f"ssh://git:{SECRET}@host/m", f"https://user:p@{SECRET}@host/m", f"abfss://{GITHUB}@account/m",
]  # fmt: skip
KEYS = [
    "sig", "SIG", "X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "x-goog-signature", "Signature", "AWSAccessKeyId", "token", "access_token",
    "accessToken", "private_token", "job_token", "api_key", "api-key", "apikey", "key", "password", "passwd", "pwd", "secret", "client_secret",
    "secret_key", "access_key", "account_key", "auth", "credentials", "sas", "q-signature", "OSSAccessKeyId", "jwt",
]  # fmt: skip


def placed(key: str) -> list[str]:
    hidden = "".join(f"%{ord(letter):02x}" for letter in key)
    return [
        f"https://host/m?{key}={SECRET}", f"https://host/m?a=b&{key}={SECRET}&c=d", f"https://host/m?a=b;{key}={SECRET}", f"s3://b/m?{key}={SECRET}",
        f"https://host/m#{key}={SECRET}", f"https://host/#/m?{key}={SECRET}", f"https://host/m;{key}={SECRET}", f"https://host/m?{hidden}={SECRET}",
        f"https://host/m?from=https%3A%2F%2Fother%2Fm%3F{key}%3D{SECRET}",
    ]  # fmt: skip


def refused(**change: Any) -> str:
    with pytest.raises(errors.RequestInvalid) as caught:
        request.parse({**VALUES, **change})
    told = f"{caught.value} {caught.value.__cause__} {caught.value.__cause__!r}"
    assert SECRET not in told and GITHUB not in told, "a traceback would show it"
    return str(caught.value)


@pytest.mark.parametrize("uri", GOOD)
def test_case_16_a_uri_without_a_credential_is_taken(uri: str) -> None:
    assert request.parse({**VALUES, "uri": uri}).uri == uri == uris.shown(uri)


@pytest.mark.parametrize("uri", BEFORE_THE_HOST)
def test_case_16_what_stands_before_the_host_is_refused(uri: str) -> None:
    assert "it carries a credential, a" in refused(uri=uri)
    assert SECRET not in uris.shown(uri) or uri.startswith("https://user:p@")


@pytest.mark.parametrize("key", KEYS)
def test_case_16_a_key_is_named_and_its_value_is_not(key: str) -> None:
    for uri in placed(key):
        assert refused(uri=uri).startswith(f"request: uri: it carries a credential, the key {key} in its query; it would be stored where"), uri
        assert SECRET not in uris.shown(uri) and uris.shown(uri).endswith("/...")


def test_case_16_a_token_is_known_by_its_looks() -> None:
    for uri in (f"https://host/{GITHUB}/m", f"https://host/m?x={GITHUB}", f"https://host/m?{GITHUB}", f"s3://AKIA{'A1' * 8}@bucket/m"):
        assert "it carries a credential, a" in refused(uri=uri)


def test_case_16_a_uri_that_is_none_is_not_echoed() -> None:
    for uri in (f"host/m?x={SECRET}", f"C:\\{SECRET}", f"git@github.com:o/{SECRET}"):
        assert refused(uri=uri).startswith("request: uri: it ")


def test_case_16_the_same_rule_wherever_a_uri_is_taken() -> None:
    bad = f"https://host/x.zip?sig={SECRET}"
    assert "options.registry_uri: it carries a credential, a user and a password" in refused(options={"registry_uri": f"https://u:{SECRET}@mlflow"})
    assert "MLFLOW_TRACKING_TOKEN" in refused(options={"registry_uri": bad})
    for env, key in (
        ({"working_dir": bad}, "working_dir"),
        ({"py_modules": ["s3://b/m.zip", bad]}, "py_modules"),
        ({"pip": ["numpy", f"mine @ git+https://{SECRET}@github.com/o/r"]}, "pip"),
        ({"pip": {"packages": [f"--extra-index-url https://me:{SECRET}@host/simple"]}}, "pip"),
    ):
        assert re.search(rf"options.runtime_env: {key}[.\w]*: it carries a credential, ", refused(options={"runtime_env": env}))
    fine = {"working_dir": "https://github.com/o/m/archive/main.zip", "pip": ["numpy==1.0", "mine @ git+https://github.com/o/r@v1"]}
    assert request.parse({**VALUES, "options": {"runtime_env": fine}}).options.runtime_env == fine


def test_case_16_environment_variables_are_taken_and_named() -> None:
    """A request that worked goes on working: whoever sets them may have no other way. The plan says which stand in plain text."""
    env = {"HF_TOKEN": SECRET, "OMP_NUM_THREADS": "1", "TOKEN_FILE": "/var/run/token", "DB_PASSWORD": "/etc/secret", "X": GITHUB, "API_KEY": ""}
    assert request.plain_secrets(request.parse({**VALUES, "options": {"runtime_env": {"env_vars": env}}})) == ["HF_TOKEN", "X"]
    assert request.plain_secrets(request.parse(VALUES)) == []


def test_case_16_a_release_that_an_older_version_began_can_be_taken_back() -> None:
    """Its stored request carries what is refused now."""
    old = {**VALUES, "uri": f"https://host/m?sig={SECRET}", "options": {"registry_uri": f"https://u:{SECRET}@mlflow"}}
    assert request.parse_stored(old).uri == old["uri"]
    record = release.Release(
        epoch=1, model="m", namespace="ml", rayservice="ai", candidate_version="v2", stable_version="v1", request=old,
        request_digest="x", holder="h", steps=[10.0], started_unix_s=0.0, made=[],
    )  # fmt: skip
    assert record.asked().options.registry_uri == f"https://u:{SECRET}@mlflow"


@pytest.mark.parametrize("error", [errors.RequestInvalid, errors.NameTaken])
def test_case_16_messages_do_not_show_what_the_environment_or_an_older_version_says(error: type[errors.KfpServingError]) -> None:
    with pytest.raises(error) as caught:
        if error is errors.RequestInvalid:
            registry.connect(f"ftp://me:{SECRET}@host/x")
        ModelVersion("m", "v1", f"https://host/m?sig={SECRET}", None, {}).assert_same("s3://b/m", None)
    assert SECRET not in str(caught.value) and "host/..." in str(caught.value)


def test_case_16_a_registry_that_is_away_is_named_without_the_password() -> None:
    away = MlflowRegistry(f"http://me:{SECRET}@127.0.0.1:9")
    with pytest.raises(errors.Unreachable) as caught:
        away.find("m", "v1")
    assert SECRET not in str(caught.value) and "registry http://127.0.0.1:9/...: " in str(caught.value)


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("HF_TOKEN", True), ("OPENAI_API_KEY", True), ("AWS_SECRET_ACCESS_KEY", True), ("DB_PASSWORD", True), ("clientSecret", True), ("key", True),
        ("MAX_TOKENS", False), ("TOKENIZERS_PARALLELISM", False), ("SECRET_NAME", False), ("TOKEN_FILE", False), ("partition_key", False), ("", False),
        ("PGPASSFILE", False), ("keyboard", False), ("X-Amz-Algorithm", False), ("X-Amz-Date", False), ("versionId", False), ("sv", False),
    ],
)  # fmt: skip
def test_case_16_names_of_secrets(name: str, is_secret: bool) -> None:
    assert uris.is_secret_name(name) is is_secret


@pytest.mark.parametrize(
    "options",
    [
        {"args": {"source": "https://u:p@host/x"}},
        {"args": {"llm_configs": [{"model_loading_config": {"model_source": "https://host/x?sig=abc%3D"}}]}},
        {"deployments": [{"name": "Bge", "user_config": {"weights": "s3://key:secret@bucket/x"}}]},
        {"deployments": [{"name": "Bge", "ray_actor_options": {"runtime_env": {"working_dir": "https://token@host/x.zip"}}}]},
    ],
)
def test_case_16_in_arguments_and_deployments_too(options: dict[str, Any]) -> None:
    assert "it carries a credential, " in refused(options=options)


def test_case_16_what_everybody_is_called_is_no_credential() -> None:
    assert uris.credential_in("git+https://git@github.com/o/m@v1") is None
