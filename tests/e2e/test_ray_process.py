"""The Ray of the embedded cluster."""

import os
import signal
from pathlib import Path

from patience import until

from kfp_components.local.ray_process import GAVE_UP, RayProcess


def test_a_ray_that_gave_up_starting_is_started_anew(tmp_path: Path) -> None:
    log, pids = tmp_path / "ray.log", list[int]()
    ray = RayProcess(log=log)

    def spawned() -> None:
        pids.append(ray.pid)
        if len(pids) == 1:  # as on a busy machine, where its parts do not find each other within Ray's 30 s
            os.kill(ray.pid, signal.SIGKILL)
            until(lambda: not ray.is_alive(), "the head to be gone")
            with log.open("a") as said:
                said.write(f"Exception: {GAVE_UP}.")

    try:
        ray.start(on_spawn=spawned)
        assert len(pids) == 2 and ray.pid == pids[1]
        with ray.serve() as serve:
            assert serve.get_status()["applications"] == {}
    finally:
        ray.stop()
    assert not ray.is_alive()
