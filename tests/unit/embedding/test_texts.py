"""What the language model reads: templates, long and odd texts; and settings that are wrong."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest

from pluralllm_fl.config import RunConfig, default_run_config
from pluralllm_fl.embedding import TextEmbedder
from pluralllm_fl.errors import ConfigError, EmbeddingError
from pluralllm_fl.preferences import Question
from tests.unit.embedding.language_models import MAX_TOKENS, QUESTIONS, build_model, naive

WRONG_TEMPLATES = [
    "{question} {}", "{option}", "{option}||{question}", "{question}||", "||{question} {option}",
    "{option}||{question} {option}", "{question}||{option}||", "{question}||and||{option}",
]  # fmt: skip


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
