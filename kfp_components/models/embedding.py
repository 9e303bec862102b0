"""An embedding model as a Serve application: V2 inference, OpenAI embeddings and plain JSON on one route.

``build(args)`` takes model, version, max_tokens and, for demos and tests, a declared ``fault``: errors, slow_tail, garbage or fails_to_start.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

MAX_TEXTS = 256
LONG_TEXT_TOKENS = 24
"""The demo's slow tail begins here: about a tenth of its texts are longer."""


class Settings(BaseModel):
    """What ``build`` takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    version: str
    max_tokens: int = Field(64, ge=4, le=512)
    replicas: int = Field(1, ge=1)
    fault: Literal["errors", "slow_tail", "garbage", "fails_to_start"] | None = Field(None, description="a bad version, for demos and tests")
    fault_every: int = Field(20, ge=1, description="`errors` answers every so many-th request with 500; with slow_s, `slow_tail` slows it down")
    slow_s: float | None = Field(None, gt=0, le=60, description="`slow_tail`: so much longer for every fault_every-th request, not for long texts")


class Embedding:
    """One replica."""

    def __init__(self, settings: dict[str, Any]) -> None:
        global _current
        self.settings = Settings.model_validate(settings)
        if self.settings.fault == "fails_to_start":
            raise ModuleNotFoundError("No module named 'xgboost'")
        from kfp_components.models.minilm import MiniLM

        self._encoder = MiniLM(self.settings.max_tokens)
        self._encoder.embed(["warm up before the first request"])
        self._asked = 0
        self._pool = ThreadPoolExecutor(1)  # one core's worth; health stays responsive meanwhile
        _current = self

    async def embed(self, texts: list[str]) -> list[list[float]]:
        """Vectors of 384 numbers; the declared fault applies here."""
        fault, slow_s = self.settings.fault, self.settings.slow_s
        self._asked += 1
        chosen = self._asked % self.settings.fault_every == 0
        if fault == "errors" and chosen:
            raise HTTPException(500, "out of memory (declared fault of this demo version)")
        if fault == "garbage":
            return [_garbage(text) for text in texts]
        began = time.perf_counter()
        vectors = await asyncio.get_running_loop().run_in_executor(self._pool, self._encoder.embed, texts)
        if fault == "slow_tail" and slow_s is not None:
            await asyncio.sleep(slow_s if chosen else 0.0)
        elif fault == "slow_tail" and any(len(self._encoder.tokens(text)) > LONG_TEXT_TOKENS for text in texts):
            await asyncio.sleep(0.7 * (time.perf_counter() - began))  # of the model's time: half as much again for the user
        return [[round(float(number), 6) for number in vector] for vector in vectors]

    async def answer_check(self) -> None:
        """Ready means that it can answer: one short text goes through the encoder."""
        await asyncio.get_running_loop().run_in_executor(self._pool, self._encoder.embed, ["ready"])


_current: Embedding | None = None


def _replica() -> Embedding:
    if _current is None:
        raise HTTPException(503, "not loaded yet")
    return _current


def _garbage(text: str) -> list[float]:
    source = random.Random(hashlib.sha256(text.encode()).digest())
    return [round(source.gauss(0, 0.05), 6) for _ in range(384)]


async def _live(_request: Request) -> JSONResponse:
    return JSONResponse({"live": True})


async def _ready(_request: Request) -> JSONResponse:
    await _replica().answer_check()
    return JSONResponse({"ready": True})


async def _server(_request: Request) -> JSONResponse:
    return JSONResponse({"name": "kfp-serving", "version": _replica().settings.version, "extensions": []})


async def _model(request: Request) -> JSONResponse:
    settings = _replica().settings
    _known(request)
    return JSONResponse(
        {
            "name": settings.model,
            "versions": [settings.version],
            "platform": "numpy",
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [-1, 384]}],
        }
    )


async def _model_ready(request: Request) -> JSONResponse:
    _known(request)
    return JSONResponse({"name": _replica().settings.model, "ready": True})


class _Input(BaseModel):
    name: str
    shape: list[int]
    datatype: Literal["BYTES"]
    data: list[Any]


class _InferRequest(BaseModel):
    id: str | None = None
    inputs: list[_Input] = Field(min_length=1)


async def _infer(request: Request) -> JSONResponse:
    _known(request)
    try:
        asked = _InferRequest.model_validate_json(await request.body())
    except ValidationError as error:
        raise HTTPException(400, f"not a V2 inference request: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from error
    data = asked.inputs[0].data
    texts = _texts([item for part in data for item in part] if data and isinstance(data[0], list) else data)
    vectors = await _replica().embed(texts)
    settings = _replica().settings
    output = {"name": "embedding", "datatype": "FP32", "shape": [len(vectors), 384], "data": [number for vector in vectors for number in vector]}
    answer: dict[str, Any] = {"model_name": settings.model, "model_version": settings.version, "outputs": [output]}
    return JSONResponse({**answer, "id": asked.id} if asked.id is not None else answer)


async def _embed(request: Request) -> JSONResponse:
    texts = _texts((await _json(request)).get("texts"))
    return JSONResponse({"embeddings": await _replica().embed(texts), "model_version": _replica().settings.version})


async def _openai(request: Request) -> JSONResponse:
    asked = (await _json(request)).get("input")
    texts = _texts([asked] if isinstance(asked, str) else asked)
    vectors = await _replica().embed(texts)
    entries = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    tokens = sum(len(text.split()) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": entries, "model": _replica().settings.model, "usage": usage})


async def _json(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise HTTPException(400, f"not JSON: {error}") from error
    if not isinstance(body, dict):
        raise HTTPException(400, "expected a JSON object")
    return body


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise HTTPException(400, "expected a list of texts, not empty")
    if len(value) > MAX_TEXTS:
        raise HTTPException(400, f"{len(value)} texts; at most {MAX_TEXTS} in one request")
    return list(value)


def _known(request: Request) -> None:
    asked = request.path_params["model"]
    if asked != _replica().settings.model:
        raise HTTPException(404, f"no model {asked!r} here; there is {_replica().settings.model!r}")


async def _error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code)


asgi = Starlette(
    routes=[
        Route("/v2", _server),
        Route("/v2/health/live", _live),
        Route("/v2/health/ready", _ready),
        Route("/v2/models/{model}", _model),
        Route("/v2/models/{model}/ready", _model_ready),
        Route("/v2/models/{model}/infer", _infer, methods=["POST"]),
        Route("/embed", _embed, methods=["POST"]),
        Route("/v1/embeddings", _openai, methods=["POST"]),
    ],
    exception_handlers={HTTPException: _error},
)


def build(args: dict[str, Any]) -> serve.Application:
    """The application that ``serveConfigV2`` names."""
    settings = Settings.model_validate(args)
    deployment = serve.deployment(
        name="Embedding",
        num_replicas=settings.replicas,
        logging_config={"enable_access_log": False},  # a line a request costs as much as a small model
        max_ongoing_requests=64,
        ray_actor_options={"num_cpus": 0.5, "runtime_env": {"env_vars": {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}}},
    )
    return deployment(serve.ingress(asgi)(Embedding)).bind(settings.model_dump())
