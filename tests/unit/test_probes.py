"""Probes over real HTTP on loopback: what is sent, what is read of the answer, and what is said of one that is not as expected."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from standins.loopback import Answering, served

from kfp_components import names, probes
from kfp_components.cluster import Endpoint
from kfp_components.request import RevalidateRules, parse_case
from kfp_components.rollout import revalidate


class Plain(Answering):
    """Answers each path as ``pages`` says (status, body, content type), and says the version that it was asked for."""

    pages: dict[str, tuple[int, bytes, str]]
    said: str | None = None
    wbufsize = -1

    def do_GET(self) -> None:
        asked = self.headers.get(names.VERSION_HEADER)
        version = self.said or asked
        status, body, kind = self.pages[self.path]
        self.answer(status, body, kind, **({names.VERSION_HEADER: version} if version else {}))


@contextmanager
def plain(pages: dict[str, tuple[int, bytes, str]], *, said: str | None = None, **more: Any) -> Iterator[probes.Prober]:
    with served(type("Pages", (Plain,), {"pages": pages, "said": said})) as address:
        with probes.Prober(Endpoint(f"http://{address}", "m.ai-ml", ("m.ai-ml",)), "m", "", **more) as prober:
            yield prober


@pytest.mark.parametrize(
    ("body", "kind", "value"),
    [
        (b'{"a": 1}', "application/json", {"a": 1}),
        (b'{"a": 1}', "application/problem+json; charset=utf-8", {"a": 1}),
        (b'{"a": 1}', "", {"a": 1}),
        (b"{", "application/json", "{"),
        (b"Hallo", "text/plain", "Hallo"),
        (b"1", "text/plain", "1"),
        (b"RIFF\x00", "audio/wav", b"RIFF\x00"),
        (b"", "application/octet-stream", b""),
    ],
)
def test_the_value_of_an_answer(body: bytes, kind: str, value: object) -> None:
    with plain({"/": (200, body, kind)}) as prober:
        (result,) = prober.run([parse_case({"method": "GET"}, "case")])
    assert (result.problem, result.value, result.version) == (None, value, None) and type(result.value) is type(value)


def test_json_that_says_it_is_text_can_be_expected_all_the_same() -> None:
    with plain({"/": (200, b'{"a": 1}', "text/plain"), "/no": (200, b"a", "text/plain")}) as prober:
        right, wrong = prober.run([parse_case({"method": "GET", "path": path, "expect": {"/a": 1}}, "case") for path in ("/", "/no")])
    assert right.problem is None and wrong.problem == "case: GET /no: expected JSON; the answer: a"


@pytest.mark.parametrize(("said", "told"), [(None, None), ("v1", "case: GET /: asked for version v2, and v1 answered; the answer: {}")])
def test_a_pinned_request_must_be_answered_by_that_version(said: str | None, told: str | None) -> None:
    with plain({"/": (200, b"{}", "application/json")}, said=said, version="v2") as prober:
        (result,) = prober.run([parse_case({"method": "GET"}, "case")])
    assert (result.problem, result.version) == (told, said or "v2")


def test_a_record_of_cases_stays_one_when_cases_can_say_more() -> None:
    case = parse_case({"path": "/embed", "body": {"texts": ["a"]}, "expect": {"/x": 1}, "timeout_s": 3}, "case")
    recorded = revalidate._recorded((case, *probes.health_cases("bge", "v2")), "here", RevalidateRules()).cases
    assert recorded == "d19e1660cb284bbeee94dbcd444f555decfec488c0993cb7dc9b1d9cfaf7fd8a"
    scored = case.model_copy(update={"reference": {"relevant": [0]}})
    assert revalidate._recorded((scored,), "here", RevalidateRules()) != revalidate._recorded((case,), "here", RevalidateRules())
