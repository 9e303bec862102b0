"""deploy/*.yaml against a cluster with Kubeflow and KubeRay: what must work works, and what should be refused is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
Selector = Mapping[str, Any]
Policy = Mapping[str, Any]

PROFILE = {"app.kubernetes.io/part-of": "kubeflow-profile"}
NAMESPACE_LABELS = {"ai-ml": PROFILE, "team-b": PROFILE}


@dataclass(frozen=True)
class Pod:
    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outside:
    """An address that is no pod's: of a node, of the API server, behind a load balancer."""

    ip: str


Peer = Pod | Outside


def selects(selector: Selector, labels: Mapping[str, str]) -> bool:
    def holds(expression: Mapping[str, Any]) -> bool:
        key, found = expression["key"], labels.get(expression["key"])
        match expression["operator"]:
            case "Exists":
                return key in labels
            case "DoesNotExist":
                return key not in labels
            case "In":
                return found in expression["values"]
            case "NotIn":
                return found not in expression["values"]
        raise AssertionError(expression)

    assert set(selector) <= {"matchLabels", "matchExpressions"}
    wanted = selector.get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in wanted.items()) and all(map(holds, selector.get("matchExpressions") or ()))


def is_peer(entry: Mapping[str, Any], other: Peer, home: str) -> bool:
    assert entry and set(entry) <= {"podSelector", "namespaceSelector", "ipBlock"}
    if "ipBlock" in entry:
        block, address = entry["ipBlock"], ip_address(other.ip) if isinstance(other, Outside) else None
        return address in ip_network(block["cidr"]) and not any(address in ip_network(out) for out in block.get("except", ())) if address else False
    if isinstance(other, Outside):
        return False
    if "namespaceSelector" in entry:
        labels = {"kubernetes.io/metadata.name": other.namespace, **NAMESPACE_LABELS.get(other.namespace, {})}
        if not selects(entry["namespaceSelector"], labels):
            return False
    elif other.namespace != home:
        return False
    return selects(entry.get("podSelector", {}), other.labels)


def one_way(policies: list[Policy], direction: str, pod: Peer, other: Peer, port: int, protocol: str) -> bool:
    """Whether the policies that select ``pod`` let it talk with ``other``: none selects it, or a rule of one allows it."""
    if isinstance(pod, Outside):
        return True
    selecting = [
        policy
        for policy in policies
        if policy["metadata"]["namespace"] == pod.namespace
        and selects(policy["spec"]["podSelector"], pod.labels)
        and direction in policy["spec"].get("policyTypes", ["Ingress", *(["Egress"] if "egress" in policy["spec"] else [])])
    ]
    key = "from" if direction == "Ingress" else "to"
    return not selecting or any(
        (not rule.get(key) or any(is_peer(entry, other, pod.namespace) for entry in rule[key]))
        and (not rule.get("ports") or any(open_port(entry, port, protocol) for entry in rule["ports"]))
        for policy in selecting
        for rule in policy["spec"].get(direction.lower()) or ()
    )


def open_port(entry: Mapping[str, Any], port: int, protocol: str) -> bool:
    assert set(entry) <= {"port", "endPort", "protocol"}
    return entry.get("protocol", "TCP") == protocol and ("port" not in entry or entry["port"] <= port <= entry.get("endPort", entry["port"]))


def permits(policies: list[Policy], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    return one_way(policies, "Egress", source, target, port, protocol) and one_way(policies, "Ingress", target, source, port, protocol)


def documents(name: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all((DEPLOY / name).read_text()) if document]


POLICIES: list[Policy] = documents("networkpolicy.yaml")
FORMER: list[Policy] = [
    yaml.safe_load("""
metadata: {name: kfp-serving-components, namespace: ai-ml}
spec:
  podSelector: {matchExpressions: [{key: pipeline/runid, operator: Exists}]}
  policyTypes: [Egress]
  egress:
    - ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
    - ports: [{port: 443, protocol: TCP}, {port: 6443, protocol: TCP}]
    - to: [{podSelector: {matchExpressions: [{key: ray.io/cluster, operator: Exists}]}}]
      ports: [{port: 8000, protocol: TCP}]
""")
]


def ray(kind: str, *, serve: str | None, namespace: str = "ai-ml", cluster: str = "ai-inference-x7k2p") -> Pod:
    """As KubeRay labels it: ``serve`` on pods of a RayService only."""
    labels = {"ray.io/cluster": cluster, "ray.io/node-type": kind, "ray.io/is-ray-node": "yes", "app.kubernetes.io/name": "kuberay"}
    return Pod(namespace, labels | ({"ray.io/serve": serve} if serve else {}))


HEAD, STARTING_HEAD, WORKER = ray("head", serve="true"), ray("head", serve="false"), ray("worker", serve="true")
NEXT_WORKER = ray("worker", serve="true", cluster="ai-inference-9qwer")
NOTEBOOKS_HEAD = ray("head", serve=None, cluster="experiments")

STEP = {"pipeline/runid": "6a", "pipelines.kubeflow.org/v2_component": "true", "workflows.argoproj.io/workflow": "promote-with-canary-8x2"}
STEPS = {"profile": Pod("ai-ml", STEP), "standalone": Pod("kubeflow", STEP)}
OPERATORS = {
    "helm": Pod("default", {"app.kubernetes.io/name": "kuberay-operator", "app.kubernetes.io/component": "kuberay-operator"}),
    "kustomize": Pod("ray-system", {"app.kubernetes.io/name": "kuberay", "app.kubernetes.io/component": "kuberay-operator"}),
    "kubeflow": Pod("kubeflow", {"app.kubernetes.io/name": "kuberay-operator", "app.kubernetes.io/component": "kuberay-operator"}),
    "same namespace": Pod("ai-ml", {"app.kubernetes.io/component": "kuberay-operator"}),
}
CALLERS = {
    "a step": STEPS["profile"],
    "a standalone step": STEPS["standalone"],
    "a notebook": Pod("ai-ml", {"notebook-name": "mine"}),
    "a notebook elsewhere": Pod("team-b", {"notebook-name": "theirs"}),
    "the gateway": Pod("istio-system", {"app": "istio-ingressgateway"}),
    "an application": Pod("shop", {"app": "search"}),
    "a load balancer": Outside("203.0.113.7"),
}
NEEDED = {
    "ml-pipeline http": (Pod("kubeflow", {"app": "ml-pipeline"}), 8888, "TCP"),
    "ml-pipeline grpc": (Pod("kubeflow", {"app": "ml-pipeline"}), 8887, "TCP"),
    "minio": (Pod("kubeflow", {"app": "minio"}), 9000, "TCP"),
    "seaweedfs": (Pod("kubeflow", {"app": "seaweedfs"}), 8333, "TCP"),
    "metadata": (Pod("kubeflow", {"component": "metadata-grpc-server"}), 8080, "TCP"),
    "artifact proxy": (Pod("ai-ml", {"app": "ml-pipeline-ui-artifact"}), 8080, "TCP"),
    "dns": (Pod("kube-system", {"k8s-app": "kube-dns"}), 53, "UDP"),
    "dns tcp": (Pod("kube-system", {"k8s-app": "kube-dns"}), 53, "TCP"),
    "kubernetes api": (Outside("10.0.0.2"), 6443, "TCP"),
    "registry, in the cluster": (Pod("mlflow", {"app": "mlflow"}), 5000, "TCP"),
    "registry, outside": (Outside("198.51.100.9"), 443, "TCP"),
    "serve": (WORKER, 8000, "TCP"),
    "serve on the head": (HEAD, 8000, "TCP"),
}
CODE_PORTS = {"dashboard": 8265, "gcs": 6379, "client": 10001, "agent": 52365, "a worker process": 10045}


@pytest.mark.parametrize("service", NEEDED)
@pytest.mark.parametrize("step", STEPS)
def test_d19_nothing_that_a_pipeline_needs_is_cut_off(step: str, service: str) -> None:
    assert permits(POLICIES, STEPS[step], *NEEDED[service])


def test_d19_the_former_policy_would_be_found() -> None:
    cut_off = {service for service, needed in NEEDED.items() if not permits(FORMER, STEPS["profile"], *needed)}
    assert {"minio", "seaweedfs", "metadata", "ml-pipeline http", "registry, in the cluster"} <= cut_off
    assert not cut_off & {"dns", "kubernetes api", "serve"}
    assert permits(FORMER, CALLERS["a notebook"], HEAD, CODE_PORTS["dashboard"])


@pytest.mark.parametrize("caller", CALLERS)
def test_d19_users_are_served(caller: str) -> None:
    assert all(permits(POLICIES, CALLERS[caller], pod, 8000) for pod in (HEAD, WORKER, NEXT_WORKER))


@pytest.mark.parametrize("pair", [(HEAD, WORKER), (WORKER, HEAD), (WORKER, WORKER), (STARTING_HEAD, WORKER), (WORKER, STARTING_HEAD)])
def test_d19_ray_is_left_alone_among_itself(pair: tuple[Pod, Pod]) -> None:
    assert all(permits(POLICIES, *pair, port) for port in CODE_PORTS.values())


@pytest.mark.parametrize("operator", OPERATORS)
def test_d19_the_operator_deploys_and_probes(operator: str) -> None:
    for head in (HEAD, STARTING_HEAD):
        assert permits(POLICIES, OPERATORS[operator], head, 8265)
        assert permits(POLICIES, OPERATORS[operator], head, 8000)
        assert not permits(POLICIES, OPERATORS[operator], head, 10001)


def test_d19_ray_reaches_what_it_needs() -> None:
    for target, port, protocol in NEEDED.values():
        assert permits(POLICIES, WORKER, target, port, protocol)
        assert permits(POLICIES, HEAD, target, port, protocol)


@pytest.mark.parametrize("port", CODE_PORTS)
@pytest.mark.parametrize("caller", CALLERS)
def test_d19_nobody_else_runs_code_in_ray(caller: str, port: str) -> None:
    assert not any(permits(POLICIES, CALLERS[caller], pod, CODE_PORTS[port]) for pod in (HEAD, STARTING_HEAD, WORKER))


def test_d19_a_label_does_not_make_an_operator_or_a_ray_pod_of_a_tenant() -> None:
    operator = OPERATORS["helm"].labels
    assert not permits(POLICIES, Pod("team-b", operator), HEAD, 8265)
    assert not permits(POLICIES, ray("worker", serve="true", namespace="team-b"), HEAD, 6379)


def test_d19_prometheus_reads_metrics_and_nothing_else() -> None:
    prometheus = Pod("monitoring", {"app.kubernetes.io/name": "prometheus"})
    assert permits(POLICIES, prometheus, WORKER, 8080)
    assert not permits(POLICIES, prometheus, HEAD, 8265)
    assert not permits(POLICIES, CALLERS["an application"], WORKER, 8080)


@pytest.mark.parametrize("port", CODE_PORTS)
def test_d19_other_ray_clusters_of_the_namespace_are_left_alone(port: str) -> None:
    assert permits(POLICIES, CALLERS["a notebook"], NOTEBOOKS_HEAD, CODE_PORTS[port])


@pytest.mark.parametrize(
    ("namespace", "account"), [("ai-ml", "default-editor"), ("kubeflow", "pipeline-runner")], ids=["Kubeflow profile", "standalone"]
)
def test_d19_pipelines_of_both_kinds_have_the_rights(namespace: str, account: str) -> None:
    """The rights themselves are compared with preflight's in test_docs.py."""
    (role,) = [found for found in documents("rbac.yaml") if found["kind"] == "Role"]
    bindings = [
        found
        for found in documents("rbac.yaml")
        if found["kind"] == "RoleBinding"
        and {"kind": "ServiceAccount", "name": account, "namespace": namespace} in found["subjects"]
        and found["metadata"]["namespace"] == role["metadata"]["namespace"]
        and found["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role["metadata"]["name"]}
    ]
    assert len(bindings) == 1


def test_nobody_else_has_the_rights() -> None:
    subjects = [subject for found in documents("rbac.yaml") for subject in found.get("subjects", [])]
    assert {(subject["kind"], subject["name"]) for subject in subjects} == {
        ("ServiceAccount", "default-editor"),
        ("ServiceAccount", "pipeline-runner"),
    }
    assert "*" not in {word for rule in documents("rbac.yaml")[0]["rules"] for key in ("verbs", "resources", "apiGroups") for word in rule[key]}
