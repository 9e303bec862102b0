"""The exit task of a pipeline."""

from kfp import dsl

from kfp_components.ops.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finish_release(
    model: str,
    namespace: str,
    rayservice: str,
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    run_id: str = "",
):
    """Verify that users are served, end what this run left unfinished, and keep the report; another run's release is not touched.

    Args:
        model: the model that was released.
        namespace: namespace of the RayService.
        rayservice: name of the RayService.
        run_id: identity of the run.
        report: the release as a page.
        summary: the same in a few lines, what this step did and what comes next.
        metrics: seconds of this step, weight, evidence and counts.
    """
    from kfp_components.ops import runtime

    runtime.finish(model, namespace, rayservice, run_id, report, summary, metrics)
