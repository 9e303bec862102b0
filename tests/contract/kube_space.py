"""Raw requests to a Kubernetes API and objects to send, for the contract tests."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from kubernetes import config
from patience import seconds

from kfp_components.kube_api.access import Account, Rule

RAY = "ray.io/v1"
RBAC = "rbac.authorization.k8s.io"
READER = Account("reader", (Rule(("get", "list", "watch"), ("*",)),))


@dataclass(frozen=True)
class KubeApi:
    """Where the API is, whether it is the embedded one, and who we are there: a token, or a client certificate with its key."""

    url: str
    ca_file: str | None
    kubeconfig: Path
    embedded: bool
    token: str = ""
    certificate: tuple[str, str] | None = None

    def client(self, token: str | None = None) -> httpx.Client:
        """A client as ourselves, with another token, or ('') as nobody."""
        context = ssl.create_default_context(cafile=self.ca_file)
        if token is None and self.certificate:
            context.load_cert_chain(*self.certificate)
        token = self.token if token is None else token
        headers = {"User-Agent": "contract/1"} | ({"Authorization": f"Bearer {token}"} if token else {})
        return httpx.Client(base_url=self.url, headers=headers, verify=context, timeout=seconds(20), trust_env=False)


def api_of(kubeconfig: Path) -> KubeApi:
    """The cluster of a kubeconfig's current context."""
    with config.new_client_from_config(str(kubeconfig)) as client:
        found = client.configuration
        token = (found.get_api_key_with_prefix("authorization") or "").removeprefix("Bearer ")
        certificate = (found.cert_file, found.key_file) if found.cert_file else None
        return KubeApi(found.host, found.ssl_ca_cert, kubeconfig, False, token, certificate)


class Space:
    """One namespace and raw requests in it; every answer is returned as (status code, body)."""

    def __init__(self, client: httpx.Client, name: str) -> None:
        self.client, self.name = client, name

    def path(self, plural: str, name: str = "", sub: str = "") -> str:
        root = {
            "leases": "/apis/coordination.k8s.io/v1",
            "endpointslices": "/apis/discovery.k8s.io/v1",
            "rayservices": "/apis/ray.io/v1",
            "inferenceservices": "/apis/serving.kserve.io/v1beta1",
            "httproutes": "/apis/gateway.networking.k8s.io/v1",
        }.get(plural, "/api/v1")
        return f"{root}/namespaces/{self.name}/{plural}" + (f"/{name}" if name else "") + (f"/{sub}" if sub else "")

    def _answer(self, response: httpx.Response) -> tuple[int, Any]:
        return response.status_code, response.json()

    def create(self, plural: str, body: dict[str, Any], **query: str) -> tuple[int, Any]:
        return self._answer(self.client.post(self.path(plural), json=body, params=query))

    def get(self, plural: str, name: str = "", sub: str = "", **query: str) -> tuple[int, Any]:
        return self._answer(self.client.get(self.path(plural, name, sub), params=query))

    def put(self, plural: str, name: str, body: Any, sub: str = "", **query: str) -> tuple[int, Any]:
        return self._answer(self.client.put(self.path(plural, name, sub), json=body, params=query))

    def patch(self, plural: str, name: str, body: Any, kind: str = "merge", sub: str = "", **query: str) -> tuple[int, Any]:
        headers = {"Content-Type": f"application/{kind}-patch+json"}
        return self._answer(self.client.patch(self.path(plural, name, sub), json=body, params=query, headers=headers))

    def apply(self, plural: str, body: dict[str, Any], manager: str, sub: str = "", **query: str) -> tuple[int, Any]:
        headers = {"Content-Type": "application/apply-patch+yaml"}
        path = self.path(plural, body["metadata"]["name"], sub)
        return self._answer(self.client.patch(path, json=body, params={"fieldManager": manager, **query}, headers=headers))

    def delete(self, plural: str, name: str = "", body: Any = None, **query: str) -> tuple[int, Any]:
        return self._answer(self.client.request("DELETE", self.path(plural, name), json=body, params=query))


def config_map(name: str = "a", data: dict[str, str] | None = None, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, **metadata},
        "data": {"k": "1"} if data is None else data,
    }


def service(name: str = "web", *ports: dict[str, Any], **spec: Any) -> dict[str, Any]:
    spec = {"ports": list(ports) or [{"name": "http", "port": 80}], **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def ray_service(name: str = "ray", **spec: Any) -> dict[str, Any]:
    head = {"rayStartParams": {}, "template": {"spec": {"containers": [{"name": "head", "image": "ray:1"}]}}}
    base = {"serveConfigV2": "applications: []", "rayClusterConfig": {"rayVersion": "2.60.0", "headGroupSpec": head}}
    return {"apiVersion": RAY, "kind": "RayService", "metadata": {"name": name}, "spec": {**base, **spec}}


def reader_token(kube_api: KubeApi, space: Space) -> str:
    """The token of somebody who may read the namespace and nothing else."""
    if kube_api.embedded:
        return "reader-token"
    code, told = space.create("serviceaccounts", {"metadata": {"name": "reader"}})
    assert code == 201, told
    binding = {
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": space.name}],
    }
    bound = space.client.post(f"/apis/{RBAC}/v1/namespaces/{space.name}/rolebindings", json=binding)
    if bound.status_code == 404:
        pytest.skip("this cluster has no RBAC: there is no account that may only read")
    assert bound.status_code == 201, bound.text
    asked = space.client.post(space.path("serviceaccounts", "reader", "token"), json={"spec": {}})
    assert asked.status_code == 201, asked.text
    return str(asked.json()["status"]["token"])
