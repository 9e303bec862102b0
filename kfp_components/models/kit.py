"""What every family's application shares: V2 over REST and gRPC, V1, health that means "can answer", errors in the form of the protocol asked.

`Served` is one replica; a family (`embedding`) adds its own API. An engine is a class with ``Settings`` (a pydantic model: what a request's
``options.args`` may hold for it); it is constructed with them, loads, and has ``check()``, which infers something small. Engines block; they run in
threads. Nothing here needs Ray before `application`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kfp_components.models import inference_grpc, tensors
from kfp_components.models.tensors import Infer, Refused, Tensor

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
log = logging.getLogger("ray.serve")


class Frozen(BaseModel):
    """Base of all settings: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Settings(Frozen):
    """What every family's ``build(args)`` takes; the engine's own settings stand beside these."""

    model: str
    version: str
    engine: str | None = Field(None, description="one of the family's ENGINES; default its first")
    replicas: int = Field(1, ge=1, description="autoscaling and limits: `options.deployments`")
    num_cpus: float = Field(0.5, ge=0, description="what Ray sets aside for a replica")
    num_gpus: float = Field(0.0, ge=0, description="may be a fraction: replicas share the GPU, nobody enforces their memory")
    threads: int = Field(1, ge=1, le=256, description="OpenMP and BLAS threads of a replica")
    concurrency: int = Field(1, ge=1, le=256, description="requests that the engine computes at the same time")
    max_body_mib: float = Field(64.0, gt=0, le=1024)
    check_interval_s: float = Field(5.0, ge=0, description="an answer this recent shows that the engine can answer")
    check_timeout_s: float = Field(20.0, gt=0, le=600, description="an engine that takes longer for a small request is not ready")
    fault: str | None = Field(None, description="one of the family's FAULTS: a bad version, for demos and tests")
    fault_every: int = Field(20, ge=1, description="`errors` answers every so many-th request with 500; with slow_s, `slow_tail` slows it down")
    slow_s: float | None = Field(None, gt=0, le=60, description="`slow_tail`: so much longer for every fault_every-th request, not for heavy ones")


class Served:
    """One replica of a model: loads its engine and warms it up, so it is not reachable before it can answer."""

    ENGINES: ClassVar[Mapping[str, str]] = {}
    """Name -> ``module:class``, the default first."""

    FAULTS: ClassVar[tuple[str, ...]] = ("errors", "slow_tail", "garbage", "fails_to_start")
    inputs: Sequence[dict[str, Any]] = ()
    outputs: Sequence[dict[str, Any]] = ()
    """Tensors of V2: name, datatype and shape of each."""

    def __init__(self, args: Mapping[str, Any], engine_class: type[Any] | None = None) -> None:
        """Load the engine and let it infer once. Raises `ValueError` for wrong ``args`` and whatever the engine raises."""
        self.settings, engine_class, own = parse(type(self), args, engine_class)
        if self.settings.fault == "fails_to_start":
            raise ModuleNotFoundError("No module named 'xgboost'")
        self.engine: Any = engine_class(own)
        self.platform = self.settings.engine or next(iter(self.ENGINES), engine_class.__name__)
        self.engine.check()
        self._pool = ThreadPoolExecutor(self.settings.concurrency, thread_name_prefix="engine")  # health stays responsive meanwhile
        self._asked = 0
        self._answered_at = time.monotonic()
        self._check: asyncio.Task[None] | None = None
        self._check_began = 0.0
        self.web = self._web()
        _remember(self)

    # What a family adds.

    def routes(self) -> Mapping[str, Handler]:
        """Its own API: path -> what answers a POST."""
        return {}

    async def infer(self, asked: Infer) -> list[Tensor]:
        """V2 inference. Raises `Refused` for what the client got wrong."""
        raise NotImplementedError

    async def predict(self, instances: list[Any], parameters: dict[str, Any]) -> list[Any]:
        """V1: an instance is a text or ``{"b64": ...}``; a prediction is a row of the first output. Raises `Refused`."""
        values = [
            tensors.from_base64(one["b64"], "instance") if isinstance(one, dict) and isinstance(one.get("b64"), str) else one for one in instances
        ]
        if not all(isinstance(value, str | bytes) for value in values):
            raise Refused('each instance must be a text or {"b64": <bytes in base64>}')
        first, *_ = await self.infer(Infer((tensors.of_texts("instances", values),), parameters))
        rows: list[Any] = first.texts if first.datatype == "BYTES" else first.array.tolist()
        return rows

    # What it offers to a family.

    async def compute(self, work: Callable[[], T], heavy: Callable[[], bool] = lambda: False) -> T:
        """``work()`` in the engine's threads. The declared faults of time and errors apply here; ``heavy``: whether `slow_tail` hits it."""
        return await self._with_faults(lambda: self._run(work), heavy)

    async def stream(self, produce: Callable[[], Iterator[T]], heavy: Callable[[], bool] = lambda: False) -> AsyncGenerator[T, None]:
        """What ``produce()`` gives in the engine's threads, as it comes; it is closed when the reader goes. `compute`'s faults hit the first item.

        Returns when that is there, so what is wrong before it is raised here, while an answer can still have a status.
        """
        source = self._items(produce)

        async def begin() -> list[T]:
            async for item in source:
                return [item]
            return []

        first = await self._with_faults(begin, heavy)

        async def items() -> AsyncGenerator[T, None]:
            async with contextlib.aclosing(source):
                for item in first:
                    yield item
                async for item in source:
                    yield item

        return items()

    async def _with_faults(self, answer: Callable[[], Awaitable[T]], heavy: Callable[[], bool]) -> T:
        fault, slow_s = self.settings.fault, self.settings.slow_s
        self._asked += 1
        chosen = self._asked % self.settings.fault_every == 0
        if fault == "errors" and chosen:
            raise Refused("out of memory (declared fault of this demo version)", 500)
        began = time.perf_counter()
        found = await answer()
        if fault == "slow_tail" and slow_s is not None:
            await asyncio.sleep(slow_s if chosen else 0.0)
        elif fault == "slow_tail" and heavy():
            await asyncio.sleep(0.7 * (time.perf_counter() - began))  # of the model's time: half as much again for the user
        return found

    async def _run(self, work: Callable[[], T]) -> T:
        found = await asyncio.get_running_loop().run_in_executor(self._pool, work)
        self._answered_at = time.monotonic()
        return found

    async def _items(self, produce: Callable[[], Iterator[T]]) -> AsyncGenerator[T, None]:
        loop, gone = asyncio.get_running_loop(), threading.Event()
        made: asyncio.Queue[tuple[T] | BaseException | None] = asyncio.Queue()

        def work() -> None:
            ended: BaseException | None = None
            source: Iterator[T] = iter(())
            try:
                if not gone.is_set():
                    source = produce()
                    for item in source:
                        self._answered_at = time.monotonic()
                        loop.call_soon_threadsafe(made.put_nowait, (item,))
                        if gone.is_set():
                            break
            except BaseException as error:
                ended = error
            finally:
                getattr(source, "close", lambda: None)()  # in its own thread: what a generator holds, it gives back now
                loop.call_soon_threadsafe(made.put_nowait, ended)

        loop.run_in_executor(self._pool, work)
        try:
            while (item := await made.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item[0]
        finally:
            gone.set()

    async def json(self, request: Request) -> dict[str, Any]:
        """The request's JSON object. Raises `Refused`."""
        return tensors.json_of(await self.body(request))

    async def body(self, request: Request) -> bytes:
        """The request's body. Raises `Refused` with 413 when it is larger than the settings allow."""
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            self._assert_fits(len(content))
        return bytes(content)

    def _assert_fits(self, size: int) -> None:
        if size > self.settings.max_body_mib * (1 << 20):
            raise Refused(f"more than {self.settings.max_body_mib:g} MiB, the most in one request", 413)

    def known(self, model: str, version: str | None = None) -> None:
        """Raise `Refused` with 404 for another model or version than this one."""
        if model != self.settings.model:
            raise Refused(f"no model {model!r} here; there is {self.settings.model!r}", 404, "model")
        if version not in (None, self.settings.version):
            raise Refused(f"model {model!r} has no version {version!r} here; there is {self.settings.version!r}", 404)

    # Health.

    async def problem(self) -> str | None:
        """Why it cannot answer; None when it can, shown by a recent answer or by asking the engine now."""
        if time.monotonic() - self._answered_at < self.settings.check_interval_s:
            return None
        if self._check is None or self._check.done():  # one that ended later says nothing about now
            self._check, self._check_began = asyncio.create_task(self._run(self.engine.check)), time.monotonic()
        check = self._check
        await asyncio.wait({check}, timeout=max(0.0, self._check_began + self.settings.check_timeout_s - time.monotonic()))
        if check.done():
            error = check.exception()
            return f"the engine cannot answer: {type(error).__name__}: {error}" if error else None
        if time.monotonic() - self._answered_at < self.settings.check_timeout_s:
            return None  # busy with others' requests
        return f"the engine has not answered a small request for {time.monotonic() - self._check_began:.0f} s"

    async def check_health(self) -> None:
        """Serve calls this, and replaces a replica that raises."""
        if problem := await self.problem():
            raise RuntimeError(problem)

    async def _assert_ready(self) -> None:
        if problem := await self.problem():
            raise Refused(f"model {self.settings.model} {self.settings.version}: {problem}", 503)

    # V2 and V1 over HTTP.

    def _web(self) -> Starlette:
        paths: list[tuple[str, Handler, str]] = [
            ("/", self._alive, "GET"),
            ("/v2", self._server, "GET"),
            ("/v2/", self._server, "GET"),
            ("/v2/health/live", self._live, "GET"),
            ("/v2/health/ready", self._ready, "GET"),
            ("/v2/models", self._models, "GET"),
            ("/v1/models", self._models, "GET"),
            ("/v1/models/{model}:predict", self._predict, "POST"),
            ("/v1/models/{model}", self._model_v1, "GET"),
        ]
        for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            paths += [(prefix, self._metadata, "GET"), (prefix + "/ready", self._model_ready, "GET"), (prefix + "/infer", self._infer, "POST")]
        paths += [(path, handler, "POST") for path, handler in self.routes().items()]
        web = Starlette(
            routes=[Route(path, _guarded(handler), methods=[method]) for path, handler, method in paths],
            exception_handlers={HTTPException: _no_such_page},
        )
        web.router.redirect_slashes = False
        return web

    async def _alive(self, _request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def _live(self, _request: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, _request: Request) -> Response:
        await self._assert_ready()
        return JSONResponse({"ready": True})

    async def _server(self, _request: Request) -> Response:
        return JSONResponse(self._server_metadata())

    def _server_metadata(self) -> dict[str, Any]:
        return {"name": "kfp-serving", "version": self.settings.version, "extensions": ["binary_tensor_data"]}

    async def _models(self, _request: Request) -> Response:
        """For V1, V2 and OpenAI's clients alike."""
        return JSONResponse({"object": "list", "data": [self._card()], "models": [self.settings.model]})

    async def _model_v1(self, request: Request) -> Response:
        self.known(request.path_params["model"])
        await self._assert_ready()
        return JSONResponse({"name": self.settings.model, "ready": True, **self._card()})

    def _card(self) -> dict[str, Any]:
        return {"id": self.settings.model, "object": "model", "created": 0, "owned_by": "kfp-serving", "version": self.settings.version}

    async def _metadata(self, request: Request) -> Response:
        self.known(request.path_params["model"], request.path_params.get("version"))
        return JSONResponse(self._model_metadata())

    def _model_metadata(self) -> dict[str, Any]:
        found = {"name": self.settings.model, "versions": [self.settings.version], "platform": self.platform}
        return {**found, "inputs": list(self.inputs), "outputs": list(self.outputs)}

    async def _model_ready(self, request: Request) -> Response:
        self.known(request.path_params["model"], request.path_params.get("version"))
        await self._assert_ready()
        return JSONResponse({"name": self.settings.model, "ready": True})

    async def _infer(self, request: Request) -> Response:
        self.known(request.path_params["model"], request.path_params.get("version"))
        asked = tensors.from_rest(await self.body(request), request.headers.get(tensors.HEADER_LENGTH))
        outputs = asked.chosen(await self.infer(asked))
        body, headers = tensors.to_rest(asked, outputs, self.settings.model, self.settings.version)
        return Response(body, headers=headers)

    async def _predict(self, request: Request) -> Response:
        self.known(request.path_params["model"])
        asked = await self.json(request)
        instances, parameters = asked.get("instances"), asked.get("parameters") or {}
        if not isinstance(instances, list) or not instances:
            raise Refused("instances: a list is expected, not empty")
        if not isinstance(parameters, dict):
            raise Refused("parameters: an object is expected")
        return JSONResponse({"predictions": await self.predict(instances, parameters), "model_version": self.settings.version})

    # KServe's GRPCInferenceService. Serve's proxy calls the method of that name with the request's bytes.

    async def ServerLive(self, request: Any, grpc_context: Any) -> Any:
        """It lives."""

        async def answer(_asked: Any) -> dict[str, Any]:
            return {"live": True}

        return await self._grpc("ServerLive", request, grpc_context, answer)

    async def ServerReady(self, request: Any, grpc_context: Any) -> Any:
        """Whether it can answer."""

        async def answer(_asked: Any) -> dict[str, Any]:
            return {"ready": await self.problem() is None}

        return await self._grpc("ServerReady", request, grpc_context, answer)

    async def ModelReady(self, request: Any, grpc_context: Any) -> Any:
        """Whether this model can answer; NOT_FOUND for another."""

        async def answer(asked: Any) -> dict[str, Any]:
            self.known(asked.name, asked.version or None)
            return {"ready": await self.problem() is None}

        return await self._grpc("ModelReady", request, grpc_context, answer)

    async def ServerMetadata(self, request: Any, grpc_context: Any) -> Any:
        """As `GET /v2`."""

        async def answer(_asked: Any) -> dict[str, Any]:
            return self._server_metadata()

        return await self._grpc("ServerMetadata", request, grpc_context, answer)

    async def ModelMetadata(self, request: Any, grpc_context: Any) -> Any:
        """As `GET /v2/models/{model}`."""

        async def answer(asked: Any) -> dict[str, Any]:
            self.known(asked.name, asked.version or None)
            return self._model_metadata()

        return await self._grpc("ModelMetadata", request, grpc_context, answer)

    async def ModelInfer(self, request: Any, grpc_context: Any) -> Any:
        """As `POST /v2/models/{model}/infer`."""

        async def answer(asked: Any) -> Any:
            self.known(asked.model_name, asked.model_version or None)
            infer = tensors.from_grpc(asked)
            return tensors.to_grpc(infer, infer.chosen(await self.infer(infer)), self.settings.model, self.settings.version)

        return await self._grpc("ModelInfer", request, grpc_context, answer)

    async def _grpc(self, method: str, request: Any, context: Any, answer: Callable[[Any], Awaitable[Any]]) -> Any:
        """The answer, or an empty one with the status that says what was wrong (raising would be logged as our own failure)."""
        response = inference_grpc.CLASSES[f"{method}Response"]
        try:
            if isinstance(request, bytes):
                self._assert_fits(len(request))
            found = await answer(_parsed(f"{method}Request", request))
            return response(**found) if isinstance(found, dict) else found
        except Exception as error:
            status, told, _param = _told(method, error)
        context.set_code(inference_grpc.status(status))
        context.set_details(told)
        return response()


def _parsed(name: str, request: Any) -> Any:
    try:
        return inference_grpc.parsed(name, request)
    except ValueError as error:
        raise Refused(str(error)) from error


def _guarded(handler: Handler) -> Handler:
    """``handler`` with every error answered in the form of the protocol that its path belongs to."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Exception as error:
            return _error(request, *_told(request.url.path, error))

    return answer


def _told(what: str, error: Exception) -> tuple[int, str, str | None]:
    """HTTP status, message and the field at fault. What is not the client's fault is logged."""
    if isinstance(error, Refused):
        return error.status, str(error), error.param
    log.error("%s failed: %s", what, traceback.format_exc().encode(errors="backslashreplace").decode())  # a log cannot take half a surrogate pair
    return 500, f"{type(error).__name__}: {error}", None


def _error(request: Request, status: int, message: str, param: str | None = None) -> Response:
    """``{"error": message}`` for V1, V2 and plain JSON; OpenAI's object below ``/v1`` and for rerank."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    message = message.encode(errors="backslashreplace").decode()  # half a surrogate pair cannot be sent
    if (path.startswith("/v1/") and not path.startswith("/v1/models")) or path.endswith("/rerank"):
        kind = "invalid_request_error" if status < 500 else "server_error"
        code = "model_not_found" if status == 404 and param == "model" else None
        return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status_code=status)
    return JSONResponse({"error": message}, status_code=status)


async def _no_such_page(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(request, error.status_code, f"{request.method} {request.url.path}: {error.detail}")


def parse(family: type[Served], args: Mapping[str, Any], engine_class: type[Any] | None = None) -> tuple[Settings, type[Any], Any]:
    """Settings, engine class and engine settings from flat ``args``. Raises `ValueError` that names the wrong key."""
    common = Settings.model_validate({name: value for name, value in args.items() if name in Settings.model_fields})
    if common.fault not in (None, *family.FAULTS):
        raise ValueError(f"fault {common.fault!r} is not known for {family.__name__}; known are {', '.join(family.FAULTS)}")
    if engine_class is None:
        name = common.engine or next(iter(family.ENGINES))
        if name not in family.ENGINES:
            raise ValueError(f"engine {name!r} is not known for {family.__name__}; known are {', '.join(family.ENGINES)}")
        module, _, attribute = family.ENGINES[name].partition(":")
        engine_class = getattr(importlib.import_module(module), attribute)
    assert engine_class is not None
    own = {name: value for name, value in args.items() if name not in Settings.model_fields}
    return common, engine_class, engine_class.Settings.model_validate(own)


def application(family: type[Served], args: Mapping[str, Any]) -> Any:
    """The Serve application. ``args`` are checked here, in Serve's build task, so a wrong one fails the deployment with its name."""
    from ray import serve

    settings, _engine, _own = parse(family, args)
    deployment = serve.deployment(
        name=family.__name__,
        num_replicas=settings.replicas,
        logging_config={"enable_access_log": False},  # a line a request costs as much as a small model
        max_ongoing_requests=64,
        health_check_timeout_s=settings.check_timeout_s + 10.0,
        ray_actor_options={
            "num_cpus": settings.num_cpus,
            "num_gpus": settings.num_gpus,
            "runtime_env": {"env_vars": dict.fromkeys(THREADS, str(settings.threads))},
        },
    )
    return deployment(serve.ingress(_asgi)(family)).bind(dict(args))


_current: Served | None = None


def _remember(replica: Served) -> None:
    global _current
    _current = replica


def _asgi() -> Any:
    """What ``serve.ingress`` calls in the replica to get the application: one replica a process, so the replica is the module's."""
    return _entry


async def _entry(scope: Any, receive: Any, send: Any) -> None:
    if _current is not None:
        await _current.web(scope, receive, send)
    elif scope["type"] == "http":
        await JSONResponse({"error": "the model is still loading"}, status_code=503)(scope, receive, send)
