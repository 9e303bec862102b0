"""Give the candidate a share of the requests."""

from kfp import dsl

from kfp_components.ops.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def shift_traffic(
    request: dict,
    weight_percent: float,
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    run_id: str = "",
) -> dict:
    """Give the candidate a share of the requests, verified at the router; the share is a lease that lapses unless a step renews it.

    Args:
        request: what register_model returned.
        weight_percent: the share, 0 to 100.
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
    runtime.show(run, rollout.shift_traffic(run, weight_percent), report, summary, metrics)
    return request
