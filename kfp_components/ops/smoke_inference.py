"""Ask the version before any user does."""

from kfp import dsl

from kfp_components.ops.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def smoke_inference(
    request: dict,
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    run_id: str = "",
) -> dict:
    """Send the smoke cases to the version, pinned, through the alias; a wrong answer takes the version back.

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
    runtime.show(run, rollout.smoke_inference(run), report, summary, metrics)
    return request
