"""How large a version is: what its owner set on the running one is the default for the next one, where both come from the same code.

``user_config`` and ``runtime_env`` are not size: they belong to a version (they name its weights, its packages) and are never carried over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kfp_components.request import PromoteRequest
from kfp_components.serving import rayservice

SIZE = (
    "num_replicas", "autoscaling_config", "ray_actor_options", "placement_group_bundles", "placement_group_strategy",
    "placement_group_bundle_label_selector", "max_replicas_per_node", "max_ongoing_requests", "max_concurrent_queries", "max_queued_requests",
    "graceful_shutdown_wait_loop_s", "graceful_shutdown_timeout_s", "health_check_period_s", "health_check_timeout_s", "request_router_config",
)  # fmt: skip
"""Of a deployment's entry what is carried over."""
INSTEAD = {"num_replicas": "autoscaling_config", "autoscaling_config": "num_replicas", "max_ongoing_requests": "max_concurrent_queries"}
"""Serve takes one or the other: where the request says one, the stable version's other is not carried over."""
Piece = dict[str, Any]


def deployments(asked: PromoteRequest, serve_config: str, stable: str | None) -> list[Piece]:
    """``deployments`` of the candidate's entry: the request's over those of the application ``stable`` in ``serve_config``, field by field."""
    wanted = {piece["name"]: piece for piece in asked.options.deployments}
    running = _carried(asked, serve_config, stable)
    found = [_over(_without_rivals(running[name], wanted.get(name, {})), wanted.get(name, {})) for name in running]
    return found + [dict(piece) for name, piece in wanted.items() if name not in running]


def _over(size: Piece, wanted: Mapping[str, Any]) -> Piece:
    """The request's fields over the running version's; of ``ray_actor_options`` key by key, so that who asks for memory keeps the GPU share."""
    options = {**(size.get("ray_actor_options") or {}), **(wanted.get("ray_actor_options") or {})}
    return {**size, **wanted, **({"ray_actor_options": options} if options else {})}


def told(asked: PromoteRequest, serve_config: str, stable: str | None) -> str:
    """What is carried over, or is not and why, as a sentence that follows another; empty where the running version has nothing set."""
    running = _sizes(serve_config, stable)
    if not running:
        return ""
    carried, wanted = _carried(asked, serve_config, stable), {piece["name"]: piece for piece in asked.options.deployments}
    if carried:
        kept = {name: _left(carried[name], wanted.get(name, {})) for name in carried}
        kept = {name: _without_rivals(piece, wanted.get(name, {})) for name, piece in kept.items()}
        said = _words({name: piece for name, piece in kept.items() if len(piece) > 1 or name not in wanted})
        return f". As in {stable}: {said}" if said else ""
    left = _words({name: piece for name, piece in running.items() if name not in wanted})
    why = "options.deployments_from says so" if asked.options.deployments_from == "request" else "import_path is another"
    return f". {stable} runs with {left}, {asked.version} with the code's defaults ({why})" if left else ""


def _left(size: Piece, wanted: Mapping[str, Any]) -> Piece:
    """What the request does not say itself."""
    own = wanted.get("ray_actor_options") or {}
    options = {key: value for key, value in (size.get("ray_actor_options") or {}).items() if key not in own}
    rest = {key: value for key, value in size.items() if key not in wanted and key != "ray_actor_options"}
    return {**rest, "name": size["name"], **({"ray_actor_options": options} if options else {})}


def _carried(asked: PromoteRequest, serve_config: str, stable: str | None) -> dict[str, Piece]:
    entry = _entry(serve_config, stable)
    same_code = _dotted(str(entry.get("import_path"))) == _dotted(asked.import_path)
    return _sizes(serve_config, stable) if same_code and asked.options.deployments_from == "stable" else {}


def _sizes(serve_config: str, stable: str | None) -> dict[str, Piece]:
    """By deployment what is set on the running version."""
    found = {}
    for piece in _entry(serve_config, stable).get("deployments") or []:
        size = {key: piece[key] for key in SIZE if piece.get(key) is not None}
        if isinstance(size.get("ray_actor_options"), Mapping):
            size["ray_actor_options"] = {key: value for key, value in size["ray_actor_options"].items() if key != "runtime_env"}
            size = {key: value for key, value in size.items() if value != {}}
        if size:
            found[str(piece["name"])] = {"name": str(piece["name"]), **size}
    return found


def _entry(serve_config: str, application: str | None) -> Mapping[str, Any]:
    return {} if application is None else rayservice.applications(serve_config).get(application, {})


def _without_rivals(size: Piece, wanted: Mapping[str, Any]) -> Piece:
    gone = {INSTEAD[key] for key in wanted if key in INSTEAD}
    return {key: value for key, value in size.items() if key not in gone}


def _words(sizes: Mapping[str, Piece]) -> str:
    def words(value: Any) -> str:
        return ", ".join(f"{key} {words(item)}" for key, item in value.items()) if isinstance(value, Mapping) else str(value)

    pieces = {name: {key: value for key, value in piece.items() if key != "name"} for name, piece in sizes.items()}
    return "; ".join(f"{name} {', '.join(f'{key} {words(value)}' for key, value in piece.items())}" for name, piece in pieces.items() if piece)


def _dotted(import_path: str) -> str:
    """``module:attribute`` and ``module.attribute`` are the same to Ray."""
    return import_path.replace(":", ".")
