"""Real models on real Ray: their official clients, unchanged before, during and after a canary on the public route."""

import asyncio
import json
import subprocess
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import httpx
import numpy as np
import openai
import pytest
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from patience import seconds, until
from world import MARGINS, NAMESPACE, RAYSERVICE, STEADY, command, first, record_of

from kfp_components import errors, names, rollout
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.local import demo
from kfp_components.local.environment import Embedded
from kfp_components.request import PromoteRequest

pytestmark = pytest.mark.usefixtures("forget")

MODEL = "bge"
RATE_PER_S = 20.0
Call = Callable[["Official"], Awaitable[tuple[str | None, Any]]]


def request(version: str, **options: Any) -> PromoteRequest:
    judge = {"judge_latency": False, **MARGINS, **STEADY, "tick_s": 0.3, "max_minutes": 60.0}
    asked = demo.request(version, model=MODEL, judge=judge, lease_s=seconds(30), ready_timeout_s=seconds(200), **options)
    return asked.model_copy(update={"rayservice": RAYSERVICE, "steps": (50.0,)})


class Official:
    """The clients that people have, made once; each says which version answered (None: no router said) and gives the vector."""

    def __init__(self, url: str) -> None:
        self.url = url
        transport = httpx.AsyncHTTPTransport
        self.v1 = InferenceRESTClient(RESTConfig(transport=transport(), protocol="v1", retries=0))
        self.v2 = InferenceRESTClient(RESTConfig(transport=transport(), protocol="v2", retries=0))
        self.http = httpx.AsyncClient(transport=transport())
        self.openai = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=self.http)

    async def close(self) -> None:
        await self.v1.close()
        await self.v2.close()
        await self.http.aclose()


def tensor(binary: bool) -> InferInput:
    asked = InferInput("text", [1], "BYTES")
    asked.set_data_from_numpy(np.array([demo.SENTENCE.encode()], dtype=np.object_), binary_data=binary)
    return asked


async def v2(clients: Official, binary: bool) -> tuple[str | None, Any]:
    headers: dict[str, str] = {}
    outputs = [RequestedOutput("embedding", {"binary_data": True})] if binary else None
    asked = InferRequest(MODEL, [tensor(binary)], request_outputs=outputs)
    answer = await clients.v2.infer(clients.url, asked, model_name=MODEL, response_headers=headers)
    assert answer.model_name == MODEL and answer.outputs[0].name == "embedding"
    return headers.get(names.VERSION_HEADER), answer.outputs[0].as_numpy()[0]


async def v1(clients: Official) -> tuple[str | None, Any]:
    headers: dict[str, str] = {}
    answer = await clients.v1.infer(clients.url, {"instances": [demo.SENTENCE]}, model_name=MODEL, response_headers=headers)
    return headers.get(names.VERSION_HEADER), answer["predictions"][0]


async def embeddings(clients: Official) -> tuple[str | None, Any]:
    answer = await clients.openai.embeddings.with_raw_response.create(model=MODEL, input=demo.SENTENCE)
    return answer.headers.get(names.VERSION_HEADER), answer.parse().data[0].embedding


async def curl(clients: Official) -> tuple[str | None, Any]:
    options = [
        "--silent",
        "--show-error",
        "--fail-with-body",
        "--noproxy",
        "*",
        "--write-out",
        "\n%{header_json}",
        "--header",
        "content-type: application/json",
    ]
    body = json.dumps({"texts": [demo.SENTENCE]})
    run = asyncio.get_running_loop().run_in_executor
    done = await run(None, lambda: subprocess.run(["curl", *options, "--data", body, f"{clients.url}/embed"], capture_output=True, text=True))
    assert done.returncode == 0, f"{done.stdout} {done.stderr}"
    answer, _, headers_json = done.stdout.partition("\n")
    headers = json.loads(headers_json)
    return (headers.get(names.VERSION_HEADER) or [None])[0], json.loads(answer)["embeddings"][0]


CALLS: dict[str, Call] = {
    "kserve V2 JSON": lambda clients: v2(clients, False),
    "kserve V2 binary": lambda clients: v2(clients, True),
    "kserve V1": v1,
    "openai": embeddings,
    "curl": curl,
}


class Asking:
    """One round of all clients after the other, at most so many, in a thread of its own. ``seen``: client -> the versions that answered it."""

    def __init__(self, url: str, rounds: int = 5000) -> None:
        self.url, self.rounds = url, rounds
        self.seen: dict[str, list[str | None]] = defaultdict(list)
        self.failed: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._ask()))

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _ask(self) -> None:
        clients = Official(self.url)
        try:
            for _ in range(self.rounds):
                for name, call in CALLS.items():
                    if self._stop.is_set():
                        return
                    await self._one(name, call, clients)
        finally:
            await clients.close()

    async def _one(self, name: str, call: Call, clients: Official) -> None:
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
        return all(set(versions) <= set(self.seen[name]) for name in CALLS)

    def forget(self) -> None:
        self.seen.clear()


def by_grpc(target: str, version: str) -> dict[str, Any]:
    """KServe's own client, which names the version's application."""
    headers = (("application", names.application(MODEL, version)),)

    async def ask() -> dict[str, Any]:
        async with InferenceGRPCClient(target, retries=0, timeout=seconds(60)) as client:
            told: dict[str, Any] = {"live": await client.is_server_live(headers=headers), "ready": await client.is_server_ready(headers=headers)}
            told["model ready"] = await client.is_model_ready(MODEL, headers=headers)
            for binary in (True, False):
                answer = await client.infer(InferRequest(MODEL, [tensor(binary)]), headers=headers)
                assert answer.outputs[0].as_numpy()[0][:4] == pytest.approx(np.array(list(demo.KNOWN.values())), abs=1e-4)
                told["version"] = answer.model_version
            return told

    return asyncio.run(ask())


def code_of(target: str, asked: InferRequest, headers: tuple[tuple[str, str], ...]) -> tuple[str, str]:
    async def ask() -> tuple[str, str]:
        async with InferenceGRPCClient(target, retries=0, timeout=seconds(60)) as client:
            try:
                await client.infer(asked, headers=headers)
            except grpc.aio.AioRpcError as error:
                return error.code().name, error.details() or ""
        return "OK", ""

    return asyncio.run(ask())


def test_official_clients_stay_as_they_are_while_a_release_runs(embedded: Embedded, cluster: KubernetesCluster, users: Callable[..., Any]) -> None:
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

    releasing = threading.Thread(target=promote)
    with users(MODEL, RATE_PER_S) as sending, Asking(f"{endpoint.base_url}/{MODEL}") as asking:
        until(lambda: asking.everybody_saw(None), "every client to be answered before the release", 120)
        assert by_grpc(target, "v1") == good("v1")
        releasing.start()
        until(lambda: ended or asking.everybody_saw("v1", "v2"), "every client to be answered by both versions", 200)
        until(lambda: ended or record_of(cluster, MODEL)["waits"], "the release to wait for approval", 200)
        assert not ended
        assert (by_grpc(target, "v1"), by_grpc(target, "v2")) == (good("v1"), good("v2"))
        assert code_of(target, InferRequest("other", [tensor(True)]), (("application", names.application(MODEL, "v2")),))[0] == "NOT_FOUND"
        code, told = code_of(target, InferRequest(MODEL, [tensor(True)]), ())
        assert code == "NOT_FOUND" and "Application metadata not set" in told
        approved = command("approve", MODEL, "--namespace", NAMESPACE)
        assert approved.returncode == 0, approved.stderr
        releasing.join(timeout=seconds(200))
        assert not releasing.is_alive() and ended == ["promoted"]
        asking.forget()
        until(lambda: asking.everybody_saw(None), "every client to be answered after the release", 120)
        assert by_grpc(target, "v2") == good("v2")
        tally = sending.stop()
    assert not asking.failed and not tally.failed, (asking.failed[:5], tally)


def test_what_a_client_got_wrong_is_told_in_its_own_form(cluster: KubernetesCluster) -> None:
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
