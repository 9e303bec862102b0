"""The component image, named once. KFP_SERVING_IMAGE at compile time puts your registry in front."""

import os
from importlib.metadata import version

IMAGE = os.environ.get("KFP_SERVING_IMAGE", f"kfp-serving-components-python:{version('kfp-serving-components')}")
