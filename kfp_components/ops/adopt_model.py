"""Record what serves a model already as its stable version."""

from kfp import dsl

from kfp_components.ops.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def adopt_model(
    model: str,
    namespace: str,
    rayservice: str,
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    application: str = "",
    route: str = "",
    alias: str = "",
    version: str = "",
    uri: str = "",
    model_format: str = "custom",
    undo: bool = False,
    run_id: str = "",
):
    """Record what serves a model already as its stable version. Nothing of it restarts or is changed; only what is missing is made.

    Args:
        model: its name in Kubeflow.
        namespace: namespace of the RayService.
        rayservice: name of the RayService.
        application: the Serve application; empty for the one at the route.
        route: the route prefix that users call; empty for the application's, else /{model}.
        alias: the Service that users call; empty for {model}-predictor.
        version: what to call the running version; empty for its args.version, else found- and its digest.
        uri: where its artifact is, for the registry.
        model_format: shown in Kubeflow's UI.
        undo: take away what an earlier adoption made; what serves goes on.
        run_id: identity of the run.
        report: the adoption, as a page.
        summary: the same in a few lines, what this step did and what comes next.
        metrics: seconds of this step, weight, evidence and counts.
    """
    from kfp_components.ops import runtime

    run, release = runtime.adopt(model, namespace, rayservice, application, route, alias, version, uri, model_format, undo, run_id)
    runtime.show(run, release, report, summary, metrics)
