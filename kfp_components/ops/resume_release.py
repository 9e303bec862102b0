"""Let a paused release go on."""

from kfp import dsl

from kfp_components.ops.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def resume_release(
    model: str,
    namespace: str,
    rayservice: str,
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    reason: str = "",
    run_id: str = "",
    timeout_s: float = 60.0,
):
    """A release that pause_release stopped goes on.

    Args:
        model: the model whose release it is.
        namespace: namespace of the RayService.
        rayservice: name of the RayService.
        reason: recorded with the release, beside who asked and when.
        run_id: identity of the run that asks.
        timeout_s: how long the step that runs may take to obey.
        report: the release as a page.
        summary: the same in a few lines, what this step did and what comes next.
        metrics: seconds of this step, weight, evidence and counts.
    """
    from kfp_components import rollout
    from kfp_components.ops import runtime

    run = runtime.open_unfinished(model, namespace, rayservice, run_id)
    runtime.show(run, rollout.resume_release(run, reason, timeout_s=timeout_s), report, summary, metrics)
