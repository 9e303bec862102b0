"""Are champions as good as they were? One model, or all of a namespace: a red run when one decayed."""

from typing import Any

from kfp import dsl

from kfp_components.ops.collect_revalidations import collect_revalidations
from kfp_components.ops.list_champions import list_champions
from kfp_components.ops.revalidate_model import revalidate_model
from kfp_components.workflows.steps import RUN_ID, uncached

PARALLEL = 8
"""Pods at the same time: enough to be through 200 models in an hour, few enough not to be the load that they measure."""


def _verdict(after: dsl.PipelineTask, **of: Any) -> None:
    """The step that makes the run red."""
    uncached(collect_revalidations(run_id=RUN_ID, **of)).after(after).set_display_name("verdict")


@dsl.pipeline(
    name="revalidate",
    description="Is what users get of a model as good as its own record? The first run makes the record, the next ones compare: run it every night. "
    "The run is red when it decayed. Fill in model, namespace and rayservice; rules may stay {}: then it is asked the golden set of its release, or"
    " its smoke cases.",
)
def revalidate(
    model: str,
    namespace: str,
    rayservice: str,
    rules: dict = {},  # noqa: B006  KFP reads the default from the signature
) -> None:
    """A step that looks and is green, because KFP keeps no output of a step that failed, and one that is red.

    Args:
        model: the model whose champion is asked.
        namespace: namespace of the RayService.
        rayservice: name of the RayService.
        rules: everything with a default, such as golden_set, requests, demote; {} runs, and each wrong key is named.
    """
    look = uncached(revalidate_model(model=model, namespace=namespace, rayservice=rayservice, rules=rules, run_id=RUN_ID, red=False))
    _verdict(look, namespace=namespace, rayservice=rayservice, model=model)


@dsl.pipeline(
    name="revalidate-namespace",
    description="Is every champion of a namespace as good as its own record? A step for each, one page of all, a red run when one decayed: run it "
    "every night. Fill in namespace; rayservice (empty: all of the namespace) and rules ({}) may stay as they are.",
)
def revalidate_namespace(
    namespace: str,
    rayservice: str = "",
    rules: dict = {},  # noqa: B006
) -> None:
    """A step for each model that is found, which notes and never fails, one that writes the page of all, and one that fails: no model's fault stops
    the others, and KFP keeps no output of a step that failed.

    Not by ``ignore_upstream_failure``: KFP's backend makes that an exit hook of the loop, and loses it, so the run would be green.

    Args:
        namespace: namespace of the models.
        rayservice: only the models of this RayService; empty for all.
        rules: everything with a default, such as golden_set, requests, demote; {} runs, and each wrong key is named.
    """
    found = uncached(list_champions(namespace=namespace, rayservice=rayservice))
    with dsl.ParallelFor(found.outputs["Output"], parallelism=PARALLEL) as item:
        each = uncached(
            revalidate_model(
                model=item.model, namespace=namespace, rayservice=item.rayservice, rules=rules, models=item.models, run_id=RUN_ID, red=False
            )
        )
    page = uncached(collect_revalidations(namespace=namespace, rayservice=rayservice, run_id=RUN_ID, red=False)).after(each)
    _verdict(page, namespace=namespace, rayservice=rayservice)
