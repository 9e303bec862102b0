"""``Answer``: what came back, in one form, whatever the protocol was; and ``Way``, how one is asked for."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from kfp_components.request import SmokeCase

ANSWER_CHARACTERS = 240


@dataclass
class Answer:
    """What came back. ``broken`` says why it is not whole; then the rest is as far as it came. ``unreachable``: nobody was there to answer.

    ``value`` is what assertions read: parsed JSON, text or bytes; of V2 its JSON with all tensors' data, of an OpenAI stream the answer that its
    pieces make up. ``pieces`` and ``first_s`` are of a stream; ``ended`` tells whether that ended as its protocol says. ``seconds`` is 0 where nobody
    knows.
    """

    status: int | None = None
    version: str | None = None
    content: bytes = b""
    kind: str = ""
    value: Any = None
    seconds: float = 0.0
    pieces: int = 0
    first_s: float | None = None
    ended: bool = True
    broken: str | None = None
    unreachable: bool = False

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Measures ``seconds``, whatever happens."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds = time.perf_counter() - began

    def told(self) -> str:
        """Its beginning, in one line; sound and other bytes by their number."""
        if b"\0" in self.content[:1000] or self.kind.startswith(("audio/", "application/octet-stream")):
            return f"{len(self.content):,} bytes of {self.kind or 'no content type'}"
        text = " ".join(self.content[: 4 * ANSWER_CHARACTERS].decode(errors="replace").split())
        return text if len(text) <= ANSWER_CHARACTERS else f"{text[: ANSWER_CHARACTERS - 3]}..."


class Way(Protocol):
    """How a model is asked by some of the protocols."""

    def request(self, case: SmokeCase) -> str:
        """What is sent and where, in a few words."""

    def ask(self, case: SmokeCase) -> Answer:
        """Ask once. Never raises for what the other side does; an `InputError` where the case cannot be sent from here."""

    def close(self) -> None:
        """Give its connections back."""


def late(timeout_s: float) -> str:
    """Why an answer that is not whole in time is not."""
    return f"no whole answer within {timeout_s:g} s"


def parsed(content: bytes) -> Any:
    """JSON. Raises `ValueError` for bytes that are none: no JSON, no text, numbers and depths beyond reason."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
