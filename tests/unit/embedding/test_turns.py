"""A process that waits for another's embedding says so, and gets its turn."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from pluralllm_fl.embedding import TextEmbedder, cache, embedder
from pluralllm_fl.embedding.cache import VectorCache
from pluralllm_fl.preferences import Question


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


def test_a_short_job_need_not_wait_for_a_long_one(
    causal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads stand in for processes: file locks and databases know no difference."""
    monkeypatch.setattr(embedder, "TURN_SECONDS", 0.1)
    written: list[bytes] = []
    write = VectorCache.write

    def count(self: VectorCache, items: list[tuple[bytes, bytes]]) -> None:
        written.extend(key for key, _ in items)
        write(self, items)

    monkeypatch.setattr(VectorCache, "write", count)
    begun = threading.Event()

    def embed(words: list[str]) -> float:
        def slowly(done: int, _: int) -> None:
            if done:
                begun.set()
            time.sleep(0.05)

        questions = [Question(word, ("yes", "no")) for word in words]
        TextEmbedder(str(causal), cache_dir=tmp_path, device="cpu").embed(questions, slowly)
        return time.monotonic()

    # Of many lengths, and so of many batches; the other job's texts are partly the same.
    long = [" ".join(["a"] * length) for length in range(1, 22)]
    short = [*long[:2], "b", "c"]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(embed, long)
        begun.wait()
        second = pool.submit(embed, short)
        assert second.result() < first.result()
    assert len(written) == len(set(written)) == len({*long, *short, "yes", "no"})
