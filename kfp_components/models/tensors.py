"""Tensors of the Open Inference Protocol (V2) in their three forms: JSON, the binary tensor extension, gRPC.

Whatever a client can get wrong raises `Refused`, which becomes a 4xx in the protocol's own form.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError

from kfp_components.models import inference_grpc

HEADER_LENGTH = "inference-header-content-length"
"""Header of the binary tensor extension: bytes of JSON before the tensors' own."""

DTYPES: Mapping[str, str] = {
    **{"BOOL": "?", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8"},
    **{"UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"},
}
"""Datatype -> numpy's; BYTES is beside them, a list of byte strings."""

CONTENTS: Mapping[str, str] = {
    **{"BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents"},
    **{"UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents"},
    **{"FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents"},
}
"""Datatype -> its field in gRPC's InferTensorContents. FP16 has none: it goes raw."""

Form = TypeVar("Form", bound=BaseModel)
Parameters = dict[str, StrictBool | StrictInt | StrictFloat | StrictStr]


class Refused(Exception):
    """What a client is told in place of an answer. ``status`` is HTTP's, ``param`` the field at fault, for OpenAI's form."""

    def __init__(self, message: str, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


@dataclass(frozen=True)
class Tensor:
    """``values`` is flat: an array of the datatype's dtype, or a list of byte strings for BYTES."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Any

    def __post_init__(self) -> None:
        if len(self.values) != math.prod(self.shape):
            raise Refused(f"tensor {self.name!r}: {len(self.values)} elements do not fill the shape {list(self.shape)}")

    @property
    def array(self) -> NDArray[Any]:
        """Numbers in their shape. Raises `Refused` for BYTES."""
        if self.datatype == "BYTES":
            raise Refused(f"tensor {self.name!r}: numbers are expected, it holds BYTES")
        return np.asarray(self.values).reshape(self.shape)

    @property
    def blobs(self) -> list[bytes]:
        """The byte strings. Raises `Refused` for another datatype."""
        if self.datatype != "BYTES":
            raise Refused(f"tensor {self.name!r}: datatype BYTES is expected, found {self.datatype}")
        return list(self.values)

    @property
    def texts(self) -> list[str]:
        """BYTES as UTF-8 text. Raises `Refused`."""
        try:
            return [value.decode() for value in self.blobs]
        except UnicodeDecodeError as error:
            raise Refused(f"tensor {self.name!r}: not UTF-8 text: {error.reason} at byte {error.start}") from error


def of_array(name: str, array: NDArray[Any]) -> Tensor:
    """A tensor of the array's own datatype. Raises `ValueError` for a dtype that the protocol does not have."""
    wanted = array.dtype.newbyteorder("<")
    for datatype, dtype in DTYPES.items():
        if np.dtype(dtype) == wanted:
            return Tensor(name, datatype, array.shape, np.ascontiguousarray(array, dtype=dtype).reshape(-1))
    raise ValueError(f"output {name!r}: dtype {array.dtype} has no datatype in the Open Inference Protocol")


def of_texts(name: str, texts: Sequence[str | bytes]) -> Tensor:
    """A BYTES tensor of shape [n]. Raises `Refused` for half a surrogate pair."""
    return Tensor(name, "BYTES", (len(texts),), [utf8(text, name) if isinstance(text, str) else text for text in texts])


@dataclass(frozen=True)
class Infer:
    """One inference request. ``wanted`` are the requested outputs in their order (empty: all), ``binary`` those that go as bytes."""

    inputs: tuple[Tensor, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    wanted: tuple[str, ...] = ()
    binary: frozenset[str] = frozenset()
    all_binary: bool = False

    def input(self, name: str) -> Tensor:
        """The input of that name, or the only one. Raises `Refused` listing those given."""
        found = next((tensor for tensor in self.inputs if tensor.name == name), self.inputs[0] if len(self.inputs) == 1 else None)
        if found is None:
            raise Refused(f"no input {name!r}; given are {', '.join(repr(tensor.name) for tensor in self.inputs)}")
        return found

    def chosen(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs asked for. Raises `Refused` for one that there is not."""
        by_name = {tensor.name: tensor for tensor in outputs}
        missing = [name for name in self.wanted if name not in by_name]
        if missing:
            raise Refused(f"no output {missing[0]!r}; there are {', '.join(map(repr, by_name))}")
        return [by_name[name] for name in self.wanted or by_name]


class _Input(BaseModel):
    name: StrictStr
    shape: list[StrictInt] = Field(max_length=32)
    datatype: StrictStr
    parameters: Parameters | None = None
    data: list[Any] | None = None


class _Output(BaseModel):
    name: StrictStr
    parameters: Parameters | None = None


class _InferForm(BaseModel):
    id: StrictStr | None = None
    parameters: Parameters | None = None
    inputs: list[_Input] = Field(min_length=1)
    outputs: list[_Output] | None = None


def from_rest(body: bytes, header_length: str | None) -> Infer:
    """A request from its HTTP body, with ``header_length`` in the binary tensor extension. Raises `Refused`."""
    at = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 20 and int(header_length) <= len(body)):
            raise Refused(f"{HEADER_LENGTH}: {header_length!r} is no number of bytes within the body's {len(body)}")
        at = int(header_length)
    form = validated(_InferForm, json_of(body[:at]), "inference request")
    inputs = []
    for piece in form.inputs:
        size = (piece.parameters or {}).get("binary_data_size")
        if size is None:
            values = _from_json(piece.name, piece.datatype, piece.data)
        elif isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(body) - at:
            raise Refused(f"input {piece.name!r}: binary_data_size {size!r} is not within the {len(body) - at} bytes that are left")
        else:
            values = _from_raw(piece.name, piece.datatype, body[at : at + size])
            at += size
        inputs.append(_tensor(piece.name, piece.datatype, piece.shape, values))
    if at != len(body):
        raise Refused(f"{len(body) - at} bytes are left over after the last tensor")
    outputs = form.outputs or []
    return Infer(
        inputs=_distinct(inputs),
        parameters=form.parameters or {},
        id=form.id,
        wanted=tuple(piece.name for piece in outputs),
        binary=frozenset(piece.name for piece in outputs if (piece.parameters or {}).get("binary_data") is True),
        all_binary=(form.parameters or {}).get("binary_data_output") is True,
    )


def to_rest(asked: Infer, outputs: Iterable[Tensor], model: str, version: str) -> tuple[bytes, dict[str, str]]:
    """The answer's body and headers. Raises `ValueError` for numbers that are not finite, which JSON cannot say."""
    entries, raw = [], []
    for tensor in outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if asked.all_binary or tensor.name in asked.binary:
            raw.append(to_raw(tensor))
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            entry["data"] = _to_json(tensor)
        entries.append(entry)
    answer = {"model_name": model, "model_version": version, "outputs": entries}
    head = json.dumps({**answer, "id": asked.id} if asked.id is not None else answer, allow_nan=False, separators=(",", ":")).encode()
    if not raw:
        return head, {"content-type": "application/json"}
    return head + b"".join(raw), {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}


def from_grpc(request: Any) -> Infer:
    """A request from a ``ModelInferRequest``. Raises `Refused`."""
    if not request.inputs:
        raise Refused("inference request: there are no inputs")
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise Refused(f"raw_input_contents: {len(raw)} for {len(request.inputs)} inputs; give all inputs raw or none")
    inputs = []
    for index, piece in enumerate(request.inputs):
        if raw:
            values = _from_raw(piece.name, piece.datatype, raw[index])
        elif piece.datatype in CONTENTS:
            given = list(getattr(piece.contents, CONTENTS[piece.datatype]))
            values = given if piece.datatype == "BYTES" else _array(piece.name, piece.datatype, given)
        else:
            raise _unknown(piece.name, piece.datatype)
        inputs.append(_tensor(piece.name, piece.datatype, piece.shape, values))
    return Infer(
        inputs=_distinct(inputs),
        parameters={name: getattr(value, value.WhichOneof("parameter_choice") or "string_param") for name, value in request.parameters.items()},
        id=request.id or None,
        wanted=tuple(piece.name for piece in request.outputs),
        all_binary=bool(raw),
    )


def to_grpc(asked: Infer, outputs: Sequence[Tensor], model: str, version: str) -> Any:
    """A ``ModelInferResponse``: raw where the request was or where a datatype has no other form."""
    raw = asked.all_binary or any(tensor.datatype not in CONTENTS for tensor in outputs)
    answer = inference_grpc.CLASSES["ModelInferResponse"](model_name=model, model_version=version, id=asked.id or "")
    for tensor in outputs:
        piece = answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if raw:
            answer.raw_output_contents.append(to_raw(tensor))
        else:
            getattr(piece.contents, CONTENTS[tensor.datatype]).extend(tensor.values if tensor.datatype == "BYTES" else tensor.values.tolist())
    return answer


def to_raw(tensor: Tensor) -> bytes:
    """Row-major little-endian; each element of BYTES after its length in four bytes."""
    if tensor.datatype == "BYTES":
        return b"".join(struct.pack("<I", len(value)) + value for value in tensor.values)
    return np.asarray(tensor.values, dtype=DTYPES[tensor.datatype]).tobytes()


def json_of(body: bytes) -> dict[str, Any]:
    """A JSON object. Raises `Refused`."""
    try:
        found = json.loads(body.decode(), parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        raise Refused(f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise Refused(f"a JSON object is expected, found {type(found).__name__}")
    return found


def _no_json(word: str) -> None:
    raise ValueError(f"{word} is no number in JSON")


def validated(kind: type[Form], values: Any, what: str) -> Form:
    """``values`` as the model. Raises `Refused` naming the first wrong field."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("constrained-", "list[", "dict[")))  # not a union's members
        raise Refused(f"{what}: {where + ': ' if where else ''}{first['msg']}", param=where or None) from error


def utf8(text: str, what: str) -> bytes:
    """Raises `Refused` for half a surrogate pair, which JSON can say and which is no text."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise Refused(f"{what}: half a surrogate pair at character {error.start} is no text") from error


def from_base64(value: str, what: str) -> bytes:
    """The bytes. Raises `Refused`."""
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:
        raise Refused(f"{what}: not base64: {error}") from error


def _tensor(name: str, datatype: str, shape: Iterable[int], values: Any) -> Tensor:
    lengths = tuple(int(length) for length in shape)
    if any(length < 0 for length in lengths):
        raise Refused(f"input {name!r}: shape {list(lengths)} has a negative length")
    return Tensor(name, datatype, lengths, values)


def _distinct(inputs: list[Tensor]) -> tuple[Tensor, ...]:
    seen: set[str] = set()
    for tensor in inputs:
        if tensor.name in seen:
            raise Refused(f"input {tensor.name!r} is given twice")
        seen.add(tensor.name)
    return tuple(inputs)


def _unknown(name: str, datatype: str) -> Refused:
    return Refused(f"input {name!r}: datatype {datatype[:40]!r} is not known; known are {', '.join((*DTYPES, 'BYTES'))}")


def _from_json(name: str, datatype: str, data: list[Any] | None) -> Any:
    if data is None:
        raise Refused(f"input {name!r}: data is missing")
    flat = list(_flat(data))
    if datatype == "BYTES":
        if not all(isinstance(value, str) for value in flat):
            raise Refused(f"input {name!r}: BYTES in JSON are strings")
        return [utf8(value, f"input {name!r}") for value in flat]
    if datatype not in DTYPES:
        raise _unknown(name, datatype)
    if datatype == "FP16":
        raise Refused(f"input {name!r}: FP16 has no JSON form; send it as a binary tensor")
    kinds: tuple[type, ...] = (bool,) if datatype == "BOOL" else (int, float) if datatype.startswith("FP") else (int,)
    for value in flat:
        if type(value) not in kinds:
            raise Refused(f"input {name!r}: {json.dumps(value)[:80]} is no {datatype}")
    return _array(name, datatype, flat)


def _array(name: str, datatype: str, values: list[Any]) -> NDArray[Any]:
    dtype = np.dtype(DTYPES[datatype])
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if any(not limits.min <= value <= limits.max for value in values):
            raise Refused(f"input {name!r}: a number is not within {datatype}")
    try:
        with np.errstate(over="ignore"):
            return np.array(values, dtype=dtype)
    except (OverflowError, ValueError) as error:
        raise Refused(f"input {name!r}: {error}") from error


def _flat(data: list[Any]) -> Iterable[Any]:
    stack = [iter(data)]  # without recursion: a client decides how deep it nests
    while stack:
        for value in stack[-1]:
            if isinstance(value, list):
                stack.append(iter(value))
                break
            yield value
        else:
            stack.pop()


def _from_raw(name: str, datatype: str, content: bytes) -> Any:
    if datatype == "BYTES":
        values, at = [], 0
        while at < len(content):
            length = int.from_bytes(content[at : at + 4], "little")
            if at + 4 + length > len(content):
                raise Refused(f"input {name!r}: BYTES are cut short at byte {at}")
            values.append(content[at + 4 : at + 4 + length])
            at += 4 + length
        return values
    if datatype not in DTYPES:
        raise _unknown(name, datatype)
    size = np.dtype(DTYPES[datatype]).itemsize
    if len(content) % size:
        raise Refused(f"input {name!r}: {len(content)} bytes are no whole number of {datatype}")
    return np.frombuffer(content, dtype=DTYPES[datatype])


def _to_json(tensor: Tensor) -> list[Any]:
    if tensor.datatype != "BYTES":
        values: list[Any] = tensor.values.tolist()
        return values
    try:
        return [value.decode() for value in tensor.values]
    except UnicodeDecodeError:  # audio: JSON has no bytes, base64 is what KServe's V1 does too
        return [base64.b64encode(value).decode() for value in tensor.values]
