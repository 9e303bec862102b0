"""Pure manifests and readers: the RayService's applications, the InferenceService stub, the alias. Nothing here talks to a cluster."""
