"""Recordings in the report: the answers of which the candidate lost most can be heard."""

import base64
import io
import json
import math
import wave
from typing import Any

from kfp_components import report
from kfp_components.quality import Score
from kfp_components.quality.examples import SOUND_HZ, WITH_SOUND, Compared, examples, sound_of


def tone(seconds: float, rate_hz: int = 24_000, channels: int = 2) -> bytes:
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        for number in range(round(seconds * rate_hz)):
            file.writeframesraw(round(16_000 * math.sin(number / 10)).to_bytes(2, "little", signed=True) * channels)
    return made.getvalue()


def compared(number: int, answer: Any = None) -> Compared:
    return Compared(f"case {number}", tone(0.1), answer or tone(0.2), tone(0.2), Score(1.0), Score(1.0 - number / 10))


def test_a_sound_is_its_beginning_in_a_small_file() -> None:
    found = sound_of(tone(5.0))
    assert found is not None
    with wave.open(io.BytesIO(base64.b64decode(found))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (1, 1, SOUND_HZ, 3 * SOUND_HZ)
        heard = file.readframes(SOUND_HZ)
    assert 180 < max(heard) < 200 and 56 < min(heard) < 76  # half of full scale
    assert sound_of(b"RIFF0000") is None and sound_of("a text") is None and sound_of({"text": "a"}) is None
    assert sound_of(tone(0.0)) is not None


def test_the_first_examples_keep_theirs_and_the_others_do_not() -> None:
    found = examples([compared(number) for number in (1, 2, 3)])
    found = examples([compared(4)], json.loads(json.dumps(found)))
    assert [one["case"] for one in found] == ["case 4", "case 3", "case 2", "case 1"]
    with_sound = [one["case"] for one in found if "sound" in one["stable"] and "sound" in one["candidate"] and "request_sound" in one]
    assert with_sound == ["case 4", "case 3"] and WITH_SOUND == 2
    assert all("sound" not in json.dumps(one) for one in found[WITH_SOUND:])
    assert "bytes" in found[0]["stable"]["answer"]


def test_the_page_plays_them_and_shows_the_others_as_text() -> None:
    found = examples([compared(1), compared(2, {"text": "<b>hello</b>"}), compared(3), compared(4)])
    point = {"unix_s": 0.0, "pairs": 4, "scores": {"stable": 1.0, "candidate": 0.75}, "garbage": {"stable": 0, "candidate": 0}}
    page = report.render({"model": "xtts", "candidate_version": "v2", "stable_version": "v1", "timeline": [point], "judge": {"examples": found}})
    assert page.count('<audio controls preload="none" src="data:audio/wav;base64,UklGR') == 3 * WITH_SOUND
    assert "<b>hello</b>" not in page and "&lt;b&gt;hello&lt;/b&gt;" in page and "media-src data:" in page
