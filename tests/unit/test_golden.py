"""Golden sets: what is read from their lines, what is said of a line that is no case, and how a sample is asked, over real HTTP on loopback."""

import itertools
import json
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standins.loopback import Answering, served

from kfp_components import errors
from kfp_components.cluster import Endpoint
from kfp_components.probes import Prober, ProbeResult, golden
from kfp_components.request import SmokeCase, parse_case

WHERE = "https://user:hunter2secret@host/golden.jsonl?token=hunter2secret"
SHOWN = "golden set https://host/..."
PREFIX = "/bge"


# --- what is read ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"name": "a"}', ["a"]),
        ('{"name": "a"}\n{"name": "b"}\n', ["a", "b"]),
        ('\n  \n{"name": "a"}\n\n\t\n{"name": "b"}\n\n', ["a", "b"]),
        ('{"name": "a"}\r\n\r\n{"name": "b"}\r\n', ["a", "b"]),
        ('{"name": "Grüße, 東京 🚂"}\n{"name": "\\u6771"}', ["Grüße, 東京 🚂", "東"]),
        ('{"name": "a"}\n{"name": "b"}\n{"name": "a"}', ["a", "b", "a"]),  # twice in the set is twice as often asked
        ("{}", ["case"]),
    ],
)
def test_each_line_that_is_not_blank_is_a_case(text: str, names: list[str]) -> None:
    assert [case.name for case in golden.parse(text, WHERE)] == names


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{name: a}", "not JSON (Expecting property name enclosed in double quotes"),
        ('{"name": "a"', "not JSON ("),
        ('{"name": "a"} {"name": "b"}', "not JSON (Extra data"),
        ("[]", "expected a mapping of keys to values, found list"),
        ('[{"name": "a"}]', "expected a mapping of keys to values, found list"),
        ("null", "expected a mapping of keys to values, found NoneType"),
        ('"a"', "expected a mapping of keys to values, found str"),
        ('{"nme": "a"}', "nme is not a known key; did you mean name?"),
        ('{"expect": {"ok": true}}', "'ok' is not a JSON pointer"),
        ('{"method": "DELETE"}', "method: Input should be 'GET' or 'POST'"),
        ('{"timeout_s": 0}', "timeout_s: Input should be greater than 0"),
        ('{"body": NaN}', "not JSON (Out of range float values are not JSON compliant"),
        ('{"body": "\\ud800"}', "not JSON ("),
        ('{"path": "/a\\u0007"}', "it must start with /, stay below the model's route and be printable"),
        ('{"path": "../admin"}', "it must start with /, stay below the model's route and be printable"),
    ],
)
@pytest.mark.parametrize("before", ["", '{"name": "a"}\n', '{"name": "a"}\r\n\r\n \n'])
def test_a_line_that_is_no_case_is_named_with_its_file(before: str, line: str, words: str) -> None:
    with pytest.raises(errors.RequestInvalid) as told:
        golden.parse(f'{before}{line}\n{{"name": "b"}}', WHERE)
    assert str(told.value).startswith(f"{SHOWN}, line {before.count(chr(10)) + 1}: ") and words in str(told.value)


@pytest.mark.parametrize("line", ['\ufeff{"name": "a"}', *(f'{{"name": "a{end}b"}}' for end in "\u2028\u2029\x85")])
def test_what_editors_and_json_writers_put_into_a_line_is_read(line: str) -> None:
    assert len(golden.parse(line, WHERE)) == 1


def test_what_is_nested_too_deep_is_named() -> None:
    with pytest.raises(errors.RequestInvalid, match="line 1"):
        golden.parse("[" * 100_000, WHERE)


@pytest.mark.parametrize("text", ["", "\n", " \r\n\t\n"])
def test_an_empty_one_is_refused(text: str) -> None:
    with pytest.raises(errors.RequestInvalid) as told:
        golden.parse(text, WHERE)
    assert str(told.value) == f"{SHOWN}: it holds no case"


def test_too_many_cases_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "MOST_CASES", 3)
    assert len(golden.parse("{}\n\n" * 3, WHERE)) == 3
    with pytest.raises(errors.RequestInvalid) as told:
        golden.parse("{}\n\n" * 4, WHERE)
    assert str(told.value) == f"{SHOWN}: more than 3 cases; give a sample of them"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"nme": 1}', '{"timeout_s": -1}'])
def test_no_message_shows_a_credential_of_its_uri_nor_what_a_line_holds(text: str) -> None:
    with pytest.raises(errors.RequestInvalid) as told:
        golden.parse(text + "\n" if text else text, WHERE)
    assert "hunter2secret" not in str(told.value) and "user" not in str(told.value)
    with pytest.raises(errors.RequestInvalid) as told:
        golden.parse('{"body": {"password": "hunter2secret"}, "expect": "hunter2secret"}', "file:///golden.jsonl")
    assert str(told.value).startswith("golden set file:///golden.jsonl, line 1: ") and "hunter2secret" not in str(told.value)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
POINTERS = TEXT.map(lambda text: f"/{text}")
CASES = st.fixed_dictionaries(
    {},
    optional={
        "name": TEXT,
        "protocol": st.sampled_from(["v2", "json"]),
        "path": st.sampled_from(["/", "/embed", "/v2/models/bge/infer?x=1"]),
        "method": st.sampled_from(["GET", "POST"]),
        "body": JSON,
        "expect_status": st.integers(100, 599),
        "expect": st.dictionaries(POINTERS, JSON, max_size=3),
        "expect_shape": st.dictionaries(POINTERS, st.lists(st.integers(0, 9), max_size=3), max_size=3),
        "tolerance": st.floats(0, 10),
        "timeout_s": st.floats(0.1, 600),
    },
)


@given(st.lists(CASES, min_size=1, max_size=5), st.sampled_from(["\n", "\r\n", "\n\n", " \n"]))
def test_what_is_written_as_lines_is_read_as_it_was(values: list[dict[str, Any]], end: str) -> None:
    cases = tuple(parse_case(each, "case") for each in values)
    assert golden.parse(end.join(map(json.dumps, values)), WHERE) == cases
    assert golden.parse(end.join(json.dumps(case.model_dump(mode="json")) for case in cases), WHERE) == cases


# --- what is asked --------------------------------------------------------------------------------------------------------------------


class Model(Answering):
    """Answers POST below its route; ``asked`` are the paths, in order. ``/wrong...`` is answered wrong, ``/broken`` with 500, ``/cut`` half."""

    asked: list[str]
    wbufsize = -1  # one packet an answer; two wait for each other

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        path = self.path.removeprefix(PREFIX)
        self.asked.append(path)
        if path == "/broken":
            self.answer(500, b"no", "text/plain")
        else:
            self.answer(200, json.dumps({"ok": not path.startswith("/wrong")}).encode(), "application/json", cut=path == "/cut")


@contextmanager
def model() -> Iterator[tuple[Prober, list[str]]]:
    """A prober of it, and what it was asked."""
    paths: list[str] = []
    with served(type("Counting", (Model,), {"asked": paths})) as address, prober_of(address) as prober:
        yield prober, paths


def prober_of(address: str) -> Prober:
    return Prober(Endpoint(f"http://{address}", "bge.ai-ml", ("bge.ai-ml", address)), "bge", PREFIX)


def case(path: str) -> SmokeCase:
    return parse_case({"name": path, "path": path, "body": {}, "expect": {"/ok": True}}, path)


def asked(prober: Prober, *paths: str, number: int, concurrency: int = 4, **more: Any) -> tuple[golden.Answers, list[tuple[int, int]]]:
    """The paths, by turns: what was found, and what was told, in this order."""
    told: list[tuple[int, int]] = []
    cases = [case(path) for path in itertools.islice(itertools.cycle(paths), number)]
    found = golden.ask(prober, cases, concurrency, lambda *done: told.append(done), **more)
    return found, told


def test_right_answers_are_no_failures_and_each_has_its_seconds() -> None:
    with model() as (prober, paths):
        found, _ = asked(prober, "/right", number=25)
    assert (found.requests, found.failures, found.unreachable, found.problems) == (25, 0, 0, [])
    assert len(found.seconds) == 25 and min(found.seconds) > 0 and paths == ["/right"] * 25


@pytest.mark.parametrize("concurrency", [1, 4])  # more at once would be refused by the small server's queue
def test_each_wrong_answer_is_counted(concurrency: int) -> None:
    with model() as (prober, paths):
        found, _ = asked(prober, "/right", "/wrong", "/broken", "/cut", number=60, concurrency=concurrency)
    assert len(paths) == found.requests == len(found.seconds) + paths.count("/cut") == 60 and len(set(paths)) == 4
    assert found.failures == 60 - paths.count("/right") and found.unreachable == 0
    assert {problem.split(":")[0] for problem in found.problems} == {"/wrong", "/broken", "/cut"}


def test_where_nobody_answers_it_is_no_failure() -> None:
    with socket.socket() as nobody:  # bound and not listening: it refuses, and nobody else gets the port
        nobody.bind(("127.0.0.1", 0))
        with prober_of(f"127.0.0.1:{nobody.getsockname()[1]}") as prober:
            found, told = asked(prober, "/right", number=7)
    assert (found.requests, found.failures, found.unreachable, found.seconds) == (0, 0, 7, [])
    assert len(found.problems) == 1 and "cannot be reached (bge.ai-ml -> " in found.problems[0] and len(told) == 7


def test_a_few_different_problems_are_kept() -> None:
    with model() as (prober, _):
        found, _ = asked(prober, *(f"/wrong-{number}" for number in range(12)), number=80)
        one, _ = asked(prober, "/wrong", number=20)
    assert found.failures == 80 and len(found.problems) == len(set(found.problems)) == golden.KEPT_PROBLEMS == 5
    assert one.failures == 20 and len(one.problems) == 1


def test_where_nobody_answers_at_all_the_rest_is_not_sent() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with prober_of(f"127.0.0.1:{nobody.getsockname()[1]}") as prober:
            found, told = asked(prober, "/right", number=1000, concurrency=1)
    assert golden.NOBODY <= found.unreachable < 1000 and found.unreachable + found.left_out == 1000 == len(told)


def test_one_that_nobody_answered_is_sent_once_more() -> None:
    class Refused(Prober):
        """Every other request reaches nobody."""

        sent = 0

        def run(self, cases: Iterable[SmokeCase]) -> list[ProbeResult]:
            self.sent += 1
            return super().run(cases) if self.sent % 2 == 0 else [ProbeResult("x", 0.0, "nobody", unreachable=True)]

    with model() as (prober, paths):
        with Refused(prober.endpoint, "bge", PREFIX) as refused:
            found, _ = asked(refused, "/right", number=10, concurrency=1)
    assert (found.requests, found.unreachable, len(paths)) == (10, 0, 10)


def test_none_is_sent_once_it_is_told_to_end() -> None:
    with model() as (prober, paths):
        found, told = asked(prober, "/right", number=30, concurrency=1, go_on=lambda: len(paths) < 12)
    assert (found.requests, found.left_out, len(paths), len(told)) == (12, 18, 12, 30)


def test_it_tells_how_many_are_done() -> None:
    with model() as (prober, _):
        _, told = asked(prober, "/right", "/wrong", number=9)
    assert told == [(done, 9) for done in range(1, 10)]
