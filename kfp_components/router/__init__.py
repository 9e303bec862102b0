"""The Serve application that owns a model's public route and splits its requests between versions. Runs inside Ray; imports nothing of the rest."""
