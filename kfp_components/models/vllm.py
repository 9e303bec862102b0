"""vLLM: Ray's own application, ``ray.serve.llm:build_openai_app``, from short settings. It speaks OpenAI's API alone: ``options.protocol: json``.

``build(args)`` takes model, version and `Settings`. Ray's own arguments go to that builder itself, with ``options.builder: exact``.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from kfp_components import errors
from kfp_components.models import kit

MEMORY_SHARE = 0.9
"""Of a replica's share of the GPU; the rest is CUDA's own. vLLM's default for a whole GPU."""


class Settings(kit.Frozen):
    """What ``build`` takes."""

    model: str
    version: str
    model_source: str = Field(min_length=1, description="folder, bucket URI or a name that the hub knows")
    accelerator_type: str | None = Field(None, description="as Ray names it: L4, A10G, H100 ...; default: any GPU")
    gpu_share: float | None = Field(
        None, gt=0, lt=1, description="of one GPU, the rest for others; vLLM takes no more of its memory. Default: a whole GPU for each rank"
    )
    tensor_parallel_size: int = Field(1, ge=1, le=64, description="GPUs that a replica is spread over")
    engine_kwargs: dict[str, Any] = Field(default_factory=dict, description="vLLM's own: max_model_len, dtype, quantization, enforce_eager, ...")
    replicas: int | None = Field(None, ge=1, description="default 1; not beside autoscaling_config")
    autoscaling_config: dict[str, Any] | None = Field(None, description="Serve's: min_replicas, max_replicas, target_ongoing_requests, ...")
    max_ongoing_requests: int = Field(256, ge=1, description="of a replica")
    env_vars: dict[str, str] = Field(default_factory=dict, description="of the engine's processes")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.gpu_share is not None and self.tensor_parallel_size > 1:
            raise ValueError(
                f"gpu_share {self.gpu_share:g} with tensor_parallel_size {self.tensor_parallel_size}: a share is of one GPU; leave one out"
            )
        if "tensor_parallel_size" in self.engine_kwargs:
            raise ValueError("engine_kwargs: tensor_parallel_size is a setting of its own; write it beside engine_kwargs")
        if self.replicas is not None and self.autoscaling_config is not None:
            raise ValueError(f"replicas {self.replicas} beside autoscaling_config; leave one out")
        return self


def llm_config(settings: Settings) -> dict[str, Any]:
    """Keywords of ``ray.serve.llm.LLMConfig`` (Ray 2.60)."""
    engine = {"tensor_parallel_size": settings.tensor_parallel_size, **settings.engine_kwargs}
    scale = {"num_replicas": settings.replicas or 1} if settings.autoscaling_config is None else {"autoscaling_config": settings.autoscaling_config}
    found: dict[str, Any] = {
        "model_loading_config": {"model_id": settings.model, "model_source": settings.model_source},
        "engine_kwargs": engine,
        "deployment_config": {**scale, "max_ongoing_requests": settings.max_ongoing_requests},
    }
    if settings.gpu_share is not None:
        engine.setdefault("gpu_memory_utilization", round(settings.gpu_share * MEMORY_SHARE, 3))
        found["placement_group_config"] = {"bundles": [{"GPU": settings.gpu_share}]}
    if settings.accelerator_type is not None:
        found["accelerator_type"] = settings.accelerator_type
    if settings.env_vars:
        found["runtime_env"] = {"env_vars": settings.env_vars}
    return found


def build(args: dict[str, Any]) -> Any:
    """The application that ``serveConfigV2`` names. Raises `ValueError` for wrong settings, `RequestInvalid` where vLLM is not installed."""
    keywords = llm_config(Settings.model_validate(args))
    try:
        from ray.serve.llm import LLMConfig, build_openai_app
    except ImportError as error:
        raise errors.RequestInvalid(f"vLLM: {error}; pip install 'ray[serve,llm]' into the image of the RayService") from error
    return build_openai_app({"llm_configs": [LLMConfig(**keywords)]})
