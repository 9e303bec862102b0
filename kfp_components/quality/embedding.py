"""Embeddings and rerankers: are vectors those that are known, do near things stay near, is what is relevant found?

Two versions may have different spaces, whose vectors cannot be compared with each other: then the ranking they give is what counts. A case asks for
the vectors of several texts, the first of them the query, or for the ranking of documents. Vectors that were stored with one version are of use with
another only where ``vectors`` agree.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from kfp_components.quality.score import UNREADABLE, ReferenceModel, Score, checked, garbage, keys_of

Floats = NDArray[np.float64]

COLLAPSED = 0.9999
"""Cosine of every text with every other above this: the model says the same to everything."""


MOST_DOCUMENTS = 10_000
"""Of a ranking whose reference does not say how many there are."""


class EmbeddingReference(ReferenceModel):
    """At least one of vectors, similarities, relevant; the value is the mean over those given. Documents are numbered from 0, without the query."""

    vectors: list[list[float]] | None = Field(None, description="of the texts in their order: cosine with them")
    similarities: list[float] | None = Field(None, min_length=2, description="how near each document should be, in any unit: rank agreement")
    relevant: list[int] | None = Field(None, min_length=1, description="documents to be found: recall@k")
    k: int | None = Field(None, ge=1, description="default as many as are relevant")

    @model_validator(mode="after")
    def _consistent(self) -> EmbeddingReference:
        if self.vectors is None and self.similarities is None and self.relevant is None:
            raise ValueError("one of vectors, similarities, relevant is needed")
        if self.vectors is not None:
            if not self.vectors or not self.vectors[0] or len({len(vector) for vector in self.vectors}) != 1:
                raise ValueError("vectors must be lists of one length")
            if not np.isfinite(self.vectors).all() or not np.linalg.norm(self.vectors, axis=1).all():
                raise ValueError("vectors must be finite, and none may be all zeros")
        if self.similarities is not None and not (np.isfinite(self.similarities).all() and len(set(self.similarities)) > 1):
            raise ValueError("similarities must be finite and not all the same, which is no order")
        documents = [len(given) - more for given, more in ((self.vectors, 1), (self.similarities, 0)) if given is not None]
        if len(set(documents)) > 1:
            raise ValueError(f"vectors are of a query and {documents[0]} documents, similarities of {documents[1]} documents")
        if self.relevant is not None and (min(self.relevant) < 0 or (documents and max(self.relevant) >= documents[0])):
            raise ValueError(f"relevant {self.relevant} are not all numbers of documents, which begin with 0")
        return self


def check(reference: Any) -> None:
    """Raises `RequestInvalid` for a reference that `score` would not take."""
    checked(EmbeddingReference, reference)


def score(answer: Any, reference: Any) -> Score:
    """The mean of cosine (below 0 is 0), ``(tau + 1)/2`` and recall@k, as far as the reference asks for them.

    ``answer``: see `vectors_of` and `ranking_of`. Garbage: neither vectors nor a ranking, too few or too many, a number that is not finite, a zero
    vector, all of them (nearly) the same, another dimension than the reference's.
    """
    expected = checked(EmbeddingReference, reference)
    ranked = ranking_of(answer)
    if ranked is not None:
        return _score_ranking(ranked, expected)
    vectors = vectors_of(answer)
    if vectors is None:
        return garbage(f"neither vectors of one length nor a ranking, but {keys_of(answer)}")
    rows, dimensions = vectors.shape
    if not np.isfinite(vectors).all():
        return garbage("a vector holds a number that is not finite")
    if not np.linalg.norm(vectors, axis=1).all():
        return garbage("a vector is all zeros")
    if expected.vectors is not None and (rows, dimensions) != (wanted := np.shape(expected.vectors)):
        return garbage(f"{rows} vectors of {dimensions} numbers, not {wanted[0]} of {wanted[1]}")
    documents = len(expected.similarities) if expected.similarities else None
    if (documents is not None and rows != documents + 1) or (expected.relevant and rows < max(expected.relevant) + 2):
        return garbage(f"{rows} vectors, not one of the query and one of each of {documents or max(expected.relevant or ()) + 1} documents")
    if rows > 1 and cosine(vectors, vectors).min() > COLLAPSED:
        return garbage("all texts have the same vector")
    found = {}
    if expected.vectors is not None:
        found["cosine"] = float(np.mean(np.sum(_unit(vectors) * _unit(expected.vectors), axis=1)))
    return _score({**found, **_order(cosine(vectors[:1], vectors[1:])[0], expected)})


def _score_ranking(relevance: Mapping[int, float], expected: EmbeddingReference) -> Score:
    if expected.vectors is not None:
        return garbage("a ranking, but the reference asks for vectors")
    documents = len(expected.similarities) if expected.similarities else None
    if min(relevance) < 0 or max(relevance) >= (documents or MOST_DOCUMENTS):
        return garbage(f"it ranks documents {sorted(relevance)[:10]}, of {documents or 'those'} that there are")
    if not np.isfinite(list(relevance.values())).all():
        return garbage("a relevance is not finite")
    if len(relevance) > 1 and len(set(relevance.values())) == 1:
        return garbage("all documents are equally relevant")
    near = np.full(documents or 1 + max(*relevance, *(expected.relevant or ())), min(relevance.values()) - 1)  # what it left out comes last
    near[list(relevance)] = list(relevance.values())
    return _score(_order(near, expected))


def _order(near: Floats, expected: EmbeddingReference) -> dict[str, float]:
    found = {}
    if expected.similarities is not None:
        found["rank agreement"] = kendall(near, expected.similarities)
    if expected.relevant is not None:
        k = expected.k or len(set(expected.relevant))
        found[f"recall@{k}"] = recall_at_k(near, expected.relevant, k)
    return found


def _score(found: Mapping[str, float]) -> Score:
    parts = [max(0.0, value) if name == "cosine" else (value + 1) / 2 if name == "rank agreement" else value for name, value in found.items()]
    return Score(float(np.clip(np.mean(parts), 0, 1)), note=", ".join(f"{name} {value:.3f}" for name, value in found.items()))


def vectors_of(answer: Any) -> Floats | None:
    """Vectors of shape (texts, dimensions), None where there are none.

    Read are lists of lists, ``{"embeddings": ...}``, OpenAI's ``{"data": [{"embedding", "index"}]}``, of numbers or base64, and V2's ``outputs``: the
    first with two dimensions.
    """
    try:
        if isinstance(answer, Mapping):
            if "embeddings" in answer:
                answer = answer["embeddings"]
            elif "outputs" in answer:
                output = next(output for output in answer["outputs"] if len(output["shape"]) == 2)
                answer = np.asarray(output["data"], dtype=np.float64).reshape(output["shape"])
            else:
                answer = [_numbers(entry["embedding"]) for entry in sorted(answer["data"], key=lambda entry: entry.get("index", 0))]
        found = np.asarray(answer, dtype=np.float64)
    except UNREADABLE:
        return None
    return found if found.ndim == 2 and found.size else None


def ranking_of(answer: Any) -> dict[int, float] | None:
    """Relevance by number of document, None where there is none: ``{"results": [{"index", "relevance_score"}]}``, or a list with ``score``."""
    results: Any = answer.get("results") if isinstance(answer, Mapping) else answer
    try:
        found = {int(entry["index"]): float(entry["relevance_score"] if "relevance_score" in entry else entry["score"]) for entry in results}
    except UNREADABLE:
        return None
    return found if found and len(found) == len(results) else None


def cosine(a: ArrayLike, b: ArrayLike) -> Floats:
    """Cosines of shape (n, m) between the rows of a (n, d) and of b (m, d), in [-1, 1]; 0 with a zero vector."""
    return np.clip(_unit(a) @ _unit(b).T, -1.0, 1.0)


def kendall(a: ArrayLike, b: ArrayLike) -> float:
    """Kendall's tau-b in [-1, 1] of two rankings of the same things, ties counted (Kendall 1945); 0 where one side is all ties. O(n^2)."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    above = np.triu_indices(len(x), 1)
    dx, dy = (np.sign(np.subtract.outer(values, values))[above] for values in (x, y))
    scale = float(np.abs(dx).sum() * np.abs(dy).sum())
    return float((dx * dy).sum() / np.sqrt(scale)) if scale else 0.0


def recall_at_k(near: ArrayLike, relevant: list[int], k: int) -> float:
    """Share of the relevant documents among the k nearest; of k, where more are relevant.

    Ties count against: an equally near document that is not relevant goes first.
    """
    values = np.asarray(near, dtype=np.float64)
    wanted = np.zeros(len(values), dtype=bool)
    wanted[sorted(set(relevant))] = True
    nearest = np.lexsort((wanted, -values))[:k]
    return float(wanted[nearest].sum() / min(k, wanted.sum()))


def _numbers(embedding: Any) -> Any:
    return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4") if isinstance(embedding, str) else embedding


def _unit(values: ArrayLike) -> Floats:
    rows = np.atleast_2d(np.asarray(values, dtype=np.float64))
    rows = rows / np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-300)  # squares of large numbers would overflow
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths == 0, 1.0, lengths))
