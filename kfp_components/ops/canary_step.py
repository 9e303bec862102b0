"""One step of the canary: shift, then judge."""

from kfp import dsl

from kfp_components.ops.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def canary_step(
    request: dict,
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    index: int = 0,
    run_id: str = "",
) -> dict:
    """Shift to the step's weight and judge until the evidence suffices for the next one; any fault gives all traffic back to stable at once.

    Args:
        request: what register_model returned.
        index: which of the request's steps, from 0; one past the last does nothing.
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
    runtime.show(run, rollout.canary_step(run, index), report, summary, metrics)
    return request
