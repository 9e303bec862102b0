"""all-MiniLM-L6-v2 on one core, with the weights that a package ships (`kfp_components.models.minilm`)."""

from __future__ import annotations

from pydantic import Field

from kfp_components.models import kit
from kfp_components.models.embedding import EmbeddingEngine, Floats
from kfp_components.models.minilm import DIMENSIONS, MiniLM


class MiniLMEngine(EmbeddingEngine):
    """It ranks by cosine."""

    class Settings(kit.Frozen):
        """Longer texts are cut."""

        max_tokens: int = Field(64, ge=4, le=512)

    dimensions = DIMENSIONS

    def __init__(self, settings: Settings) -> None:
        self._encoder = MiniLM(settings.max_tokens)

    def embed(self, texts: list[str]) -> Floats:
        """Unit vectors of 384."""
        return self._encoder.embed(texts)

    def count_tokens(self, text: str) -> int:
        """With [CLS] and [SEP], after the cut."""
        return len(self._encoder.tokens(text))
