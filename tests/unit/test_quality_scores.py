"""Scores: references refused early, every form of answer, garbage, own evaluators by entry point."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import sys
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfp_components import errors, quality
from kfp_components.quality import Compared, asr, embedding, examples, llm, tts
from kfp_components.quality.score import Score

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["embeddings", "data", "outputs", "results", "text", "choices", "audio"]), inner, max_size=3)
    ),
    max_leaves=10,
)


@dataclass(frozen=True)
class Case:
    name: str = "case"
    reference: Any = None
    family: str | None = None


# --- families -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    quality.evaluator.cache_clear()
    yield
    quality.evaluator.cache_clear()


def installed(monkeypatch: pytest.MonkeyPatch, loads: dict[str, Any], *names: str) -> None:
    class Point(EntryPoint):
        def load(self) -> Any:
            found = loads[self.value]
            if isinstance(found, Exception):
                raise found
            return found

    points = [Point(name, value, quality.ENTRY_POINTS) for name in names for value in loads]
    monkeypatch.setattr(quality, "entry_points", lambda group: points if group == quality.ENTRY_POINTS else [])


def test_the_library_s_families_are_known() -> None:
    for family, found in quality.EVALUATORS.items():
        assert quality.evaluator(family) is found


def test_an_unknown_family_is_refused_by_its_case_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"mine": SimpleNamespace(score=lambda answer, reference: Score(1.0))}, "translation")
    with pytest.raises(
        errors.RequestInvalid,
        match=r"case 'a': evaluator 'vision' is not known; there are asr, embedding, llm, translation, tts; others are entry points",
    ):
        quality.assert_references([Case("a", reference={}, family="vision")])
    with pytest.raises(
        errors.RequestInvalid, match=r"case 'a': nobody knows who scores its reference; give it a family, or options\.provenance\.family"
    ):
        quality.score(Case("a", reference={}), {})
    quality.assert_references([Case("no reference needs no family")])


def test_an_own_evaluator_scores_and_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(reference: Any) -> None:
        if reference != "good":
            raise errors.RequestInvalid("it must be good")

    mine = SimpleNamespace(score=lambda answer, reference: Score(0.25, note=f"{answer} {reference}"), check=check)
    installed(monkeypatch, {"mine": mine}, "translation")
    assert quality.score(Case(reference="good", family="translation"), "an answer", "embedding") == Score(0.25, note="an answer good")
    quality.assert_references([Case(reference="good"), Case(reference=None)], "translation")
    with pytest.raises(errors.RequestInvalid, match="case 'b': its reference of family translation: it must be good"):
        quality.assert_references([Case(reference="good"), Case("b", reference="bad")], "translation")
    assert quality.score(Case(reference="good", family="translation"), None) == Score(0.0, garbage=True, note="no answer")


@pytest.mark.parametrize(
    ("loads", "name", "told"),
    [
        ({"x": SimpleNamespace(score=1)}, "translation", "x has no function score"),
        ({"x": ImportError("no torch")}, "translation", "x cannot be loaded: ImportError: no torch"),
        (
            {"x": SimpleNamespace(score=abs), "y": SimpleNamespace(score=abs)},
            "translation",
            r"\? \(x\) and \? \(y\) claims the name of more than one",
        ),
        ({"x": SimpleNamespace(score=abs)}, "embedding", r"\? \(x\) claims the name of a family of this library"),
        ({"x": SimpleNamespace(score=lambda answer, reference: 0.5)}, "translation", "returned float, not a Score"),
        ({"x": SimpleNamespace(score=lambda answer, reference: 1 / 0)}, "translation", "ZeroDivisionError"),
    ],
)
def test_own_evaluators_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, loads: dict[str, Any], name: str, told: str) -> None:
    installed(monkeypatch, loads, name)
    with pytest.raises(errors.RequestInvalid, match=rf"case 'a': .*{told}"):
        quality.score(Case("a", reference="x", family=name), "answer")


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.1])
def test_a_score_is_between_zero_and_one(value: float) -> None:
    with pytest.raises(ValueError, match="not within"):
        Score(value)


# --- embeddings ---------------------------------------------------------------------------------------------------------------------

VECTORS = [[1.0, 0.2, 0.0], [0.9, 0.3, 0.1], [0.0, 1.0, 0.3], [0.1, 0.0, 1.0], [0.8, 0.1, 0.3]]
"""A query and four documents, of which 0 and 3 are near."""


def forms(vectors: list[list[float]]) -> list[Any]:
    flat = [number for vector in vectors for number in vector]
    return [
        vectors,
        {"embeddings": vectors},
        {"data": [{"embedding": vector, "index": index} for index, vector in reversed(list(enumerate(vectors)))]},
        {
            "data": [
                {"embedding": base64.b64encode(np.array(vector, "<f4").tobytes()).decode(), "index": index} for index, vector in enumerate(vectors)
            ]
        },
        {"outputs": [{"name": "tokens", "shape": [1], "data": [9]}, {"name": "embedding", "shape": [len(vectors), len(vectors[0])], "data": flat}]},
    ]


@pytest.mark.parametrize("form", range(5))
def test_every_form_of_answer_is_read_and_shuffled_dimensions_are_seen_by_known_vectors_only(form: int) -> None:
    reference = {"vectors": VECTORS, "relevant": [0, 3], "k": 2, "similarities": [0.9, 0.1, 0.0, 0.5]}
    good = embedding.score(forms(VECTORS)[form], reference)
    assert good.value == pytest.approx(1, abs=0.07) and not good.garbage and good.note.startswith("cosine 1.000, rank agreement ")
    shuffled = forms([vector[::-1] for vector in VECTORS])[form]
    assert embedding.score(shuffled, {"vectors": VECTORS}).value < 0.5
    assert embedding.score(shuffled, {"relevant": [0, 3], "k": 2}) == Score(1.0, note="recall@2 1.000")
    swapped = [VECTORS[0], VECTORS[2], VECTORS[1], *VECTORS[3:]]
    assert embedding.score(forms(swapped)[form], {"relevant": [0, 3], "k": 2}).value == 0.5


@pytest.mark.parametrize("key", ["relevance_score", "score"])
def test_rankings_are_read_and_what_they_leave_out_comes_last(key: str) -> None:
    results = [{"index": 2, key: 0.9}, {"index": 0, key: 0.4}]
    for answer in ({"results": results, "model": "m"}, results):
        assert embedding.score(answer, {"relevant": [0, 2], "k": 2}).value == 1.0
        assert embedding.score(answer, {"relevant": [1, 2], "k": 2}).value == 0.5
        assert embedding.score(answer, {"similarities": [0.5, 0.1, 0.9, 0.1]}).note == "rank agreement 1.000"


@pytest.mark.parametrize(
    ("answer", "reference", "why"),
    [
        ("text", {"similarities": [0.1, 0.9]}, "neither vectors of one length nor a ranking, but str text"),
        ({"error": "busy"}, {"similarities": [0.1, 0.9]}, "but an object with error"),
        ([[1.0, 0.0], [1.0]], {"similarities": [0.1, 0.9]}, "neither vectors"),
        ([], {"similarities": [0.1, 0.9]}, "neither vectors"),
        ([[1.0, math.nan], [0.0, 1.0], [1.0, 1.0]], {"similarities": [0.1, 0.9]}, "not finite"),
        ([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]], {"similarities": [0.1, 0.9]}, "all zeros"),
        ([[1.0, 2.0]] * 3, {"similarities": [0.1, 0.9]}, "same vector"),
        ([[1.0, 0.0], [0.0, 1.0]], {"similarities": [0.1, 0.9]}, "2 vectors, not one of the query and one of each of 2 documents"),
        ([[1.0, 0.0], [0.0, 1.0]], {"relevant": [1]}, "2 vectors, not"),
        ([[1.0, 0.0]], {"vectors": [[1.0, 0.0, 0.0]]}, "1 vectors of 2 numbers, not 1 of 3"),
        ({"results": [{"index": 0, "score": 1.0}]}, {"vectors": [[1.0]]}, "a ranking, but the reference asks for vectors"),
        ({"results": [{"index": 2, "score": 1.0}]}, {"similarities": [0.1, 0.9]}, "ranks documents"),
        ({"results": [{"index": 0, "score": math.inf}]}, {"relevant": [0]}, "not finite"),
        ({"results": [{"index": 0, "score": 1}, {"index": 1, "score": 1}]}, {"relevant": [0]}, "equally relevant"),
    ],
)
def test_garbage_vectors_and_rankings(answer: Any, reference: Any, why: str) -> None:
    found = embedding.score(answer, reference)
    assert found.garbage and found.value == 0 and why in found.note


@given(anything)
@settings(max_examples=25)
def test_any_answer_has_a_score(answer: Any) -> None:
    for family, reference in (
        ("embedding", {"relevant": [0], "k": 1}),
        ("embedding", {"vectors": [[1.0, 2.0]]}),
        *((f, "x") for f in ("asr", "llm", "tts")),
    ):
        found = quality.score(Case(reference=reference), answer, family)
        assert 0 <= found.value <= 1 and "\n" not in found.note and len(found.note) <= 200
    assert len(examples([Compared("a", answer, answer, answer, Score(1.0), Score(0.0))])) == 1


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ({}, "one of vectors, similarities, relevant is needed"),
        ("vectors", "valid dictionary"),
        ({"relevant": [0], "top": 1}, "top: Extra inputs"),
        ({"relevant": [-1]}, "not all numbers of documents"),
        ({"relevant": [2], "similarities": [0.1, 0.9]}, "not all numbers of documents"),
        ({"relevant": [1], "vectors": [[1.0], [2.0]]}, "not all numbers of documents"),
        ({"vectors": [[1.0], [1.0, 2.0]]}, "lists of one length"),
        ({"vectors": [[]]}, "lists of one length"),
        ({"vectors": [[0.0, 0.0]]}, "all zeros"),
        ({"vectors": [[math.nan]]}, "finite"),
        ({"similarities": [0.5, 0.5]}, "no order"),
        ({"similarities": [0.5, 0.1], "vectors": [[1.0], [1.0]]}, "a query and 1 documents, similarities of 2"),
    ],
)
def test_a_reference_that_says_nothing_is_refused_before_anything_is_asked(reference: Any, told: str) -> None:
    with pytest.raises(errors.RequestInvalid, match=rf"case 'b': its reference of family embedding: .*{told}"):
        quality.assert_references([Case("a"), Case("b", reference=reference)], "embedding")


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6), st.data())
@settings(max_examples=30)
def test_rank_agreement_is_one_with_itself_and_minus_one_upside_down(values: list[float], data: st.DataObject) -> None:
    wanted = 1.0 if len(set(values)) > 1 else 0.0
    assert embedding.kendall(values, values) == pytest.approx(wanted)
    assert embedding.kendall(values, [-value for value in values]) == pytest.approx(-wanted)
    other = data.draw(st.lists(st.floats(-1, 1), min_size=len(values), max_size=len(values)))
    assert embedding.kendall(values, other) == pytest.approx(embedding.kendall(other, values))


# --- speech to text -----------------------------------------------------------------------------------------------------------------


def texts(text: str) -> list[Any]:
    return [
        text,
        {"text": text},
        {"choices": [{"message": {"role": "assistant", "content": text}}]},
        {"choices": [{"text": text, "index": 0}]},
        {
            "outputs": [
                {"name": "n", "datatype": "INT64", "shape": [1], "data": [1]},
                {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": [[text]]},
            ]
        },
    ]


@pytest.mark.parametrize("form", range(5))
def test_texts_are_read_in_every_form(form: int) -> None:
    assert asr.score(texts("The quick brown fox")[form], "the quick brown fox").value == 1.0
    assert llm.score(texts("The quick brown fox")[form], {"contains": "quick"}).value == 1.0


@pytest.mark.parametrize(
    ("heard", "said", "wer"),
    [
        ("The quick, brown fox!", "the quick brown fox", 0.0),
        ("don\u2019t stop", "don't stop", 0.0),
        ("twenty-one", "twenty one", 0.0),
        ("the quick brown", "the quick brown fox", 0.25),
        ("a quick brown fox jumps", "the quick brown fox", 0.5),
    ],
)
def test_word_error_rate_after_normalisation(heard: str, said: str, wer: float) -> None:
    found = asr.score({"text": heard}, said)
    assert found.value == pytest.approx(1 - wer) and f"WER {wer:.3f}" in found.note and not found.garbage


def test_character_error_rate_where_words_have_no_spaces_and_silence() -> None:
    found = asr.score("東京都に住む", {"text": "東京都に住んで", "metric": "cer"})
    assert found.value == pytest.approx(1 - 2 / 7) and "WER 1.000" in found.note
    assert asr.score("...", "").value == 1.0


@pytest.mark.parametrize(
    ("heard", "said", "why"),
    [
        ({"no": "text"}, "hello", "no text, but an object with no"),
        (b"bytes", "hello", "no text, but bytes"),
        ("  ...  ", "hello", "heard nothing"),
        ("Thank you for watching.", "", "in silence: thank you"),
        ("zyxw vu tsrq", "hello big world", "CER 0.800"),
        ("hello world " + "you know " * 20, "hello world", "42 words where 2 were said"),
    ],
)
def test_garbage_transcripts(heard: Any, said: str, why: str) -> None:
    found = asr.score(heard, said)
    assert found.garbage and why in found.note


# --- text generation ----------------------------------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}


@pytest.mark.parametrize(
    ("answer", "reference", "value", "note"),
    [
        (" 4\n", "4", 1.0, "exact 1"),
        ("five", "4", 0.0, "exact 0"),
        ("Four", {"exact": ["4", "four"], "ignore_case": True}, 1.0, "exact 1"),
        ("It is Paris.", {"contains": ["Paris", "France"]}, 0.5, "contains 0.5"),
        ("It is paris.", {"regex": r"\bPARIS\b", "ignore_case": True}, 1.0, "regex 1"),
        ('{"name": "Ada"}', {"json_schema": SCHEMA}, 1.0, "format 1"),
        ('{"name": "Ada"}', {"format": "json", "contains": "Bob"}, 0.5, "format 1, contains 0"),
        ("one two three", {"words": 6}, 0.5, "length 0.5"),
        ("[" + "0, " * 100 + "0]", {"format": "json"}, 1.0, "format 1"),
    ],
)
def test_texts_are_worth_the_mean_of_what_is_asked(answer: str, reference: Any, value: float, note: str) -> None:
    assert llm.score(answer, reference) == Score(value, note=note)


@pytest.mark.parametrize(
    ("answer", "reference", "why"),
    [
        ("  ", "4", "empty"),
        ({"choices": []}, "4", "no text, but an object with choices"),
        ("\ufffd\ufffd abc", "4", "2 of 6 characters are broken"),
        ("and so on " * 20, {"words": 60}, "repeats the same 3 words over 60 words: and so on"),
        ("Sure! {}", {"format": "json"}, "not JSON (Expecting value"),
        ('{"name": 1}', {"json_schema": SCHEMA}, "not as the schema wants it at $.name: 1 is not of type 'string'"),
        ("a" * 200_001, "4", "200,001 characters"),
        ("[" * 100_000, {"format": "json"}, "not JSON"),
    ],
)
def test_garbage_texts(answer: Any, reference: Any, why: str) -> None:
    found = llm.score(answer, reference)
    assert found.garbage and found.value == 0 and why in found.note


@pytest.mark.parametrize(
    ("family", "reference", "told"),
    [
        ("asr", {"text": "hello", "metric": "bleu"}, "metric: Input should be 'wer' or 'cer'"),
        ("asr", 4, "text: Input should be a valid string"),
        ("llm", {}, "one of format, json_schema, exact, contains, regex, words, judged is needed"),
        ("llm", {"regex": "("}, "regex: it is not a regular expression"),
        ("llm", {"json_schema": {"type": "thing"}}, "json_schema: 'thing' is not valid"),
        ("llm", {"contains": []}, "is needed"),
        ("tts", {"text": ""}, "text: String should have at least 1 character"),
        ("tts", {"text": "hello", "silence_share": 1.0}, "silence_share: Input should be less than 1"),
    ],
)
def test_references_of_the_other_families_are_refused_early_too(family: str, reference: Any, told: str) -> None:
    with pytest.raises(errors.RequestInvalid, match=f"case 'a': its reference of family {family}: .*{re.escape(told)}"):
        quality.assert_references([Case("a", reference=reference)], family)


@pytest.mark.parametrize(("module", "family", "reference"), [("jiwer", "asr", "hello"), ("jsonschema", "llm", {"json_schema": SCHEMA})])
def test_what_is_not_installed_is_named_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch, module: str, family: str, reference: Any) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(errors.RequestInvalid, match=rf"case 'a': .*{module} is not installed; install kfp-serving-components\[quality\]"):
        quality.assert_references([Case("a", reference=reference)], family)
    assert llm.score("4", "4").value == 1.0


# --- text to speech -----------------------------------------------------------------------------------------------------------------

TEXT = "the quick brown fox jumps over the lazy dog"


def tone(seconds: float = 3.0, rate: int = 8_000, level: float = 0.3) -> np.ndarray:
    return level * np.sin(2 * np.pi * 220 * np.arange(round(seconds * rate)) / rate)


def wav(samples: np.ndarray, rate: int = 8_000, width: int = 2, channels: int = 1) -> bytes:
    """By the standard library, so that the reader is not tested against itself."""
    full = np.clip(np.repeat(samples, channels), -1, 1)
    raw = (np.round(full * 127) + 128).astype(np.uint8) if width == 1 else (np.round(full * (2 ** (8 * width - 1) - 1))).astype("<i4")
    data = raw.tobytes() if width in (1, 4) else raw.view(np.uint8).reshape(-1, 4)[:, :width].tobytes()
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(data)
    return out.getvalue()


def float_wav(samples: np.ndarray, rate: int = 8_000, kind: str = "<f4", extensible: bool = False, data_size: int | None = None) -> bytes:
    data = samples.astype(kind).tobytes()
    bits = np.dtype(kind).itemsize * 8
    form = b"".join(value.to_bytes(size, "little") for value, size in ((65534 if extensible else 3, 2), (1, 2), (rate, 4), (0, 4), (0, 2), (bits, 2)))
    if extensible:
        form += (22).to_bytes(2, "little") + bytes(6) + (3).to_bytes(2, "little") + bytes(14)
    head = b"LIST" + (3).to_bytes(4, "little") + b"odd\x00" + b"fmt " + len(form).to_bytes(4, "little") + form
    return b"RIFF\xff\xff\xff\xffWAVE" + head + b"data" + (len(data) if data_size is None else data_size).to_bytes(4, "little") + data


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_wav_of_integers_is_read(width: int, channels: int) -> None:
    audio = tts.read_wav(wav(tone(), width=width, channels=channels))
    assert audio.sample_rate_hz == 8_000 and audio.duration_s == pytest.approx(3) and audio.samples.shape[1] == channels
    assert np.abs(audio.samples[:, 0] - tone()).max() <= 0.5 / 2 ** (8 * width - 1) + 2.0 ** (1 - 8 * width) * 1.01
    assert audio.silence_share == 0 and audio.clipped_share == 0


def test_wav_of_floats_extensible_and_streamed_is_read() -> None:
    plain = [float_wav(tone(), kind="<f4"), float_wav(tone(), kind="<f8"), float_wav(tone(), extensible=True)]
    for content in [*plain, float_wav(tone(), data_size=0), float_wav(tone(), data_size=2**32 - 1)]:
        assert np.abs(tts.read_wav(content).samples[:, 0] - tone()).max() < 1e-6


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not a WAV"),
        (b"ID3\x04mp3 and so on", "not a WAV file, for which OpenAI's API is asked by response_format"),
        (wav(tone())[:30], "cut short"),
        (wav(tone())[:36], "no data"),
        (b"RIFF\x00\x00\x00\x00WAVEdata\x00\x00\x00\x00", "before their format"),
        (float_wav(tone(), kind="<f2"), "not known"),
        (float_wav(np.full(16_000, np.nan)), "not numbers"),
        (wav(tone(3) * 0), "100% silent"),
        (wav(np.zeros(0)), "0.0 s"),
        (wav(tone(3, level=50.0)), "% clipped"),
        (wav(tone(30)), "30.0 s"),
        (wav(tone(0.1)), "0.1 s"),
        ("text", "neither a WAV file nor one in base64, but str text"),
        ({"audio": "*"}, "neither a WAV file nor one in base64, but an object with audio"),
    ],
)
def test_garbage_audio(content: Any, why: str) -> None:
    found = tts.score(content, TEXT)
    assert found.garbage and why in found.note


@given(st.binary(max_size=200), st.integers(0, 60))
@settings(max_examples=30)
def test_no_bytes_break_the_reader(noise: bytes, cut: int) -> None:
    whole = wav(tone(0.1))
    for content in (noise, b"RIFF....WAVE" + noise, whole[:cut] + noise + whole[cut:]):
        assert 0 <= tts.score(content, TEXT).value <= 1


def test_speech_of_the_right_length_and_level_is_good_in_every_form_and_faults_cost() -> None:
    encoded = base64.b64encode(wav(tone())).decode()
    for form in (wav(tone()), {"audio": encoded}, {"outputs": [{"datatype": "BYTES", "shape": [1], "data": [encoded]}]}):
        assert tts.score(form, TEXT) == Score(1.0, note="3.0 s at 8000 Hz, 0% silent, 0% clipped")
    half = tts.score(wav(np.concatenate([tone(1), np.zeros(16_000)])), TEXT)
    assert not half.garbage and half.value == pytest.approx((1 / 3) / 0.6, abs=0.02)
    longer = tts.score(wav(tone(4)), {"text": TEXT, "duration_s": 3.0})
    assert longer.value == pytest.approx(0.75) and not longer.garbage
    other = tts.score(wav(tone()), {"text": TEXT, "sample_rate_hz": 16_000})
    assert other.value == 0.0 and not other.garbage
    peaks = tone()
    peaks[::100] = 1.0
    assert tts.read_wav(wav(peaks)).clipped_share == 0.0


# --- examples -----------------------------------------------------------------------------------------------------------------------


def compared(case: str, stable: float, candidate: float, *, bad: bool = False, answer: Any = "an answer") -> Compared:
    return Compared(case, {"texts": [case]}, "what stable said", answer, Score(stable), Score(candidate, garbage=bad, note="why"))


def test_examples_are_the_worst_of_each_case_garbage_first_also_over_what_was_kept() -> None:
    first = examples([compared("a", 1, 0.9), compared("a", 1, 0.2), compared("b", 0.5, 0.5), compared("c", 0.5, 0.9)])
    assert [(found["case"], found["candidate"]["score"]) for found in first] == [("a", 0.2)]
    vectors = {"embeddings": [[0.1, 0.2] * 192]}
    found = examples([compared("d", 0.9, 0.8, bad=True, answer=vectors), compared("a", 1, 0.7)], json.loads(json.dumps(first)))
    assert [one["case"] for one in found] == ["d", "a"] and found[1] == first[0]
    assert found[0]["candidate"] == {"answer": '{"embeddings": ["384 numbers, first 0.1, 0.2"]}', "score": 0.8, "garbage": True, "note": "why"}
    assert found[0]["request"] == '{"texts": ["d"]}' and found[0]["stable"]["answer"] == "what stable said"
    assert [one["case"] for one in examples([compared(str(n), 1, n / 20) for n in range(10)])] == list("012345")


@pytest.mark.parametrize("letter", ["a", "é", "\U0001f600", '"'])
def test_examples_are_bounded_whatever_was_said(letter: str) -> None:
    pairs = [
        Compared(str(n) + letter * 300, {"text": letter * 999}, [letter * 999], letter * 999, Score(1.0), Score(n / 10, note=letter * 999))
        for n in range(9)
    ]
    found = examples([compared("kept", 1, 0), *pairs])
    assert len(json.dumps(found)) <= 6000 and len(found) >= (6 if letter == "a" else 2) and found[0]["case"] == "kept"
    assert all(len(one["request"]) <= 200 for one in found)


def test_without_k_as_many_are_looked_at_as_are_relevant() -> None:
    swapped = {"results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]}
    assert embedding.score(swapped, {"relevant": [0]}) == Score(0.0, note="recall@1 0.000")
    assert embedding.score(swapped, {"relevant": [0, 1]}).value == 1.0


@pytest.mark.parametrize("index", [10_000, 10**9, 10**30])
def test_a_document_that_there_cannot_be_is_garbage(index: int) -> None:
    answer = {"results": [{"index": index, "relevance_score": 0.5}, {"index": 0, "relevance_score": 0.4}]}
    assert embedding.score(answer, {"relevant": [0]}).garbage


@pytest.mark.parametrize("reference", [{"contains": ""}, {"regex": ""}, {"contains": [], "words": 3}, {"contains": ["a", ""]}])
def test_what_every_answer_holds_is_no_reference(reference: dict[str, Any]) -> None:
    with pytest.raises(errors.RequestInvalid, match="found in every answer"):
        llm.check(reference)
