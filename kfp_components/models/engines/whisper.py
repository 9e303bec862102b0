"""Whisper by faster-whisper (CTranslate2), any size, on a CPU or a GPU.

On a GPU: ``{"engine": "whisper", "model_path": "/models/whisper-large-v3-turbo", "device": "cuda", "compute_type": "float16", "num_gpus": 0.25}``.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from kfp_components import errors
from kfp_components.models.asr import RATE_HZ, Asked, AsrEngine, Heard, Limits, Segment
from kfp_components.models.audio import Floats
from kfp_components.models.tensors import Refused

DETAILS = ("seek", "tokens", "temperature", "avg_logprob", "compression_ratio", "no_speech_prob")


class WhisperEngine(AsrEngine):
    """faster-whisper 1.1 or newer."""

    class Settings(Limits):
        """As faster-whisper's ``WhisperModel`` and its ``transcribe`` name them."""

        model_path: str = Field(description="folder of a Whisper in CTranslate2's form, or a size or name that the hub knows")
        device: Literal["cpu", "cuda", "auto"] = "cpu"
        device_index: int = Field(0, ge=0, description="of the GPUs that the replica sees")
        compute_type: str = Field("default", description="as the model is stored; int8 for CPUs, float16 or int8_float16 for GPUs")
        workers: int = Field(1, ge=1, le=16, description="files at the same time on one model; give `concurrency` the same")
        beam_size: int = Field(5, ge=1, le=16, description="1 is the fastest")
        language: str | None = Field(None, description="code, where a request names none; default: it is found out")
        vad_filter: bool = Field(False, description="leave silence out: against words that are heard in it")
        condition_on_previous_text: bool = Field(True, description="false: against endless repetition in long recordings")
        initial_prompt: str | None = Field(None, description="names and words to expect, where a request brings none")

    def __init__(self, settings: Settings) -> None:
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise errors.RequestInvalid("engine whisper: the package faster-whisper is not installed; pip install faster-whisper") from error
        self.settings: WhisperEngine.Settings = settings
        self._model = WhisperModel(settings.model_path, **model_arguments(settings))

    def check(self) -> None:
        """A tenth of a second of silence, in English, so that no language is looked for."""
        found, _ = self._model.transcribe(np.zeros(RATE_HZ // 10, np.float32), language="en", beam_size=1, max_new_tokens=1)
        list(found)

    def transcribe(self, samples: Floats, asked: Asked) -> Heard:
        """By segments."""
        if asked.language is not None and asked.language not in self._model.supported_languages:
            raise Refused(f"language: {asked.language!r} is not known to this model; give a code such as en", param="language")
        found, info = self._model.transcribe(samples, **decode_arguments(self.settings, asked))
        segments = (
            Segment(round(one.start, 3), round(one.end, 3), one.text, {name: getattr(one, name) for name in DETAILS if hasattr(one, name)})
            for one in found
        )
        return Heard(str(info.language), tuple(segments))


def model_arguments(settings: WhisperEngine.Settings) -> dict[str, Any]:
    """Keywords of ``WhisperModel``. Threads: it reads OMP_NUM_THREADS, which the kit sets."""
    return {
        "device": settings.device,
        "device_index": settings.device_index,
        "compute_type": settings.compute_type,
        "num_workers": settings.workers,
    }


def decode_arguments(settings: WhisperEngine.Settings, asked: Asked) -> dict[str, Any]:
    """Keywords of its ``transcribe``."""
    return {
        "language": asked.language or settings.language,
        "task": "translate" if asked.translate else "transcribe",
        "beam_size": settings.beam_size,
        **({"temperature": asked.temperature} if asked.temperature else {}),  # 0: it goes on to higher ones where it finds nothing good
        "vad_filter": settings.vad_filter,
        "condition_on_previous_text": settings.condition_on_previous_text,
        "initial_prompt": asked.prompt or settings.initial_prompt,
    }
