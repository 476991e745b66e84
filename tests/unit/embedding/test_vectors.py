"""Vectors against naive loops; nothing but text, model and settings changes them."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pluralllm_fl.embedding import TextEmbedder
from pluralllm_fl.embedding.fixed_texts import REFERENCE_TEXTS
from pluralllm_fl.preferences import Question
from tests.unit.embedding.language_models import (
    JOINT,
    QUESTIONS,
    build_model,
    naive,
    needs_minilm,
    rows,
    stored,
    text,
)


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
