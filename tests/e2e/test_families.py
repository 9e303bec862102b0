"""Real models on real Ray: their official clients, unchanged before, during and after a canary on the public route."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from patience import seconds, until
from world import MARGINS, NAMESPACE, RAYSERVICE, STEADY, command, first, record_of

from kfp_components import errors, names, rollout
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.local import demo
from kfp_components.local.environment import Embedded
from kfp_components.request import PromoteRequest

pytestmark = pytest.mark.usefixtures("forget")

MODEL = demo.MODEL
RATE_PER_S = 20.0


@pytest.fixture
def official() -> Any:
    """The module of official clients, imported late."""
    import official

    return official


def request(version: str, **options: Any) -> PromoteRequest:
    judge = {"judge_latency": False, **MARGINS, **STEADY, "tick_s": 0.3, "max_minutes": 60.0}
    asked = demo.request(version, model=MODEL, judge=judge, lease_s=seconds(30), ready_timeout_s=seconds(200), **options)
    return asked.model_copy(update={"rayservice": RAYSERVICE, "steps": (50.0,)})


class Asking:
    """One round of all clients after the other, at most so many, in a thread of its own. ``seen``: client -> the versions that answered it."""

    def __init__(self, official: Any, url: str, rounds: int = 5000) -> None:
        self.official, self.url, self.rounds = official, url, rounds
        self.seen: dict[str, list[str | None]] = defaultdict(list)
        self.failed: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._ask()), daemon=True)

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _ask(self) -> None:
        clients = self.official.Official(self.url)
        try:
            for _ in range(self.rounds):
                for name, call in self.official.CALLS.items():
                    if self._stop.is_set():
                        return
                    await self._one(name, call, clients)
        finally:
            await clients.close()

    async def _one(self, name: str, call: Any, clients: Any) -> None:
        try:
            version, vector = await call(clients)
            right = len(vector) == 384 and list(vector[:4]) == pytest.approx(list(demo.KNOWN.values()), abs=1e-4)
            self.seen[name].append(version)
            if not right:
                self.failed.append(f"{name}: {version} gave {vector[:4]}")
        except Exception as error:
            self.failed.append(f"{name}: {type(error).__name__}: {error}")

    def everybody_saw(self, *versions: str | None) -> bool:
        assert not self.failed, self.failed[:5]
        return all(set(versions) <= set(self.seen[name]) for name in self.official.CALLS)

    def forget(self) -> None:
        self.seen.clear()


def test_official_clients_stay_as_they_are_while_a_release_runs(
    official: Any, embedded: Embedded, cluster: KubernetesCluster, users: Callable[..., Any]
) -> None:
    first(cluster, request("v1"))
    endpoint = cluster.endpoint(names.alias(MODEL), NAMESPACE, names.SERVE_PORT)
    target = embedded.grpc_target
    assert target is not None
    ended: list[Any] = []

    def promote() -> None:
        try:
            ended.append(rollout.promote_with_canary(rollout.open_run(request("v2", approval={"before": ["promote"]}), embedded.cluster())).phase)
        except BaseException as error:
            ended.append(error)

    def good(version: str) -> dict[str, Any]:
        return {"live": True, "ready": True, "model ready": True, "version": version}

    releasing = threading.Thread(target=promote, daemon=True)
    with users(MODEL, RATE_PER_S) as sending, Asking(official, f"{endpoint.base_url}/{MODEL}") as asking:
        until(lambda: asking.everybody_saw(None), "every client to be answered before the release", 120)
        assert official.by_grpc(target, "v1") == good("v1")
        releasing.start()
        until(lambda: ended or asking.everybody_saw("v1", "v2"), "every client to be answered by both versions", 200)
        until(lambda: ended or record_of(cluster, MODEL)["waits"], "the release to wait for approval", 200)
        assert not ended
        assert (official.by_grpc(target, "v1"), official.by_grpc(target, "v2")) == (good("v1"), good("v2"))
        assert official.code_of(target, "other", ("application", names.application(MODEL, "v2")))[0] == "NOT_FOUND"
        code, told = official.code_of(target, MODEL)
        assert code == "NOT_FOUND" and "Application metadata not set" in told
        approved = command("approve", MODEL, "--namespace", NAMESPACE)
        assert approved.returncode == 0, approved.stderr
        releasing.join(timeout=seconds(200))
        assert not releasing.is_alive() and ended == ["promoted"]
        asking.forget()
        until(lambda: asking.everybody_saw(None), "every client to be answered after the release", 120)
        assert official.by_grpc(target, "v2") == good("v2")
        tally = sending.stop()
    assert not asking.failed and not tally.failed, (asking.failed[:5], tally)


def test_what_a_client_got_wrong_is_told_in_its_own_form(cluster: KubernetesCluster) -> None:
    import openai

    first(cluster, request("v1"))
    url = f"{cluster.endpoint(names.alias(MODEL), NAMESPACE, names.SERVE_PORT).base_url}/{MODEL}"
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=httpx.Client(trust_env=False)) as client:
        with pytest.raises(openai.NotFoundError, match="no model 'gpt' here") as unknown:
            client.embeddings.create(model="gpt", input="a")
        assert unknown.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError, match="this model has 384") as dimensions:
            client.embeddings.create(model=MODEL, input="a", dimensions=256)
        assert dimensions.value.param == "dimensions"
        assert [model.id for model in client.models.list()] == [MODEL] and client.models.retrieve(MODEL).id == MODEL
    refused = httpx.post(f"{url}/v2/models/{MODEL}/infer", json={"inputs": []}, trust_env=False)
    assert refused.status_code == 400 and refused.json()["error"].startswith("inference request: inputs:")


def test_a_wrong_argument_fails_the_deployment_by_its_name(cluster: KubernetesCluster) -> None:
    asked = request("v1")
    asked = asked.model_copy(update={"options": asked.options.model_copy(update={"args": {"max_token": 3}})})
    with pytest.raises(errors.DeployFailed, match="max_token"):
        first(cluster, asked)
