"""The default network: mean, factors, local objective, and what a context does."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pluralllm_fl.config import RunConfig
from pluralllm_fl.predictor import transformer
from pluralllm_fl.predictor.episodes import GroupTable, QuestionBatch
from pluralllm_fl.predictor.features import directions, orthogonal_frequencies
from pluralllm_fl.predictor.transformer import TransformerNetwork
from tests.tiny import DIMENSION, tiny_table

CONFIG = dataclasses.replace(
    RunConfig.default(), batch_questions=16, dropout=0.0,
    context_min=2, context_max=3, target_min=2, target_max=3,
)  # fmt: skip
LATE = 2  # a round after the first, in which the Gaussian process is tried


def network(dimension: int = DIMENSION) -> TransformerNetwork:
    """Return a network with weights as after some training."""
    torch.manual_seed(0)
    result = TransformerNetwork(
        dimension=dimension, width=32, layers=2, heads=4, feed_forward=48, dropout=0.0,
        question_features=64, factors=3,
    )  # fmt: skip
    with torch.no_grad():
        result.linear.normal_(std=0.2)
        result.mean.head.weight.normal_(std=0.3)
        result.factors.head.weight.normal_(std=0.3)
    return result.eval()


@torch.no_grad()
def predict(
    result: TransformerNetwork, context: QuestionBatch | None, targets: QuestionBatch
) -> Tensor:
    """Return log probabilities."""
    return targets.log_softmax(result.score(result.encode_context(context), targets)[0])


def side_by_side(first: QuestionBatch, second: QuestionBatch) -> QuestionBatch:
    return replace(second, embedding=torch.cat([first.embedding, second.embedding], dim=1))


def log_likelihood(log_p: Tensor, answers: QuestionBatch) -> float:
    assert answers.distribution is not None
    return float((answers.distribution * log_p).sum())


def gradients(
    result: TransformerNetwork, table: GroupTable, server_round: int, config: RunConfig = CONFIG
) -> dict[str, Tensor]:
    """Return the gradients of one step of the local objective."""
    result.zero_grad()
    step = result.objective(table, config, np.random.default_rng(0), server_round)
    torch.stack(step()).sum().backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in result.named_parameters()
    }


def with_answers(table: GroupTable, questions: np.ndarray, seed: int) -> GroupTable:
    """Replace the answers to some questions by others."""
    rng = np.random.default_rng(seed)
    distribution, starts = table.distribution.copy(), table.size.cumsum() - table.size
    for i in questions:
        drawn = rng.dirichlet(np.ones(table.size[i]))
        distribution[starts[i] : starts[i] + table.size[i]] = drawn
    return replace(table, distribution=distribution)


def tried(table: GroupTable) -> np.ndarray:
    """Return the training questions on which the Gaussian process is tried."""
    return table.fold(table.members("train"), transformer.TRIED)


def test_of_two_vectors_in_a_row_the_first_is_the_questions_and_the_last_the_options() -> None:
    result, batch = network(), tiny_table().batch(range(15))
    other = replace(batch, embedding=batch.embedding.flip(0))
    with torch.no_grad():
        both = result.describe(side_by_side(other, batch))
        first, last = result.describe(other), result.describe(batch)
    assert torch.equal(both.features, first.features)
    assert torch.equal(both.option, last.option)


def test_a_vector_twice_in_a_row_says_what_it_says_once() -> None:
    result, table = network(), tiny_table(seed=7)
    context, targets = table.batch(range(20)), table.batch(range(20, 60))
    twice = predict(result, side_by_side(context, context), side_by_side(targets, targets))
    assert torch.equal(twice, predict(result, context, targets))


def test_the_linear_part_is_a_sum_over_products_of_features() -> None:
    """With nothing from the transformer the mean is f(q)ᵀ M [d, s], one option at a time."""
    result, batch = network(), tiny_table().batch(range(15))
    with torch.no_grad():
        result.mean.head.weight.zero_()
        found = result.know(batch)
    matrix, expected = result.linear.detach().double().numpy(), []
    frequencies = result.get_buffer("frequencies").double().numpy()
    question, deviation = (part.double().numpy() for part in directions(batch, DIMENSION))
    for q, d in zip(question[batch.question], deviation, strict=True):
        angle = frequencies @ q
        waves = np.append(np.cos(angle), np.sin(angle))
        squares = d**2 - 1 / DIMENSION
        f = [[np.sqrt(0.5)], q, np.sqrt(2) * waves / np.linalg.norm(waves)]
        option = np.append(d, np.sqrt(0.5) * squares / np.linalg.norm(squares))
        expected.append(np.concatenate(f) @ matrix @ option)
    index = batch.question.numpy()
    means = np.bincount(index, expected) / np.bincount(index)
    np.testing.assert_allclose(found.mean.numpy(), expected - means[index], atol=1e-5)


def test_random_features_approximate_the_gaussian_kernel() -> None:
    points = tiny_table().batch(range(30)).embedding
    points = torch.nn.functional.normalize(points, dim=1)
    angle = points @ orthogonal_frequencies(8192, DIMENSION, 1.0).T
    kernel = (angle.cos() @ angle.cos().T + angle.sin() @ angle.sin().T) / 8192
    expected = torch.exp(-torch.cdist(points, points).square() / 2)
    torch.testing.assert_close(kernel, expected, atol=0.05, rtol=0)


def test_without_context_a_group_gets_the_mean() -> None:
    result, table = network(), tiny_table(seed=7)
    targets = table.batch(range(20, 60))
    with torch.no_grad():
        mean = targets.log_softmax(result.know(targets).mean)
    for context in (None, table.batch([])):
        assert torch.equal(predict(result, context, targets), mean)
    assert (predict(result, table.batch(range(20)), targets) - mean).abs().max() > 0.1


@given(
    seed=st.integers(0, 50), shown=st.integers(1, 12),
    evidence=st.lists(st.floats(0.1, 60), min_size=2, max_size=2).map(sorted),
)  # fmt: skip
@settings(max_examples=40)
def test_the_more_an_answer_counts_the_nearer_is_the_prediction(
    seed: int, shown: int, evidence: list[float]
) -> None:
    """The likelihood of the context at the posterior's mode grows with the evidence."""
    result = network()
    context = tiny_table(seed=seed).batch(range(seed % 40, seed % 40 + shown))
    place = list(transformer.COVARIANCE).index("evidence")
    start = transformer.COVARIANCE["evidence"]
    found = [log_likelihood(predict(result, None, context), context)]
    for respondents in evidence:
        with torch.no_grad():
            change = (np.log(respondents) - start) / transformer.COVARIANCE_SPEED
            result.covariance[place] = change
        found.append(log_likelihood(predict(result, context, context), context))
    assert found[0] < found[1] <= found[2] + 1e-4


def test_every_parameter_learns_after_the_first_round() -> None:
    found = gradients(network(), tiny_table(), LATE)
    assert all(gradient.abs().max() > 1e-7 for gradient in found.values())


def test_in_the_first_round_the_mean_alone_learns() -> None:
    found = gradients(network(), tiny_table(), 1)
    assert not found["covariance"].any()
    assert not any(found[name].any() for name in found if name.startswith("factors."))
    assert found["mean.head.weight"].any()
    assert found["linear"].any()


def test_answers_on_which_the_gaussian_process_is_tried_teach_the_covariance_alone() -> None:
    table = tiny_table(120)
    assert len(tried(table)) > 5
    own = gradients(network(), table, LATE)
    other = gradients(network(), with_answers(table, tried(table), 1), LATE)
    changed = {name for name in own if not torch.equal(own[name], other[name])}
    assert changed == {"covariance"}


def test_a_groups_place_among_the_factors_is_read_from_its_trained_answers() -> None:
    """The factors' gradient changes with answers that no step has drawn."""
    table, one = tiny_table(120), dataclasses.replace(CONFIG, batch_questions=1)
    trained = np.setdiff1d(table.members("train"), tried(table))
    picked = np.random.default_rng(0).choice(len(trained), 1, replace=False)
    undrawn = np.delete(trained, picked)
    found = [gradients(network(), with_answers(table, undrawn, seed), LATE, one) for seed in (1, 2)]
    mean, factors = ([one[f"{p}.head.weight"] for one in found] for p in ("mean", "factors"))
    torch.testing.assert_close(*mean)
    assert not torch.allclose(*factors, rtol=0.1)


def test_a_long_context_is_cut_to_the_same_questions_in_any_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transformer, "MOST_CONTEXT_OPTIONS", 60)
    result, table = network(), tiny_table(seed=7)
    targets = table.batch(range(40, 60))
    forward, backward = table.batch(range(40)), table.batch(range(39, -1, -1))
    with torch.no_grad():
        *_, kept = result.encode_context(forward)
        *_, same = result.encode_context(forward, result.know(forward))
    assert 50 < len(kept) <= 60
    torch.testing.assert_close(same, kept, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        predict(result, forward, targets), predict(result, backward, targets), atol=1e-4, rtol=1e-4
    )
