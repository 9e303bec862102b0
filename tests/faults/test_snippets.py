"""The Python of docs/how-to-notebook.md, in the world in memory; that of the README runs on real Ray (tests/e2e/test_real_model.py)."""

import re
from pathlib import Path

from memory_world import World, live

PAGE = Path(__file__).parents[2] / "docs" / "how-to-notebook.md"


def test_the_steps_of_the_how_to_promote(world: World) -> None:
    world.rayservice(live())
    world.front()
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    here = snippet.replace("rollout.open_run(asked)", "process.open(asked)").replace(
        '"options": {', '"options": {"protocol": "json", "smoke": "none", '
    )
    assert here.count("process.open") == here.count('"smoke"') == 1
    exec(compile(here, PAGE.name, "exec"), {"process": world.process()})
    assert world.users_get() == ("v2",) and world.record().phase == "promoted"
