"""Which models have a version in front of users."""

from kfp import dsl

from kfp_components.ops.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def list_champions(
    namespace: str,
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    rayservice: str = "",
) -> list:
    """List the models of a namespace that have a version in front of users, by their release records.

    Args:
        namespace: namespace of the RayServices.
        rayservice: only the models of this one; empty: of all.
        summary: the models and their RayServices.
        metrics: how many models there are.

    Returns:
        One entry for each model: its name, its RayService, and how many there are.
    """
    from kfp_components.ops import runtime

    found = runtime.champions(namespace, rayservice)
    runtime.show_champions(found, summary, metrics)
    return [{"model": target.model, "rayservice": target.rayservice, "models": len(found)} for target in found]
