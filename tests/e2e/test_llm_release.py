"""A real small language model on real Ray: OpenAI's own client before, during and after a canary, token by token, and the format of the answers."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from patience import seconds, until
from world import MARGINS, NAMESPACE, RAYSERVICE, STEADY, command, record_of, snapshot

from kfp_components import errors, names, report, rollout
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.local.environment import Embedded
from kfp_components.request import PromoteRequest, parse

if TYPE_CHECKING:
    import openai

pytestmark = pytest.mark.usefixtures("forget")

MODEL = "chat"
MESSAGES: list[Any] = [
    {"role": "system", "content": "Repeat the text. Answer only with the text itself."},
    {"role": "user", "content": "Spring is here."},
    {"role": "assistant", "content": "Spring is here."},
    {"role": "user", "content": "Green apples are sour."},
]
SAID = "Green apples are sour."
SAMPLING = {"temperature": 0, "seed": 1}
LLM = {
    "model": MODEL,
    "uri": "hf://google/gemma-3-270m@main",
    "namespace": NAMESPACE,
    "rayservice": RAYSERVICE,
    "import_path": "kfp_components.models.llm:build",
    "steps": [50],
}
OPTIONS = {
    "provenance": {"golden_set": "builtin:llm"},
    "judge": {**MARGINS, **STEADY, "tick_s": 0.5, "max_minutes": 60.0},
    "quality": {"margin_percent": 5, "garbage_margin_percent": 5, "latency_margin_percent": 1000.0},
    "watch_s": 1.0,
    "keep_previous_s": 1.0,
    "lease_s": seconds(30),
    "ready_timeout_s": seconds(120),
}


def request(version: str, *, options: dict[str, Any] | None = None, **args: Any) -> PromoteRequest:
    return parse({**LLM, "version": version, "options": {**OPTIONS, "args": args, **(options or {})}})


def deploy(cluster: KubernetesCluster, asked: PromoteRequest) -> None:
    rollout.deploy_model(rollout.open_run(asked, cluster))


def public(cluster: KubernetesCluster) -> str:
    return f"{cluster.endpoint(names.alias(MODEL), NAMESPACE, names.SERVE_PORT).base_url}/{MODEL}"


def official(url: str) -> openai.OpenAI:
    import openai  # it takes a second, and tests are collected more often than run

    http = httpx.Client(trust_env=False, timeout=seconds(60))
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http)


def whole(client: openai.OpenAI) -> tuple[str | None, str]:
    answer = client.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES, max_tokens=12, **SAMPLING)  # type: ignore[call-overload]
    found = answer.parse()
    assert found.choices[0].finish_reason == "stop" and found.usage.completion_tokens > 3
    return answer.headers.get(names.VERSION_HEADER), found.choices[0].message.content


def stream(client: openai.OpenAI) -> tuple[str | None, str]:
    answer = client.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES, max_tokens=12, stream=True, **SAMPLING)  # type: ignore[call-overload]
    chunks = list(answer.parse())
    assert len(chunks) > 3 and chunks[-1].choices[0].finish_reason == "stop"
    return answer.headers.get(names.VERSION_HEADER), "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def completion(client: openai.OpenAI) -> tuple[str | None, str]:
    prompt = "Green apples are sour.\n" * 3 + "Green apples are"
    answer = client.completions.with_raw_response.create(model=MODEL, prompt=prompt, max_tokens=8, stop=["\n"], **SAMPLING)  # type: ignore[call-overload]
    return answer.headers.get(names.VERSION_HEADER), "Green apples are" + answer.parse().choices[0].text


TOKENS = 60
CALLS: dict[str, Callable[..., tuple[str | None, str]]] = {"chat": whole, "stream": stream, "completions": completion}


class Asking:
    """OpenAI's client, one call after the other in a thread of its own. ``seen``: call -> the versions that answered it (None: no router said)."""

    def __init__(self, url: str) -> None:
        self.seen: dict[str, list[str | None]] = defaultdict(list)
        self.failed: list[str] = []
        self._client, self._stop = official(url), threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()

    def _ask(self) -> None:
        while not self._stop.is_set():
            for name, call in CALLS.items():
                try:
                    version, text = call(self._client)
                    self.seen[name].append(version)
                    if text.strip() != SAID:
                        self.failed.append(f"{name}: {version} said {text!r}")
                except Exception as error:
                    self.failed.append(f"{name}: {type(error).__name__}: {error}")

    def every_call_saw(self, *versions: str | None) -> bool:
        assert not self.failed, self.failed[:5]
        return all(set(versions) <= set(self.seen[name]) for name in CALLS)


def test_openais_client_stays_as_it_is_while_a_release_runs(embedded: Embedded, cluster: KubernetesCluster) -> None:
    deploy(cluster, request("v1", n_ctx=512))
    ended: list[Any] = []

    def promote() -> None:
        asked = request("v2", options={"approval": {"before": ["promote"]}}, n_ctx=768)
        try:
            ended.append(rollout.promote_with_canary(rollout.open_run(asked, embedded.cluster())).phase)
        except BaseException as error:
            ended.append(error)

    releasing = threading.Thread(target=promote)
    with Asking(public(cluster)) as asking:
        until(lambda: asking.every_call_saw(None), "every call to be answered before the release", 120)
        releasing.start()
        until(lambda: ended or asking.every_call_saw("v1", "v2"), "every call to be answered by both versions", 200)
        until(lambda: ended or record_of(cluster, MODEL)["waits"], "the release to wait for approval", 300)
        assert not ended
        approved = command("approve", MODEL, "--namespace", NAMESPACE)
        assert approved.returncode == 0, approved.stderr
        releasing.join(timeout=seconds(200))
        assert not releasing.is_alive() and ended == ["promoted"]
        asking.seen.clear()
        until(lambda: asking.every_call_saw(None), "every call to be answered after the release", 120)
    assert not asking.failed


def test_a_good_version_is_promoted_without_users_and_one_that_ignores_the_format_is_not(cluster: KubernetesCluster) -> None:
    deploy(cluster, request("v1", n_ctx=512))
    promoted = rollout.promote_with_canary(rollout.open_run(request("v2", n_ctx=768), cluster))
    assert promoted.phase == "promoted" and promoted.verdict is not None
    assert "by golden requests alone (users send too few for a verdict in time)" in promoted.verdict.sentence
    judged = next(point for point in reversed(promoted.timeline) if point.pairs)
    assert judged.requests == {"stable": 0, "candidate": 0} and judged.garbage == {"stable": 0, "candidate": 0}
    assert judged.scores["stable"] > 0.75  # of a model this small

    before = snapshot(cluster)
    with pytest.raises(errors.CanaryFailed, match=r"worse in (quality of its answers|useless answers)"):
        rollout.promote_with_canary(rollout.open_run(request("v3", n_ctx=512, fault="ignores_format"), cluster))
    record = record_of(cluster, MODEL)
    assert record["phase"] == "rolled_back" and snapshot(cluster) == before
    failed = next(point for point in reversed(record["timeline"]) if point["pairs"])
    assert failed["failures"] == {"stable": 0, "candidate": 0} and failed["scores"]["candidate"] < failed["scores"]["stable"]
    assert "Certainly, I am glad to help" in report.render(record)


def test_tokens_come_one_by_one_and_the_engine_stops_with_its_reader(cluster: KubernetesCluster) -> None:
    deploy(cluster, request("v1", n_ctx=2048))
    run = rollout.open_run(request("v2"), cluster)
    rollout._deploy_and_smoke(run, first_version=False)
    rollout.shift_traffic(run, 50.0)
    url = public(cluster)
    with httpx.Client(trust_env=False, timeout=seconds(120), headers={names.VERSION_HEADER: "v1"}) as http:

        def ask(most: int) -> Any:
            body = {"prompt": "Once upon a time", "max_tokens": most, "stream": True, **SAMPLING}
            return http.stream("POST", f"{url}/v1/completions", json=body)

        began = time.perf_counter()
        with ask(1800) as answer:
            assert answer.headers[names.VERSION_HEADER] == "v1"
            lines = (line for line in answer.iter_lines() if line)
            came_s = [time.perf_counter() - began for _ in range(TOKENS) if '"finish_reason": null' in next(lines)]
        assert len(came_s) == TOKENS and came_s[-1] - came_s[0] > came_s[0], "they were held back and came at once"

        def next_one_s() -> float:
            """One answer at a time: it waits for the one that nobody reads any more."""
            began = time.perf_counter()
            with ask(1) as answer:
                assert [line for line in answer.iter_lines() if line][-1] == "data: [DONE]"
            return time.perf_counter() - began

        assert next_one_s() < 5 * came_s[-1], "1,800 tokens take thirty times as long: the engine went on"
        with pytest.raises(httpx.ReadTimeout):
            http.post(f"{url}/v1/completions", json={"prompt": "Once upon a time", "max_tokens": 1800, **SAMPLING}, timeout=came_s[-1])
        assert next_one_s() < 5 * came_s[-1], "nor does anybody wait for a whole answer any more"
    rollout.roll_back(run, "seen enough")
