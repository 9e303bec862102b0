"""For all tests: rings (rings.py), the second look at what failed end to end (second_look.py), logs of failed tests (failure_logs.py)."""

from hypothesis import settings

pytest_plugins = ["rings", "second_look", "failure_logs"]

settings.register_profile("kfp-serving", deadline=None)  # a busy machine would miss one; pytest's own timeout stops what hangs
settings.load_profile("kfp-serving")
