"""Bad input and bad surroundings: one clear error, before anything is touched. The Kubernetes API is the embedded one, asked by its real client."""

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from patience import seconds

from kfp_components import errors, names, registry, rollout
from kfp_components.cluster import KINDS, Manifest, Ref
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.kube_api.access import ADMIN, Account, Rule
from kfp_components.local import demo
from kfp_components.local.apiserver.server import ApiServer, write_kubeconfig
from kfp_components.request import PromoteRequest
from kfp_components.serving import alias

NAMESPACE = "ai-ml"
TARGET = names.service_host(names.serve_service(demo.RAYSERVICE), NAMESPACE)
LIVE = f"""
applications:
  - name: bge-v1
    route_prefix: {names.version_route("bge", "v1")}
    import_path: kfp_components.models.embedding:build
  - name: bge-router
    route_prefix: /bge
    import_path: kfp_components.router.app:build
    deployments:
      - name: Router
        user_config: {{stable: {{version: v1, route: {names.version_route("bge", "v1")}}}}}
"""
SERVED = "applications:\n  - {name: bge-v1, route_prefix: /bge, import_path: 'kfp_components.models.embedding:build'}\n"


@dataclasses.dataclass
class World:
    """The API, a client of it, and a registry."""

    server: ApiServer
    cluster: KubernetesCluster
    folder: Path
    registry_uri: str

    def rayservice(self, text: str = LIVE, **metadata: Any) -> None:
        manifest = {
            "apiVersion": "ray.io/v1",
            "kind": "RayService",
            "metadata": {"name": demo.RAYSERVICE, "namespace": NAMESPACE, **metadata},
            "spec": {"serveConfigV2": text, "rayClusterConfig": demo.RAY_CLUSTER},
        }
        self.cluster.apply(manifest, manager="owner")

    def service(self, **spec: Any) -> None:
        labels = spec.pop("labels", {})
        metadata = {"name": "bge-predictor", "namespace": NAMESPACE, "labels": labels}
        self.cluster.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}, manager="somebody")

    def kubeconfig(self, token: str, url: str | None = None) -> Path:
        path = self.folder / f"kubeconfig-{token}"
        write_kubeconfig(path, url or self.server.url, token, NAMESPACE, self.server.ca)
        return path

    def everything(self) -> dict[str, Manifest]:
        found = {}
        for kind in KINDS:
            for item in self.cluster.list(kind, NAMESPACE if kind != "Namespace" else ""):
                found[f"{kind} {item['metadata']['name']}"] = item
        return found


@pytest.fixture(scope="session")
def registry_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('registry') / 'registry.db'}"


@pytest.fixture
def world(tmp_path: Path, registry_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    reader = Account("reader", (Rule(("get", "list", "watch"), ("*",)),))
    server = ApiServer(tmp_path / "cluster.db", {"admin": ADMIN, "reader": reader})
    server.start()
    write_kubeconfig(tmp_path / "kubeconfig", server.url, "admin", NAMESPACE, server.ca)
    monkeypatch.setenv("KFP_SERVING_REGISTRY_URI", registry_uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    cluster = KubernetesCluster(tmp_path / "kubeconfig")
    cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    yield World(server, cluster, tmp_path, registry_uri)
    server.stop()


def asked(version: str = "v2", **options: Any) -> PromoteRequest:
    return demo.request(version, **{"rayservice_template": None, **options})


def standard(world: World) -> None:
    world.rayservice()
    manifest = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "bge", "namespace": NAMESPACE},
        "spec": {"predictor": {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://b/m"}}},
    }
    world.cluster.apply(manifest, manager="somebody")


def handmade_stub(world: World) -> None:
    body = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "bge", "namespace": NAMESPACE, "annotations": {names.DEPLOYMENT_MODE: "ModelMesh"}},
        "spec": {"predictor": {"model": {"modelFormat": {"name": "embedding"}, "storageUri": "s3://models/bge/v1"}}},
    }
    world.cluster.apply(body, manager="kubectl-client-side-apply")


def other_digest(world: World) -> None:
    world.rayservice()
    registry.connect(world.registry_uri).register("ai-ml.bge", "v2", asked().uri, digest="sha256:" + "0" * 64, properties={})


def signed_by_another(folder: Path) -> dict[str, Any]:
    """The options that ask for a signature which somebody else made, of what lies in a folder."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from model_signing import signing

    mine, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    private = other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)
    signing.Config().use_elliptic_key_signer(private_key=folder / "key.pem").sign(folder / "model.bin", folder / "model.sig")
    public = mine.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    return {"artifact": {"signature": {"uri": (folder / "model.sig").as_uri(), "public_key": public}}}


ARTIFACTS: dict[str, tuple[str, Callable[[Path], dict[str, Any]], str]] = {
    "another digest": (
        "model.bin",
        lambda _: {"digest": "sha256:" + "0" * 64},
        f"its digest is sha256:{hashlib.sha256(b'weights').hexdigest()}, not",
    ),
    "a missing file": (
        "gone.bin",
        lambda _: {"digest": "sha256:" + "0" * 64, "artifact": {"verify": "required"}},
        "it has to be verified, but",
    ),
    "nothing to compare": ("model.bin", lambda _: {"artifact": {"verify": "required"}}, "there is neither a digest nor a signature"),
    "somebody else's signature": ("model.bin", signed_by_another, "does not hold"),
}


@pytest.mark.parametrize("case", ARTIFACTS)
def test_another_artifact_is_refused_before_anything_is_touched(world: World, case: str) -> None:
    name, options, words = ARTIFACTS[case]
    (world.folder / "model.bin").write_bytes(b"weights")
    world.rayservice()
    before = world.everything()
    request = asked("v9", **options(world.folder)).model_copy(update={"uri": (world.folder / name).as_uri()})
    with pytest.raises(errors.ArtifactRejected, match=rf"model bge version v9: artifact file:///.*{name}: .*{re.escape(words)}"):
        rollout.promote_with_canary(rollout.open_run(request, world.cluster))
    assert world.everything() == before
    assert registry.connect(world.registry_uri).find("ai-ml.bge", "v9") is None


def with_application(text: str) -> str:
    return LIVE + text


CASES: dict[str, tuple[Callable[[World], Any], PromoteRequest, type[errors.KfpServingError], str]] = {
    "no RayService": (lambda world: None, asked(), errors.NotFound, "RayService ai-ml/ai-inference: it does not exist"),
    "no stable version": (lambda world: world.rayservice("applications: []"), asked(), errors.NotFound, "serves no version of it yet"),
    "stable application gone": (
        lambda world: world.rayservice(LIVE.replace("name: bge-v1", "name: bge-v0")),
        asked(),
        errors.NotFound,
        "application bge-v1 is not in serveConfigV2",
    ),
    "version live already": (lambda world: world.rayservice(), asked("v1"), errors.RequestInvalid, "version v1 is what users get already"),
    "alias is a ClusterIP Service": (
        lambda world: (world.rayservice(), world.service(type="ClusterIP", ports=[{"port": 80}])),
        asked(),
        errors.NameTaken,
        "Service ai-ml/bge-predictor: it is a ClusterIP Service, not an alias",
    ),
    "alias of another model": (
        lambda world: (world.rayservice(), world.service(type="ExternalName", externalName=TARGET, labels={names.ISVC_LABEL: "whisper"})),
        asked(),
        errors.NameTaken,
        "says whisper, so it is that model's",
    ),
    "alias onto another RayService": (
        lambda world: (world.rayservice(), world.service(type="ExternalName", externalName=names.service_host("other-serve-svc", NAMESPACE))),
        asked(),
        errors.NameTaken,
        "it points to other-serve-svc.ai-ml.svc.cluster.local, not to",
    ),
    "case_09 a field of the stub is somebody else's": (
        lambda world: (world.rayservice(), handmade_stub(world)),
        asked(),
        errors.NameTaken,
        "InferenceService ai-ml/bge: spec.predictor.model.storageUri belongs to kubectl-client-side-apply",
    ),
    "alias points elsewhere": (
        lambda world: (world.rayservice(), world.service(type="ExternalName", externalName="x.y.svc", labels={names.ISVC_LABEL: "bge"})),
        asked(),
        errors.NameTaken,
        "it points to x.y.svc, not to",
    ),
    "a Standard InferenceService": (standard, asked(), errors.NameTaken, "InferenceService ai-ml/bge: KServe serves it itself"),
    "managed by Flux": (
        lambda world: world.rayservice(labels={"kustomize.toolkit.fluxcd.io/name": "apps"}),
        asked(),
        errors.ManagedElsewhere,
        "managed by Flux",
    ),
    "managed by Argo CD": (
        lambda world: world.rayservice(annotations={"argocd.argoproj.io/tracking-id": "x"}),
        asked(),
        errors.ManagedElsewhere,
        "managed by Argo CD",
    ),
    "application name taken": (
        lambda world: world.rayservice(with_application("  - {name: bge-v2, route_prefix: /mine, import_path: 'a:b'}\n")),
        asked(),
        errors.NameTaken,
        "application bge-v2 is there already, at /mine",
    ),
    "public route taken": (
        lambda world: world.rayservice("applications:\n  - {name: mine, route_prefix: /bge, import_path: 'a:b'}\n"),
        asked(),
        errors.NameTaken,
        "route /bge belongs to application mine",
    ),
    "the applications are an alias": (
        lambda world: world.rayservice(LIVE.replace("applications:", "x-all: &all") + "applications: *all\n"),
        asked(),
        errors.RequestInvalid,
        "`applications` is the alias *all, so nothing can be edited in it alone; write the list itself below `applications`",
    ),
    "import path not allowed": (
        lambda world: world.rayservice(),
        asked().model_copy(update={"import_path": "os:system"}),
        errors.RequestInvalid,
        "import_path 'os:system': not on the allow-list",
    ),
    "runtime_env not allowed": (
        lambda world: world.rayservice(),
        asked(runtime_env={"pip": ["anything"]}),
        errors.RequestInvalid,
        "options.runtime_env.pip: brings code or packages",
    ),
    "a router that cannot be had": (
        lambda world: world.rayservice(SERVED, annotations={names.ROUTER_FROM: "http://127.0.0.1:9/router.zip"}),
        asked(adopt=True),
        errors.Unreachable,
        "from http://127.0.0.1:9/router.zip: no answer",
    ),
    "a source of the router that there is not": (
        lambda world: world.rayservice(SERVED, annotations={names.ROUTER_FROM: "wheel"}),
        asked(adopt=True),
        errors.RequestInvalid,
        "annotation kfp-serving/router-from: 'wheel' is not a source; write `pip`, `image`, or the URI of a zip",
    ),
    "registered with another digest": (other_digest, asked(digest="sha256:" + "1" * 64), errors.NameTaken, "bge version v2: registered with"),
    "broken YAML": (lambda world: world.rayservice("applications: [\n"), asked(), errors.RequestInvalid, "serveConfigV2: not YAML"),
    "application twice": (
        lambda world: world.rayservice("applications:\n  - {name: a, import_path: 'a:b'}\n  - {name: a, import_path: 'a:b'}\n"),
        asked(),
        errors.RequestInvalid,
        "application 'a' stands there twice",
    ),
    "registry scheme unknown": (
        lambda world: world.rayservice(),
        asked(registry_uri="ftp://registry"),
        errors.RequestInvalid,
        "scheme 'ftp' is not known; known are",
    ),
    "registry away": (
        lambda world: world.rayservice(),
        asked(registry_uri="http://127.0.0.1:9"),
        errors.Unreachable,
        "registry http://127.0.0.1:9",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_before_anything_is_touched(world: World, case: str) -> None:
    arrange, request, kind, words = CASES[case]
    arrange(world)
    before = world.everything()
    with pytest.raises(kind) as caught:
        rollout.promote_with_canary(rollout.open_run(request, world.cluster))
    assert words in str(caught.value)
    assert caught.value.exit_code in (2, 3)
    assert world.everything() == before


def test_without_permission_everything_that_is_missing_is_named(world: World) -> None:
    world.rayservice()
    before = world.everything()
    with pytest.raises(errors.PermissionDenied, match=r"may not create ConfigMap.*patch RayService.*deploy/rbac.yaml"):
        rollout.promote_with_canary(rollout.open_run(asked(), KubernetesCluster(world.kubeconfig("reader"))))
    assert world.everything() == before


def test_an_unknown_identity(world: World) -> None:
    with pytest.raises(errors.PermissionDenied, match="does not know this identity"):
        rollout.promote_with_canary(rollout.open_run(asked(), KubernetesCluster(world.kubeconfig("nobody"))))


def test_an_api_that_is_away(world: World) -> None:
    away = KubernetesCluster(world.kubeconfig("admin", "https://127.0.0.1:9"))
    with pytest.raises(errors.Unreachable, match=r"Kubernetes API https://127.0.0.1:9: no answer"):
        rollout.promote_with_canary(rollout.open_run(asked(), away))


def test_a_live_version_is_not_deployed_as_the_first(world: World) -> None:
    world.rayservice()
    with pytest.raises(errors.RequestInvalid, match="version v1 is live"):
        rollout.deploy_model(rollout.open_run(asked(), world.cluster))


def test_a_rollback_without_a_release(world: World) -> None:
    world.rayservice()
    with pytest.raises(errors.NotFound, match="there is no release of it"):
        rollout.open_rollback(asked(), world.cluster)


def test_a_step_before_its_time_is_refused_and_the_release_goes_on(world: World) -> None:
    world.rayservice()
    run = rollout.open_run(asked("v5"), world.cluster)
    rollout.register_model(run)
    with pytest.raises(errors.StepOutOfOrder, match="step 1 of 3 has not passed"):
        rollout.promote_model(run)
    record = run.store.load()
    assert record is not None and record.phase == "registered"


def test_a_name_that_is_none_is_refused_by_an_adoption_too(world: World) -> None:
    world.rayservice("applications: [{name: 'm-:a', route_prefix: /m, import_path: 'acme.m:app'}]\n")
    for words, told in (
        (("m-:a", "--application", "m-:a"), "model: 'm-:a' is not a DNS-1035 label"),
        (("m", "--application", "m-:a", "--route", "/%6D"), "application m-:a is at /m, not at /%6D"),
    ):
        command = [
            sys.executable,
            "-m",
            "kfp_components.cli",
            "adopt",
            *words,
            "--namespace",
            NAMESPACE,
            "--rayservice",
            demo.RAYSERVICE,
            "--dry-run",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds(60))
        assert done.returncode == 2 and told in done.stderr, done.stdout + done.stderr


CLI_CASES: dict[str, tuple[dict[str, Any] | str, str]] = {
    "not YAML": ("{", "request.yaml"),
    "not a mapping": ("- a\n", "expected a mapping"),
    "upper case": ({"model": "BGE"}, "model: 'BGE' is not a DNS-1035 label"),
    "falling weights": ({"steps": [50, 25]}, "steps: [50.0, 25.0]: the steps must rise"),
    "a mistyped option": ({"options": {"watch": 3}}, "options.watch is not a known key; did you mean watch_s?"),
    "a route that Serve never finds": ({"options": {"route": "/%7Ebge"}}, "options.route: '/%7Ebge' is not in normal form"),
    "missing RayService": ({}, "RayService ai-ml/ai-inference: it does not exist"),
}


@pytest.mark.parametrize("case", CLI_CASES)
def test_the_command_says_it_in_one_paragraph(world: World, case: str) -> None:
    change, words = CLI_CASES[case]
    file = world.folder / "request.yaml"
    file.write_text(change if isinstance(change, str) else yaml.safe_dump({**json.loads(asked().model_dump_json()), **change}))
    before = world.everything()
    command = [sys.executable, "-m", "kfp_components.cli", "promote", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds(60))
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().split("\n\n")) == 1
    assert world.everything() == before


def test_no_kubeconfig_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(errors.NotFound, match="Kubernetes configuration"):
        KubernetesCluster()


def test_an_alias_that_is_a_loop_or_leads_nowhere_is_walked_and_said(world: World) -> None:
    host = names.service_host("bge-predictor", NAMESPACE)
    world.cluster.apply(alias.manifest("bge", NAMESPACE, host), manager="somebody")
    with pytest.raises(errors.NotFound, match="it looks like a loop"):
        world.cluster.endpoint("bge-predictor", NAMESPACE, 8000)
    world.cluster.delete(Ref("Service", "bge-predictor", NAMESPACE))
    world.cluster.apply(alias.manifest("bge", NAMESPACE, names.service_host("gone", NAMESPACE)), manager="somebody")
    with pytest.raises(errors.NotFound, match=r"bge-predictor -> gone\.ai-ml.* -> Service ai-ml/gone: it does not exist"):
        world.cluster.endpoint("bge-predictor", NAMESPACE, 8000)
