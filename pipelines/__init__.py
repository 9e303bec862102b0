"""The KFP pipelines that compose the components; ``python -m pipelines.compile`` writes compiled/."""
