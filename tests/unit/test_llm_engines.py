"""What every engine of a language model does: one body over the stand-in and over llama.cpp with the small model that a package ships."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from patience import seconds
from test_llm import Parrot

from kfp_components.models.engines import llama
from kfp_components.models.llm import Asked, LlmEngine, Piece
from kfp_components.models.tensors import Refused

COUNTING = Asked(prompt="one two three four five six seven eight nine ten eleven twelve", max_tokens=6, temperature=0, seed=1)
CHAT = Asked(({"role": "user", "content": "Where does she live? She lives in Rome."},), max_tokens=12, temperature=0, seed=1)


@pytest.fixture(scope="module", params=[Parrot, pytest.param(llama.LlamaEngine, marks=pytest.mark.full)])
def engine(request: pytest.FixtureRequest) -> LlmEngine:
    kind = request.param
    made: LlmEngine = kind(kind.Settings(n_ctx=256) if kind is llama.LlamaEngine else kind.Settings())
    return made


def whole(pieces: Iterator[Piece]) -> tuple[str, Piece]:
    found = list(pieces)
    assert all(piece.finish is None and piece.text for piece in found[:-1])
    return "".join(piece.text for piece in found), found[-1]


def test_it_can_answer(engine: LlmEngine) -> None:
    engine.check()


def test_it_stops_at_the_most_tokens_and_counts_them(engine: LlmEngine) -> None:
    text, last = whole(engine.generate(COUNTING))
    assert text and (last.finish, last.completion_tokens) == ("length", 6) and last.prompt_tokens >= 12


def test_it_says_the_same_again(engine: LlmEngine) -> None:
    assert whole(engine.generate(COUNTING)) == whole(engine.generate(COUNTING))
    assert whole(engine.generate(CHAT))[0]


def test_a_stop_is_no_part_of_the_text(engine: LlmEngine) -> None:
    text, _last = whole(engine.generate(COUNTING))
    word = text.split()[1]
    shorter, last = whole(engine.generate(replace(COUNTING, stop=(word,))))
    assert word not in shorter and text.startswith(shorter) and last.finish == "stop" and last.completion_tokens < 6


def test_it_stops_when_nobody_reads_any_more(engine: LlmEngine) -> None:
    began = time.perf_counter()
    whole(engine.generate(COUNTING))
    short_s = time.perf_counter() - began
    pieces = engine.generate(Asked(prompt=COUNTING.prompt, max_tokens=200))
    assert next(pieces).text
    began = time.perf_counter()
    pieces.close()  # type: ignore[attr-defined]
    assert next(engine.generate(COUNTING)).text
    assert time.perf_counter() - began < 5 * short_s + seconds(1)  # 200 tokens take over thirty times as long


def test_a_prompt_that_does_not_fit_is_refused(engine: LlmEngine) -> None:
    with pytest.raises(Refused, match="context"):
        next(engine.generate(Asked(prompt="a b " * 1000)))


@pytest.mark.parametrize("engine", [pytest.param(llama.LlamaEngine, marks=pytest.mark.full)], indirect=True)
def test_the_whole_answer_is_json_as_asked(engine: LlmEngine) -> None:
    assert engine.writes_json
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
    text, last = whole(engine.generate(Asked(CHAT.messages, max_tokens=40, temperature=0, seed=1, json_schema=schema)))
    assert last.finish == "stop" and set(json.loads(text)) == {"city"}
    cut, last = whole(engine.generate(Asked(CHAT.messages, max_tokens=3, temperature=0, seed=1, json_schema={})))
    assert cut.startswith("{") and last.finish == "length"  # what there is so far, as OpenAI does
    with pytest.raises(Refused, match="minLength"):
        next(engine.generate(Asked(CHAT.messages, json_schema={"type": "string", "minLength": 5, "maxLength": 2})))
