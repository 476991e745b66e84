"""A process that waits for another's embedding says so."""

import os
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from pluralllm_fl.embedding import cache
from pluralllm_fl.embedding.cache import VectorCache


def test_after_a_while_the_holder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "PATIENCE_SECONDS", 0.1)
    with VectorCache(tmp_path) as first, first.exclusive("model"):
        pass
    held = threading.Event()

    def hold() -> None:
        """Stand in for another process, which is done a little later."""
        with FileLock(tmp_path / "locks" / "model.lock"):
            held.set()
            time.sleep(0.5)

    threading.Thread(target=hold).start()
    held.wait()
    with VectorCache(tmp_path) as second, second.exclusive("model"):
        pass
    assert f"Waiting for process {os.getpid()}" in caplog.text


def test_nothing_is_said_without_a_wait(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with VectorCache(tmp_path) as store, store.exclusive("model"):
        pass
    assert caplog.text == ""
