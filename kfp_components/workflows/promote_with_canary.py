"""Promote a version with a canary: flat and unrolled, so that every step is a box in the UI and a bad verdict is one red box."""

from collections.abc import Callable
from typing import Any

from kfp import dsl

from kfp_components.ops.canary_step import canary_step
from kfp_components.ops.finish_release import finish_release
from kfp_components.ops.promote_model import promote_model
from kfp_components.ops.register_model import register_model
from kfp_components.workflows.steps import RUN_ID, deploy_and_smoke, uncached

DEFAULT_STEPS = (10, 25, 50)


def build(steps: tuple[int, ...] = DEFAULT_STEPS) -> Callable[..., Any]:
    """The pipeline with one canary box for each step; a run may give fewer steps than there are boxes, not more."""
    boxes, default = len(steps), list(steps)

    @dsl.pipeline(
        name="promote-with-canary",
        description="A new version of a model beside the one that users have, step by step, judged against it, and taken back when it is worse. "
        "Fill in model (bge), version (a new one, v2), uri (where the artifact is), namespace and rayservice (those of the version that serves) and "
        f"import_path (acme_models.bge:build). steps are ceilings of its share in percent, rising, {boxes} at most; options may stay {{}}. A first "
        "version goes by deploy-model.",
    )
    def promote_with_canary(
        model: str,
        version: str,
        uri: str,
        namespace: str,
        rayservice: str,
        import_path: str,
        steps: list = default,
        options: dict = {},  # noqa: B006
    ) -> None:
        """Register, deploy, alias, stub, smoke, canary, all traffic.

        Args:
            model: its name, DNS-1035, such as bge; users call /{model} at the Service {model}-predictor.
            version: name of the new version, such as v2.
            uri: where the artifact is (s3://, https://, oci://, pvc://, file:// ...), without a credential.
            namespace: namespace of the RayService.
            rayservice: name of the RayService that serves it; kubectl get rayservice lists them.
            import_path: module:attribute of the Serve application or its builder, on the RayService's allow-list.
            steps: ceilings of the candidate's share in percent, rising; one canary step each.
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
                    steps=steps,
                    options=options,
                    run_id=RUN_ID,
                    boxes=boxes,
                )
            )
            request = deploy_and_smoke(registered)
            for index in range(boxes):
                task = uncached(canary_step(request=request, index=index, run_id=RUN_ID))
                task.set_display_name(f"canary step {index + 1}")
                request = task.outputs["Output"]
            uncached(promote_model(request=request, run_id=RUN_ID))

    return promote_with_canary


promote_with_canary = build()
