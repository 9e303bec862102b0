"""Judge at the weight that is set."""

from kfp import dsl

from kfp_components.ops.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def judge_canary(
    request: dict,
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    index: int = 0,
    run_id: str = "",
) -> dict:
    """Judge the candidate against stable at the weight that is set, renewing its lease, until the evidence suffices for the next step.

    Args:
        request: what register_model returned.
        index: which of the request's steps, from 0.
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
    runtime.show(run, rollout.judge_canary(run, index), report, summary, metrics)
    return request
