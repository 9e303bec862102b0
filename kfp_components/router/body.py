"""The body of a request, which can be sent again: all of it when it is small, and of a large one as long as what was given away is still here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from kfp_components.router.headers import header

REPLAYABLE_BYTES = 1 << 20


class ClientGone(Exception):
    """The client went away while it was sending."""


class Body:
    """All of it (``first``, nothing to ``receive``), or a stream that begins with ``first`` and of which the first `REPLAYABLE_BYTES` are kept."""

    def __init__(self, first: bytes | None, receive: Any = None) -> None:
        self.begun = asyncio.Event()  # whether a stream was asked for any of it
        self.gone = False
        self._receive = receive
        self._ended = receive is None
        self._kept: list[bytes] | None = [first] if first else []
        self._kept_bytes = len(first or b"")

    @property
    def streamed(self) -> bool:
        """Whether it came in pieces."""
        return self._receive is not None

    @property
    def replayable(self) -> bool:
        """Whether it can be sent once more."""
        return self._kept is not None

    def data(self) -> bytes | AsyncIterator[bytes] | None:
        """From its beginning, for one try."""
        return self._stream() if self.streamed else b"".join(self._kept or ()) or None

    def forget(self) -> None:
        """It is not sent again."""
        if self.streamed:
            self._kept = None

    async def _stream(self) -> AsyncIterator[bytes]:
        self.begun.set()
        for piece in tuple(self._kept or ()):
            yield piece
        while not self._ended:
            piece = await self._next()
            if piece:
                yield piece

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone = True
            raise ClientGone
        self._ended = not message.get("more_body")
        piece: bytes = message.get("body") or b""
        self._kept_bytes += len(piece)
        if self._kept_bytes > REPLAYABLE_BYTES:
            self.forget()
        elif self._kept is not None:
            self._kept.append(piece)
        return piece


async def read(headers: list[tuple[bytes, bytes]], receive: Any) -> Body:
    """The body as a whole when it is here or known to be small, else as a stream. Raises `ClientGone`."""
    first = await receive()
    if first["type"] == "http.disconnect":
        raise ClientGone
    begin: bytes = first.get("body", b"")
    if not first.get("more_body"):
        return Body(begin)
    body = Body(begin, receive)
    length = header(headers, "content-length")
    if length is None or int(length) > REPLAYABLE_BYTES:
        return body
    return Body(b"".join([piece async for piece in body._stream()]))
