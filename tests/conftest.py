"""For all tests: rings (rings.py), the second look at what failed end to end (second_look.py), logs of failed tests (failure_logs.py)."""

import os
import signal

from hypothesis import settings

for name in [name for name in os.environ if name.startswith("AWS_")]:  # no test asks anybody's real S3, nor the machine's metadata for a right to
    del os.environ[name]
os.environ |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices, and other processes want the cores
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell ignores it for what it starts in the background, and so would every process of a test
    signal.signal(signal.SIGINT, signal.default_int_handler)
pytest_plugins = ["rings", "second_look", "failure_logs"]

settings.register_profile("kfp-serving", deadline=None)  # a busy machine would miss one; pytest's own timeout stops what hangs
settings.load_profile("kfp-serving")
