"""The world of every test."""

from collections.abc import Iterator

import pytest
import remembered
from memory_world import World


@pytest.fixture(scope="package", autouse=True)
def quick_surgery() -> Iterator[None]:
    with remembered.surgery():
        yield


@pytest.fixture
def world() -> World:
    return World(rate_per_s=40.0)
