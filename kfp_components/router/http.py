"""One HTTP request on its way to a version and its answer on the way back, both as streams."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from kfp_components.router import answers, headers
from kfp_components.router import body as bodies
from kfp_components.router.ledger import Counting
from kfp_components.router.policy import Backend
from kfp_components.router.upstream import Arrived, Upstream


async def forward(
    upstream: Upstream, arrived: Arrived, receive: Any, send: Any, backend: Backend, counting: Counting, timeout_s: float | None
) -> None:
    """From the request's first byte to the answer's last one. ``timeout_s`` is between two pieces of the answer, None for ever."""
    body = bodies.Body(None)
    begun = False  # whether the client has been sent the head of the answer
    try:
        body = await bodies.read(arrived.headers, receive)
        answer, route = await upstream.open(arrived, body, backend, timeout_s)
        async with answer:
            request_id = arrived.header(headers.REQUEST_ID_HEADER)
            told = headers.answered(answer.raw_headers, backend.version, upstream.prefixes(arrived, route), request_id)
            await send({"type": "http.response.start", "status": answer.status, "headers": told})
            begun = True
            counting.begun()
            async for chunk in answer.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    except (asyncio.CancelledError, bodies.ClientGone):
        counting.gone()
        raise
    except (asyncio.TimeoutError, aiohttp.ClientError) as error:
        if body.gone:
            counting.gone()
            raise
        status, failure, sentence = _failed(error, backend.version, timeout_s)
        counting.done(status, failure if not begun or failure == "timeout" else "stream_broken")
        if begun:
            raise
        await answers.answer(arrived.scope, send, status, {"error": sentence}, backend.version)
    else:
        overloaded = answer.status == 503 and "retry-after" in answer.headers
        counting.done(answer.status, "overloaded" if overloaded else "http_5xx" if answer.status >= 500 else None)


def _failed(error: Exception, version: str, timeout_s: float | None) -> tuple[int, str, str]:
    """Status, class of the failure, and what is told."""
    if isinstance(error, asyncio.TimeoutError) and timeout_s is not None:
        return 504, "timeout", f"version {version} gave no answer in {timeout_s:g} s"
    if isinstance(error, asyncio.TimeoutError):
        return 504, "timeout", f"version {version} cannot be connected to"
    return 502, "connect", f"version {version}: {type(error).__name__}: {error}"
