"""Streams of the kit: items come as they are made, an error before the first has a status, and the engine stops when nobody reads."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from patience import seconds

from kfp_components.models import kit
from kfp_components.models.tensors import Refused


class Idle:
    """Computes nothing."""

    Settings = kit.Frozen

    def __init__(self, _settings: Any) -> None:
        pass

    def check(self) -> None:
        pass


class Source:
    """Numbers without end, each once the reader has said so."""

    def __init__(self) -> None:
        self.next, self.closed, self.made = threading.Semaphore(0), threading.Event(), 0

    def __call__(self) -> Iterator[int]:
        try:
            while True:
                assert self.next.acquire(timeout=seconds(30))
                self.made += 1
                yield self.made
        finally:
            self.closed.set()


def served(**args: Any) -> kit.Served:
    return kit.Served({"model": "m", "version": "v1", **args}, Idle)


async def in_thread(work: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, work)


def test_items_come_as_they_are_made_and_the_engine_stops_with_its_reader() -> None:
    async def read() -> None:
        source, app = Source(), served()
        source.next.release()
        items = await app.stream(source)
        for wanted in (1, 2, 3):
            assert await anext(items) == wanted and source.made == wanted
            source.next.release()
        await items.aclose()
        source.next.release(2)
        assert await in_thread(lambda: source.closed.wait(seconds(30)))
        assert source.made < 6 and await app.compute(lambda: "free") == "free"

    asyncio.run(read())


def test_a_reader_that_goes_before_the_first_item_stops_the_engine_too() -> None:
    async def read() -> None:
        source, app = Source(), served()
        asked = asyncio.create_task(app.stream(source))
        queued = asyncio.create_task(app.stream(lambda: pytest.fail("nobody waits for it any more")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task in (asked, queued):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        source.next.release()
        assert await app.compute(lambda: "free") == "free" and source.made < 2

    asyncio.run(read())


def test_an_error_is_raised_where_it_happens() -> None:
    def refused() -> Iterator[int]:
        raise Refused("not that voice", param="voice")
        yield 1

    def breaks() -> Iterator[int]:
        yield 1
        raise MemoryError("of the engine")

    async def read() -> None:
        with pytest.raises(Refused, match="not that voice"):
            await served().stream(refused)
        items = await served().stream(breaks)
        assert await anext(items) == 1
        with pytest.raises(MemoryError, match="of the engine"):
            await anext(items)
        assert [item async for item in await served().stream(lambda: iter(()))] == []
        with pytest.raises(Refused, match="declared fault"):
            await served(fault="errors", fault_every=1).stream(lambda: iter([1]))

    asyncio.run(read())
