"""V2 tensors as bytes and V2 by gRPC, as KServe's own package writes and reads them: what that cannot read, its clients cannot either."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

from kfp_components import errors
from kfp_components.cluster import Endpoint
from kfp_components.probes.answer import Answer, late, parsed
from kfp_components.request import SmokeCase

HEAD_LENGTH = "inference-header-content-length"
GRPC_AS_HTTP = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "DEADLINE_EXCEEDED": 504,
}
"""As google.rpc.Code maps them; UNAVAILABLE is nobody there, all others are 500."""

CHANNEL = (("grpc.enable_retries", 0), ("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


def assert_installed(case: str, protocol: str) -> None:
    """Raise `RequestInvalid` where KServe's package is missing."""
    if importlib.util.find_spec("kserve") is None:
        raise errors.RequestInvalid(
            f"smoke case {case}: {protocol} needs the package kserve, which is not installed here; install kfp-serving-components[kserve], or ask by "
            "v2 without binary"
        )


def load(case: str, protocol: str) -> None:
    """Import KServe's package, which takes a second or two. Raises `RequestInvalid` where it is missing."""
    assert_installed(case, protocol)
    import kserve.protocol.grpc.grpc_predict_v2_pb2_grpc
    import kserve.utils.numpy_codec  # noqa: F401


class Grpc:
    """``ModelInfer`` through Serve's gRPC proxy, which finds a version by the name of its application in the metadata; nothing is retried."""

    def __init__(self, endpoint: Endpoint, model: str, application: str) -> None:
        import grpc
        from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

        self._address = endpoint.base_url.partition("://")[2]
        self._path, self._model, self._application = endpoint.path, model, application
        self._failed = grpc.RpcError
        self._channel = grpc.insecure_channel(self._address, options=CHANNEL)
        self._infer = GRPCInferenceServiceStub(self._channel).ModelInfer

    def close(self) -> None:
        """Give the connection back."""
        self._channel.close()

    def request(self, case: SmokeCase) -> str:
        """Call, address and application."""
        return f"ModelInfer at {self._address}, application {self._application}"

    def ask(self, case: SmokeCase) -> Answer:
        """One call."""
        from kserve import InferResponse

        answer = Answer(kind="application/grpc")
        asked = request(self._model, case).to_grpc()
        with answer.timed():
            try:
                found = self._infer(asked, timeout=case.timeout_s, metadata=(("application", self._application),))
            except self._failed as error:
                code, told = error.code().name, error.details() or ""
                answer.status, answer.content = GRPC_AS_HTTP.get(code, 500), f"{code}: {told}".encode()
                if code == "UNAVAILABLE":
                    where = f"{self._address} cannot be reached ({' -> '.join(self._path)})"
                    return Answer(broken=f"{where}: {told}", unreachable=True)
                if code == "DEADLINE_EXCEEDED":
                    answer.broken = late(case.timeout_s)
                return answer
        answer.status = 200
        _understand(answer, lambda: _plain(InferResponse.from_grpc(found)))
        answer.version = (answer.value or {}).get("model_version") or None
        answer.content = json.dumps(answer.value, default=repr).encode()
        return answer


def request(model: str, case: SmokeCase) -> Any:
    """KServe's ``InferRequest`` of a V2 JSON body; with ``binary`` tensors go and come as bytes. Raises `RequestInvalid` for wrong ones."""
    import numpy as np
    from kserve import InferInput, InferRequest
    from kserve.utils.numpy_codec import to_np_dtype

    inputs = []
    for tensor in case.body["inputs"]:
        name, shape, datatype, data = (tensor[key] for key in ("name", "shape", "datatype", "data"))
        dtype = to_np_dtype(str(datatype).upper())
        if dtype is None:
            raise errors.RequestInvalid(f"smoke case {case.name}: tensor {name!r} has the unknown datatype {datatype!r}")
        try:
            values = np.array([item.encode() if isinstance(item, str) else item for item in _flat(data)], dtype=dtype).reshape(shape)
        except (ValueError, TypeError, OverflowError) as error:
            raise errors.RequestInvalid(f"smoke case {case.name}: tensor {name!r}: {error}") from error
        made = InferInput(name, list(shape), datatype, None if case.binary else _flat(data), tensor.get("parameters"))
        if case.binary:
            made.set_data_from_numpy(values, binary_data=True)
        inputs.append(made)
    parameters = {**(case.body.get("parameters") or {}), **({"binary_data_output": True} if case.binary else {})}
    return InferRequest(model, inputs, request_id=case.body.get("id"), parameters=parameters or None)


def read(answer: Answer, length: str | None) -> None:
    """Make the value of an answer whose tensors are bytes after ``length`` bytes of JSON plain V2 JSON."""
    from kserve import InferResponse

    def plain() -> Any:
        found = InferResponse.from_bytes(answer.content, int(length or len(answer.content)))
        return parsed(answer.content[: int(length or len(answer.content))]) | _plain(found)

    _understand(answer, plain)


def _understand(answer: Answer, plain: Any) -> None:
    try:
        answer.value = plain()
    except Exception as error:  # KServe's parser raises whatever it meets: KeyError, TypeError, its own
        answer.value, answer.broken = None, f"KServe's client cannot read the answer: {type(error).__name__}: {error}"


def _plain(found: Any) -> dict[str, Any]:
    """V2 JSON with every tensor's data as plain values, whichever way they came."""
    outputs = [{"name": one.name, "datatype": one.datatype, "shape": list(one.shape), "data": _data(one)} for one in found.outputs]
    head = {"model_name": found.model_name, "model_version": found.model_version, "id": found.id}
    return {key: value for key, value in head.items() if value} | {"outputs": outputs}


def _data(output: Any) -> list[Any]:
    values = output.data if getattr(output, "_raw_data", None) is None else output.as_numpy().tolist()
    return [item.decode(errors="replace") if isinstance(item, bytes) else item for item in _flat(values)]


def _flat(data: Any) -> list[Any]:
    return [item for part in data for item in (_flat(part) if isinstance(part, list) else [part])] if isinstance(data, list) else [data]
