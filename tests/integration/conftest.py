"""Fixtures of the in-process federation, and of what uses a saved run."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.saved import untrained_run


@pytest.fixture(autouse=True, scope="module")
def _cheap_collections() -> Iterator[None]:
    """Flower collects garbage for every array that it converts; spare it the test runner's heap."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four groups whose predictor nobody trained."""
    return untrained_run(tmp_path_factory.mktemp("run"))
