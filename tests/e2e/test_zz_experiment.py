import asyncio, time, threading
import aiohttp, httpx
from patience import seconds, until
from test_router_in_front import *
from world import *

def test_exp(serve):
    PUBLIC="/hand"
    serve.write({VERSION: INTERNAL, ROUTER: PUBLIC})
    until(lambda: serve.get(f"{PUBLIC}/v2/health/live").headers.get("x-model-version") == "v1", "ok")
    url = serve.url + PUBLIC
    with httpx.Client(timeout=600, trust_env=False) as c, c.stream("GET", f"{url}/stream/s") as stream:
        it = stream.iter_text(); print(next(it))
        t0=time.time()
        serve.write({VERSION: PUBLIC})
        print("routes flipped", time.time()-t0)
        time.sleep(5)
        def status():
            return str(serve.get_status())
        from kfp_components.local.environment import Embedded
        print("status while draining", STATUS())
        serve.write({VERSION: PUBLIC, ROUTER: BESIDE})
        print("routes with new router", time.time()-t0)
        until(lambda: serve.get(f"{BESIDE}/-/router").status_code == 200, "new router answers")
        print("new router answers", time.time()-t0, serve.get(f"{BESIDE}/-/router").json())
        print("status", STATUS())
        t1=time.time()
        serve.write({VERSION: PUBLIC, ROUTER: BESIDE}, request_timeout_s=7.0)
        try:
            until(lambda: serve.get(f"{BESIDE}/-/router").json().get("request_timeout_s") == 7.0, "user config", 30)
            print("user_config effective after", time.time()-t1)
        except BaseException as e:
            print("user_config NOT effective", time.time()-t1, str(e)[:300])
        print("status", STATUS())
        n=0
        for _ in range(4):
            httpx.post(f"{serve.url}{PUBLIC}/stream/s/next", trust_env=False)
            print(next(it), time.time()-t0)
        httpx.post(f"{serve.url}{PUBLIC}/stream/s/next", trust_env=False)
        print("end", list(it))
    t1=time.time()
    try:
        until(lambda: serve.get(f"{BESIDE}/-/router").json().get("request_timeout_s") == 7.0, "user config", 30)
        print("after the stream ended: user_config effective after", time.time()-t1)
    except BaseException as e:
        print("still NOT", str(e)[:300])
    print("status", STATUS())

STATUS=None
import pytest
@pytest.fixture(autouse=True)
def _st(embedded):
    global STATUS
    def f():
        with embedded.serve() as s:
            st = s.get_status()
            return {k:(v.get("status"), v.get("message"), {d:(x.get("status"), x.get("status_trigger"), [r.get("state") for r in x.get("replicas",[])]) for d,x in v.get("deployments",{}).items()}) for k,v in st["applications"].items()}
    STATUS=f
    yield
