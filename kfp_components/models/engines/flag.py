"""BGE by its authors' library (FlagEmbedding): dense vectors of bge-*-v1.5 and bge-m3, and their rerankers.

On a GPU: ``{"engine": "flag", "model_path": "/models/bge-m3", "reranker_path": "/models/bge-reranker-v2-m3", "device": "cuda:0", "num_gpus": 0.3}``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from kfp_components import errors
from kfp_components.models import kit
from kfp_components.models.embedding import EmbeddingEngine, Floats, cosines


class FlagEngine(EmbeddingEngine):
    """FlagEmbedding 1.3 or newer."""

    class Settings(kit.Frozen):
        """As FlagEmbedding names them."""

        model_path: str = Field(description="folder, or a name that the hub knows; the last part of it says which BGE it is")
        model_class: str | None = Field(None, description="encoder-only-base, encoder-only-m3, ...; where the path does not say it")
        reranker_path: str | None = Field(None, description="a BGE reranker; without it documents are ranked by cosine")
        device: str | None = Field(None, description="cpu, cuda:0; default: what there is")
        use_fp16: bool = Field(False, description="halves the memory on a GPU")
        max_tokens: int = Field(512, ge=4, le=8192)
        batch_size: int = Field(64, ge=1, le=1024)
        query_instruction: str | None = Field(None, description="for bge-*-v1.5: put before a query that documents are ranked for")

    def __init__(self, settings: Settings) -> None:
        try:
            from FlagEmbedding import FlagAutoModel, FlagAutoReranker
        except ImportError as error:
            raise errors.RequestInvalid("engine flag: the package FlagEmbedding is not installed; pip install FlagEmbedding") from error
        self._model = FlagAutoModel.from_finetuned(settings.model_path, **model_arguments(settings))
        shared = {"use_fp16": settings.use_fp16, "devices": settings.device}
        self._reranker = FlagAutoReranker.from_finetuned(settings.reranker_path, **shared) if settings.reranker_path else None
        self._encoding = {"batch_size": settings.batch_size, "max_length": settings.max_tokens}
        self.dimensions = self.embed(["how long?"]).shape[1]

    def embed(self, texts: list[str]) -> Floats:
        """Unit vectors."""
        return dense(self._model.encode(texts, **self._encoding))

    def count_tokens(self, text: str) -> int:
        """By the model's tokenizer."""
        return len(self._model.tokenizer(text)["input_ids"])

    def rank(self, query: str, documents: list[str]) -> list[float]:
        """By the reranker, within 0 and 1, else cosines."""
        if self._reranker is not None:
            found = self._reranker.compute_score([[query, document] for document in documents], normalize=True)
            return [float(score) for score in np.atleast_1d(found)]
        asked = dense(self._model.encode_queries([query], **self._encoding))
        return cosines(np.concatenate([asked, dense(self._model.encode_corpus(documents, **self._encoding))]))


def model_arguments(settings: FlagEngine.Settings) -> dict[str, Any]:
    """Keywords of ``FlagAutoModel.from_finetuned``."""
    return {
        "model_class": settings.model_class,
        "use_fp16": settings.use_fp16,
        "devices": settings.device,
        "normalize_embeddings": True,
        "query_instruction_for_retrieval": settings.query_instruction,
    }


def dense(encoded: Any) -> Floats:
    """Unit vectors from what ``encode`` gives: an array, or for bge-m3 a dict of several kinds of vectors."""
    found = np.asarray(encoded["dense_vecs"] if isinstance(encoded, dict) else encoded, dtype=np.float32)
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12), dtype=np.float32)
