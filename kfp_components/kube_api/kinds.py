"""The table of kinds: names, schema, printed columns, defaults beyond the schema, and the rules the real controller enforces."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kfp_components.kube_api import schemas
from kfp_components.kube_api.failure import Cause, bad_value, denied, immutable, not_one_of, required

Object = dict[str, Any]
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
LABEL_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
SUBDOMAIN_WORDS = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with "
    "an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
LABEL_WORDS = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an "
    "alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
LABEL_1035_WORDS = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end "
    "with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
)
NAME_RULES = {
    "subdomain": (SUBDOMAIN, 253, SUBDOMAIN_WORDS),
    "label": (LABEL, 63, LABEL_WORDS),
    "label1035": (LABEL_1035, 63, LABEL_1035_WORDS),
}


@dataclass(frozen=True)
class Column:
    """One column of `kubectl get`; ``wide`` ones come with ``-o wide``."""

    name: str
    cell: Callable[[Object], Any]
    wide: bool = False


def _nothing(_new: Object) -> None:
    return None


def _no_faults(_old: Object | None, _new: Object) -> Iterator[Cause]:
    return iter(())


@dataclass(frozen=True)
class Kind:
    """One kind. ``builtin`` kinds lose unknown fields and answer type faults with 400, custom resources with 422.

    ``rules``: its real CRD has validation rules in CEL; a real server says that it did not check them when the object is invalid already.
    """

    group: str
    version: str
    kind: str
    plural: str
    schema: schemas.Schema
    short: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    namespaced: bool = True
    builtin: bool = True
    rules: bool = False
    status: bool = False
    generation: bool = False
    unconditional_update: bool = True
    name_rule: str = "subdomain"
    field_selectors: tuple[str, ...] = ()
    prepare: Callable[[Object], None] = _nothing
    check: Callable[[Object | None, Object], Iterator[Cause]] = _no_faults
    returns_deleted: bool = False

    @property
    def api_version(self) -> str:
        """As objects carry it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """As messages name it: ``rayservices.ray.io``."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


def metadata_faults(kind: Kind, metadata: Object) -> Iterator[Cause]:
    """What is wrong with names, labels, annotations and owners."""
    pattern, length, words = NAME_RULES[kind.name_rule]
    name = metadata["name"]
    if len(name) > length:
        yield bad_value("metadata.name", name, f"must be no more than {length} characters")
    if not pattern.fullmatch(name):
        yield bad_value("metadata.name", name, words)
    for key, value in (metadata.get("labels") or {}).items():
        yield from _qualified("metadata.labels", key)
        if len(value) > 63:
            yield bad_value("metadata.labels", value, "must be no more than 63 characters")
        elif value and not QUALIFIED.fullmatch(value):
            words = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.'"
            yield bad_value("metadata.labels", value, f"{words}, and must start and end with an alphanumeric character")
    annotations = metadata.get("annotations") or {}
    for key in annotations:
        yield from _qualified("metadata.annotations", key)
    if sum(len(k) + len(v) for k, v in annotations.items()) > 262144:
        yield Cause("FieldValueTooLong", "metadata.annotations", "Too long: may not be more than 262144 bytes")
    controllers = 0
    for index, owner in enumerate(metadata.get("ownerReferences") or []):
        for key in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(key):
                yield required(f"metadata.ownerReferences[{index}].{key}", "must not be empty")
        controllers += bool(owner.get("controller"))
    if controllers > 1:
        yield bad_value("metadata.ownerReferences", controllers, "Only one reference can have Controller set to true")
    for finalizer in metadata.get("finalizers") or []:
        yield from _qualified("metadata.finalizers", finalizer)


def _qualified(field: str, key: str) -> Iterator[Cause]:
    prefix, _, name = key.rpartition("/")
    if not QUALIFIED.fullmatch(name) or len(name) > 63 or (prefix and not SUBDOMAIN.fullmatch(prefix)) or key.startswith("/"):
        words = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric"
        yield bad_value(field, key, f"{words} character")


def _prepare_namespace(new: Object) -> None:
    new["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = new["metadata"]["name"]
    new.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
    new.setdefault("status", {}).setdefault("phase", "Active")


def _prepare_secret(new: Object) -> None:
    new.setdefault("type", "Opaque")
    for key, value in new.pop("stringData", {}).items():
        new.setdefault("data", {})[key] = base64.b64encode(value.encode()).decode()


def _check_secret(old: Object | None, new: Object) -> Iterator[Cause]:
    for key, value in new.get("data", {}).items():
        try:
            base64.b64decode(value, validate=True)
        except binascii.Error:
            yield bad_value(f"data[{key}]", value, "illegal base64 data")
    if old is not None and old.get("type") != new.get("type"):
        yield bad_value("type", new.get("type"), "field is immutable")
    yield from _check_immutable(old, new)


def _check_immutable(old: Object | None, new: Object) -> Iterator[Cause]:
    for key in ("data", "binaryData"):
        for name in new.get(key, {}):
            if not re.fullmatch(r"[-._a-zA-Z0-9]+", name):
                yield bad_value(f"{key}[{name}]", name, "a valid config key must consist of alphanumeric characters, '-', '_' or '.'")
    if old is not None and old.get("immutable"):
        for key in ("immutable", "data", "binaryData"):
            if old.get(key) != new.get(key):
                yield immutable(key, "field is immutable when `immutable` is set")


def _prepare_service(new: Object) -> None:
    spec = new.setdefault("spec", {})
    new.setdefault("status", {}).setdefault("loadBalancer", {})
    spec.setdefault("type", "ClusterIP")
    spec.setdefault("sessionAffinity", "None")
    if spec["type"] != "ExternalName":
        spec.setdefault("internalTrafficPolicy", "Cluster")
    else:
        spec.pop("internalTrafficPolicy", None)
    for port in spec.get("ports", []):
        port.setdefault("targetPort", port.get("port"))


def _check_service(_old: Object | None, new: Object) -> Iterator[Cause]:
    spec = new["spec"]
    ports = spec.get("ports", [])
    if spec["type"] == "ExternalName":
        if spec.get("clusterIP") not in (None, ""):
            yield immutable("spec.clusterIPs[0]", "may not be set when `type` is 'ExternalName'")
        if not spec.get("externalName"):
            yield required("spec.externalName")
        elif not SUBDOMAIN.fullmatch(spec["externalName"]):
            yield bad_value("spec.externalName", spec["externalName"], SUBDOMAIN_WORDS)
    elif not ports and spec.get("clusterIP") != "None":
        yield required("spec.ports")
    names: set[str] = set()
    for index, port in enumerate(ports):
        if not 1 <= port["port"] <= 65535:
            yield bad_value(f"spec.ports[{index}].port", port["port"], "must be between 1 and 65535, inclusive")
        if len(ports) > 1 and not port.get("name"):
            yield required(f"spec.ports[{index}].name")
        elif port.get("name") and not LABEL.fullmatch(port["name"]):
            yield bad_value(f"spec.ports[{index}].name", port["name"], LABEL_WORDS)
        elif port.get("name") in names:
            yield Cause("FieldValueDuplicate", f"spec.ports[{index}].name", f'Duplicate value: "{port["name"]}"')
        names.add(port.get("name", ""))


def _check_event(_old: Object | None, new: Object) -> Iterator[Cause]:
    wanted = new["involvedObject"].get("namespace") or "default"
    if new["metadata"]["namespace"] != wanted:
        yield bad_value("involvedObject.namespace", new["involvedObject"].get("namespace", ""), "does not match event.namespace")


def _check_lease(_old: Object | None, new: Object) -> Iterator[Cause]:
    spec = new.get("spec", {})
    if spec.get("holderIdentity") == "":
        yield bad_value("spec.holderIdentity", "", "must not be empty")
    if spec.get("leaseDurationSeconds", 1) <= 0:
        yield bad_value("spec.leaseDurationSeconds", spec["leaseDurationSeconds"], "must be greater than 0")
    if spec.get("leaseTransitions", 0) < 0:
        yield bad_value("spec.leaseTransitions", spec["leaseTransitions"], "must be greater than or equal to 0")


def _check_slice(old: Object | None, new: Object) -> Iterator[Cause]:
    if old is not None and old["addressType"] != new["addressType"]:
        yield bad_value("addressType", new["addressType"], "field is immutable")
    for index, endpoint in enumerate(new.get("endpoints") or []):
        if not endpoint.get("addresses"):
            yield required(f"endpoints[{index}].addresses", "must contain at least 1 address")
        for number, address in enumerate(endpoint.get("addresses") or []):
            yield from _address_faults(new["addressType"], f"endpoints[{index}].addresses[{number}]", address)
    for index, port in enumerate(new.get("ports") or []):
        if port.get("protocol") not in ("TCP", "UDP", "SCTP"):
            yield not_one_of(f"ports[{index}].protocol", port.get("protocol"), ("SCTP", "TCP", "UDP"))


def _address_faults(kind: str, field: str, address: str) -> Iterator[Cause]:
    if kind == "FQDN":
        if not SUBDOMAIN.fullmatch(address.removesuffix(".")):
            yield bad_value(field, address, SUBDOMAIN_WORDS)
        elif "." not in address.removesuffix("."):
            yield bad_value(field, address, "should be a domain with at least two segments separated by dots")
        return
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        yield bad_value(field, address, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")
        return
    if f"IPv{found.version}" != kind:
        yield bad_value(field.rpartition("[")[0], address, f"must be an {kind} address")
    if found.is_loopback:
        yield bad_value(field, address, "may not be in the loopback range (127.0.0.0/8, ::1/128)")


DEPLOYMENT_MODE = "serving.kserve.io/deploymentMode"
OLD_MODE_NAMES = {"RawDeployment": "Standard", "Serverless": "Knative"}
WEBHOOK = "inferenceservice.kserve-webhook-server"


def _check_inference_service(old: Object | None, new: Object) -> Iterator[Cause]:
    if not new.get("spec", {}).get("predictor"):
        raise denied(f"{WEBHOOK}.defaulter", "spec.predictor is empty: give it a model or containers")
    name = new["metadata"]["name"]
    if not LABEL_1035.fullmatch(name):
        words = "a InferenceService name must consist of lower case alphanumeric characters or '-', and must start with alphabetical character"
        raise denied(f"{WEBHOOK}.validator", f'the InferenceService "{name}" is invalid: {words}')
    before = (old or {}).get("status", {}).get("deploymentMode")
    after = (new["metadata"].get("annotations") or {}).get(DEPLOYMENT_MODE)
    if before and after is not None:  # without a recorded mode KServe lets it change
        before = OLD_MODE_NAMES.get(before, before)
        if before != after:
            raise denied(f"{WEBHOOK}.validator", f"update rejected: deploymentMode cannot be changed from '{before}' to '{after}'")
    return iter(())


def _ports(service: Object) -> str:
    def words(port: Object) -> str:
        node = f":{port['nodePort']}" if port.get("nodePort") else ""
        return f"{port['port']}{node}/{port['protocol']}"

    return ",".join(words(p) for p in service["spec"].get("ports", [])) or "<none>"


def _condition(obj: Object, name: str) -> str:
    found = [c for c in obj.get("status", {}).get("conditions", []) if c.get("type") == name]
    return found[0].get("status", "") if found else ""


def _traffic(isvc: Object, *, latest: bool) -> Any:
    traffic = isvc.get("status", {}).get("components", {}).get("predictor", {}).get("traffic", [])
    return next((t.get("percent") for t in traffic if t.get("latestRevision", t.get("tag") != "prev") == latest), None)


def _pairs(labels: dict[str, str] | None) -> str:
    return ",".join(f"{k}={v}" for k, v in (labels or {}).items()) or "<none>"


KINDS: tuple[Kind, ...] = (
    Kind(
        "", "v1", "Namespace", "namespaces", schemas.NAMESPACE, ("ns",), (Column("Status", lambda o: o["status"]["phase"]),),
        namespaced=False, status=True, name_rule="label", field_selectors=("status.phase",), prepare=_prepare_namespace,
        returns_deleted=True,
    ),
    Kind(
        "", "v1", "ConfigMap", "configmaps", schemas.CONFIG_MAP, ("cm",),
        (Column("Data", lambda o: len(o.get("data", {})) + len(o.get("binaryData", {}))),), check=_check_immutable,
    ),
    Kind(
        "", "v1", "Secret", "secrets", schemas.SECRET, (),
        (Column("Type", lambda o: o["type"]), Column("Data", lambda o: len(o.get("data", {})))),
        field_selectors=("type",), prepare=_prepare_secret, check=_check_secret,
    ),
    Kind(
        "", "v1", "Service", "services", schemas.SERVICE, ("svc",),
        (
            Column("Type", lambda o: o["spec"]["type"]),
            Column("Cluster-IP", lambda o: o["spec"].get("clusterIP", "<none>")),
            Column("External-IP", lambda o: o["spec"].get("externalName", "<none>")),
            Column("Port(s)", _ports),
            Column("Selector", lambda o: _pairs(o["spec"].get("selector")), wide=True),
        ),
        status=True, name_rule="label1035", field_selectors=("spec.clusterIP", "spec.type"), prepare=_prepare_service,
        check=_check_service, returns_deleted=True,
    ),
    Kind(
        "", "v1", "Event", "events", schemas.EVENT, ("ev",),
        (
            Column("Type", lambda o: o.get("type", "")),
            Column("Reason", lambda o: o.get("reason", "")),
            Column("Object", lambda o: f"{o['involvedObject'].get('kind', '').lower()}/{o['involvedObject'].get('name', '')}"),
            Column("Message", lambda o: o.get("message", "").strip()),
            Column("Count", lambda o: o.get("count", 1), wide=True),
        ),
        field_selectors=(
            *(f"involvedObject.{f}" for f in ("apiVersion", "fieldPath", "kind", "name", "namespace", "resourceVersion", "uid")),
            "reason", "reportingComponent", "source", "type",
        ),
        check=_check_event,
    ),
    Kind(
        "", "v1", "ServiceAccount", "serviceaccounts", schemas.SERVICE_ACCOUNT, ("sa",),
        (Column("Secrets", lambda o: len(o.get("secrets", []))),), returns_deleted=True,
    ),
    Kind(
        "coordination.k8s.io", "v1", "Lease", "leases", schemas.LEASE, (),
        (Column("Holder", lambda o: o.get("spec", {}).get("holderIdentity", "")),),
        unconditional_update=False, check=_check_lease,
    ),
    Kind(
        "discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", schemas.ENDPOINT_SLICE, (),
        (
            Column("AddressType", lambda o: o["addressType"]),
            Column("Ports", lambda o: ",".join(str(p.get("port", "*")) for p in o.get("ports") or []) or "<unset>"),
            Column("Endpoints", lambda o: ",".join(a for e in o.get("endpoints") or [] for a in e["addresses"]) or "<unset>"),
        ),
        generation=True, check=_check_slice,
    ),
    Kind(
        "ray.io", "v1", "RayService", "rayservices", schemas.RAY_SERVICE, (),
        (
            Column("service status", lambda o: o.get("status", {}).get("serviceStatus", "")),
            Column("num serve endpoints", lambda o: o.get("status", {}).get("numServeEndpoints", "")),
        ),
        builtin=False, rules=True, status=True, generation=True, unconditional_update=False,
    ),
    Kind(
        "serving.kserve.io", "v1beta1", "InferenceService", "inferenceservices", schemas.INFERENCE_SERVICE, ("isvc",),
        (
            Column("URL", lambda o: o.get("status", {}).get("url", "")),
            Column("Ready", lambda o: _condition(o, "Ready")),
            Column("Prev", lambda o: _traffic(o, latest=False)),
            Column("Latest", lambda o: _traffic(o, latest=True)),
        ),
        builtin=False, status=True, generation=True, unconditional_update=False, check=_check_inference_service,
    ),
    Kind(
        "gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes", schemas.HTTP_ROUTE, (),
        (Column("Hostnames", lambda o: ",".join(o["spec"].get("hostnames", []))),),
        builtin=False, rules=True, status=True, generation=True, unconditional_update=False,
    ),
)  # fmt: skip

BY_PATH = {(k.group, k.version, k.plural): k for k in KINDS}
OLD_VERSIONS = {("ray.io", "v1alpha1"): (BY_PATH["ray.io", "v1", "rayservices"],)}
"""Versions that are served beside the stored one, as the same objects: KubeRay's CRDs still have them, and manifests name them."""
KNOWN_ELSEWHERE = (
    "pods", "deployments", "statefulsets", "replicasets", "daemonsets", "jobs", "cronjobs", "nodes", "persistentvolumeclaims",
    "ingresses", "endpoints", "rayclusters", "rayjobs", "servingruntimes", "gateways", "customresourcedefinitions", "roles",
    "rolebindings",
)  # fmt: skip
"""Kinds of real clusters that clients are likely to ask for: refused by name."""
