"""A model called by handle, through Ray Client, on a real Ray of its own: the process that connects is its own too, as a step of a pipeline is."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import seconds, until

from kfp_components.local.ray_process import RayProcess

ASKING = """
import json, sys
from kfp_components import errors
from kfp_components.cluster import Endpoint
from kfp_components.probes import Prober, Reach, handle
from kfp_components.request import SmokePace, parse_case

dashboard, client = (lambda: Endpoint(sys.argv[1], "", ("head",))), (lambda: Endpoint(sys.argv[2], "", ("head",)))
body = {"protocol": "handle", "call": "count", "body": ["a", "b"], "timeout_s": 60}
cases = [
    parse_case({**body, "name": "right", "expect": {"/count": 2}}, "case"),
    parse_case({**body, "name": "wrong", "expect": {"/count": 3}}, "case"),
    parse_case({**body, "name": "raises", "body": 7}, "case"),
    parse_case({**body, "name": "hangs", "call": "sleep", "body": 60, "timeout_s": 1}, "case"),
]
def prober(application):
    return Prober(Endpoint("http://127.0.0.1:9", "", ()), "m", "/m", reach=Reach(application, dashboard, dashboard, client))

with prober("m-v1") as one:
    found = sorted(one.send(cases, SmokePace()), key=lambda pair: pair[0])
told = {"found": [result.problem for _, result in found], "versions": handle._versions(dashboard())}
try:
    with prober("m-v9") as one:
        one.run(cases[:1])
except errors.Unreachable as error:
    told["other"] = str(error)
with prober("m-v1") as one:
    told["again"] = one.run(cases[:1])[0].problem
print(json.dumps(told))
"""
APPLICATION = """
import time
from ray import serve

@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Counting:
    def count(self, texts):
        return {"count": len(texts)}

    def sleep(self, s):
        time.sleep(s)

app = Counting.bind()
"""


@pytest.fixture
def ray(tmp_path: Path) -> Iterator[RayProcess]:
    (tmp_path / "counting_app.py").write_text(APPLICATION)
    ray = RayProcess(python_path=str(tmp_path), log=tmp_path / "ray.log")
    ray.start()
    try:
        with ray.serve() as serve:
            serve.put_applications({"applications": [{"name": "m-v1", "route_prefix": "/m", "import_path": "counting_app:app"}]})
            until(lambda: serve.get_status()["applications"]["m-v1"]["status"] == "RUNNING", "the application to run")
        yield ray
    finally:
        ray.stop()


def test_a_handle_through_ray_client(ray: RayProcess) -> None:
    client = f"http://127.0.0.1:{ray.client_port}"
    environment = {**os.environ, **ray.environment()}
    command = [sys.executable, "-c", ASKING, ray.dashboard_url, client]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=seconds(200))
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    right, wrong, raises, hangs = told["found"]
    where = rf"handle of application m-v1 at ray://{client.removeprefix('http://')}, "
    assert right is None and told["again"] is None
    assert wrong == f'wrong: {where}count: expected /count = 3 (tolerance 0.001), got 2; the answer: {{"count": 2}}'
    assert raises.startswith(f"raises: {where}count: expected status 200, got 500: ") and "has no len()" in raises and raises.isprintable()
    assert hangs == f"hangs: {where}sleep: no whole answer within 1 s"
    assert told["versions"]["Python"] == sys.version.split()[0] and told["versions"]["Ray"].startswith("2.")
    assert "handle of application m-v9" in told["other"]
