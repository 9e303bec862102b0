"""The stand-in operator on the API of conftest.py: what it writes can be walked to an endpoint, it keeps out of the way of a real one, and it tidies up."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from kube_space import KubeApi, Space
from patience import until
from test_kube_api import made, ray_service, service

from kfp_components import errors, names
from kfp_components.cluster import Ref
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.local import controllers
from kfp_components.local.environment import Embedded

IDLE = {"serveConfigV2": "applications: []\n"}


class Serve:
    """Serve's REST API as the controller uses it, with nothing deployed."""

    url = "http://127.0.0.1:8265"

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def put_applications(self, config: dict[str, Any]) -> None:
        self.sent.append(config)

    def get_status(self) -> dict[str, Any]:
        return {"applications": {}}


@pytest.fixture
def cluster(kube_api: KubeApi) -> KubernetesCluster:
    return KubernetesCluster(kube_api.kubeconfig)


@pytest.fixture
def controller(cluster: KubernetesCluster, space: Space) -> controllers.RayServiceController:
    return controllers.RayServiceController(cluster, Serve(), 9123, space.name)


@pytest.fixture
def no_operator(cluster: KubernetesCluster) -> None:
    try:
        controllers.require_free(cluster, "contract-nowhere")
    except errors.NameTaken as error:
        pytest.skip(str(error))


def test_its_service_leads_to_loopback(controller: controllers.RayServiceController, cluster: KubernetesCluster, space: Space) -> None:
    made(space.create("rayservices", ray_service(**IDLE)))
    controller.reconcile()
    found = cluster.endpoint(names.serve_service("ray"), space.name, names.SERVE_PORT)
    assert found.base_url == "http://127.0.0.1:9123"
    alias = service(
        "whisper-predictor", {"port": names.SERVE_PORT}, type="ExternalName", externalName=names.service_host("ray-serve-svc", space.name)
    )
    made(space.create("services", alias))
    found = cluster.endpoint("whisper-predictor", space.name, names.SERVE_PORT)
    assert (found.base_url, found.host) == ("http://127.0.0.1:9123", names.service_host("whisper-predictor", space.name))
    status = made(space.get("rayservices", "ray"), 200)["status"]
    assert (status["serviceStatus"], status["numServeEndpoints"], status["observedGeneration"]) == ("Running", 1, 1)


def test_other_namespaces_are_not_served(controller: controllers.RayServiceController, space: Space) -> None:
    controller.namespace = "contract-nowhere"
    made(space.create("rayservices", ray_service(**IDLE)))
    controller.reconcile()
    assert "status" not in made(space.get("rayservices", "ray"), 200)


def test_it_ends_when_another_operator_writes(controller: controllers.RayServiceController, space: Space) -> None:
    made(space.create("rayservices", ray_service(**IDLE)))
    controller.reconcile()
    made(space.patch("rayservices", "ray", {"status": {"serviceStatus": ""}}, sub="status", fieldManager="kuberay-operator"), 200)
    with pytest.raises(errors.NameTaken, match=f"RayService {space.name}/ray: kuberay-operator writes its status"):
        controller.reconcile()


@pytest.mark.usefixtures("no_operator")
def test_a_namespace_with_a_ray_service_is_refused(cluster: KubernetesCluster, space: Space) -> None:
    controllers.require_free(cluster, space.name)
    made(space.create("rayservices", ray_service()))
    with pytest.raises(errors.NameTaken, match=f"RayService {space.name}/ray: it was there before"):
        controllers.require_free(cluster, space.name)


@pytest.mark.usefixtures("no_operator")
def test_a_cluster_with_an_operator_is_refused(cluster: KubernetesCluster, space: Space) -> None:
    made(space.create("leases", {"metadata": {"name": controllers.OPERATOR_LEASE}, "spec": {"holderIdentity": "operator-1"}}))
    try:
        with pytest.raises(errors.NameTaken, match=f"Lease {space.name}/ray-operator-leader: a KubeRay operator runs on this cluster"):
            controllers.require_free(cluster, "default")
    finally:  # not later, with its namespace: it would speak of an operator to the tests after this one
        made(space.delete("leases", controllers.OPERATOR_LEASE), 200)


def test_withdrawing_takes_what_it_served_and_nothing_else(
    controller: controllers.RayServiceController, cluster: KubernetesCluster, space: Space
) -> None:
    made(space.create("rayservices", ray_service(**IDLE)))
    controller.reconcile()
    made(space.create("rayservices", ray_service("theirs")))
    made(space.create("services", service("theirs-serve-svc")))
    controllers.withdraw(cluster, space.name)
    assert [cluster.get(Ref(kind, "ray-serve-svc", space.name)) for kind in ("Service", "EndpointSlice")] == [None, None]
    assert [item["metadata"]["name"] for item in cluster.list("RayService", space.name)] == ["theirs"]
    assert cluster.get(Ref("Service", "theirs-serve-svc", space.name)) is not None


@pytest.fixture
def environment(no_operator: None, kube_api: KubeApi, space: Space, tmp_path: Path) -> Iterator[Embedded]:
    found = Embedded(tmp_path / "home", kubeconfig=kube_api.kubeconfig)
    found.up(print, namespace=f"{space.name}-ray")
    yield found
    found.down(print)


@pytest.mark.full
def test_a_real_ray_on_that_cluster(environment: Embedded, kube_api: KubeApi, space: Space) -> None:
    namespace = f"{space.name}-ray"
    assert [part.name for part in environment.parts()] == ["ray", "controllers"] and environment.running()
    later = Embedded(environment.home)
    assert later.kubeconfig == kube_api.kubeconfig and later.running()
    cluster = later.cluster()
    manifest = ray_service(**IDLE)
    manifest["metadata"]["namespace"] = namespace
    cluster.apply(manifest, manager="owner")
    endpoint = until(lambda: cluster.endpoint(names.serve_service("ray"), namespace, names.SERVE_PORT), "the Service of the RayService")
    answer = until(lambda: httpx.get(f"{endpoint.base_url}/-/healthz", trust_env=False), "Serve to answer there")
    assert answer.status_code in (200, 503)  # Serve has no route yet
    later.down(print)
    assert not environment.running() and not environment.parts() and kube_api.kubeconfig.is_file()
    until(lambda: space.client.get(f"/api/v1/namespaces/{namespace}").status_code == 404, "the namespace that was made to be gone", 180)


OPTIONS = {
    "applications": [],
    "http_options": {"host": "0.0.0.0", "port": 8000, "request_timeout_s": 30},
    "grpc_options": {"port": 9000},
    "proxy_location": "EveryNode",
    "logging_config": {"log_level": "DEBUG"},
    "target_capacity": 50,
}


def test_case_23_options_of_serve_are_passed_on_or_named(cluster: KubernetesCluster, space: Space) -> None:
    serve = Serve()
    controller = controllers.RayServiceController(cluster, serve, 9123, space.name)
    made(space.create("rayservices", ray_service(serveConfigV2=yaml.safe_dump(OPTIONS))))
    controller.reconcile()
    controller.reconcile()
    assert serve.sent == [{"applications": [], "logging_config": {"log_level": "DEBUG"}, "target_capacity": 50}]
    told = [event["message"] for event in cluster.list("Event", space.name) if event["reason"] == "ServeOptionsIgnored"]
    assert told == [
        "serveConfigV2: http_options, grpc_options, proxy_location: they are not taken up; "
        "Serve of the embedded cluster runs already, with options of its own"
    ]
    assert all(any(key in line for line in controllers.NOT_SUPPORTED) for key in controllers.AT_START)


def test_case_23_without_options_nothing_is_said(controller: controllers.RayServiceController, cluster: KubernetesCluster, space: Space) -> None:
    made(space.create("rayservices", ray_service(**IDLE)))
    controller.reconcile()
    assert not [event for event in cluster.list("Event", space.name) if event["reason"] == "ServeOptionsIgnored"]


def test_case_23_a_configuration_that_serve_refuses_is_told_by_an_event(cluster: KubernetesCluster, space: Space) -> None:
    class Refusing(Serve):
        def put_applications(self, config: dict[str, Any]) -> None:
            answer = httpx.Response(400, text="no such thing", request=httpx.Request("PUT", self.url))
            answer.raise_for_status()

    made(space.create("rayservices", ray_service(**IDLE)))
    controllers.RayServiceController(cluster, Refusing(), 9123, space.name).reconcile()
    (event,) = [event for event in cluster.list("Event", space.name) if event["reason"] == "FailedToUpdateServeApplications"]
    assert (event["message"], event["involvedObject"]["name"]) == ("Serve refused serveConfigV2: no such thing", "ray")
