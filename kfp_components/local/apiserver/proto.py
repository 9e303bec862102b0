"""Reads the few protobuf bodies that kubectl sends: `create namespace|configmap|secret|service|serviceaccount`, `auth can-i`.

Generated Go clients send built-in kinds as protobuf inside an envelope (magic ``k8s\\0``, then apiVersion, kind and the
object). The tables hold the field numbers of the Kubernetes API for the fields that such commands set; a field outside of
them is refused, never dropped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from kfp_components.kube_api.failure import Failure

MAGIC = b"k8s\x00"
Table = Mapping[int, tuple[str, Any]]
"""Field number -> (JSON name, how to read it): str, int, bool, bytes, a table, "map", "bytes-map", or a list of one of these."""

TIME: Table = {}
PORT_OR_NAME: Table = {1: ("type", int), 2: ("intVal", int), 3: ("strVal", str)}
OWNER: Table = {
    1: ("kind", str),
    3: ("name", str),
    4: ("uid", str),
    5: ("apiVersion", str),
    6: ("controller", bool),
    7: ("blockOwnerDeletion", bool),
}
METADATA: Table = {
    1: ("name", str),
    2: ("generateName", str),
    3: ("namespace", str),
    4: ("selfLink", str),
    5: ("uid", str),
    6: ("resourceVersion", str),
    7: ("generation", int),
    8: ("creationTimestamp", TIME),
    11: ("labels", "map"),
    12: ("annotations", "map"),
    13: ("ownerReferences", [OWNER]),
    14: ("finalizers", [str]),
}
SERVICE_PORT: Table = {
    1: ("name", str),
    2: ("protocol", str),
    3: ("port", int),
    4: ("targetPort", PORT_OR_NAME),
    5: ("nodePort", int),
}
SERVICE_SPEC: Table = {
    1: ("ports", [SERVICE_PORT]),
    2: ("selector", "map"),
    3: ("clusterIP", str),
    4: ("type", str),
    7: ("sessionAffinity", str),
    8: ("loadBalancerIP", str),
    10: ("externalName", str),
    11: ("externalTrafficPolicy", str),
    12: ("healthCheckNodePort", int),
    13: ("publishNotReadyAddresses", bool),
    18: ("clusterIPs", [str]),
}
ATTRIBUTES: Table = {
    1: ("namespace", str),
    2: ("verb", str),
    3: ("group", str),
    4: ("version", str),
    5: ("resource", str),
    6: ("subresource", str),
    7: ("name", str),
}
REVIEW_SPEC: Table = {1: ("resourceAttributes", ATTRIBUTES), 2: ("nonResourceAttributes", {1: ("path", str), 2: ("verb", str)})}
BODIES: Mapping[str, Table] = {
    "Namespace": {1: ("metadata", METADATA), 2: ("spec", {1: ("finalizers", [str])}), 3: ("status", {1: ("phase", str)})},
    "ConfigMap": {1: ("metadata", METADATA), 2: ("data", "map"), 3: ("binaryData", "bytes-map"), 4: ("immutable", bool)},
    "Secret": {
        1: ("metadata", METADATA),
        2: ("data", "bytes-map"),
        3: ("type", str),
        4: ("stringData", "map"),
        5: ("immutable", bool),
    },
    "Service": {1: ("metadata", METADATA), 2: ("spec", SERVICE_SPEC), 3: ("status", {1: ("loadBalancer", {})})},
    "ServiceAccount": {1: ("metadata", METADATA), 4: ("automountServiceAccountToken", bool)},
    "SelfSubjectAccessReview": {
        1: ("metadata", METADATA),
        2: ("spec", REVIEW_SPEC),
        3: ("status", {1: ("allowed", bool), 2: ("reason", str), 3: ("evaluationError", str), 4: ("denied", bool)}),
    },
    "DeleteOptions": {
        1: ("gracePeriodSeconds", int),
        2: ("preconditions", {1: ("uid", str), 2: ("resourceVersion", str)}),
        3: ("orphanDependents", bool),
        4: ("propagationPolicy", str),
        5: ("dryRun", [str]),
    },
}
ENVELOPE: Table = {
    1: ("type", {1: ("apiVersion", str), 2: ("kind", str)}),
    2: ("raw", bytes),
    3: ("contentEncoding", str),
    4: ("contentType", str),
}


def decode(body: bytes) -> dict[str, Any]:
    """The object of a protobuf body as JSON; raises 415 for a kind or field outside the tables, 400 for a broken body."""
    if not body.startswith(MAGIC):
        raise Failure(400, "BadRequest", "provided data does not appear to be a protobuf message: the prefix is missing")
    try:
        envelope = _message(ENVELOPE, memoryview(body)[len(MAGIC) :])
        kind = envelope.get("type", {}).get("kind", "")
        if kind not in BODIES:
            raise Failure(415, "UnsupportedMediaType", f"{kind} as protobuf is not read by the embedded API server; send JSON or YAML")
        decoded = _message(BODIES[kind], memoryview(envelope.get("raw", b"")))
    except (IndexError, UnicodeDecodeError) as error:
        raise Failure(400, "BadRequest", f"error decoding protobuf: {error}") from error
    for port in decoded.get("spec", {}).get("ports", []) if kind == "Service" else ():
        target = port.pop("targetPort", {})
        if target.get("strVal") or target.get("intVal"):
            port["targetPort"] = target.get("strVal") or target["intVal"]
    return {**envelope["type"], **decoded}


def _message(table: Table, data: memoryview) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, value in _fields(data):
        if not table:
            continue  # a message whose content says nothing here, as an empty time
        if number not in table:
            raise Failure(415, "UnsupportedMediaType", f"protobuf field {number} is not read by the embedded API server; send JSON or YAML")
        name, how = table[number]
        if how in ("map", "bytes-map"):
            entry = _message({1: ("key", str), 2: ("value", str if how == "map" else bytes)}, value)
            content = entry.get("value", "" if how == "map" else b"")
            found.setdefault(name, {})[entry.get("key", "")] = content if how == "map" else base64.b64encode(content).decode()
        elif isinstance(how, list):
            found.setdefault(name, []).append(_value(how[0], value))
        elif how != TIME:
            found[name] = _value(how, value)
    return {name: value for name, value in found.items() if value not in ("", {}) or name == "key"}


def _value(how: Any, value: Any) -> Any:
    if how is str:
        return bytes(value).decode()
    if how is bytes:
        return bytes(value)
    if how in (int, bool):
        return how(value)
    return _message(how, value)


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value) of each field; numbers for varints, bytes for the rest."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise IndexError(f"wire type {wire} at byte {at}")
        if at + size > len(data):
            raise IndexError(f"the message ends within a field at byte {at}")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
