"""The embedded default: a small Kubernetes API, a real Ray, and stand-ins for the controllers, all on loopback.

The stand-ins are named so and say what they do not do; the contract tests that they pass are meant for the real ones too.
"""
