"""PocketSphinx: a small recogniser for a CPU, with its model of American English in the package. For clean sentences."""

from __future__ import annotations

import threading

from pydantic import Field

from kfp_components import errors
from kfp_components.models.asr import RATE_HZ, Asked, AsrEngine, Heard, Limits, Segment
from kfp_components.models.audio import Floats, pcm
from kfp_components.models.tensors import Refused


class PocketSphinxEngine(AsrEngine):
    """PocketSphinx 5."""

    class Settings(Limits):
        """As PocketSphinx means them; None: what the package brings."""

        acoustic_model: str | None = Field(None, description="folder: its -hmm")
        language_model: str | None = Field(None, description="file: its -lm")
        dictionary: str | None = Field(None, description="file: its -dict")
        language: str = Field("en", description="of that model")
        beam: float | None = Field(None, gt=0, lt=1, description="larger is faster and hears worse; default 1e-48")
        language_weight: float | None = Field(None, gt=0, le=50, description="default 6.5")

    def __init__(self, settings: Settings) -> None:
        try:
            from pocketsphinx import Decoder
        except ImportError as error:
            raise errors.RequestInvalid("engine pocketsphinx: it is not installed; install kfp-serving-components[speech]") from error
        given = {
            "hmm": settings.acoustic_model,
            "lm": settings.language_model,
            "dict": settings.dictionary,
            "beam": settings.beam,
            "lw": settings.language_weight,
        }
        self.settings = settings
        self._language = settings.language
        self._decoder = Decoder(samprate=float(RATE_HZ), loglevel="FATAL", **{name: value for name, value in given.items() if value is not None})
        self._lock = threading.Lock()  # one utterance at a time

    def transcribe(self, samples: Floats, asked: Asked) -> Heard:
        """One segment. To translate English into English is to hear it."""
        if asked.language not in (None, self._language):
            raise Refused(f"language: {asked.language!r} is not known here; this model hears {self._language!r}", param="language")
        if asked.translate and self._language != "en":
            raise Refused(f"this model hears {self._language!r} and does not translate")
        with self._lock:
            self._decoder.start_utt()
            self._decoder.process_raw(pcm(samples), full_utt=True)
            self._decoder.end_utt()
            found = self._decoder.hyp()
        text = str(found.hypstr) if found else ""
        return Heard(self._language, (Segment(0.0, round(len(samples) / RATE_HZ, 3), text),) if text else ())
