"""Give up an unfinished release of a model."""

from kfp import dsl

from kfp_components.ops.roll_back import roll_back
from kfp_components.workflows.steps import RUN_ID, uncached


@dsl.pipeline(
    name="rollback",
    description="All traffic back to the stable version in one write, and what the release made goes: of an unfinished release, or of a promoted one "
    "while its old version is kept. Fill in model, namespace and rayservice; reason is recorded.",
)
def rollback(model: str, namespace: str, rayservice: str, reason: str = "asked for") -> None:
    """One step.

    Args:
        model: the model whose release is given up.
        namespace: namespace of the RayService.
        rayservice: name of the RayService.
        reason: recorded with the release, for whoever reads its report.
    """
    uncached(roll_back(model=model, namespace=namespace, rayservice=rayservice, reason=reason, run_id=RUN_ID))
