"""A judge model by its URL: what it is asked, what counts as its answer, and that silence says nothing about a version."""

import json
from typing import Any

import httpx
import pytest

from kfp_components import errors
from kfp_components.quality import Score, llm
from kfp_components.request import SmokeCase
from kfp_components.rollout.judge_model import TRIES, JudgeModel

POLITE = "Is it polite?"
CASE = SmokeCase(
    name="a", protocol="openai_chat", body={"messages": [{"role": "user", "content": "Where is my parcel?"}]}, reference={"judged": POLITE}
)
ANSWER = {"choices": [{"message": {"content": "How should I know"}}]}
FOUND = llm.score(ANSWER, CASE.reference)


class Server(httpx.BaseTransport):
    """A stand-in for a judge: one status and one text after the other, the last one for ever; what it was sent is kept."""

    def __init__(self, *says: tuple[int, Any]) -> None:
        self.says, self.sent = list(says), list[httpx.Request]()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.sent.append(request)
        status, said = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        if status == 0:
            raise httpx.ConnectError("nobody is there")
        return httpx.Response(status, json={"choices": [{"message": {"content": said}}]} if isinstance(said, str) else said)


def judge(server: Server, token: str | None = None) -> JudgeModel:
    return JudgeModel("https://judge.example/v1/", "grader", token, server)


def test_it_is_asked_for_a_number_and_the_answer_is_data() -> None:
    server = Server((200, "7"))
    assert judge(server, "hunter2").score(CASE, ANSWER, FOUND) == Score(0.7, note="judged 0.7")
    (sent,) = server.sent
    assert (str(sent.url), sent.headers["authorization"]) == ("https://judge.example/v1/chat/completions", "Bearer hunter2")
    body = json.loads(sent.content)
    assert (body["model"], body["temperature"]) == ("grader", 0)
    instructions, material = (message["content"] for message in body["messages"])
    assert POLITE in instructions and "How should I know" in material and "parcel" in material and "How should" not in instructions
    assert "authorization" not in (judge(other := Server((200, "7"))).score(CASE, ANSWER, FOUND), other.sent[0].headers)[1]


@pytest.mark.parametrize(("text", "value"), [("7", 0.7), (" 10\n", 1.0), ("0", 0.0), ("8/10", 0.8), ("8 / 10.", 0.8)])
def test_a_judgement(text: str, value: float) -> None:
    assert llm.judgement(text) == value


@pytest.mark.parametrize("text", ["", "11", "-1", "7.5", "good", "Score: 7", "7 because it is polite", "7\n8", "100", "\u0667"])
def test_anything_else_is_none(text: str) -> None:
    assert llm.judgement(text) is None


SILENT: dict[str, tuple[int, Any]] = {
    "prose": (200, "I would say seven."),
    "another form": (200, {"error": "no"}),
    "a list": (200, [1]),
    "an error": (500, "7"),
    "nobody": (0, ""),
}


@pytest.mark.parametrize("what", SILENT)
def test_what_it_does_not_say_says_nothing_about_a_version(what: str) -> None:
    server = Server(SILENT[what])
    with pytest.raises(errors.Unreachable, match=r"quality\.judge_url https://judge\.example/v1/chat/completions: "):
        judge(server).score(CASE, ANSWER, FOUND)
    assert len(server.sent) == TRIES
    again = Server(SILENT[what], (200, "6"))
    assert judge(again).score(CASE, ANSWER, FOUND) == Score(0.6, note="judged 0.6")


def test_it_is_not_asked_for_what_is_known_without_it() -> None:
    server = Server((200, "7"))
    empty = {"choices": [{"message": {"content": " "}}]}
    useless = llm.score(empty, CASE.reference)
    assert useless.garbage and judge(server).score(CASE, empty, useless) == useless
    plain = CASE.model_copy(update={"reference": {"contains": "know"}})
    assert judge(server).score(plain, ANSWER, llm.score(ANSWER, plain.reference)) == Score(1.0, note="contains 1")
    assert not server.sent


def test_its_judgement_is_half_of_the_score_beside_other_things() -> None:
    case = CASE.model_copy(update={"reference": {"contains": ["know", "parcel"], "judged": POLITE}})
    found = judge(Server((200, "10"))).score(case, ANSWER, llm.score(ANSWER, case.reference))
    assert found == Score(0.75, note="contains 0.5, judged 1")


def test_a_criterion_has_words() -> None:
    with pytest.raises(errors.RequestInvalid, match="judged"):
        llm.check({"judged": ""})
    assert llm.judged("exact") is None and llm.judged({"judged": POLITE}) == POLITE
