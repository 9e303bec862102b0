"""Embeddings (BGE and the like) as a Serve application: OpenAI embeddings, rerank, plain JSON, V1 and V2 on one route.

``build(args)`` takes model, version, `kit.Settings` and the engine's own, such as ``max_tokens``. V2: input ``text`` BYTES [n], output ``embedding``
FP32 [n, dimensions].
"""

from __future__ import annotations

import base64
import hashlib
import random
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, StrictStr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kfp_components.models import kit, tensors
from kfp_components.models.tensors import Infer, Refused, Tensor, validated

Floats = NDArray[np.float32]
MAX_TEXTS = 256
LONG_TEXT_TOKENS = 24
"""The demo's slow tail begins here: about a tenth of its texts are longer."""


class EmbeddingEngine(ABC):
    """What turns texts into vectors."""

    Settings: ClassVar[type[kit.Frozen]]
    dimensions: int

    @abstractmethod
    def embed(self, texts: list[str]) -> Floats:
        """Unit vectors, shape (len(texts), dimensions)."""

    @abstractmethod
    def count_tokens(self, text: str) -> int:
        """For the usage that OpenAI's form reports."""

    def rank(self, query: str, documents: list[str]) -> list[float]:
        """How relevant each document is to the query; higher is more. Cosines, where an engine has nothing better."""
        return cosines(self.embed([query, *documents]))

    def check(self) -> None:
        """Infer something small; raises where that fails."""
        self.embed(["ready"])


class _Embed(BaseModel):
    input: StrictStr | list[StrictStr] | list[int] | list[list[int]]
    model: StrictStr | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)


class _Rerank(BaseModel):
    query: StrictStr = Field(min_length=1)
    documents: list[StrictStr | dict[str, Any]] = Field(min_length=1)
    model: StrictStr | None = None
    top_n: int | None = Field(None, ge=1)
    return_documents: bool | None = None


class Embedding(kit.Served):
    """One replica."""

    ENGINES = {
        "minilm": "kfp_components.models.engines.minilm:MiniLMEngine",
        "sentence_transformers": "kfp_components.models.engines.sentence_transformers:SentenceTransformersEngine",
        "flag": "kfp_components.models.engines.flag:FlagEngine",
    }
    FAULTS = (*kit.Served.FAULTS, "shuffled")
    engine: EmbeddingEngine

    def __init__(self, args: dict[str, Any], engine_class: type[EmbeddingEngine] | None = None) -> None:
        super().__init__(args, engine_class)
        self.inputs = [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        self.outputs = [{"name": "embedding", "datatype": "FP32", "shape": [-1, self.engine.dimensions]}]

    def routes(self) -> dict[str, kit.Handler]:
        """OpenAI's embeddings, rerank in the form of Cohere and Jina, and ``/embed``."""
        return {
            "/v1/embeddings": self._openai,
            **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), self._rerank),
            "/embed": self._embed,
        }

    async def vectors(self, texts: list[str]) -> Floats:
        """Unit vectors; the declared fault applies here. Raises `Refused` for none and for too many texts."""
        if not 0 < len(texts) <= MAX_TEXTS:
            raise Refused(f"{len(texts)} texts; between 1 and {MAX_TEXTS} go in one request")
        found = await self.compute(lambda: self.engine.embed(texts), lambda: self._long(texts))
        return faulty(found, texts, self.settings.fault)

    def _long(self, texts: list[str]) -> bool:
        return any(self.engine.count_tokens(text) > LONG_TEXT_TOKENS for text in texts)

    async def infer(self, asked: Infer) -> list[Tensor]:
        """V2."""
        return [tensors.of_array("embedding", await self.vectors(asked.input("text").texts))]

    async def _embed(self, request: Request) -> Response:
        texts = _texts((await self.json(request)).get("texts"), "texts")
        return JSONResponse({"embeddings": rounded(await self.vectors(texts)), "model_version": self.settings.version})

    async def _openai(self, request: Request) -> Response:
        asked = validated(_Embed, await self.json(request), "embeddings request")
        self.known(asked.model or self.settings.model)
        if asked.dimensions not in (None, self.engine.dimensions):
            raise Refused(f"dimensions: this model has {self.engine.dimensions}", param="dimensions")
        given = [asked.input] if isinstance(asked.input, str) else asked.input
        if any(not isinstance(item, str) for item in given):
            raise Refused("input: texts are expected, not token ids: which text they stand for depends on the version's tokenizer", param="input")
        texts = _texts(given, "input")
        found = await self.vectors(texts)
        coded = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in found] if asked.encoding_format == "base64" else rounded(found)
        entries = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(coded)]
        count = sum(self.engine.count_tokens(text) for text in texts)
        usage = {"prompt_tokens": count, "total_tokens": count}
        return JSONResponse({"object": "list", "data": entries, "model": self.settings.model, "usage": usage})

    async def _rerank(self, request: Request) -> Response:
        asked = validated(_Rerank, await self.json(request), "rerank request")
        self.known(asked.model or self.settings.model)
        texts = _texts([one if isinstance(one, str) else one.get("text") for one in asked.documents], "documents")
        scores = await self.scores(asked.query, texts)
        best = sorted(range(len(scores)), key=lambda index: -scores[index])[: asked.top_n]
        results = [
            {"index": index, "relevance_score": round(scores[index], 6), **({"document": {"text": texts[index]}} if asked.return_documents else {})}
            for index in best
        ]
        count = sum(self.engine.count_tokens(text) for text in (asked.query, *texts))
        return JSONResponse({"model": self.settings.model, "results": results, "usage": {"total_tokens": count}})

    async def scores(self, query: str, documents: list[str]) -> list[float]:
        """How relevant each document is; what is wrong with the vectors of a bad version is wrong with these. Raises `Refused`."""
        if len(documents) >= MAX_TEXTS:
            raise Refused(f"{len(documents)} documents; at most {MAX_TEXTS - 1} go in one request", param="documents")
        if self.settings.fault in ("garbage", "shuffled"):
            return cosines(await self.vectors([query, *documents]))
        return await self.compute(lambda: self.engine.rank(query, documents), lambda: self._long([query, *documents]))


def cosines(vectors: Floats) -> list[float]:
    """Of the first unit vector with each of the others."""
    return [float(score) for score in vectors[1:] @ vectors[0]]


def faulty(found: Floats, texts: list[str], fault: str | None) -> Floats:
    """What a bad version gives: ``garbage`` depends on the text's hash alone, ``shuffled`` has the right numbers, each text's in its own order."""
    if fault == "garbage":
        rows = [random.Random(hashlib.sha256(text.encode()).digest()) for text in texts]
        return np.array([[row.gauss(0, 0.05) for _ in range(found.shape[1])] for row in rows], dtype=np.float32)
    if fault == "shuffled":
        orders = [np.random.default_rng(list(hashlib.sha256(text.encode()).digest())).permutation(found.shape[1]) for text in texts]
        return np.stack([row[order] for row, order in zip(found, orders, strict=True)])
    return found


def rounded(vectors: Floats) -> list[list[float]]:
    """To six digits after the point, which is what single precision is worth here."""
    found: list[list[float]] = np.round(vectors.astype(np.float64), 6).tolist()
    return found


def _texts(value: Any, what: str) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise Refused(f"{what}: expected a list of texts, not empty", param=what)
    tensors.utf8("".join(value), what)
    return value


def build(args: dict[str, Any]) -> Any:
    """The application that ``serveConfigV2`` names."""
    return kit.application(Embedding, args)
