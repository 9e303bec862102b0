"""A tiny Serve application for tests of the rollout itself: it answers at once, so a canary takes seconds. Runs inside Ray."""

import random
from typing import Any

from ray import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

_settings: dict[str, Any] = {}


class Tiny:
    def __init__(self, settings: dict[str, Any]) -> None:
        _settings.update(settings)


async def _ok(_request: Request) -> JSONResponse:
    return JSONResponse({"ok": True, "version": _settings["version"]})


async def _embed(request: Request) -> JSONResponse:
    body = await request.json()
    if random.random() < _settings.get("error_rate", 0.0):
        return JSONResponse({"error": "declared fault"}, status_code=500)
    return JSONResponse({"count": len(body["texts"]), "version": _settings["version"]})


ROUTES = [
    Route("/v2/health/live", _ok),
    Route("/v2/health/ready", _ok),
    Route("/v2/models/{model}/ready", _ok),
    Route("/embed", _embed, methods=["POST"]),
]
asgi = Starlette(routes=ROUTES)


def build(args: dict[str, Any]) -> serve.Application:
    options = {"num_cpus": 0.1}
    return serve.deployment(name="Tiny", ray_actor_options=options, max_ongoing_requests=100)(serve.ingress(asgi)(Tiny)).bind(args)
