"""Every protocol against a server of the test's own, right and wrong: what is wrong is said in one line. KServe's own clients read the same server."""

import asyncio
import base64
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standins import every_protocol
from standins.every_protocol import APPLICATION, MODEL, SPOKEN, TEXTS, VERSION, Model

from kfp_components import errors, names, probes, request
from kfp_components.cluster import Endpoint
from kfp_components.probes import Prober, ProbeResult, check, defaults, handle, tensors
from kfp_components.probes.answer import Answer
from kfp_components.request import SmokeCase, SmokePace

TONE = defaults.tone(0.5)
MEDIA = {"uri": f"data:audio/wav;base64,{base64.b64encode(TONE).decode()}", "media_type": "audio/wav"}
TENSOR = {"name": "text", "shape": [3], "datatype": "BYTES", "data": TEXTS}
VECTORS = {"count": 3, "dimensions": 4, "nearest": 0, "unit_length": True}
FP32 = {"embedding": {"datatype": "FP32", "shape": [-1, 4]}}
CHAT = {"messages": [{"role": "user", "content": "Name three colours."}]}
SAID = {"like": "red, green and blue", "min_similarity": 0.9, "contains": ["GREEN"], "regex": r"(?i)\bblue\b"}
HEARD = {"like": SPOKEN, "max_wer": 0.1}
SPEECH = {"min_s": 1, "max_s": 3, "max_silence": 0.1, "sample_rate_hz": 16000}
INFER = {"inputs": [TENSOR]}
CASES: dict[str, dict[str, Any]] = {
    "json": {"path": "/plain", "body": {"numbers": [1, 2]}, "expect": {"/sum": 3.0004}, "expect_shape": {"/parts": [2, 3]}},
    "GET": {"path": "/plain", "method": "GET", "expect": {"/host": "m-predictor.ai-ml.svc.cluster.local"}, "expect_within_s": 20},
    "v1": {"protocol": "v1", "body": {"instances": [1, 2]}, "expect": {"/predictions": [2, 4]}},
    "v2": {"protocol": "v2", "body": INFER, "expect": {"/model_version": "v2"}, "expect_tensors": FP32, "expect_vectors": VECTORS},
    "v2 refuses": {"protocol": "v2", "body": {"wrong": True}, "expect_status": 400, "expect": {"/error": "inputs are missing"}},
    "v2, binary": {"protocol": "v2", "binary": True, "body": INFER, "expect_tensors": FP32, "expect_vectors": VECTORS},
    "v2_grpc": {"protocol": "v2_grpc", "body": INFER, "expect_tensors": FP32, "expect_vectors": VECTORS},
    "chat": {"protocol": "openai_chat", "body": CHAT, "expect": {"/choices/0/finish_reason": "stop"}, "expect_text": SAID},
    "chat stream": {
        "protocol": "openai_chat",
        "body": CHAT,
        "expect": {"/choices/0/finish_reason": "stop", "/model": MODEL},
        "expect_text": SAID,
        "expect_stream": {"min_pieces": 7, "max_first_s": 20},
    },
    "completions": {"protocol": "openai_completions", "body": {"prompt": "x"}, "expect_text": SAID},
    "completions stream": {"protocol": "openai_completions", "body": {"prompt": "x"}, "expect_stream": {}, "expect_text": SAID},
    "embeddings": {"protocol": "openai_embeddings", "body": {"input": TEXTS}, "expect_vectors": VECTORS},
    "rerank": {"protocol": "rerank", "body": {"query": "x", "documents": ["a", "b"]}, "expect": {"/results/0": {"index": 0}, "/model": MODEL}},
    "transcription": {"protocol": "openai_transcription", "media": MEDIA, "body": {"language": "en"}, "expect_text": HEARD},
    "speech": {"protocol": "openai_speech", "body": {"input": SPOKEN, "voice": "default"}, "expect_audio": SPEECH},
    "speech stream": {"protocol": "openai_speech", "body": {"input": SPOKEN}, "expect_audio": SPEECH, "expect_stream": {"max_first_s": 20}},
}
BROKE = r"RemoteProtocolError: .*; the answer: "
FAULTS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "answers wrongly": ("json", "wrong", {}, r'POST /m/plain: expected /sum = 3.0004 \(tolerance 0.001\), got 4; the answer: {"sum": 4'),
    "another shape": ("json", "", {"expect_shape": {"/parts": [3, 3]}}, r"expected /parts of shape \[3, 3\], got \[2, 3\]; the answer: "),
    "hangs": ("json", "hangs", {"timeout_s": 0.1}, r"POST /m/plain: no whole answer within 0.1 s$"),
    "stops in the middle": ("json", "stalls", {"timeout_s": 0.1}, r"no whole answer within 0.1 s; the answer: {\"sum\":$"),
    "fails": ("json", "error", {}, r'expected status 200, got 500: {"error": "out of memory,\\n\\ntwo lines below"}$'),
    "is no JSON": ("json", "no json", {}, r"expected JSON; the answer: <html> gateway </html>$"),
    "too slow": ("GET", "", {"expect_within_s": 0.00001}, r"GET /m/plain: expected the whole answer within 1e-05 s, it took 0\.\d+ s"),
    "v1 answers wrongly": ("v1", "wrong", {}, r"POST /m/v1/models/m:predict: expected /predictions = \[2, 4\] .*, got \[3, 5\]"),
    "v2 wrong shape": ("v2", "shape", {}, r"POST /m/v2/models/m/infer: expected output embedding of shape \[-1, 4\], got \[3, 3\]"),
    "v2 shape is a lie": (
        "v2",
        "lies",
        {"expect_tensors": {"embedding": {}}},
        r"output embedding says shape \[3, 5\], which is 15 value\(s\), but has",
    ),
    "v2 datatype": ("v2", "datatype", {}, r"expected output embedding of datatype FP32, got FP64"),
    "v2 kind of data": ("v2", "kind", {}, r"output embedding says datatype FP32, but holds '"),
    "v2 not finite": ("v2", "endless", {}, r"expected output embedding to be finite, but it holds nan"),
    "v2 another output": ("v2", "", {"expect_tensors": {"scores": {}}}, r"expected an output scores, got embedding"),
    "v2 without outputs": ("v2", "no outputs", {"expect": {}}, r"expected an output embedding, got no outputs"),
    "v2 that KServe cannot read": (
        "v2, binary",
        "no outputs",
        {},
        r"KServe's client cannot read the answer: KeyError: 'outputs'; the answer: {\"model_n",
    ),
    "v2 fails": ("v2, binary", "error", {}, r"expected status 200, got 500: {\"error\""),
    "gRPC wrong shape": ("v2_grpc", "shape", {}, r"ModelInfer at 127.0.0.1:\d+, application m-v2: expected output embedding of shape"),
    "gRPC hangs": ("v2_grpc", "hangs", {"timeout_s": 0.1}, r"application m-v2: no whole answer within 0.1 s"),
    "gRPC fails": ("v2_grpc", "error", {}, r"expected status 200, got 500: INTERNAL: out of memory$"),
    "gRPC is not there": ("v2_grpc", "away", {}, r"127.0.0.1:\d+ cannot be reached \(127.0.0.1:\d+\): no replica"),
    "says nothing": ("chat", "wrong", {"expect_text": {}}, r"expected a text of at least 1 character\(s\), got ''"),
    "says something else": (
        "chat",
        "",
        {"expect_text": {**SAID, "like": "no", "min_similarity": 0.5}},
        r"expected a text like 'no' \(similarity 0.5\), got 'Red, .* \(0\.\d+\)",
    ),
    "does not contain it": ("chat", "", {"expect_text": {"contains": ["red", "yellow"]}}, r"expected a text that contains 'yellow', got 'Red, "),
    "does not match": ("chat", "", {"expect_text": {"regex": "^blue"}}, r"expected a text in which '\^blue' is found, got 'Red, "),
    "has no text": ("embeddings", "", {"expect_text": {}}, r"expected an answer that holds text; the answer: {\"object\""),
    "streams half and stops": (
        "chat stream",
        "half",
        {},
        r"POST /m/v1/chat/completions: the stream stopped after 4 piece\(s\): expected a finish_reason and \[DONE\] at its end; the answer: {\"id\"",
    ),
    "streams half and breaks": ("chat stream", "breaks", {}, BROKE + r"{\"id\""),
    "streams garbage": ("chat stream", "garbled", {}, r"the stream holds an event that is no JSON: {half"),
    "streams odd things": ("chat stream", "odd events", {}, r"the stream stopped after 5 piece\(s\)"),
    "streams completions half": ("completions stream", "half", {}, r"the stream stopped after 4 piece\(s\)"),
    "does not stream": ("chat stream", "no stream", {}, r"expected a stream \(text/event-stream\), got application/json"),
    "begins late": (
        "chat stream",
        "begins late",
        {"expect_stream": {"max_first_s": 0.05}},
        r"expected the first piece within 0.05 s, it took 0\.\d+ s",
    ),
    "too few pieces": ("chat stream", "", {"expect_stream": {"min_pieces": 9}}, r"expected a stream of at least 9 piece\(s\), got 7"),
    "vectors of another shape": ("embeddings", "shape", {}, r"expected vectors of shape \[3, 4\], got \[3, 3\]"),
    "vectors all the same": (
        "embeddings",
        "collapsed",
        {"expect_vectors": {}},
        r"expected different vectors for different texts, they are all the same",
    ),
    "vectors too long": ("embeddings", "long", {}, r"expected vectors of length 1, got 2"),
    "vectors not finite": ("embeddings", "endless", {}, r"expected finite vectors"),
    "nearest": (
        "embeddings",
        "",
        {"expect_vectors": {"nearest": 1}},
        r"expected text 1 after the first to be nearest to it, got cosines \[1\.0, 0\.\d+\]",
    ),
    "no vectors": ("chat", "", {"expect_vectors": {}}, r"expected vectors of one length"),
    "hears something else": ("transcription", "wrong", {}, r"expected 'The quick .* word error rate of at most 0.1, got 'Something .*' with 1\.00"),
    "no audio": ("speech", "no json", {}, r"expected a WAV file, got text/plain: not a WAV file, .*; the answer: no audio$"),
    "audio too short": ("speech", "short", {}, r"expected 1 to 3 s of audio, got 0.20 s; the answer: 6,444 bytes of audio/wav$"),
    "silence": ("speech", "silent", {}, r"expected audio that is silent for at most 10% of its time, got 100%"),
    "another rate": ("speech", "", {"expect_audio": {"sample_rate_hz": 24000}}, r"expected 24000 samples a second, got 16000"),
    "audio breaks": ("speech stream", "breaks", {}, r"RemoteProtocolError"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Model]:
    with every_protocol.model() as running:
        yield running


@pytest.fixture(autouse=True)
def _well_again(server: Model) -> Iterator[None]:
    yield
    server.state.fault, server.state.version, server.state.pause_s = None, VERSION, 0.0
    server.state.let_go.set()
    server.state.let_go = threading.Event()


def case(values: dict[str, Any], **more: Any) -> SmokeCase:
    return request.parse_case({**values, **more}, "case")


def nowhere() -> Endpoint:
    raise errors.NotFound("Service ai-ml/shared-serve-svc: it has no ready endpoint on port 9000")


def prober(server: Model, **more: Any) -> Prober:
    reach = probes.Reach(APPLICATION, grpc=lambda: server.grpc, dashboard=nowhere, ray_client=nowhere)
    return Prober(server.endpoint, MODEL, f"/{MODEL}", **{"reach": reach, **more})


def ask(server: Model, *asked: SmokeCase, **more: Any) -> list[ProbeResult]:
    with prober(server, **more) as one:
        return one.run(asked)


def test_all_protocols_are_asked_and_answered_as_expected(server: Model) -> None:
    server.state.seen.clear()
    results = ask(server, *(case(values, name=name) for name, values in CASES.items()), version=VERSION)
    assert [(result.case, result.problem) for result in results] == [(name, None) for name in CASES]
    assert {one["host"] for one in server.state.seen} == {server.endpoint.host} and {one["x-model-version"] for one in server.state.seen} == {VERSION}
    assert {values.get("protocol", "json") for values in CASES.values()} == {*get_args(request.SmokeProtocol)} - {"handle"}
    assert set(probes.PATHS) == {*get_args(request.SmokeProtocol)} - {"handle", "v2_grpc"}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_said_in_one_line(server: Model, fault: str) -> None:
    name, makes, more, told = FAULTS[fault]
    server.state.fault = makes or None
    (result,) = ask(server, case(CASES[name], name="a case", **more))
    assert result.problem is not None and result.problem.startswith("a case: ") and result.problem.isprintable() and len(result.problem) < 700
    assert re.search(told, result.problem), result.problem
    assert result.unreachable is (makes == "away")


def test_the_time_to_the_first_piece_begins_with_the_request(server: Model) -> None:
    server.state.pause_s = 0.05
    for name in ("json", "chat stream", "speech stream"):
        (result,) = ask(server, case(CASES[name]))
        assert result.problem is None and result.first_s is not None and 0.05 <= result.first_s <= result.seconds


def test_another_version_is_a_problem_whatever_the_protocol(server: Model) -> None:
    server.state.version = "v1"
    for protocol in ("json", "v2_grpc", "chat stream"):
        (result,) = ask(server, case(CASES[protocol]), version=VERSION)
        assert result.problem is not None and "asked for version v2, and v1 answered" in result.problem


def test_kserves_own_clients_read_the_same(server: Model) -> None:
    from kserve import InferenceGRPCClient, InferenceRESTClient, RESTConfig

    async def rest(binary: bool) -> Any:
        async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
            asked = tensors.request(MODEL, case(CASES["v2, binary" if binary else "v2"]))
            return await client.infer(f"{server.endpoint.base_url}/m", asked, model_name=MODEL)

    async def by_grpc() -> Any:
        async with InferenceGRPCClient(server.grpc.base_url.removeprefix("http://")) as client:
            return await client.infer(tensors.request(MODEL, case(CASES["v2_grpc"])), headers=(("application", APPLICATION),))

    for theirs, name in ((rest(False), "v2"), (rest(True), "v2, binary"), (by_grpc(), "v2_grpc")):
        (ours,) = ask(server, case(CASES[name]))
        found = asyncio.run(theirs).outputs[0]
        assert ours.value["outputs"][0]["shape"] == found.shape == [3, 4]
        assert ours.value["outputs"][0]["data"] == pytest.approx(list(found.as_numpy().ravel()), abs=1e-6)


@pytest.mark.parametrize("family", defaults.CASES)
@pytest.mark.parametrize("own", [True, False])
def test_a_familys_default_cases(server: Model, family: str, own: bool) -> None:
    asked = defaults.CASES[family](own)
    assert asked and [result.problem for result in ask(server, *asked)] == [None] * len(asked)
    wrong = {"asr": ["error"], "tts": ["silent", "short"], "embedding": ["collapsed", "endless"], "llm": ["half", "wrong"]}
    for server.state.fault in wrong[family]:
        assert any(result.problem for result in ask(server, *asked)), server.state.fault


def test_tensors_that_are_none_are_named(server: Model) -> None:
    for tensor, told in (({"datatype": "FP31"}, "unknown datatype 'FP31'"), ({"shape": [2, 2]}, "tensor 'text': cannot reshape array of size 3")):
        for name in ("v2, binary", "v2_grpc"):
            with pytest.raises(errors.RequestInvalid, match=told):
                ask(server, case(CASES[name], body={"inputs": [{**TENSOR, **tensor}]}))


def test_what_cannot_be_reached_from_here_says_what_is_missing(server: Model) -> None:
    with pytest.raises(errors.RequestInvalid, match="protocol v2_grpc: it reaches one version's application, and which one is not known here"):
        ask(server, case(CASES["v2_grpc"]), reach=None)
    reach = probes.Reach(APPLICATION, grpc=nowhere, dashboard=nowhere, ray_client=nowhere)
    with pytest.raises(errors.NotFound, match="where Serve's gRPC proxy is, is not known: Service ai-ml/shared-serve-svc: it has no ready endpoint"):
        ask(server, case(CASES["v2_grpc"]), reach=reach)
    with pytest.raises(errors.NotFound, match="protocol handle: where the Ray head is, is not known"):
        ask(server, case({"protocol": "handle"}), reach=reach)


def test_a_package_that_is_missing_is_named_before_anything_is_sent(server: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    for name in ("v2, binary", "v2_grpc"):
        with pytest.raises(errors.RequestInvalid, match=r"needs the package kserve, .*kfp-serving-components\[kserve\]"):
            probes.assert_askable([case(CASES["json"]), case(CASES[name], name=name)])
    with pytest.raises(errors.RequestInvalid, match="handle needs Ray, which is not installed here"):
        probes.assert_askable([case({"protocol": "handle"})])
    probes.assert_askable([case(CASES["v2"])])


def test_versions_of_python_and_ray_are_compared() -> None:
    ours = {"Python": "3.11.9", "Ray": "2.60.0"}
    assert handle.mismatch(ours, {"Python": "3.11.2", "Ray": "2.60.0"}) is None and handle.mismatch(ours, {}) is None
    told = handle.mismatch(ours, {"Python": "3.11.2", "Ray": "2.9.3"})
    assert told == 'Ray is 2.60.0 here and 2.9.3 in the cluster, Ray Client takes the same: pip install "ray[client,serve]==2.9.3"'
    told = handle.mismatch(ours, {"Python": "3.12.1", "Ray": "2.60.0"})
    assert told == "Python is 3.11.9 here and 3.12.1 in the cluster, Ray Client takes the same minor version: run this with 3.12"


WHOLE = ("expect", "expect_shape", "expect_tensors", "expect_text", "expect_vectors")
WORDS = st.sampled_from(
    ["outputs", "data", "name", "shape", "datatype", "choices", "message", "content", "text", "embedding", "embeddings", "FP32", "m"]
)
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@given(
    ODD
    | st.fixed_dictionaries({"outputs": st.lists(st.fixed_dictionaries({"name": WORDS, "shape": ODD, "datatype": WORDS, "data": ODD}), max_size=2)})
)
def test_whatever_comes_is_judged_and_nothing_is_raised(value: Any) -> None:
    asked = case(CASES["v2"], expect={"/outputs/0/data/0": 1}, expect_shape={"/data": [1]}, expect_text={"like": "m", "max_wer": 0.1})
    for expected in WHOLE:
        alone = asked.model_copy(update={one: {} if one in WHOLE[:2] else None for one in WHOLE if one != expected})
        alone = alone if expected != "expect_tensors" else alone.model_copy(update={"expect_tensors": {"m": request.ExpectedTensor()}})
        told = check.problem(alone, None, Answer(status=200, value=value, content=json.dumps(value).encode(), kind="application/json"))
        assert told is None or told.startswith(("expected ", "output "))


def test_what_is_nested_too_deep_is_a_problem() -> None:
    deep: Any = []
    for _ in range(900):
        deep = [deep]
    answer = Answer(status=200, value={"embeddings": deep, "outputs": [{"name": "embedding", "shape": [1, 4], "datatype": "FP32", "data": deep}]})
    assert check.problem(case(CASES["v2"], expect={}), None, answer) is not None


# --- many at once ---------------------------------------------------------------------------------------------------------------------


def send(server: Model, number: int, pace: SmokePace, **more: Any) -> list[tuple[int, ProbeResult | None]]:
    with prober(server) as one:
        return list(one.send([case(CASES["GET"], name=f"n{n}") for n in range(number)], pace, **more))


def test_cases_are_sent_at_the_same_time_as_many_as_are_allowed(server: Model) -> None:
    server.state.pause_s, server.state.most_in_flight = 0.02, 0
    found = send(server, 12, SmokePace(concurrency=3))
    assert sorted(number for number, _ in found) == list(range(12)) and all(result and not result.problem for _, result in found)
    assert server.state.most_in_flight == 3
    assert all(result is not None and result.case == f"n{number}" for number, result in found)


def test_a_rate_is_kept(server: Model) -> None:
    began = time.monotonic()
    send(server, 5, SmokePace(rate_per_s=40))
    assert time.monotonic() - began >= 4 / 40


def test_a_budget_ends_it_and_every_case_has_a_result(server: Model) -> None:
    server.state.pause_s = 0.05
    found = send(server, 200, SmokePace(concurrency=2, budget_s=0.2))
    left = [number for number, result in found if result is None]
    assert len(found) == 200 and 100 < len(left) < 200
    told = probes.not_sent(case(CASES["GET"]), SmokePace(budget_s=0.2)).problem
    assert told == "case: not sent, the budget of 0.2 s for all cases was spent before"


def test_who_waits_is_given_the_word_and_may_end_it(server: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "HEARTBEAT_S", 0.02)
    server.state.fault = "hangs"

    def enough(done: int) -> None:
        assert done == 0
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        send(server, 4, SmokePace(concurrency=2), meanwhile=enough)
    assert time.monotonic() - began < 20  # what is under way, for up to 30 s, is not waited for


def test_a_case_that_cannot_be_sent_is_raised_where_the_results_are_waited_for(server: Model) -> None:
    with pytest.raises(errors.RequestInvalid, match="which one is not known here"), prober(server, reach=None) as one:
        list(one.send([case(CASES["v2_grpc"])], SmokePace()))


def test_packages_are_imported_by_who_waits_and_not_by_several_threads_at_once(server: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[threading.Thread] = []
    monkeypatch.setattr(tensors, "load", lambda *_case: seen.append(threading.current_thread()))
    with prober(server) as one:
        list(one.send([case(CASES["v2, binary"]), case(CASES["v2_grpc"])], SmokePace()))
    assert seen == [threading.current_thread()]


def test_many_failures_are_told_in_few_lines() -> None:
    results = [ProbeResult(f"n{n}", 0.1, f"n{n}: no") for n in range(30)]
    with pytest.raises(errors.SmokeFailed, match=r"^m: 30 smoke case\(s\) failed: n0: no; .*; n9: no; and 20 more$"):
        probes.assert_passed(results, "m")


# --- what a case may say --------------------------------------------------------------------------------------------------------------

CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a path for chat": ({"protocol": "openai_chat", "path": "/x", "body": CHAT}, "path says nothing with protocol openai_chat; it goes with json"),
    "media in an embedding": ({"protocol": "openai_embeddings", "body": {}, "media": MEDIA}, "media says nothing with protocol openai_embeddings"),
    "media and a list": ({"media": MEDIA, "body": [1]}, "with media, body is a mapping"),
    "transcription of nothing": ({"protocol": "openai_transcription"}, "media is missing: the audio"),
    "chat without a body": ({"protocol": "openai_chat"}, "protocol openai_chat needs a body"),
    "binary without tensors": ({"protocol": "v2", "binary": True, "body": {"inputs": [{"name": "x"}]}}, "name, shape, datatype and data"),
    "gRPC without tensors": ({"protocol": "v2_grpc", "body": {}}, "name, shape, datatype and data"),
    "binary JSON": ({"binary": True}, "binary says nothing with protocol json; it goes with v2"),
    "tensors of JSON": ({"expect_tensors": {"a": {"shape": [1]}}}, "expect_tensors says nothing with protocol json"),
    "audio of chat": ({"protocol": "openai_chat", "body": CHAT, "expect_audio": {}}, "expect_audio says nothing with protocol openai_chat"),
    "a stream unexpected": ({"protocol": "openai_chat", "body": {**CHAT, "stream": True}}, "body.stream and expect_stream contradict"),
    "a stream not asked for": ({"protocol": "openai_chat", "body": {**CHAT, "stream": False}, "expect_stream": {}}, "body.stream and expect_stream"),
    "slower than the timeout": ({"expect_within_s": 60}, "expect_within_s 60 is above timeout_s 30"),
    "a text without a bound": ({"expect_text": {"like": "x"}}, "like and a bound, min_similarity or max_wer, belong together"),
    "a bound without a text": ({"expect_text": {"max_wer": 0.1}}, "like and a bound"),
    "no regular expression": ({"expect_text": {"regex": "("}}, "'(' is no regular expression"),
    "audio of a range": ({"expect_audio": {"min_s": 5, "max_s": 1}}, "min_s 5 is above max_s 1"),
    "a private method": ({"protocol": "handle", "call": "_x"}, "call: String should match pattern"),
    "an unknown protocol": ({"protocol": "openai"}, "Input should be 'json', 'v1', 'v2', 'v2_grpc', 'openai_chat'"),
    "an unknown key": ({"expect_text": {"contain": ["x"]}}, "expect_text.contain is not a known key; did you mean contains?"),
    "credentials in media": ({"media": {"uri": "https://u:p@host/x"}}, "it carries a credential"),
    "media without a digest": ({"media": {"uri": "https://host/x"}}, "digest is missing: sha256:"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions_are_refused_at_birth(name: str) -> None:
    values, told = CONTRADICTIONS[name]
    with pytest.raises(errors.RequestInvalid) as caught:
        request.parse_case(values, "case")
    assert told in str(caught.value)


def test_more_cases_than_the_rate_lets_through_in_time_are_refused() -> None:
    values = {"smoke": [{}] * 11, "smoke_pace": {"rate_per_s": 1, "budget_s": 10}}
    with pytest.raises(errors.RequestInvalid, match="11 cases at 1 a second take longer than budget_s 10"):
        request.parse_options(values)


@pytest.mark.parametrize(
    ("import_path", "family", "found"),
    [
        ("kfp_components.models.embedding:build", None, "embedding"),
        ("kfp_components.models.embedding:build", "llm", "llm"),
        ("kfp_components.models.minilm:build", None, None),
        ("acme.embedding:build", None, None),
        ("acme.bge:app", "embedding", "embedding"),
        ("acme.bge:app", "vision", "vision"),
    ],
)
def test_the_family_of_a_request_and_its_cases(import_path: str, family: str | None, found: str | None) -> None:
    values = {"model": "m", "version": "v1", "uri": "s3://m/v1", "namespace": "a", "rayservice": "r", "import_path": import_path}
    asked = request.parse({**values, "options": {"provenance": {"family": family} if family else {}}})
    assert asked.family == found
    named = [one.name for one in defaults.cases(asked)]
    assert {(one.body or {}).get("model") for one in defaults.cases(asked)} <= {None}
    own = ["embedding: V2", "embedding: OpenAI", "embedding: rerank"]
    assert named == (["llm: chat", "llm: stream"] if found == "llm" else [] if found in (None, "vision") else own if not family else own[1:2])


def test_ray_serve_llm_is_asked_for_the_model_by_the_name_that_it_has_there() -> None:
    args = {"llm_configs": [{"model_loading_config": {"model_id": "qwen"}}]}
    values = {"model": "chat", "version": "v1", "uri": "s3://m/v1", "namespace": "a", "rayservice": "r"}
    options = {"args": args, "builder": "exact", "provenance": {"family": "llm"}, "protocol": "json"}
    asked = request.parse({**values, "import_path": "ray.serve.llm:build_openai_app", "options": options})
    assert {one.body["model"] for one in defaults.cases(asked)} == {"qwen"}


def test_names_of_the_ray_head() -> None:
    assert (names.head_service("shared"), names.GRPC_PORT, names.RAY_CLIENT_PORT) == ("shared-head-svc", 9000, 10001)
