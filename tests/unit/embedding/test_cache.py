"""The cache under reuse, parallel use, interruption and damage."""

import hashlib
import multiprocessing
import os
import sqlite3
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from pluralllm_fl.devices import model_dtype
from pluralllm_fl.embedding import TextEmbedder
from pluralllm_fl.errors import EmbeddingError
from pluralllm_fl.preferences import Question
from tests.unit.embedding.language_models import JOINT, QUESTIONS, rows, run, stored, text


def test_cached_texts_need_no_language_model(causal: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    first = TextEmbedder(str(causal), cache_dir=tmp_path)
    table = first.embed(QUESTIONS, lambda done, total: calls.append((done, total)))
    assert calls[0] == (0, 8)
    assert calls[-1] == (8, 8)
    assert calls == sorted(calls)
    script = (
        "import sys\n"
        "from pluralllm_fl.embedding import TextEmbedder\n"
        "from pluralllm_fl.preferences import Question\n"
        "embedder = TextEmbedder(sys.argv[1], cache_dir=sys.argv[2], device='cpu')\n"
        "table = embedder.embed([Question('a b c', ('yes', 'no'))])\n"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
        "print(embedder.fingerprint, embedder.dimension, table.vectors.tobytes().hex())"
    )
    answer = run(script, str(causal), str(tmp_path))
    expected = rows(table, QUESTIONS[0]).tobytes().hex()
    assert answer.stdout.split() == [first.fingerprint, "32", expected]


def test_the_model_is_loaded_once(
    causal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pluralllm_fl.embedding import encoder

    loaded = []
    load = encoder._load
    monkeypatch.setattr(encoder, "_load", lambda files: loaded.append(files) or load(files))
    embedder = TextEmbedder(str(causal), cache_dir=tmp_path)
    for question in QUESTIONS:
        embedder.embed([question])
    assert len(loaded) == 1
    early = TextEmbedder(str(causal), cache_dir=tmp_path)
    early.load()
    assert len(loaded) == 2
    early.embed([Question("z", ("yes", "no"))])
    assert len(loaded) == 2


def embed_in_process(model: str, cache_dir: str) -> tuple[list[tuple[int, int]], bytes]:
    calls: list[tuple[int, int]] = []
    table = TextEmbedder(model, cache_dir=cache_dir).embed(
        QUESTIONS, lambda done, total: calls.append((done, total))
    )
    return calls, table.vectors.tobytes()


def test_parallel_processes_embed_once(causal: Path, tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(embed_in_process, str(causal), str(tmp_path)) for _ in range(2)]
        results = [job.result(timeout=120) for job in jobs]
    computed = [calls for calls, _ in results if calls[0] == (0, 8)]
    assert len(computed) == 1
    assert len({vectors for _, vectors in results}) == 1
    assert stored(tmp_path) == 8


def test_interrupted_embedding_goes_on(causal: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if 0 < done < total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TextEmbedder(str(causal), cache_dir=tmp_path).embed(QUESTIONS, interrupt)
    kept = stored(tmp_path)
    assert 0 < kept < 8
    calls: list[int] = []
    TextEmbedder(str(causal), cache_dir=tmp_path).embed(QUESTIONS, lambda d, _: calls.append(d))
    assert calls[0] == kept
    assert calls[-1] == 8


def test_a_cache_does_not_mix_devices_and_keeps_what_it_had(
    causal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = TextEmbedder(str(causal), template=JOINT, cache_dir=tmp_path, device="cpu")
    embedder.embed(QUESTIONS[:1])
    with sqlite3.connect(tmp_path / "embeddings-v1.sqlite") as connection:
        keys = {key for (key,) in connection.execute("SELECT key FROM vectors")}
    texts = [text("a b c", option) for option in ("yes", "no")]
    assert keys == {
        hashlib.sha256((embedder.fingerprint + item).encode()).digest() for item in texts
    }
    for count, arithmetic in enumerate([("cuda", "float32"), ("cuda", "bfloat16")], 2):
        monkeypatch.setattr(TextEmbedder, "arithmetic", arithmetic)
        other = TextEmbedder(str(causal), template=JOINT, cache_dir=tmp_path, device="cpu")
        other.embed(QUESTIONS[:1])
        assert stored(tmp_path) == 2 * count
        assert other.fingerprint == embedder.fingerprint


@pytest.mark.parametrize(
    ("device", "gigabytes", "dtype"),
    [("cpu", 8.0, "float32"), ("mps", 0.5, "float32"), ("mps", 1.5, "bfloat16")],
)
def test_large_models_compute_in_half_precision_elsewhere(
    device: str, gigabytes: float, dtype: str
) -> None:
    assert model_dtype(torch.device(device), int(gigabytes * 2**30)) == dtype


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "wrong length"])
def test_damaged_cache_names_the_file_to_delete(causal: Path, tmp_path: Path, damage: str) -> None:
    TextEmbedder(str(causal), cache_dir=tmp_path).embed(QUESTIONS)
    path = tmp_path / "embeddings-v1.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if damage == "wrong length":
            connection.execute("UPDATE vectors SET vector = x'00'")
    connection.close()
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "overwritten":
        path.write_bytes(b"not a database " * 1000)
    with pytest.raises(EmbeddingError, match=r"damaged.*Delete .*embeddings-v1\.sqlite"):
        TextEmbedder(str(causal), cache_dir=tmp_path).embed(QUESTIONS)


def test_cache_folder_that_cannot_be(causal: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddingError, match="embedding-cache"):
        TextEmbedder(str(causal), cache_dir=tmp_path / "file" / "cache").embed(QUESTIONS)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_read_only_cache(causal: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(EmbeddingError, match="embedding-cache"):
        TextEmbedder(str(causal), cache_dir=tmp_path / "cache").embed(QUESTIONS)


def test_full_disk(causal: Path, tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="no file size limits on this platform")
    script = (
        "import resource, sys\n"
        "from pluralllm_fl.embedding import TextEmbedder\n"
        "from pluralllm_fl.errors import EmbeddingError\n"
        "from pluralllm_fl.preferences import Question\n"
        "embedder = TextEmbedder(sys.argv[1], cache_dir=sys.argv[2])\n"
        "embedder.dimension\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "questions = [Question('a ' * n, ('yes', 'no')) for n in range(1, 20)]\n"
        "try:\n    embedder.embed(questions)\n"
        "except EmbeddingError as error:\n    print(error)"
    )
    assert "embedding-cache" in run(script, str(causal), str(tmp_path)).stdout
    table = TextEmbedder(str(causal), cache_dir=tmp_path).embed(QUESTIONS)
    assert table.vectors.shape == (9, 32)
