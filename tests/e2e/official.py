"""The official clients of each protocol, as people have them. Imported by the tests that use it, late: the packages take seconds."""

import asyncio
import json
import subprocess
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import httpx
import numpy as np
import openai
import pytest
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from patience import seconds

from kfp_components import names
from kfp_components.local import demo

MODEL = demo.MODEL
Call = Callable[["Official"], Awaitable[tuple[str | None, Any]]]


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


def code_of(target: str, model: str, *headers: tuple[str, str]) -> tuple[str, str]:
    """Status and details of an inference."""

    async def ask() -> tuple[str, str]:
        async with InferenceGRPCClient(target, retries=0, timeout=seconds(60)) as client:
            try:
                await client.infer(InferRequest(model, [tensor(True)]), headers=headers)
            except grpc.aio.AioRpcError as error:
                return error.code().name, error.details() or ""
        return "OK", ""

    return asyncio.run(ask())
