"""Create the name that clients call."""

from kfp import dsl

from kfp_components.ops.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def create_alias(
    request: dict,
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    run_id: str = "",
) -> dict:
    """Create the ExternalName Service {model}-predictor onto the RayService's Serve Service.

    Args:
        request: what register_model returned.
        run_id: identity of the run, so that a retried pod goes on and a second run is refused.
        report: the release so far, as a page.
        summary: the same in a few lines, what this step did and what comes next.
        metrics: seconds of this step, weight, evidence and counts.

    Returns:
        The request, for the next step.
    """
    from kfp_components import rollout
    from kfp_components.ops import runtime

    run = runtime.open_run(request, run_id)
    runtime.show(run, rollout.create_alias(run), report, summary, metrics)
    return request
