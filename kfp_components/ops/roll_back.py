"""Give up an unfinished release."""

from kfp import dsl

from kfp_components.ops.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def roll_back(
    model: str,
    namespace: str,
    rayservice: str,
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    reason: str = "asked for",
    run_id: str = "",
):
    """Give all traffic back to stable in one write, verify it by probes, and remove what the release made.

    Args:
        model: the model whose release is given up.
        namespace: namespace of the RayService.
        rayservice: name of the RayService.
        reason: recorded with the release.
        run_id: identity of the run.
        report: the release as a page.
        summary: the same in a few lines, what this step did and what comes next.
        metrics: seconds of this step, weight, evidence and counts.
    """
    from kfp_components import rollout
    from kfp_components.ops import runtime

    run = runtime.open_unfinished(model, namespace, rayservice, run_id)
    runtime.show(run, rollout.roll_back(run, reason), report, summary, metrics)
    runtime.name_report(run, report)
