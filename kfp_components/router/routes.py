"""Where the versions' applications are just now, as Serve's own page ``/-/routes`` tells.

During a release the public route changes hands, and a version's application moves with it: in one write, but a proxy may learn of it in two steps,
and a request may be on its way. So a version is looked for by the name of its application, before the first request to it and whenever it is not
where it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp

from kfp_components.router.policy import Backend

WAIT_S = 2.0
"""For an application that has no route at all: one that changes hands has it again by then."""

LOOK_AGAIN_S = 0.05
PAGE_TIMEOUT_S = 5.0


class Routes:
    """``own`` is the router's application, to which it sends nothing."""

    def __init__(self, session: Callable[[], aiohttp.ClientSession], own: str) -> None:
        self.own = own
        self._session = session
        self._known: dict[tuple[str, str], str] = {}
        self._pages: dict[str, _Page] = {}

    def forget(self) -> None:
        """The configuration is another: look at all anew."""
        self._known.clear()

    async def where(self, base: str, backend: Backend, arrived_at: str, look: bool = False) -> tuple[str, bool]:
        """The route of a version at the proxy ``base``, and whether it was looked for: if not, it is the configured one, and may be wrong.

        ``arrived_at`` is the ``root_path`` of a request that came to the router, so no version is there (any more). ``look``: nothing is taken for
        known.
        """
        application = backend.application
        if application is None or application == self.own:
            return backend.route, False
        known = self._known.get((base, application))
        if known is not None and not look and (not arrived_at.endswith(known) if known else bool(arrived_at)):
            return known, True
        found = await self._find(base, application)
        return (backend.route, False) if found is None else (found, True)

    async def elsewhere(self, base: str, application: str, tried: str) -> str | None:
        """The route that an application has instead of ``tried``. None: none, it is still there, or the page cannot be read."""
        found = await self._find(base, application)
        return None if found == tried else found

    async def _find(self, base: str, application: str) -> str | None:
        loop = asyncio.get_running_loop()
        until = loop.time() + WAIT_S
        page = self._pages.setdefault(base, _Page(f"{base}/-/routes", self._session))
        while True:
            table = await page.newer_than(loop.time())
            if table is None:
                return None
            route = next((route for route, owner in table.items() if owner == application), None)
            if route is not None:
                self._known[(base, application)] = route.rstrip("/")
                return route.rstrip("/")
            if loop.time() >= until:
                return None
            await asyncio.sleep(LOOK_AGAIN_S)


class _Page:
    """One proxy's table. Those who ask while it is being read share the next reading."""

    def __init__(self, url: str, session: Callable[[], aiohttp.ClientSession]) -> None:
        self._url = url
        self._session = session
        self._lock = asyncio.Lock()
        self._read_at = float("-inf")
        self._table: dict[str, str] | None = None

    async def newer_than(self, when: float) -> dict[str, str] | None:
        """Route -> application, read after ``when`` by the loop's clock; None when it cannot be read."""
        async with self._lock:
            if self._read_at <= when:
                self._read_at, self._table = asyncio.get_running_loop().time(), await self._read()
            return self._table

    async def _read(self) -> dict[str, str] | None:
        try:
            timeout = aiohttp.ClientTimeout(total=PAGE_TIMEOUT_S)
            async with self._session().get(self._url, timeout=timeout, allow_redirects=False) as answer:
                found: Any = await answer.json(content_type=None) if answer.status == 200 else None
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError):
            return None
        return found if isinstance(found, dict) else None
