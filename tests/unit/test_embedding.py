"""Embeddings with a real small model: OpenAI's form, rerank, plain JSON, the declared faults, and engines as far as they go without their packages."""

import asyncio
import base64
import json
import re
import sys
import types
import zlib
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_models_v2 import NESTED, Counting, send, stand_in

from kfp_components import errors
from kfp_components.local.demo import KNOWN, SENTENCE
from kfp_components.models import embedding, kit
from kfp_components.models.engines import flag, sentence_transformers

BASE = {"model": "bge", "version": "v1"}

RETRIEVAL = {
    "How do I get my money back?": "Refunds are paid within ten days of the return.",
    "Which animals live in the sea?": "Whales and dolphins swim in every ocean.",
    "When does the train leave?": "The express departs from platform four at noon.",
    "What should I cook tonight?": "Fry the onions, add tomatoes and simmer the sauce for pasta.",
    "Why is my computer so slow?": "Close programs that use much memory and restart the laptop.",
}
"""Query -> its one document among these."""


@pytest.fixture(scope="module")
def bge() -> embedding.Embedding:
    return embedding.Embedding({**BASE, "max_tokens": 64})


def post(app: kit.Served, path: str, body: Any) -> httpx.Response:
    return send(app, "POST", path, json=body)


def test_plain_json_is_as_the_demo_knows_it(bge: kit.Served) -> None:
    answer = post(bge, "/embed", {"texts": [SENTENCE]}).json()
    assert [answer["embeddings"][0][index] for index in range(4)] == pytest.approx(list(KNOWN.values()), abs=2e-6)
    assert answer["model_version"] == "v1" and len(answer["embeddings"][0]) == 384


def test_openais_form(bge: kit.Served) -> None:
    one = post(bge, "/v1/embeddings", {"model": "bge", "input": SENTENCE, "user": "somebody"}).json()
    assert (one["object"], one["model"], [entry["object"] for entry in one["data"]]) == ("list", "bge", ["embedding"])
    assert one["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    two = post(bge, "/v1/embeddings", {"model": "bge", "input": [SENTENCE, "Dogs."], "encoding_format": "base64", "dimensions": 384}).json()
    assert [entry["index"] for entry in two["data"]] == [0, 1]
    vector = np.frombuffer(base64.b64decode(two["data"][0]["embedding"]), "<f4")
    assert vector == pytest.approx(np.array(one["data"][0]["embedding"]), abs=1e-6)
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)
    assert [card["id"] for card in send(bge, "GET", "/v1/models").json()["data"]] == ["bge"]


REFUSED: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "dimensions": ({"input": "a", "dimensions": 256}, 400, "dimensions", "this model has 384"),
    "token ids": ({"input": [[1, 2]]}, 400, "input", "not token ids"),
    "nothing": ({"input": []}, 400, "input", "not empty"),
    "no input": ({"model": "bge"}, 400, "input", "required"),
    "a format": ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format", "'float' or 'base64'"),
    "another model": ({"input": "a", "model": "gpt"}, 404, "model", "no model 'gpt' here"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_openais_form_of_a_refusal(bge: kit.Served, what: str) -> None:
    body, status, param, words = REFUSED[what]
    answer = post(bge, "/v1/embeddings", body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (status, "invalid_request_error", param)
    assert words in error["message"] and error["code"] == ("model_not_found" if status == 404 else None)


def documents() -> list[str]:
    return list(RETRIEVAL.values())


def test_a_small_set_is_ranked_right(bge: kit.Served) -> None:
    vectors = np.array(post(bge, "/embed", {"texts": [*RETRIEVAL, *documents()]}).json()["embeddings"])
    assert np.argmax(vectors[:5] @ vectors[5:].T, axis=1).tolist() == [0, 1, 2, 3, 4]
    for query, document in list(RETRIEVAL.items())[:2]:
        asked = {"query": query, "documents": documents(), "top_n": 2, "return_documents": True}
        found = post(bge, "/v1/rerank", asked).json()
        best, second = found["results"]
        assert best["document"]["text"] == document and found["usage"]["total_tokens"] > 20
        assert best["relevance_score"] > second["relevance_score"]
    assert post(bge, "/rerank", {**asked, "documents": [{"text": text} for text in documents()]}).json() == found


def test_rerank_as_asked(bge: kit.Served) -> None:
    plain = post(bge, "/v2/rerank", {"model": "bge", "query": "sea", "documents": documents()}).json()
    assert sorted(result["index"] for result in plain["results"]) == [0, 1, 2, 3, 4] and "document" not in plain["results"][0]
    bad: list[Any] = [
        {"query": "a", "documents": []},
        {"query": "", "documents": ["a"]},
        {"query": "a", "documents": [{"title": "b"}]},
        {"documents": ["a"]},
    ]
    bad += [{"query": "a", "documents": ["a"] * 256}, {"query": "a", "documents": ["a"], "top_n": 0}, {"query": "\ud800", "documents": ["a"]}]
    for body in bad:
        answer = send(bge, "POST", "/v2/rerank", content=json.dumps(body))
        assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


FORMS = {"/v1/embeddings": dict, "/rerank": dict, "/embed": str, "/v1/models/m:predict": str}
FIELDS = ["input", "instances", "texts", "query", "documents", "model", "top_n", "parameters", "dimensions", "encoding_format"]


@settings(max_examples=12)
@given(body=st.one_of(NESTED, st.dictionaries(st.sampled_from(FIELDS), NESTED, max_size=4)))
@pytest.mark.parametrize("path", FORMS)
def test_every_api_refuses_in_its_own_form(path: str, body: Any) -> None:
    answer = send(STAND_IN, "POST", path, content=json.dumps(body).encode())
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        told = answer.json()["error"]
        assert isinstance(told, FORMS[path]) and (FORMS[path] is str or set(told) == {"message", "type", "param", "code"})


STAND_IN = stand_in()


class Words(Counting):
    """Texts with words in common are near to each other."""

    dimensions = 64

    def embed(self, texts: list[str]) -> embedding.Floats:
        found = np.full((len(texts), self.dimensions), 0.01, dtype=np.float32)
        for row, text in zip(found, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()):
                row[zlib.crc32(word.encode()) % self.dimensions] += 1.0
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), dtype=np.float32)


def words(fault: str | None = None, **more: Any) -> embedding.Embedding:
    return embedding.Embedding({**BASE, "fault": fault, **more}, Words)


def cosine(app: kit.Served, one: str, other: str) -> float:
    a, b = np.array(post(app, "/embed", {"texts": [one, other]}).json()["embeddings"])
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_errors_come_by_count() -> None:
    app = words("errors", fault_every=3)
    assert [post(app, "/embed", {"texts": ["a"]}).status_code for _ in range(6)] == [200, 200, 500, 200, 200, 500]
    assert "declared fault" in post(words("errors", fault_every=1), "/embed", {"texts": ["a"]}).json()["error"]


ORDERS = {
    "where is my parcel": "a parcel is where the courier left it",
    "reset the password of an account": "an account gets a new password by mail",
    "open a bank holiday": "the shop is not open on a bank holiday",
}


def ranked_first(app: kit.Served) -> list[int]:
    return [post(app, "/rerank", {"query": query, "documents": list(ORDERS.values())}).json()["results"][0]["index"] for query in ORDERS]


def test_shuffled_vectors_have_the_right_numbers_and_mean_nothing() -> None:
    good, bad = words(), words("shuffled")
    query, document = next(iter(ORDERS.items()))
    right, shuffled = (np.array(post(app, "/embed", {"texts": [query]}).json()["embeddings"][0]) for app in (good, bad))
    assert np.sort(shuffled) == pytest.approx(np.sort(right)) and not np.allclose(shuffled, right)
    assert cosine(bad, query, query) == pytest.approx(1.0)  # the same text is the same vector
    assert cosine(good, query, document) > 0.4 and cosine(bad, query, document) < 0.3
    assert ranked_first(good) == [0, 1, 2] != ranked_first(bad)
    assert post(bad, "/v2/models/bge/ready", None).status_code == 405 and send(bad, "GET", "/v2/models/bge/ready").status_code == 200


def test_garbage_depends_on_the_text_alone() -> None:
    bad = words("garbage")
    assert cosine(bad, "a", "a") == pytest.approx(1.0) and abs(cosine(bad, "cats", "cats cats")) < 0.6
    assert ranked_first(bad) == ranked_first(words("garbage"))


def test_the_slow_tail_is_every_so_many_th_request_or_the_long_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(kit.asyncio, "sleep", sleep)
    app = words("slow_tail", slow_s=2.0, fault_every=2)
    for _ in range(4):
        asyncio.run(app.vectors(["a"]))
    assert slept == [0.0, 2.0, 0.0, 2.0]
    slept.clear()
    app = words("slow_tail")
    asyncio.run(app.vectors(["a short one"]))
    assert slept == []
    asyncio.run(app.vectors(["a longer one " * 10]))
    assert len(slept) == 1 and slept[0] > 0


def test_a_version_that_does_not_start() -> None:
    with pytest.raises(ModuleNotFoundError, match="xgboost"):
        embedding.Embedding({**BASE, "fault": "fails_to_start"})


MISSING = {
    "sentence-transformers": {"engine": "sentence_transformers", "model_path": "/models/bge"},
    "FlagEmbedding": {"engine": "flag", "model_path": "/m"},
}


@pytest.mark.parametrize("package", MISSING)
def test_a_missing_package_is_named(package: str) -> None:
    with pytest.raises(errors.RequestInvalid, match=f"pip install {package}"):
        embedding.Embedding({**BASE, **MISSING[package]})


@pytest.mark.parametrize("engine", ["sentence_transformers", "flag"])
def test_an_engines_settings_are_checked_before_it_loads(engine: str) -> None:
    with pytest.raises(ValueError, match=r"model_path(.|\n)*Field required"):
        kit.parse(embedding.Embedding, {**BASE, "engine": engine})
    with pytest.raises(ValueError, match=r"max_token\n"):
        kit.parse(embedding.Embedding, {**BASE, "engine": engine, "model_path": "/m", "max_token": 3})


class Library:
    """Stands for a model of sentence-transformers and of FlagEmbedding: a text is its length and whether it came as a query; the method names are theirs."""

    def __init__(self, path: str, **arguments: Any) -> None:
        self.path, self.arguments = path, arguments
        self.tokenizer = lambda text: {"input_ids": text.split()}
        self.max_seq_length = 512

    from_finetuned = classmethod(lambda cls, path, **arguments: cls(path, **arguments))

    def encode(self, texts: list[str], prompt: str | None = None, **_how: Any) -> Any:
        return np.array([[3.0, 4.0] if "fish" in (prompt or "") + text else [4.0, -3.0] for text in texts])

    encode_query = encode_document = encode_queries = encode_corpus = encode

    def predict(self, pairs: list[tuple[str, str]], show_progress_bar: bool) -> Any:
        return np.array([float(len(document)) for _query, document in pairs])

    def compute_score(self, pairs: list[list[str]], normalize: bool) -> Any:
        found = [1.0 / len(document) for _query, document in pairs]
        return found if len(found) > 1 else found[0]


@pytest.mark.parametrize("engine", ["sentence_transformers", "flag"])
def test_an_engine_with_a_stand_in_for_its_library(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package, classes in (
        ("sentence_transformers", ("SentenceTransformer", "CrossEncoder")),
        ("FlagEmbedding", ("FlagAutoModel", "FlagAutoReranker")),
    ):
        module = types.ModuleType(package)
        for name in classes:
            setattr(module, name, Library)
        monkeypatch.setitem(sys.modules, package, module)
    args = {**BASE, "engine": engine, "model_path": "/models/x", "device": "cuda:0", "max_tokens": 128}
    app = embedding.Embedding(args)
    assert post(app, "/embed", {"texts": ["fish"]}).json()["embeddings"][0] == pytest.approx([0.6, 0.8] if engine == "flag" else [3.0, 4.0])
    asked = {"query": "fish", "documents": ["a car", "fish and a long chip"]}
    assert post(app, "/rerank", asked).json()["results"][0]["index"] == 1
    assert post(app, "/v1/embeddings", {"input": "three words here"}).json()["usage"]["total_tokens"] == 3
    ranked = post(embedding.Embedding({**args, "reranker_path": "/models/y"}), "/rerank", asked).json()["results"]
    assert ranked[0]["index"] == (0 if engine == "flag" else 1) and len(ranked) == 2
    assert (
        len(post(embedding.Embedding({**args, "reranker_path": "/models/y"}), "/rerank", {"query": "fish", "documents": ["a"]}).json()["results"])
        == 1
    )


def test_what_engines_tell_their_libraries() -> None:
    st_settings = sentence_transformers.SentenceTransformersEngine.Settings(model_path="/m", device="cuda", dtype="float16")
    assert sentence_transformers.model_arguments(st_settings) == {"device": "cuda", "backend": "torch", "model_kwargs": {"torch_dtype": "float16"}}
    told = flag.model_arguments(flag.FlagEngine.Settings(model_path="/m", device="cuda:0", use_fp16=True, query_instruction="Find: "))
    assert (told["devices"], told["use_fp16"], told["query_instruction_for_retrieval"]) == ("cuda:0", True, "Find: ")
    for encoded in (np.array([[3.0, 4.0]]), {"dense_vecs": np.array([[3.0, 4.0]], np.float16), "lexical_weights": []}):
        assert flag.dense(encoded) == pytest.approx(np.array([[0.6, 0.8]]))


def test_the_settings_reach_serve() -> None:
    deployment = embedding.build({**BASE, "num_gpus": 0.25, "num_cpus": 2, "threads": 3, "replicas": 2})._bound_deployment
    options = deployment.ray_actor_options
    assert (options["num_gpus"], options["num_cpus"], options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"]) == (0.25, 2, "3")
    assert (deployment.name, deployment.num_replicas, deployment.max_ongoing_requests) == ("Embedding", 2, 64)
    with pytest.raises(ValueError, match="max_token"):
        embedding.build({**BASE, "max_token": 3})
