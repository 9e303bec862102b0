"""KServe's ``GRPCInferenceService`` through Serve's gRPC proxy. Who owns the RayService switches it on, before Serve starts, in ``serveConfigV2``::

    grpc_options: {port: 9000, grpc_servicer_functions: ["kfp_components.models.inference_grpc:add_servicer"]}

The proxy hands requests on as bytes, and a deployment's method of the same name (``ModelInfer``) parses them: neither needs KServe's package. The
messages are built here from the protocol's field numbers, so they go with any protobuf. Clients name the application by metadata
``application=<name>``.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")

MESSAGES: dict[str, str] = {
    "InferParameter": "bool bool_param, int64 int64_param, string string_param, double double_param, uint64 uint64_param",
    "InferTensorContents": (
        "bool* bool_contents, int32* int_contents, int64* int64_contents, uint32* uint_contents, "
        "uint64* uint64_contents, float* fp32_contents, double* fp64_contents, bytes* bytes_contents"
    ),
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready",
    "ModelReadyRequest": "string name, string version",
    "ModelReadyResponse": "bool ready",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name, string version, string* extensions",
    "ModelMetadataRequest": "string name, string version",
    "ModelMetadataResponse.TensorMetadata": "string name, string datatype, int64* shape",
    "ModelMetadataResponse": "string name, string* versions, string platform, .TensorMetadata* inputs, .TensorMetadata* outputs",
    "ModelInferRequest.InferInputTensor": "string name, string datatype, int64* shape, parameters, InferTensorContents contents",
    "ModelInferRequest.InferRequestedOutputTensor": "string name, parameters",
    "ModelInferRequest": (
        "string model_name, string model_version, string id, parameters, .InferInputTensor* inputs, "
        ".InferRequestedOutputTensor* outputs, bytes* raw_input_contents"
    ),
    "ModelInferResponse.InferOutputTensor": "string name, string datatype, int64* shape, parameters, InferTensorContents contents",
    "ModelInferResponse": ("string model_name, string model_version, string id, parameters, .InferOutputTensor* outputs, bytes* raw_output_contents"),
}
"""Message -> its fields in the order of their numbers, from 1 on; ``*``: repeated, ``.X``: nested, ``parameters``: the protocol's map."""

Proto = descriptor_pb2.FieldDescriptorProto
SCALARS = {
    name: getattr(Proto, f"TYPE_{name.upper()}") for name in ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes")
}


def _field(within: Any, owner: str, number: int, told: str) -> None:
    """One field of ``MESSAGES`` added to the message ``owner``."""
    kind, _, name = ("map", "", told) if told == "parameters" else told.partition(" ")
    field = within.field.add(name=name, number=number, label=Proto.LABEL_OPTIONAL)
    if kind == "map":
        entry = within.nested_type.add(name="ParametersEntry")
        entry.options.map_entry = True
        _field(entry, f"{owner}.ParametersEntry", 1, "string key")
        _field(entry, f"{owner}.ParametersEntry", 2, "InferParameter value")
        kind = ".ParametersEntry*"
    if kind.endswith("*"):
        field.label, kind = Proto.LABEL_REPEATED, kind[:-1]
    if kind in SCALARS:
        field.type = SCALARS[kind]
    else:
        field.type, field.type_name = Proto.TYPE_MESSAGE, f".{PACKAGE}.{owner}{kind}" if kind.startswith(".") else f".{PACKAGE}.{kind}"


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="kfp_components/inference.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, Any] = {}
    for path in sorted(MESSAGES, key=lambda path: path.count(".")):
        outer, _, inner = path.rpartition(".")
        made[path] = made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=inner)
        for number, told in enumerate(filter(None, MESSAGES[path].split(", ")), start=1):
            _field(made[path], path, number, told)
    made["InferParameter"].oneof_decl.add(name="parameter_choice")
    for field in made["InferParameter"].field:
        field.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()  # of our own: a process that imports KServe's messages too has both
    pool.Add(file)
    return {path: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{path}")) for path in MESSAGES}


CLASSES: dict[str, Any] = _classes()
"""Name -> class of messages."""


def add_servicer(servicer: Any, server: Any) -> None:
    """What ``grpc_servicer_functions`` names: the service's methods, requests left as bytes. Serve's proxy replaces each by a call."""
    handlers = {name: grpc.unary_unary_rpc_method_handler(getattr(servicer, name)) for name in METHODS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def parsed(name: str, request: Any) -> Any:
    """The request message ``name`` from its bytes, or from a message where KServe's own servicer function is registered.

    Raises `ValueError` for bytes that are no such message.
    """
    content = request if isinstance(request, bytes) else request.SerializeToString()
    try:
        return CLASSES[name].FromString(content)
    except DecodeError as error:
        raise ValueError(f"not a {name}: {error}") from error


STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    503: grpc.StatusCode.UNAVAILABLE,
}


def status(http: int) -> grpc.StatusCode:
    """gRPC's status for one of HTTP's; INTERNAL for any that the kit has no use for."""
    return STATUS.get(http, grpc.StatusCode.INTERNAL)
