"""The chain of steps that both deploying pipelines share."""

from typing import Any

from kfp import dsl

from kfp_components.ops.create_alias import create_alias
from kfp_components.ops.create_inference_service import create_inference_service
from kfp_components.ops.deploy_rayservice import deploy_rayservice
from kfp_components.ops.smoke_inference import smoke_inference

RUN_ID = dsl.PIPELINE_JOB_ID_PLACEHOLDER


def uncached(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """A step that touches a cluster must run every time."""
    return task.set_caching_options(False)


def deploy_and_smoke(registered: dsl.PipelineTask) -> Any:
    """deploy -> alias -> stub -> smoke; returns the request as the last of them passed it on."""
    request = registered.outputs["Output"]
    for step in (deploy_rayservice, create_alias, create_inference_service, smoke_inference):
        request = uncached(step(request=request, run_id=RUN_ID)).outputs["Output"]
    return request
