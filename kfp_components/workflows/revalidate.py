"""Are champions as good as they were? One model, or all of a namespace: a red run when one decayed."""

from kfp import dsl

from kfp_components.ops.collect_revalidations import collect_revalidations
from kfp_components.ops.list_champions import list_champions
from kfp_components.ops.revalidate_model import revalidate_model
from kfp_components.workflows.steps import RUN_ID, uncached

PARALLEL = 8
"""Pods at the same time: enough to be through 200 models in an hour, few enough not to be the load that they measure."""


@dsl.pipeline(name="revalidate", description="Compare what users get of a model with its own record; a red run when it decayed.")
def revalidate(
    model: str,
    namespace: str,
    rayservice: str,
    rules: dict = {},  # noqa: B006  KFP reads the default from the signature
) -> None:
    """One step."""
    uncached(revalidate_model(model=model, namespace=namespace, rayservice=rayservice, rules=rules, run_id=RUN_ID))


@dsl.pipeline(name="revalidate-namespace", description="Compare every champion of a namespace with its own record; a red run when one decayed.")
def revalidate_namespace(
    namespace: str,
    rayservice: str = "",
    rules: dict = {},  # noqa: B006
) -> None:
    """A step for each model that is found, which notes and never fails, and one that collects, which does: no model's fault stops the others.

    Not by ``ignore_upstream_failure``: KFP's backend makes that an exit hook of the loop, and loses it, so the run would be green.
    """
    found = uncached(list_champions(namespace=namespace, rayservice=rayservice))
    with dsl.ParallelFor(found.output, parallelism=PARALLEL) as item:
        each = uncached(
            revalidate_model(
                model=item.model, namespace=namespace, rayservice=item.rayservice, rules=rules, models=item.models, run_id=RUN_ID, red=False
            )
        )
    uncached(collect_revalidations(namespace=namespace, rayservice=rayservice, run_id=RUN_ID)).after(each)
