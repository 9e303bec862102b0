"""XTTS v2 by coqui-tts, on a GPU: many voices and languages; it begins to speak before a sentence is done.

``{"engine": "xtts", "model_path": "/models/xtts-v2", "device": "cuda", "num_gpus": 0.3, "speaker_wav": "/voices/anna.wav"}``. The weights are
under Coqui's own licence.
"""

from __future__ import annotations

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


class XttsEngine(TtsEngine):
    """coqui-tts 0.25 or newer."""

    class Settings(kit.Frozen):
        """Where the model and its voices are."""

        model_path: str = Field(description="folder with config.json, model.pth, vocab.json and speakers_xtts.pth")
        speaker_wav: str | None = Field(None, description="recording of 6 to 30 s to imitate: the voice `speaker`, which is then the default one")
        voices: dict[str, str] = Field(default_factory=dict, description="name -> such a recording, for more voices")
        default_voice: str | None = Field(None, description="default: `speaker`, else the first of `voices`, else the model's first speaker")
        language: str = Field("en", description="where a request names none")
        device: Literal["cpu", "cuda"] = "cuda"
        use_deepspeed: bool = Field(False, description="faster; needs the package deepspeed")
        temperature: float = Field(0.75, gt=0, le=2)

    def __init__(self, settings: Settings) -> None:
        try:
            from TTS.tts.configs.xtts_config import XttsConfig
            from TTS.tts.models.xtts import Xtts
        except ImportError as error:
            raise errors.RequestInvalid("engine xtts: the package coqui-tts is not installed; pip install coqui-tts") from error
        config = XttsConfig()
        config.load_json(str(Path(settings.model_path) / "config.json"))
        self._settings = settings
        self._model = Xtts.init_from_config(config)
        self._model.load_checkpoint(config, checkpoint_dir=settings.model_path, use_deepspeed=settings.use_deepspeed, eval=True)
        self._model.to(settings.device)
        self._languages = tuple(config.languages)
        self._latents: dict[str, tuple[Any, Any]] = {}
        own = {"speaker": settings.speaker_wav} if settings.speaker_wav else {}
        for name, recording in {**own, **settings.voices}.items():
            self._latents[name] = tuple(self._model.get_conditioning_latents(audio_path=[recording]))
        speakers = self._model.speaker_manager.speakers if self._model.speaker_manager is not None else {}
        for name, speaker in speakers.items():
            self._latents.setdefault(name, (speaker["gpt_cond_latent"], speaker["speaker_embedding"]))
        self._default = default_voice(tuple(self._latents), settings.default_voice)
        self.rate_hz = int(config.audio.output_sample_rate)

    def speak(self, asked: Asked) -> Iterator[Floats]:
        """Pieces as the decoder makes them."""
        language = asked.language or self._settings.language
        if language not in self._languages:
            raise Refused(f"language: {language!r} is not known; known are {', '.join(self._languages)}", param="language")
        latent, embedding = self._latents.get(asked.voice or self._default, self._latents[self._default])
        how = {"temperature": self._settings.temperature, "speed": asked.speed, "enable_text_splitting": True}
        for piece in self._model.inference_stream(asked.text, language, latent, embedding, **how):
            yield np.asarray(piece.detach().cpu().numpy(), dtype=np.float32).reshape(-1)


def default_voice(voices: tuple[str, ...], wanted: str | None) -> str:
    """Its name. Raises `RequestInvalid` where there is no voice, or not that one."""
    if not voices or (wanted is not None and wanted not in voices):
        raise errors.RequestInvalid(f"engine xtts: default_voice {wanted!r}: there are {', '.join(voices) or 'no voices; give `voices`'}")
    return wanted or voices[0]
