"""A golden set in the canary: both versions answer it, pinned; better or worse is judged by the scores, and with few users by them alone."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from memory_world import MODEL, World, asked, live
from stand_in import Behaviour
from standins.loopback import Answering, served

from kfp_components import errors, report
from kfp_components.probes.defaults import tone
from kfp_components.release import Point, Release
from kfp_components.request import PromoteRequest

QUERY, NEAR, FAR = [1.0, 0.0], [0.9, 0.1], [0.0, 1.0]
GOOD = {"ok": True, "embeddings": [QUERY, NEAR, FAR]}
SHUFFLED = {"ok": True, "embeddings": [QUERY, FAR, NEAR]}
CASE = {"name": "near is near", "path": "/embed", "body": {"texts": ["q", "near", "far"]}, "reference": {"relevant": [0], "k": 1}}


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    file = tmp_path / "golden.jsonl"
    file.write_text("\n".join(json.dumps({**CASE, "name": f"case {number}"}) for number in range(4)))
    return file


def wanted(golden: Path, quality: dict[str, Any] | None = None, **options: Any) -> PromoteRequest:
    told = {"golden_set": golden.as_uri(), "family": "embedding"}
    return asked(provenance=told, quality=quality or {}, **options)


def world(candidate: dict[str, Any], rate_per_s: float = 0.0, stable: dict[str, Any] = GOOD) -> World:
    there = World(rate_per_s=rate_per_s)
    there.rayservice(live())
    there.serve.behaviours = {f"{MODEL}-v1": Behaviour(smoke=stable), f"{MODEL}-v2": Behaviour(smoke=candidate)}
    return there


def judged(record: Release) -> Point:
    """The last look of the canary; those of the watch after it ask nothing."""
    return next(point for point in reversed(record.timeline) if point.pairs is not None)


def test_without_users_a_good_version_is_promoted_on_golden_requests_alone(golden: Path) -> None:
    there = world(GOOD)
    record = there.promote(wanted(golden))
    assert record.phase == "promoted" and not there.serve.served
    told = record.verdict.sentence if record.verdict else ""
    assert "by golden requests alone" in told and "1 point of 100 in the score of its answers, 1 point in useless ones" in told
    last = judged(record)
    assert last.pairs and last.pairs >= 300 and last.scores == {"stable": 1.0, "candidate": 1.0} and last.garbage == {"stable": 0, "candidate": 0}
    minutes = (last.unix_s - record.timeline[0].unix_s) / 60
    assert minutes < 10
    page, text = report.render(record.model_dump(mode="json")), report.markdown(record.model_dump(mode="json"))
    assert "golden requests, answered by both versions" in page and "| mean score |" in text and "by golden requests alone" in text


@pytest.mark.parametrize("rate_per_s", [0.0, 100.0])
def test_one_that_is_worse_only_in_quality_is_taken_back(golden: Path, rate_per_s: float) -> None:
    there = world(SHUFFLED, rate_per_s)
    end = there.process().outcome(lambda: there.promote(wanted(golden)))
    assert isinstance(end.error, errors.CanaryFailed), str(end)
    assert "the candidate is worse in" in end.words and "mean score is 0.0000, stable's 1.0000" in end.words
    assert there.users_get() == ("v1",) and there.record().phase == "rolled_back"
    assert f"{MODEL}-v2" not in there.serve.applications()
    page = report.render(there.record().model_dump(mode="json"))
    assert "Answers that lost most" in page and "case 0" in page


def test_users_requests_alone_do_not_pass_it(golden: Path) -> None:
    there = world(GOOD, rate_per_s=100.0)
    judge = {"judge_latency": False, "error_margin_percent": 5.0, "tick_s": 1.0, "max_minutes": 5.0}
    end = there.process().outcome(lambda: there.promote(wanted(golden, {"max_pairs": 40}, judge=judge)))
    assert isinstance(end.error, errors.Inconclusive), str(end)
    record = there.record()
    assert record.phase == "held" and judged(record).pairs == 40
    assert record.verdict is not None and (record.verdict.metrics["errors"]["e_pass"] or 0) > 20 > (record.verdict.metrics["quality"]["e_pass"] or 0)


def test_golden_requests_alone_do_not_decide_where_users_send_enough(golden: Path) -> None:
    there = world(GOOD, rate_per_s=20.0)
    record = there.promote(wanted(golden))
    assert record.phase == "promoted" and record.verdict is not None
    assert "by golden requests alone" not in record.verdict.sentence
    assert (record.verdict.metrics["errors"]["e_pass"] or 0) >= 20
    pairs = [point.pairs for point in record.timeline if point.pairs is not None]
    assert len(set(pairs[-5:])) == 1, "none are asked once they have shown what they can"


def test_a_set_that_stable_does_not_answer_is_no_measure(golden: Path) -> None:
    there = world({"ok": True}, stable={"ok": True})
    end = there.process().outcome(lambda: there.promote(wanted(golden)))
    assert isinstance(end.error, errors.MeterBroken) and "the golden set does not fit: stable's own answer to" in end.words, str(end)
    assert there.record().phase == "held" and there.users_get() == ("v1",)


def test_users_are_in_no_golden_request(golden: Path) -> None:
    there = world(GOOD, rate_per_s=100.0)
    record = there.promote(wanted(golden))
    point = judged(record)
    served = sum(there.serve.served.values())
    assert sum(point.requests.values()) <= served and not there.serve.failed and not there.serve.lost


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({**CASE, "reference": {"relevant": "far"}}, "case 'near is near'"),
        ({**CASE, "family": "swimming"}, "evaluator 'swimming' is not known"),
        ({**CASE, "refrence": 1}, "did you mean reference?"),
    ],
)
def test_a_bad_set_is_refused_before_anything_is_touched(golden: Path, line: dict[str, Any], told: str) -> None:
    golden.write_text(json.dumps(line))
    there = world(GOOD)
    before = there.text()
    end = there.process().outcome(lambda: there.promote(wanted(golden)))
    assert isinstance(end.error, errors.RequestInvalid) and told in end.words, str(end)
    assert there.text() == before and there.record().candidate_version == "v1"


def test_a_set_that_is_not_there_is_refused_before_anything_is_touched(golden: Path) -> None:
    golden.unlink()
    there = world(GOOD)
    end = there.process().outcome(lambda: there.promote(wanted(golden)))
    assert isinstance(end.error, errors.NotFound) and "golden set" in end.words, str(end)
    assert there.record().candidate_version == "v1"


def test_a_set_that_changes_under_way_breaks_the_meter(golden: Path) -> None:
    there = world(GOOD, rate_per_s=100.0)
    request = wanted(golden)
    there.killed_when(lambda record: record.step_index == 1 and record.weight_percent == 50.0, request)
    there.clock.sleep(120.0)  # the Lease of the killed one lapses
    golden.write_text(json.dumps(CASE))
    end = there.process().outcome(lambda: there.promote(request))
    assert isinstance(end.error, errors.MeterBroken) and "the golden set changed since the canary began" in end.words, str(end)
    assert there.record().phase == "held"


def test_a_killed_run_goes_on_with_the_pairs_that_were_judged(golden: Path) -> None:
    there = world(GOOD)
    request = wanted(golden)
    there.killed_when(lambda record: record.step_index == 1, request)
    before = there.record()
    there.clock.sleep(120.0)
    record = there.promote(request)
    assert record.phase == "promoted" and before.judge is not None
    assert (judged(record).pairs or 0) >= 300


def test_nothing_is_asked_while_it_is_paused(golden: Path) -> None:
    there = world(GOOD, rate_per_s=20.0)
    seen: list[int | None] = []

    def watch(record: Any) -> None:
        if record.timeline and (record.timeline[-1].pairs or 0) > 20 and not seen:
            there.kubectl("pause")
        if record.paused and record.timeline:
            seen.append(record.timeline[-1].pairs)
            if len(seen) == 20:
                there.kubectl("resume")

    record = there.promote(wanted(golden), watch=watch)
    assert record.phase == "promoted" and len(seen) >= 20 and len(set(seen[2:20])) == 1


def test_no_pairs_where_none_are_wanted(golden: Path) -> None:
    golden.unlink()  # it is not even read
    there = world(SHUFFLED, rate_per_s=100.0)
    record = there.promote(wanted(golden, {"max_pairs": 0}))
    assert record.phase == "promoted" and {point.pairs for point in record.timeline} == {None}


def test_who_does_not_hear_says_nothing_about_who_spoke(tmp_path: Path) -> None:
    spoken = {"ok": True, "audio": base64.b64encode(tone(2.0)).decode()}
    case = {"name": "hello", "path": "/speak", "body": {"text": "hello"}, "family": "tts", "reference": "Hello, is anybody there?"}
    (tmp_path / "golden.jsonl").write_text(json.dumps(case))
    there = world(spoken, stable=spoken)
    quality = {"asr_url": "http://hear-predictor.ai-ml.svc.cluster.local:8000/hear", "pairs_per_minute": 20}
    asked = wanted(tmp_path / "golden.jsonl", quality, judge={"judge_latency": False, "max_minutes": 1.0})
    end = there.process().outcome(lambda: there.promote(asked))
    assert isinstance(end.error, errors.Inconclusive), str(end)
    assert "quality.asr_url http://hear-predictor" in end.words and "it does not exist" in end.words
    assert there.record().phase == "held" and all(not point.pairs for point in there.record().timeline)


POLITE, RUDE = ({"ok": True, "text": text} for text in ("With pleasure.", "How should I know"))


def judged_by_a_model(folder: Path, url: str | None, **more: Any) -> PromoteRequest:
    case = {"name": "a", "path": "/say", "body": {"text": "Where is it?"}, "family": "llm", "reference": {"judged": "Is it polite?"}}
    (folder / "golden.jsonl").write_text(json.dumps(case))
    quality = {"margin_percent": 20, "garbage_margin_percent": 20, "pairs_per_minute": 60, **more}
    told = {"judge_url": url, "judge_model": "grader"} if url else {}
    return wanted(folder / "golden.jsonl", {**quality, **told}, judge={"judge_latency": False, "max_minutes": 1.0})


class Grader(Answering):
    """A stand-in for a judge model that likes pleasure, and knows its token."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        right = self.path == "/v1/chat/completions" and asked["model"] == "grader" and self.headers["authorization"] == "Bearer hunter2"
        said = {"choices": [{"message": {"content": "9" if "pleasure" in asked["messages"][-1]["content"] else "2"}}]}
        self.answer(200 if right else 401, json.dumps(said).encode(), "application/json")


@pytest.mark.parametrize(("candidate", "phase"), [(POLITE, "promoted"), (RUDE, "rolled_back")])
def test_a_model_grades_the_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, candidate: dict[str, Any], phase: str) -> None:
    monkeypatch.setenv("JUDGE_TOKEN", "hunter2")
    there = world(candidate, stable=POLITE)
    with served(Grader) as place:
        there.process().outcome(lambda: there.promote(judged_by_a_model(tmp_path, f"http://{place}/v1", judge_token={"env": "JUDGE_TOKEN"})))
    last = judged(there.record())
    assert there.record().phase == phase and last.scores == {"stable": 0.9, "candidate": 0.9 if candidate is POLITE else 0.2}
    assert "hunter2" not in there.record().model_dump_json()


def test_a_judge_that_is_silent_says_nothing_about_a_version(tmp_path: Path) -> None:
    there = world(RUDE, stable=POLITE)
    with served(Grader) as place:  # it is told no token
        end = there.process().outcome(lambda: there.promote(judged_by_a_model(tmp_path, f"http://{place}/v1", pairs_per_minute=20)))
    assert isinstance(end.error, errors.Inconclusive) and "quality.judge_url" in end.words and "status 401, no text" in end.words, str(end)
    assert there.record().phase == "held" and all(not point.pairs for point in there.record().timeline)


def test_a_judge_that_is_not_said_or_whose_token_is_missing_is_told_before_anything_is_touched(tmp_path: Path) -> None:
    there = world(POLITE, stable=POLITE)
    for given, kind, words in (
        (judged_by_a_model(tmp_path, None), errors.RequestInvalid, "case a: its reference says judged; say who judges: options.quality.judge_url"),
        (judged_by_a_model(tmp_path, "https://judge/v1", judge_token={"env": "NO_TOKEN"}), errors.NotFound, "environment variable NO_TOKEN"),
    ):
        end = there.process().outcome(lambda given=given: there.promote(given))
        assert isinstance(end.error, kind) and words in end.words, str(end)
        assert f"{MODEL}-v2" not in there.serve.applications()


@pytest.mark.parametrize(
    ("quality", "words"),
    [
        ({"judge_url": "https://judge/v1"}, "give judge_url and judge_model, or neither"),
        ({"judge_url": "http://judge.example/v1", "judge_model": "a"}, "no address of a judge model"),
        ({"judge_url": "https://me:hunter2@judge.example/v1", "judge_model": "a"}, "give judge_token"),
        ({"judge_token": {"env": "A"}}, "judge_token without judge_url"),
    ],
)
def test_a_judge_that_cannot_be_is_refused(golden: Path, quality: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.RequestInvalid, match=words) as told:
        wanted(golden, quality)
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize("with_set", [True, False])
def test_a_pause_before_the_first_candidate_request_holds_and_goes_on(golden: Path, with_set: bool) -> None:
    there = world(GOOD, rate_per_s=20.0)
    sent: list[str] = []

    def watch(record: Release) -> None:
        if not sent and record.events and "through the router now" in record.events[-1].message:
            sent.append("pause")
            there.kubectl("pause")
        if record.paused and len(sent) == 1:
            sent.append("resume")
            there.kubectl("resume")

    record = there.promote(wanted(golden, {} if with_set else {"max_pairs": 0}), watch=watch)
    assert record.phase == "promoted" and sent == ["pause", "resume"]


def test_the_budget_of_pairs_is_a_budget_of_its_own_and_the_same_command_has_a_new_one(golden: Path) -> None:
    there = world(GOOD, rate_per_s=0.0)
    request = wanted(golden, {"max_pairs": 200, "few_user_requests": 1500})
    end = there.process().outcome(lambda: there.promote(request))
    assert isinstance(end.error, errors.Inconclusive) and "the budget of 200 golden requests is spent" in end.words, str(end)
    assert there.promote(request).phase == "promoted"


def test_a_set_that_expects_nothing_is_refused(golden: Path) -> None:
    golden.write_text(json.dumps({"name": "anything", "path": "/", "body": {}}))
    there = world(GOOD)
    end = there.process().outcome(lambda: there.promote(wanted(golden)))
    assert isinstance(end.error, errors.RequestInvalid) and "no case says what a good answer is" in end.words, str(end)


def test_a_kill_loses_few_pairs(golden: Path) -> None:
    there = world(GOOD)
    there.killed_when(lambda record: bool(record.timeline and (record.timeline[-1].pairs or 0) >= 100), wanted(golden))
    kept = there.record().judge
    assert kept is not None and kept.state["golden"]["tests"]["pairs"] >= 75
