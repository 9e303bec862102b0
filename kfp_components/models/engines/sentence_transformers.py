"""Any sentence-transformers model (BGE, E5, GTE ...), on a CPU or a GPU, with a cross-encoder for rerank where one is named.

On a GPU: ``{"engine": "sentence_transformers", "model_path": "/models/bge-large-en-v1.5", "device": "cuda", "dtype": "float16", "num_gpus": 0.2}``.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from kfp_components import errors
from kfp_components.models import kit
from kfp_components.models.embedding import EmbeddingEngine, Floats, cosines


class SentenceTransformersEngine(EmbeddingEngine):
    """sentence-transformers 5 or newer."""

    class Settings(kit.Frozen):
        """As sentence-transformers names them."""

        model_path: str = Field(description="folder, or a name that the hub knows")
        reranker_path: str | None = Field(None, description="a cross-encoder; without it documents are ranked by cosine")
        device: str | None = Field(None, description="cpu, cuda, cuda:0; default: what there is")
        dtype: Literal["float32", "float16", "bfloat16"] = "float32"
        backend: Literal["torch", "onnx", "openvino"] = "torch"
        max_tokens: int | None = Field(None, ge=4, description="longer texts are cut; default: the model's own")
        batch_size: int = Field(32, ge=1, le=1024)
        query_prompt: str | None = Field(None, description="put before a query that documents are ranked for; default: the model's own")

    def __init__(self, settings: Settings) -> None:
        try:
            from sentence_transformers import CrossEncoder, SentenceTransformer
        except ImportError as error:
            raise errors.RequestInvalid(
                "engine sentence_transformers: the package sentence-transformers is not installed; pip install sentence-transformers"
            ) from error
        self._model = SentenceTransformer(settings.model_path, **model_arguments(settings))
        if settings.max_tokens is not None:
            self._model.max_seq_length = settings.max_tokens
        self._reranker = CrossEncoder(settings.reranker_path, **model_arguments(settings)) if settings.reranker_path else None
        self._query_prompt = settings.query_prompt
        self._encoding = {"batch_size": settings.batch_size, "normalize_embeddings": True, "show_progress_bar": False}
        self.dimensions = self.embed(["how long?"]).shape[1]

    def embed(self, texts: list[str]) -> Floats:
        """Unit vectors."""
        return np.asarray(self._model.encode(texts, **self._encoding), dtype=np.float32)

    def count_tokens(self, text: str) -> int:
        """By the model's tokenizer."""
        return len(self._model.tokenizer(text)["input_ids"])

    def rank(self, query: str, documents: list[str]) -> list[float]:
        """By the cross-encoder, else cosines, with the model's prompts for queries and documents."""
        if self._reranker is not None:
            return [float(score) for score in self._reranker.predict([(query, document) for document in documents], show_progress_bar=False)]
        asked = self._model.encode_query([query], prompt=self._query_prompt, **self._encoding)
        return cosines(np.concatenate([asked, self._model.encode_document(documents, **self._encoding)]).astype(np.float32))


def model_arguments(settings: SentenceTransformersEngine.Settings) -> dict[str, Any]:
    """Keywords of ``SentenceTransformer`` and of ``CrossEncoder``."""
    return {"device": settings.device, "backend": settings.backend, "model_kwargs": {"torch_dtype": settings.dtype}}
