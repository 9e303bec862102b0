"""Scores: references refused early, every form of answer, garbage, own evaluators by entry point."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfp_components import errors, quality
from kfp_components.quality import embedding
from kfp_components.quality.score import Score

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["embeddings", "data", "outputs", "results", "text"]), inner, max_size=3)
    ),
    max_leaves=10,
)


@dataclass(frozen=True)
class Case:
    name: str = "case"
    reference: Any = None
    family: str | None = None


# --- families -----------------------------------------------------------------------------------------------------------------------


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
        errors.RequestInvalid, match=r"case 'a': evaluator 'vision' is not known; there are .*embedding.*, translation; others are entry points"
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
    for reference in ({"relevant": [0], "k": 1}, {"vectors": [[1.0, 2.0]]}):
        assert 0 <= embedding.score(answer, reference).value <= 1


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
