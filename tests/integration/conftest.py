"""Fixtures of the in-process federation."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _cheap_collections() -> Iterator[None]:
    """Flower collects garbage for every array that it converts; spare it the test runner's heap."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
