"""The Open Inference Protocol, over ASGI in this process: every answer against a schema written from the specification, and no 500 for bad input."""

import asyncio
import json
import string
import threading
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kfp_components.models import embedding, inference_grpc, kit, tensors

ERROR = {"type": "object", "required": ["error"], "additionalProperties": False, "properties": {"error": {"type": "string", "minLength": 1}}}
NAMES = {"type": "array", "items": {"type": "string"}}
TENSOR_HEAD = {"name": {"type": "string"}, "datatype": {"enum": [*tensors.DTYPES, "BYTES"]}, "shape": {"type": "array", "items": {"type": "integer"}}}
METADATA_TENSOR = {"type": "object", "required": ["name", "datatype", "shape"], "additionalProperties": False, "properties": TENSOR_HEAD}
OUTPUT = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "additionalProperties": False,
    "properties": {
        **TENSOR_HEAD,
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "data": {"type": "array", "items": {"type": ["number", "string", "boolean"]}},
        "parameters": {"type": "object"},
    },
}
INFER = {
    "type": "object",
    "required": ["model_name", "outputs"],
    "additionalProperties": False,
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "outputs": {"type": "array", "items": OUTPUT, "minItems": 1},
    },
}
SERVER = {
    "type": "object",
    "required": ["name", "version", "extensions"],
    "properties": {"name": {"type": "string"}, "version": {"type": "string"}, "extensions": NAMES},
}
MODEL = {
    "type": "object",
    "required": ["name", "platform", "inputs", "outputs"],
    "properties": {
        "name": {"type": "string"},
        "platform": {"type": "string"},
        "versions": NAMES,
        "inputs": {"type": "array", "items": METADATA_TENSOR},
        "outputs": {"type": "array", "items": METADATA_TENSOR},
    },
}
TRUE = {"const": True}
LIVE = {"type": "object", "required": ["live"], "properties": {"live": TRUE}}
READY = {"type": "object", "required": ["ready"], "properties": {"ready": TRUE}}
MODEL_READY = {"type": "object", "required": ["name", "ready"], "properties": {"ready": TRUE}}
SCHEMAS = {"/v2": SERVER, "/v2/health/live": LIVE, "/v2/health/ready": READY, "": MODEL, "/ready": MODEL_READY, "/infer": INFER}


class Counting(embedding.EmbeddingEngine):
    """A stand-in that embeds a text as its length, and breaks or hangs when it is told to."""

    class Settings(kit.Frozen):
        scale: float = 1.0

    dimensions = 2
    broken: Exception | None = None

    def __init__(self, settings: Settings) -> None:
        self._scale = settings.scale

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        if self.broken is not None:
            raise self.broken
        return np.array([[len(text) * self._scale, 1.0] for text in texts], dtype=np.float32)

    def count_tokens(self, text: str) -> int:
        return len(text.split())


def stand_in(**args: Any) -> embedding.Embedding:
    return embedding.Embedding({"model": "m", "version": "v7", **args}, Counting)


@pytest.fixture(scope="module")
def served() -> embedding.Embedding:
    return stand_in()


def send(app: kit.Served, method: str, path: str, **more: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app.web), base_url="http://test") as client:
            return await client.request(method, path, **more)

    return asyncio.run(once())


def assert_conforms(path: str, answer: httpx.Response) -> Any:
    """The independent validator: the specification's schema, shapes that fit their data, an error's form and a status that is not ours."""
    assert answer.status_code < 500, answer.text
    size = int(answer.headers.get(tensors.HEADER_LENGTH, len(answer.content)))
    body = json.loads(answer.content[:size])
    if answer.status_code != 200:
        jsonschema.validate(body, ERROR)
        return body
    below = path.removeprefix("/v2/models/m").removeprefix("/versions/v7")
    jsonschema.validate(body, SCHEMAS[below])
    raw = len(answer.content) - size
    for output in body["outputs"] if below == "/infer" else []:
        if "data" in output:
            assert len(output["data"]) == int(np.prod(output["shape"]))
            assert all(isinstance(value, str) == (output["datatype"] == "BYTES") for value in output["data"])
        else:
            raw -= output["parameters"]["binary_data_size"]
    assert raw == 0
    return body


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/m", "/v2/models/m/ready", "/v2/models/m/versions/v7"])
def test_answers_about_server_and_model_conform(served: kit.Served, path: str) -> None:
    answer = send(served, "GET", path)
    assert answer.status_code == 200
    assert_conforms(path, answer)


@pytest.mark.parametrize("path", ["", "/ready", "/infer", "/versions/v8", "/versions/v8/ready"])
def test_another_model_or_version_is_not_found(served: kit.Served, path: str) -> None:
    whole = f"/v2/models/{'m' if 'v8' in path else 'other'}{path}"
    answer = send(served, "POST" if path == "/infer" else "GET", whole)
    assert answer.status_code == 404
    assert "v7" in assert_conforms(whole, answer)["error"] or "'m'" in answer.text


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v2/nothing", 404), ("GET", "/v2/models/m/infer", 405), ("GET", "/embed/", 404)])
def test_a_page_that_is_not_there_is_said_in_the_same_form(served: kit.Served, method: str, path: str, status: int) -> None:
    answer = send(served, method, path)
    assert answer.status_code == status and path in assert_conforms(path, answer)["error"]


def test_metadata_say_what_infer_takes_and_gives(served: kit.Served) -> None:
    told = send(served, "GET", "/v2/models/m").json()
    assert (told["name"], told["versions"], told["platform"]) == ("m", ["v7"], "minilm")
    assert told["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert told["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, 2]}]


SCALARS = st.one_of(
    st.text(max_size=8), st.integers(-(2**70), 2**70), st.floats(allow_nan=True), st.booleans(), st.none(), st.just("\ud800"), st.just("hello")
)
NESTED = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
PARAMETERS = st.dictionaries(st.sampled_from(["binary_data_size", "binary_data", "binary_data_output", "x"]), NESTED, max_size=2)
INPUT = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["text", "", "x"]),
        "shape": st.lists(st.integers(-1, 3), max_size=3),
        "datatype": st.sampled_from([*tensors.DTYPES, "BYTES", "BYTES", "STRING"]),
    },
    optional={"data": st.lists(NESTED, max_size=3), "parameters": st.one_of(PARAMETERS, st.none())},
)
OUTPUTS = st.lists(st.fixed_dictionaries({"name": st.sampled_from(["embedding", "x"])}, optional={"parameters": PARAMETERS}), max_size=2)
REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(INPUT, max_size=3)},
    optional={"id": st.one_of(st.text(max_size=4), st.integers()), "outputs": OUTPUTS, "parameters": PARAMETERS},
)


@settings(max_examples=30)
@given(body=st.one_of(REQUEST, NESTED, st.dictionaries(st.text(max_size=4), NESTED, max_size=3)))
def test_no_body_gives_a_500(served: kit.Served, body: Any) -> None:
    assert_conforms("/v2/models/m/infer", send(served, "POST", "/v2/models/m/infer", content=json.dumps(body).encode()))


@settings(max_examples=25)
@given(body=st.binary(max_size=40), length=st.one_of(st.none(), st.text("0123456789-x", max_size=3)))
def test_no_bytes_give_a_500(served: kit.Served, body: bytes, length: str | None) -> None:
    headers = {} if length is None else {tensors.HEADER_LENGTH: length}
    assert_conforms("/v2/models/m/infer", send(served, "POST", "/v2/models/m/infer", content=body, headers=headers))


TEXT = {"name": "text", "shape": [1], "datatype": "BYTES"}
BAD: dict[str, tuple[Any, str]] = {
    "nests deeper than anybody reads": ('{"inputs": ' + "[" * 100_000, "not JSON"),
    "a number that no computer holds": ('{"id": ' + "9" * 5000 + "}", "not JSON"),
    "not a number": ('{"inputs": [{"name": "text", "shape": [1], "datatype": "FP32", "data": [NaN]}]}', "NaN is no number in JSON"),
    "no data": ({"inputs": [TEXT]}, "data is missing"),
    "a shape that does not fit": ({"inputs": [{**TEXT, "shape": [3], "data": ["a"]}]}, r"1 elements do not fill the shape \[3\]"),
    "a negative shape": ({"inputs": [{**TEXT, "shape": [-1], "data": ["a"]}]}, "negative"),
    "half a surrogate pair": ({"inputs": [{**TEXT, "data": ["\ud800"]}]}, "surrogate"),
    "numbers for texts": ({"inputs": [{**TEXT, "datatype": "INT8", "data": [1]}]}, "BYTES is expected, found INT8"),
    "a number too large": ({"inputs": [{**TEXT, "datatype": "INT8", "data": [128]}]}, "not within INT8"),
    "FP16 in JSON": ({"inputs": [{**TEXT, "datatype": "FP16", "data": [1.0]}]}, "binary tensor"),
    "an unknown datatype": ({"inputs": [{**TEXT, "datatype": "STRING", "data": ["a"]}]}, "'STRING' is not known; known are BOOL"),
    "an input twice": ({"inputs": [{**TEXT, "data": ["a"]}] * 2}, "'text' is given twice"),
    "no output of that name": ({"inputs": [{**TEXT, "data": ["a"]}], "outputs": [{"name": "x"}]}, "no output 'x'; there are 'embedding'"),
    "too many texts": ({"inputs": [{**TEXT, "shape": [300], "data": ["a"] * 300}]}, "300 texts; between 1 and 256"),
    "no texts": ({"inputs": [{**TEXT, "shape": [0], "data": []}]}, "0 texts"),
    "half a surrogate pair for a name": ({"inputs": [{**TEXT, "parameters": {"\ud800": []}}]}, "parameters"),
    "more bytes than there are": ({"inputs": [{**TEXT, "parameters": {"binary_data_size": 9}}]}, "not within the 0 bytes"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_request_is_told_what_is_wrong(served: kit.Served, what: str) -> None:
    body, words = BAD[what]
    answer = send(served, "POST", "/v2/models/m/infer", content=body if isinstance(body, str) else json.dumps(body))
    assert answer.status_code == 400
    assert_conforms("/v2/models/m/infer", answer)
    with pytest.raises(ValueError, match=words):
        raise ValueError(answer.json()["error"])


ARRAYS = st.sampled_from(list(tensors.DTYPES)).flatmap(
    lambda datatype: st.binary(max_size=24).map(
        lambda raw: (
            tensors.of_array("x", np.frombuffer(raw[: len(raw) // 8 * 8], "?" if datatype == "BOOL" else tensors.DTYPES[datatype]) != 0)
            if datatype == "BOOL"
            else tensors.of_array("x", np.frombuffer(raw[: len(raw) // 8 * 8], tensors.DTYPES[datatype]))
        )
    )
)
TENSORS = st.one_of(ARRAYS, st.lists(st.binary(max_size=5), max_size=4).map(lambda blobs: tensors.of_texts("x", blobs)))


@settings(max_examples=40)
@given(TENSORS)
def test_a_tensor_comes_back_from_bytes_and_from_grpc_as_it_went(tensor: tensors.Tensor) -> None:
    raw = tensors.to_raw(tensor)
    entry = {"name": "x", "shape": list(tensor.shape), "datatype": tensor.datatype, "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [entry]}).encode()
    from_rest = tensors.from_rest(head + raw, str(len(head))).input("x")
    asked = inference_grpc.CLASSES["ModelInferRequest"](raw_input_contents=[raw])
    asked.inputs.add(name="x", shape=tensor.shape, datatype=tensor.datatype)
    from_grpc = tensors.from_grpc(inference_grpc.parsed("ModelInferRequest", asked.SerializeToString())).input("x")
    answer = tensors.to_grpc(tensors.Infer((tensor,)), [tensor], "m", "v1")
    typed = inference_grpc.CLASSES["ModelInferRequest"]()
    piece = typed.inputs.add(name="x", shape=tensor.shape, datatype=tensor.datatype)
    if tensor.datatype != "FP16":
        field = tensors.CONTENTS[tensor.datatype]
        getattr(piece.contents, field).extend(getattr(answer.outputs[0].contents, field))
        assert tensors.to_raw(tensors.from_grpc(typed).input("x")) == raw
    for found in (from_rest, from_grpc):
        assert (found.datatype, found.shape, tensors.to_raw(found)) == (tensor.datatype, tensor.shape, raw)


@settings(max_examples=8)
@given(texts=st.lists(st.text(alphabet=string.printable, max_size=12), min_size=1, max_size=3))
def test_binary_and_json_say_the_same(served: kit.Served, texts: list[str]) -> None:
    raw = tensors.to_raw(tensors.of_texts("text", texts))
    asked: dict[str, Any] = {"inputs": [{**TEXT, "shape": [len(texts)], "parameters": {"binary_data_size": len(raw)}}]}
    head = json.dumps({**asked, "id": "1", "outputs": [{"name": "embedding", "parameters": {"binary_data": True}}]}).encode()
    binary = send(served, "POST", "/v2/models/m/infer", content=head + raw, headers={tensors.HEADER_LENGTH: str(len(head))})
    assert assert_conforms("/v2/models/m/infer", binary)["id"] == "1"
    asked["inputs"][0].update(data=texts, parameters=None)
    plain = assert_conforms("/v2/models/m/infer", send(served, "POST", "/v2/models/m/infer", json=asked))
    at = int(binary.headers[tensors.HEADER_LENGTH])
    assert np.frombuffer(binary.content[at:], "<f4").tolist() == plain["outputs"][0]["data"]
    assert plain["outputs"][0]["data"][::2] == [len(text) for text in texts]


def test_bytes_that_do_not_fit_are_refused() -> None:
    def ask(size: Any, rest: bytes) -> tensors.Infer:
        entry = {"name": "x", "shape": [1], "datatype": "INT8", "parameters": {"binary_data_size": size}}
        head = json.dumps({"inputs": [entry]}).encode()
        return tensors.from_rest(head + rest, str(len(head)))

    assert ask(1, b"\x05").input("x").array.tolist() == [5]
    for size, rest, words in ((1, b"ab", "1 bytes are left over"), (True, b"a", "True is not within"), (2, b"a", "not within the 1 bytes")):
        with pytest.raises(tensors.Refused, match=words):
            ask(size, rest)


@pytest.mark.parametrize(("root", "path", "kind"), [("/m", "/v1/embeddings", dict), ("/v1", "/embed", str), ("/v1/models", "/v1/embeddings", dict)])
def test_the_public_route_is_no_part_of_the_path(served: kit.Served, root: str, path: str, kind: type) -> None:
    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(served.web, root_path=root), base_url="http://test") as client:
            return await client.post(root + path, json={})

    answer = asyncio.run(once())
    assert answer.status_code == 400 and isinstance(answer.json()["error"], kind)


def test_v1(served: kit.Served) -> None:
    def predict(body: Any) -> httpx.Response:
        return send(served, "POST", "/v1/models/m:predict", json=body)

    assert predict({"instances": ["four", {"b64": "Zml2ZSE="}]}).json() == {"predictions": [[4.0, 1.0], [5.0, 1.0]], "model_version": "v7"}
    assert send(served, "GET", "/v1/models").json()["models"] == ["m"]
    assert send(served, "GET", "/v1/models/m").json()["ready"] is True
    for bad in ({}, {"instances": []}, {"instances": [1]}, {"instances": ["a"], "parameters": 3}, {"instances": [{"b64": "?"}]}, [1], "\ud800"):
        answer = send(served, "POST", "/v1/models/m:predict", content=json.dumps(bad))
        jsonschema.validate(answer.json(), ERROR)
        assert answer.status_code == 400
    assert send(served, "POST", "/v1/models/other:predict", json={"instances": ["a"]}).status_code == 404


def test_a_body_has_a_limit() -> None:
    app = stand_in(max_body_mib=0.01)
    body = json.dumps({"inputs": [{**TEXT, "data": ["x" * 20_000]}]}).encode()
    answer = send(app, "POST", "/v2/models/m/infer", content=body)
    assert answer.status_code == 413 and "0.01 MiB" in assert_conforms("/v2/models/m/infer", answer)["error"]

    async def pieces() -> Any:
        for at in range(0, len(body), 1000):
            yield body[at : at + 1000]

    async def streamed() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app.web), base_url="http://test") as client:
            return (await client.post("/embed", content=pieces())).status_code

    assert asyncio.run(streamed()) == 413


def test_what_is_not_the_clients_fault_is_a_500_in_the_protocols_form(caplog: pytest.LogCaptureFixture) -> None:
    app = stand_in()
    app.engine.broken = MemoryError("of \ud800")  # type: ignore[attr-defined]  # which cannot be sent as it is
    answer = send(app, "POST", "/v2/models/m/infer", json={"inputs": [{**TEXT, "data": ["a"]}]})
    assert answer.status_code == 500 and answer.json() == {"error": "MemoryError: of \\ud800"}
    answer = send(app, "POST", "/v1/embeddings", json={"input": "a", "model": "m"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    assert "MemoryError" in caplog.text


def test_ready_means_that_it_can_answer() -> None:
    app = stand_in(check_interval_s=0.0)
    assert send(app, "GET", "/v2/health/ready").status_code == 200
    app.engine.broken = RuntimeError("CUDA error: device-side assert")  # type: ignore[attr-defined]
    for path in ("/v2/health/ready", "/v2/models/m/ready", "/v1/models/m"):
        answer = send(app, "GET", path)
        assert answer.status_code == 503 and "cannot answer: RuntimeError: CUDA error" in answer.text
    assert send(app, "GET", "/v2/health/live").status_code == 200
    with pytest.raises(RuntimeError, match="device-side"):
        asyncio.run(app.check_health())
    app.engine.broken = None  # type: ignore[attr-defined]
    asyncio.run(app.check_health())


def test_an_engine_that_hangs_is_not_ready_and_one_that_is_busy_is() -> None:
    app = stand_in(check_interval_s=0.0, check_timeout_s=0.2)
    free = threading.Event()

    async def ask() -> tuple[str | None, str | None]:
        holding = asyncio.create_task(app.compute(free.wait))
        asking = asyncio.create_task(app.problem())
        while app._check is None:
            await asyncio.sleep(0)
        app._answered_at += 1000.0  # somebody else's request was answered meanwhile, however slow this machine is
        busy = await asking
        app._answered_at -= 2000.0
        hung = await app.problem()
        free.set()
        await holding
        return busy, hung

    busy, hung = asyncio.run(ask())
    assert busy is None and hung is not None and "has not answered a small request" in hung


WRONG = {
    "an unknown key": ({"max_token": 3}, "max_token"),
    "an unknown fault": ({"fault": "nonsense"}, "fault 'nonsense' is not known for Embedding; known are errors, .*shuffled"),
    "an unknown engine": ({"engine": "bert"}, "engine 'bert' is not known for Embedding; known are minilm, sentence_transformers, flag"),
    "a negative number": ({"num_gpus": -1}, "num_gpus"),
    "no version": ({"version": None}, "version"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments_are_named_before_anything_loads(what: str) -> None:
    args, words = WRONG[what]
    with pytest.raises(ValueError, match=words):
        kit.parse(embedding.Embedding, {"model": "m", "version": "v1", **args})
