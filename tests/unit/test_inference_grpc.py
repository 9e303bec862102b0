"""KServe's gRPC service: our messages against those of the kserve package, what a replica answers, and the guard of the embedded Ray on a real server."""

import asyncio
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import grpc
import jsonschema
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.serve._private.grpc_util import gRPCGenericServer
from ray.serve.config import gRPCOptions
from test_models_v2 import MODEL, SERVER, stand_in

from kfp_components.local import grpc_loopback, ray_process
from kfp_components.models import inference_grpc, kit, tensors

ROOT = Path(__file__).parents[2]
CLASSES = inference_grpc.CLASSES
BEYOND_KSERVE = {"InferParameter": {"double_param", "uint64_param"}}
"""In the protocol, and not in the kserve package."""


def kserves_messages() -> Any:
    """The module of generated messages alone: importing all of kserve takes seconds."""
    spec = importlib.util.find_spec("kserve")
    assert spec is not None and spec.origin
    path = Path(spec.origin).parent / "protocol" / "grpc" / "grpc_predict_v2_pb2.py"
    if "kserve.protocol.grpc.grpc_predict_v2_pb2" in sys.modules:
        return sys.modules["kserve.protocol.grpc.grpc_predict_v2_pb2"]
    found = importlib.util.spec_from_file_location("grpc_predict_v2_pb2", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def fields(descriptor: Any) -> dict[str, tuple[Any, ...]]:
    return {
        one.name: (
            one.number,
            one.type,
            one.is_repeated,
            one.message_type and one.message_type.full_name,
            one.containing_oneof and one.containing_oneof.name,
        )
        for one in descriptor.fields
    }


@pytest.mark.parametrize("name", CLASSES)
def test_our_messages_are_those_of_kserve(name: str) -> None:
    theirs = kserves_messages()
    for part in name.split("."):
        theirs = getattr(theirs, part)
    ours = fields(CLASSES[name].DESCRIPTOR)
    assert {key: ours[key] for key in ours if key not in BEYOND_KSERVE.get(name, ())} == fields(theirs.DESCRIPTOR)
    assert CLASSES[name].DESCRIPTOR.full_name == theirs.DESCRIPTOR.full_name


def test_kserves_service_has_our_methods() -> None:
    service = kserves_messages().DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert {method.name for method in service.methods} >= set(inference_grpc.METHODS) and service.full_name == inference_grpc.SERVICE
    assert all(hasattr(kit.Served, method) for method in inference_grpc.METHODS)


def test_what_the_docs_and_the_embedded_ray_name_is_a_function() -> None:
    (page,) = re.findall(r"```yaml\n(apiVersion: ray.io.*?)```", (ROOT / "docs" / "models.md").read_text(), re.DOTALL)
    options = yaml.safe_load(yaml.safe_load(page)["spec"]["serveConfigV2"])["grpc_options"]
    assert gRPCOptions(**options).grpc_servicer_func_callable == [inference_grpc.add_servicer]
    assert gRPCOptions(grpc_servicer_functions=[ray_process.GRPC_SERVICER]).grpc_servicer_func_callable == [grpc_loopback.add_servicer]


class Context:
    """Stand-in for Serve's gRPC context: keeps what is set; the real one is in tests/e2e/test_families.py."""

    code = details = None

    def set_code(self, code: Any) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


def call(served: kit.Served, method: str, request: Any) -> tuple[Any, Context]:
    context = Context()
    content = request if isinstance(request, bytes) else request.SerializeToString()
    answer = asyncio.run(getattr(served, method)(content, context))
    return type(answer).FromString(answer.SerializeToString()), context


@pytest.fixture(scope="module")
def served() -> kit.Served:
    return stand_in(max_body_mib=0.01)


def test_answers(served: kit.Served) -> None:
    asked = CLASSES["ModelInferRequest"](model_name="m", model_version="v7", id="7")
    asked.inputs.add(name="text", datatype="BYTES", shape=[2]).contents.bytes_contents.extend([b"four", b"fives"])
    answer, context = call(served, "ModelInfer", asked)
    assert context.code is None and (answer.model_name, answer.model_version, answer.id) == ("m", "v7", "7")
    assert list(answer.outputs[0].contents.fp32_contents) == [4.0, 1.0, 5.0, 1.0] and list(answer.outputs[0].shape) == [2, 2]
    raw = CLASSES["ModelInferRequest"](model_name="m", raw_input_contents=[tensors.to_raw(tensors.of_texts("text", ["four"]))])
    raw.inputs.add(name="text", datatype="BYTES", shape=[1])
    answer, context = call(served, "ModelInfer", raw)
    assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [4.0, 1.0]
    assert call(served, "ServerLive", b"")[0].live and call(served, "ServerReady", b"")[0].ready
    assert call(served, "ModelReady", CLASSES["ModelReadyRequest"](name="m"))[0].ready
    for method, asking, schema in (("ServerMetadata", b"", SERVER), ("ModelMetadata", CLASSES["ModelMetadataRequest"](name="m"), MODEL)):
        told, _ = call(served, method, asking)
        as_rest = served._server_metadata() if schema is SERVER else served._model_metadata()
        jsonschema.validate(as_rest, schema)
        assert told == type(told)(**as_rest)


TWO = CLASSES["ModelInferRequest"](model_name="m", raw_input_contents=[b""])
for name in ("text", "x"):
    TWO.inputs.add(name=name, datatype="BYTES", shape=[0])
WRONG = {
    "raw and not": ("ModelInfer", TWO, "INVALID_ARGUMENT", "1 for 2 inputs"),
    "another model": ("ModelReady", CLASSES["ModelReadyRequest"](name="other"), "NOT_FOUND", "no model 'other'"),
    "another version": ("ModelMetadata", CLASSES["ModelMetadataRequest"](name="m", version="v8"), "NOT_FOUND", "no version 'v8'"),
    "no inputs": ("ModelInfer", CLASSES["ModelInferRequest"](model_name="m"), "INVALID_ARGUMENT", "no inputs"),
    "no message": ("ModelInfer", b"\xff\xff", "INVALID_ARGUMENT", "not a ModelInferRequest"),
    "too large": ("ModelInfer", b"x" * 20_000, "RESOURCE_EXHAUSTED", "0.01 MiB"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_a_status(served: kit.Served, what: str) -> None:
    method, asked, code, words = WRONG[what]
    answer, context = call(served, method, asked)
    assert context.code is not None and context.code.name == code and words in (context.details or "")
    assert answer == CLASSES[f"{method}Response"]()


def test_an_engine_that_breaks_is_internal_and_not_ready(caplog: pytest.LogCaptureFixture) -> None:
    app = stand_in(check_interval_s=0.0)
    app.engine.broken = MemoryError("of the engine")
    asked = CLASSES["ModelInferRequest"](model_name="m")
    asked.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"a")
    _, context = call(app, "ModelInfer", asked)
    assert context.code is not None and context.code.name == "INTERNAL" and "MemoryError" in caplog.text
    assert not call(app, "ServerReady", b"")[0].ready and not call(app, "ModelReady", CLASSES["ModelReadyRequest"](name="m"))[0].ready


@settings(max_examples=30)
@given(data=st.data())
def test_no_request_is_our_fault(served: kit.Served, data: st.DataObject) -> None:
    asked = CLASSES["ModelInferRequest"](model_name="m", id="7")
    datatype = data.draw(st.sampled_from([*tensors.DTYPES, "BYTES", "BYTES", "WORDS"]))
    piece = asked.inputs.add(name="text", datatype=datatype, shape=data.draw(st.lists(st.integers(-1, 3), max_size=2)))
    if data.draw(st.booleans()):
        asked.raw_input_contents.append(data.draw(st.one_of(st.binary(max_size=24), st.just(b"\1\0\0\0a"))))
    else:
        piece.contents.bytes_contents.extend(data.draw(st.lists(st.binary(max_size=3), max_size=3)))
    answer, context = call(served, "ModelInfer", asked)
    if context.code is None:
        assert answer.id == "7" and [output.name for output in answer.outputs] == ["embedding"]
    else:
        assert context.code.name == "INVALID_ARGUMENT" and context.details


@pytest.mark.parametrize("loopback", [True, False])
def test_the_embedded_ray_answers_loopback_only(monkeypatch: pytest.MonkeyPatch, loopback: bool) -> None:
    """On Serve's own kind of gRPC server, which puts its handlers in place of ours."""
    if not loopback:
        monkeypatch.setattr(grpc_loopback, "LOOPBACK", ("ipv4:192.0.2.",))  # nobody counts as this machine

    async def answer(_request: bytes, _context: Any) -> bytes:
        return bytes(CLASSES["ServerLiveResponse"](live=True).SerializeToString())

    class Servicer:
        def __getattr__(self, _name: str) -> Any:
            return answer

    async def ask() -> list[bytes]:
        server = gRPCGenericServer(lambda service_method, streaming_type: answer)
        port = server.add_insecure_port("127.0.0.1:0")
        grpc_loopback.add_servicer(Servicer(), server)
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                return [await channel.unary_unary(f"/{inference_grpc.SERVICE}/{method}")(b"", timeout=60) for method in inference_grpc.METHODS]
        finally:
            await server.stop(None)

    if loopback:
        assert all(CLASSES["ServerLiveResponse"].FromString(found).live for found in asyncio.run(ask()))
    else:
        with pytest.raises(grpc.aio.AioRpcError, match="on loopback only"):
            asyncio.run(ask())
