"""Give up an unfinished release of a model."""

from kfp import dsl

from kfp_components.ops.roll_back import roll_back
from kfp_components.workflows.steps import RUN_ID, uncached


@dsl.pipeline(name="rollback", description="Give all traffic back to the stable version and remove what an unfinished release made.")
def rollback(model: str, namespace: str, rayservice: str, reason: str = "asked for") -> None:
    """One step."""
    uncached(roll_back(model=model, namespace=namespace, rayservice=rayservice, reason=reason, run_id=RUN_ID))
