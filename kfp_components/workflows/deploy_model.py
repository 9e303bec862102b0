"""Deploy the first version of a model: there is no stable one to compare with, so smoke inference alone decides."""

from kfp import dsl

from kfp_components.ops.finish_release import finish_release
from kfp_components.ops.promote_model import promote_model
from kfp_components.ops.register_model import register_model
from kfp_components.workflows.steps import RUN_ID, deploy_and_smoke, uncached


@dsl.pipeline(
    name="deploy-model",
    description="The first version of a model on a RayService, with its alias and its place in Kubeflow's UI: smoke inference alone decides. Fill in "
    "all but options: model (bge), version (v1), uri (where the artifact is), namespace and rayservice (kubectl get rayservice -A), import_path "
    "(acme_models.bge:build, which the RayService's owner has to allow). options may stay {}: what is asked before users are is options.smoke.",
)
def deploy_model(
    model: str,
    version: str,
    uri: str,
    namespace: str,
    rayservice: str,
    import_path: str,
    options: dict = {},  # noqa: B006  KFP reads the default from the signature
) -> None:
    """Register, deploy, alias, stub, smoke, all traffic.

    Args:
        model: its name, DNS-1035, such as bge; users call /{model} at the Service {model}-predictor.
        version: name of the new version, such as v1.
        uri: where the artifact is (s3://, https://, oci://, pvc://, file:// ...), without a credential.
        namespace: namespace of the RayService.
        rayservice: name of the RayService that serves it; kubectl get rayservice lists them.
        import_path: module:attribute of the Serve application or its builder, on the RayService's allow-list.
        options: everything with a default, such as args, smoke, judge; {} runs, and each wrong key is named.
    """
    ending = uncached(finish_release(model=model, namespace=namespace, rayservice=rayservice, run_id=RUN_ID))
    with dsl.ExitHandler(ending, name="users-are-served"):
        registered = uncached(
            register_model(
                model=model,
                version=version,
                uri=uri,
                namespace=namespace,
                rayservice=rayservice,
                import_path=import_path,
                options=options,
                run_id=RUN_ID,
                first_version=True,
            )
        )
        uncached(promote_model(request=deploy_and_smoke(registered), run_id=RUN_ID))
