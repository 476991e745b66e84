"""A process that waits for another's embedding says so, and gets its turn."""

import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from pluralllm_fl.embedding import TextEmbedder, cache
from pluralllm_fl.embedding import embedder as embedder_module
from pluralllm_fl.embedding.cache import VectorCache
from pluralllm_fl.preferences import Question
from tests.unit.test_embedding import build_model


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("causal"), "causal")


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


def embed(model: str, folder: str, words: list[str], started: str) -> tuple[int, float]:
    """Embed in a process of its own, slowly; return how many texts it computed, and when done."""
    embedder_module.TURN_SECONDS = 0.1
    computed, write = [0], VectorCache.write

    def count(self: VectorCache, items: list[tuple[bytes, bytes]]) -> None:
        computed[0] += len(items)
        write(self, items)

    def slowly(done: int, _: int) -> None:
        if done:
            Path(started).touch()
        time.sleep(0.05)

    VectorCache.write = count  # type: ignore[assignment, method-assign]
    embedder = TextEmbedder(model, cache_dir=folder, device="cpu")
    embedder.embed([Question(word, ("yes", "no")) for word in words], slowly)
    return computed[0], time.monotonic()


def test_a_short_job_need_not_wait_for_a_long_one(causal: Path, tmp_path: Path) -> None:
    # Of many lengths, and so of many batches; the other job's texts are partly the same.
    long = [" ".join(["a"] * length) for length in range(1, 22)]
    begun = tmp_path / "begun"
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for worker in [pool.submit(time.monotonic) for _ in range(2)]:
            worker.result()  # the processes are there, with all that they import
        first = pool.submit(embed, str(causal), str(tmp_path), long, str(begun))
        while not begun.exists():
            time.sleep(0.01)
        texts = [*long[:2], "b", "c"]
        second = pool.submit(embed, str(causal), str(tmp_path), texts, str(tmp_path / "other"))
        (much, last), (few, early) = first.result(60), second.result(60)
    assert early < last
    assert much + few == len({*long, *texts}) + 2  # the two options are embedded apart
