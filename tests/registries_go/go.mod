module kfp-serving-tests/registries

go 1.26.0

require (
	github.com/kubeflow/hub v0.3.10
	github.com/kubeflow/hub/pkg/openapi v0.3.10
)

// the module proxy knows both under the repository's former name; the third, of the catalog command, it does not serve: build_model_registry.py leaves that out
replace github.com/kubeflow/hub => github.com/kubeflow/model-registry v0.3.10

replace github.com/kubeflow/hub/pkg/openapi => github.com/kubeflow/model-registry/pkg/openapi v0.3.10
