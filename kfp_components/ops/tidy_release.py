"""Put away what no run waits for."""

from kfp import dsl

from kfp_components.ops.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def tidy_release(
    model: str,
    namespace: str,
    rayservice: str,
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    run_id: str = "",
):
    """Remove the old version of a promoted release when its time is over, and take back a candidate that was held for too long.

    Args:
        model: the model whose release is tidied up.
        namespace: namespace of the RayService.
        rayservice: name of the RayService.
        run_id: identity of the run.
        report: the release as a page.
        summary: the same in a few lines, what this step did and what comes next.
        metrics: seconds of this step, weight, evidence and counts.
    """
    from kfp_components import rollout
    from kfp_components.ops import runtime

    run = runtime.open_unfinished(model, namespace, rayservice, run_id)
    runtime.show(run, rollout.tidy_release(run), report, summary, metrics)
