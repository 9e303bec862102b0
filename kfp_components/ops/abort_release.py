"""Give up a release that runs."""

from kfp import dsl

from kfp_components.ops.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def abort_release(
    model: str,
    namespace: str,
    rayservice: str,
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    reason: str = "",
    run_id: str = "",
    timeout_s: float = 300.0,
):
    """All traffic back to stable, and the candidate goes: by the step that runs, by this one when none does; it waits until that is so.

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
    runtime.show(run, rollout.abort_release(run, reason, timeout_s=timeout_s), report, summary, metrics)
