"""The predictor's symmetries and its agreement with slow, direct computations."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pluralllm_fl import __version__
from pluralllm_fl.errors import ArtefactError
from pluralllm_fl.predictor.episodes import QuestionBatch
from pluralllm_fl.predictor.model import PredictorConfig, PreferencePredictor
from tests.tiny import DIMENSION, tiny_table

JOINT, APART = "{question} {option}", "{question}||{option}"


@pytest.fixture(params=[("transformer", APART), ("transformer", JOINT), ("published", JOINT)])
def predictor(request: pytest.FixtureRequest) -> PreferencePredictor:
    return build(*request.param)


def build(architecture: str, template: str = APART) -> PreferencePredictor:
    torch.manual_seed(3)
    config = PredictorConfig(
        architecture=architecture, embedding_dim=DIMENSION, width=32, layers=2, feed_forward=48,
        question_features=64, factors=3, embedding_template=template,
    )  # fmt: skip
    predictor = PreferencePredictor(config)
    with torch.no_grad():  # what starts at zero would hide its mistakes
        for name, parameter in predictor.named_parameters():
            scale = 0.002 if name.endswith("covariance") else 0.05  # its unit is 50 logarithms
            parameter.add_(scale * torch.randn_like(parameter))
    return predictor.eval()


def shuffle_options(batch: QuestionBatch, seed: int) -> tuple[QuestionBatch, torch.Tensor]:
    """Permute the options within each question; also return the permutation of flat indices."""
    rng = np.random.default_rng(seed)
    blocks = np.split(np.arange(len(batch.question)), np.cumsum(batch.size.numpy())[:-1])
    order = torch.from_numpy(np.concatenate([rng.permutation(block) for block in blocks]))
    assert batch.distribution is not None
    return replace(
        batch, embedding=batch.embedding[order], distribution=batch.distribution[order]
    ), order


def test_order_of_context_questions_does_not_matter(predictor: PreferencePredictor) -> None:
    table = tiny_table()
    targets = table.batch(range(40, 60))
    forward = predictor.predict(table.batch(range(20)), targets)
    backward = predictor.predict(table.batch(range(19, -1, -1)), targets)
    torch.testing.assert_close(forward, backward, atol=1e-5, rtol=0)


def test_permuting_options_permutes_the_prediction(predictor: PreferencePredictor) -> None:
    table = tiny_table()
    context, targets = table.batch(range(20)), table.batch(range(40, 60))
    shuffled_context, _ = shuffle_options(context, 1)
    shuffled_targets, order = shuffle_options(targets, 2)
    expected = predictor.predict(context, targets)[order]
    torch.testing.assert_close(
        predictor.predict(shuffled_context, shuffled_targets), expected, atol=1e-5, rtol=0
    )


def test_one_pass_equals_one_question_at_a_time(predictor: PreferencePredictor) -> None:
    table = tiny_table()
    context = predictor.encode_context(table.batch(range(20)))
    together = predictor.score(context, table.batch(range(20, 60))).log_probability
    alone = [predictor.score(context, table.batch([i])).log_probability for i in range(20, 60)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_predictions_are_distributions_even_without_context(
    predictor: PreferencePredictor,
) -> None:
    table = tiny_table()
    targets = table.batch(range(60)).without_answers()
    for context in (None, table.batch([]), table.batch([4])):
        p = predictor.predict(context, targets).numpy()
        np.testing.assert_allclose(np.bincount(targets.question.numpy(), p), 1, atol=1e-5)
        assert (p >= 0).all()


def test_the_answers_of_targets_are_never_read(predictor: PreferencePredictor) -> None:
    table = tiny_table()
    context, targets = table.batch(range(20)), table.batch(range(20, 60))
    assert targets.distribution is not None
    other = replace(targets, distribution=targets.distribution.flip(0))
    assert torch.equal(predictor.predict(context, targets), predictor.predict(context, other))


def test_context_changes_the_prediction(predictor: PreferencePredictor) -> None:
    table, other = tiny_table(), tiny_table(seed=1)
    targets = table.batch(range(40, 60))
    own = predictor.predict(table.batch(range(20)), targets)
    wrong = predictor.predict(other.batch(range(20)), targets)
    assert (own - wrong).abs().max() > 1e-5


def test_published_layer_equals_torch_encoder_with_a_mask() -> None:
    """Context tokens through our split pass = torch's encoder layer on all tokens, masked."""
    predictor = build("published")
    network, table = predictor.network, tiny_table()
    context, targets = table.batch(range(20)), table.batch(range(20, 60))
    assert context.distribution is not None
    with torch.no_grad():
        tokens = torch.cat(
            [
                network._tokens(context.embedding, context.distribution),
                network._tokens(targets.embedding, torch.zeros(len(targets.question))),
            ]
        )
        hidden = torch.ones(len(tokens), len(tokens), dtype=torch.bool)
        hidden[:, : len(context.question)] = False  # False: may be attended to
        for layer in network.layers:
            tokens = layer(tokens[None], src_mask=hidden)[0]
        expected = network.head(tokens[len(context.question) :])
        mean, log_std = network.score(network.encode_context(context), targets)
    torch.testing.assert_close(torch.stack([mean, log_std], 1), expected, atol=1e-5, rtol=1e-5)


def test_save_and_load_round_trip(predictor: PreferencePredictor, tmp_path: Path) -> None:
    predictor.save_pretrained(tmp_path)
    loaded = PreferencePredictor.from_pretrained(tmp_path)
    table = tiny_table()
    context, targets = table.batch(range(20)), table.batch(range(20, 60))
    assert loaded.config == predictor.config
    assert torch.equal(loaded.predict(context, targets), predictor.predict(context, targets))


def test_the_weights_tell_what_they_are_in_the_same_bytes(tmp_path: Path) -> None:
    path, files = tmp_path / "model.safetensors", set()
    for _ in range(4):
        build("published").save_pretrained(tmp_path, data="abc")
        files.add(path.read_bytes())
    assert len(files) == 1
    with safe_open(path, "numpy") as file:
        about = json.loads(file.metadata()["pluralllm_fl"])
    expected = {"format": 1, "version": __version__, "architecture": "published", "data": "abc"}
    assert about == expected


def test_damaged_models_are_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"config\.json is missing"):
        PreferencePredictor.from_pretrained(tmp_path)
    build("transformer").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtefactError, match="damaged"):
        PreferencePredictor.from_pretrained(tmp_path)
    weights.write_bytes(whole)
    tensors = load_file(weights)
    tensors.pop("network.covariance")
    save_file(tensors, weights)
    with pytest.raises(ArtefactError, match="another model"):
        PreferencePredictor.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ArtefactError, match=r"config\.json is not a predictor config"):
        PreferencePredictor.from_pretrained(tmp_path)


def test_a_config_of_an_earlier_version_is_refused_by_its_missing_keys(tmp_path: Path) -> None:
    build("transformer").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in values.items() if k != "factors"}))
    with pytest.raises(ArtefactError, match="factors missing"):
        PreferencePredictor.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["transformer", "published"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("embedding_dim", 10**9),
        ("embedding_dim", 2**17),
        ("embedding_dim", -384),
        ("embedding_dim", 0),
        ("embedding_dim", "384"),
        ("embedding_dim", 768.0),
        ("embedding_dim", 10**400),
        ("width", 10**9),
        ("width", -96),
        ("width", 2**16),
        ("width", 97),
        ("layers", 10**9),
        ("layers", 1024),
        ("layers", True),
        ("heads", 0),
        ("heads", 7),
        ("feed_forward", 2**16),
        ("dropout", float("nan")),
        ("dropout", 10**400),
        ("question_features", 7),
        ("architecture", "perceiver"),
        ("architecture", ["transformer"]),
        ("architecture", {"a": 1}),
        ("embedding_template", "none"),
        ("embedding_template", None),
        ("embedding_standardise", 1),
        ("embedding_fingerprint", 7),
        ("surprise", 1),
    ],
)
def test_a_changed_config_is_refused_before_it_takes_memory(
    tmp_path: Path, kind: str, key: str, value: object
) -> None:
    build(kind).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ArtefactError, match=r"config\.json") as error:
        PreferencePredictor.from_pretrained(tmp_path)
    assert len(str(error.value)) < 800


@pytest.mark.parametrize("text", ["[" * 10**5, "[]", "7", '"x"', "null", "", "\udfff", "{]"])
def test_an_odd_config_is_refused(tmp_path: Path, text: str) -> None:
    build("transformer").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ArtefactError, match=r"config\.json is not a predictor config"):
        PreferencePredictor.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
def test_weights_that_no_training_makes_are_refused(tmp_path: Path, value: float) -> None:
    build("transformer").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["network.covariance"][0] = value
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ArtefactError, match=r"model\.safetensors .*NaN or values beyond 1e\+09"):
        PreferencePredictor.from_pretrained(tmp_path)


def test_without_targets_nothing_is_predicted(predictor: PreferencePredictor) -> None:
    table = tiny_table()
    assert not len(predictor.predict(table.batch(range(5)), table.batch([])))
