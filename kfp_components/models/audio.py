"""Sound files to samples and back. WAV needs nothing else; other containers are read by PyAV, where it is installed."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kfp_components.models.tensors import Refused
from kfp_components.quality.tts import read_wav

Floats = NDArray[np.float32]
"""Mono samples in [-1, 1]."""

RATES_HZ = (1_000, 384_000)
BLOCK_S, MARGIN_S = 10, 1
UNKNOWN_LENGTH = 0xFFFFFFFF
"""What a WAV file says of its length where that is not known yet; readers go on to the end."""


def decode(content: bytes, rate_hz: int, most_s: float) -> Floats:
    """A sound file as samples at ``rate_hz``. Raises `Refused`: no sound, longer than ``most_s`` (413), in need of PyAV, which is missing (415)."""
    if not content:
        raise Refused("file: it is empty", param="file")
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        samples = _by_av(content, rate_hz, most_s)
    else:
        try:
            sound = read_wav(content)
        except ValueError as error:
            raise Refused(f"file: {error}", param="file") from error
        if not RATES_HZ[0] <= sound.sample_rate_hz <= RATES_HZ[1]:
            raise Refused(f"file: {sound.sample_rate_hz} Hz; between {RATES_HZ[0]:,} and {RATES_HZ[1]:,} are read", param="file")
        if sound.duration_s > most_s:
            raise Refused(f"file: {sound.duration_s:.0f} s; at most {most_s:g} in one request", 413, "file")
        samples = resampled(sound.samples.mean(axis=1).astype(np.float32), sound.sample_rate_hz, rate_hz)
    if not len(samples):
        raise Refused("file: it holds no sound", param="file")
    return np.clip(samples, -1, 1)


def resampled(samples: Floats, rate_hz: int, wanted_hz: int) -> Floats:
    """The same sound at another rate: by Fourier transform, in blocks of `BLOCK_S` with `MARGIN_S` around each, so an hour takes little memory."""
    if rate_hz == wanted_hz or not len(samples):
        return samples
    wide = BLOCK_S + 2 * MARGIN_S
    padded = np.concatenate([np.zeros(MARGIN_S * rate_hz, np.float32), samples, np.zeros((MARGIN_S + BLOCK_S) * rate_hz, np.float32)])
    blocks = []
    for at in range(0, len(samples), BLOCK_S * rate_hz):
        block = np.fft.rfft(padded[at : at + wide * rate_hz], wide * rate_hz)
        spectrum = np.zeros(wide * wanted_hz // 2 + 1, dtype=np.complex128)
        kept = min(len(spectrum), len(block))
        spectrum[:kept] = block[:kept]
        sound = np.fft.irfft(spectrum, wide * wanted_hz) * (wanted_hz / rate_hz)
        blocks.append(sound[MARGIN_S * wanted_hz : (MARGIN_S + BLOCK_S) * wanted_hz].astype(np.float32))
    found: Floats = np.concatenate(blocks)[: max(1, round(len(samples) * wanted_hz / rate_hz))]
    return found


def pcm(samples: Floats) -> bytes:
    """16 bits, little-endian."""
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def wav_head(rate_hz: int, size: int | None) -> bytes:
    """Of a mono file of 16 bits with ``size`` bytes of samples; None: as many as come."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate_hz, rate_hz * 2, 2, 16)
    told = UNKNOWN_LENGTH if size is None else size
    return struct.pack("<4sI4s", b"RIFF", UNKNOWN_LENGTH if size is None else size + 36, b"WAVE") + form + struct.pack("<4sI", b"data", told)


def _by_av(content: bytes, rate_hz: int, most_s: float) -> Floats:
    try:
        import av
    except ImportError as error:
        began = content[:8]
        raise Refused(
            f"file: not a WAV file (it begins with {began!r}), and others are read only where PyAV is; pip install av", 415, "file"
        ) from error
    pieces: list[Any] = []
    seconds = 0.0
    try:
        with av.open(io.BytesIO(content), mode="r", metadata_errors="ignore") as container:
            resampler = av.AudioResampler(format="flt", layout="mono", rate=rate_hz)
            for frame in container.decode(audio=0):
                seconds += frame.samples / (frame.sample_rate or rate_hz)
                if seconds > most_s:
                    raise Refused(f"file: more than {most_s:g} s, the most in one request", 413, "file")
                pieces += [out.to_ndarray()[0] for out in resampler.resample(frame)]
            pieces += [out.to_ndarray()[0] for out in resampler.resample(None)] if pieces else []
    except (av.FFmpegError, ValueError, OSError, IndexError, EOFError) as error:
        raise Refused(f"file: no sound that can be read: {error}", param="file") from error
    return np.concatenate(pieces).astype(np.float32) if pieces else np.zeros(0, np.float32)
