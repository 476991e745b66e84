"""Memory and posterior against explicit linear algebra and the conditions of the optimum."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pluralllm_fl import gaussian_process, pluralistic
from pluralllm_fl.episodes import QuestionBatch
from pluralllm_fl.memory import SMALLEST_SHARE, remember, undiluted
from pluralllm_fl.pluralistic import BIAS, SQUARES, PluralisticNetwork, least_variance
from tests.tiny import DIMENSION, tiny_table

pytestmark = pytest.mark.fast


def network(prototypes: int = 3, filled: int = 2) -> PluralisticNetwork:
    result = PluralisticNetwork(
        embedding_dim=DIMENSION, prototypes=prototypes, coverage_features=128
    )
    for prototype in range(filled):
        answers = tiny_table(seed=prototype).batch(range(50))
        remember(result, answers, prototype=prototype, ridge=0.1)
    return result


def features(batch: QuestionBatch) -> tuple[np.ndarray, np.ndarray]:
    """Question and option vectors, one question at a time."""
    questions, options = [], []
    for i in range(len(batch)):
        x = batch.embedding[batch.question == i].numpy().astype(np.float64)
        mean = x.mean(0)
        deviation = (x - mean) / np.linalg.norm(x - mean, axis=1, keepdims=True)
        squares = deviation**2 - 1 / DIMENSION
        squares *= SQUARES / np.linalg.norm(squares, axis=1, keepdims=True)
        questions.append(mean / np.linalg.norm(mean))
        options.append(np.hstack([deviation, squares]))
    return np.array(questions), np.concatenate(options)


def side_by_side(first: QuestionBatch, second: QuestionBatch) -> QuestionBatch:
    return replace(second, embedding=torch.cat([first.embedding, second.embedding], dim=1))


def test_of_two_vectors_in_a_row_the_first_is_the_questions_and_the_last_the_options() -> None:
    result, batch = network(filled=0), tiny_table().batch(range(15))
    other = replace(batch, embedding=batch.embedding.flip(0))
    question, option = result.represent(side_by_side(other, batch))
    assert torch.equal(question, result.represent(other)[0])
    assert torch.equal(option, result.represent(batch)[1])


def test_a_vector_twice_in_a_row_says_what_it_says_once() -> None:
    once, twice = network(filled=0), network(filled=0)
    for prototype in range(2):
        answers = tiny_table(seed=prototype).batch(range(50))
        remember(once, answers, prototype=prototype, ridge=0.1)
        remember(twice, side_by_side(answers, answers), prototype=prototype, ridge=0.1)
    assert torch.equal(once.memory, twice.memory)
    assert torch.equal(once.coverage, twice.coverage)
    table = tiny_table(seed=7)
    context, targets = table.batch(range(20)), table.batch(range(20, 60))
    with torch.no_grad():
        expected = once.score(once.encode_context(context), targets)[0]
        encoded = twice.encode_context(side_by_side(context, context))
        found = twice.score(encoded, side_by_side(targets, targets))[0]
    assert torch.equal(found, expected)


def test_a_prototype_is_the_ridge_solution() -> None:
    """Against the normal equations over all products of features, centred in each question."""
    batch, ridge = tiny_table().batch(range(15)), 0.2
    result = PluralisticNetwork(embedding_dim=DIMENSION, prototypes=1, coverage_features=64)
    remember(result, batch, prototype=0, ridge=ridge)
    questions, options = features(batch)
    index = batch.question.numpy()
    biased = np.hstack([np.full((len(questions), 1), BIAS), questions])[index]
    rows = np.einsum("ni,nj->nij", biased, options).reshape(len(options), -1)
    assert batch.distribution is not None
    wanted = np.log(batch.distribution.numpy().astype(np.float64) + SMALLEST_SHARE)
    for i in range(len(batch)):
        rows[index == i] -= rows[index == i].mean(0)
        wanted[index == i] -= wanted[index == i].mean()
    expected = np.linalg.solve(rows.T @ rows + ridge * np.eye(rows.shape[1]), rows.T @ wanted)
    found = result.memory[0].detach().numpy()
    np.testing.assert_allclose(found.ravel(), expected, atol=2e-4)
    recalled = result.recall(batch).logits[:, 0].numpy()
    np.testing.assert_allclose(recalled, rows @ expected, atol=1e-3)


@given(
    replies=st.lists(st.tuples(st.integers(0, 2), st.floats(0.1, 50)), min_size=1, max_size=9),
    absent=st.integers(0, 3),
    server_round=st.integers(1, 4),
)
def test_averaging_moves_a_prototype_by_the_mean_of_its_owners(
    replies: list[tuple[int, float]], absent: int, server_round: int
) -> None:
    """Whatever the weights and whoever is away: no overshoot, and all at once if all reply."""
    prototypes, weights = [p for p, _ in replies], [w for _, w in replies]
    owners = {p: prototypes.count(p) + absent for p in prototypes}
    factors = undiluted(prototypes, weights, owners, server_round)
    moves = np.arange(1.0, 1.0 + len(replies))  # what each reply would change in its prototype
    for p in owners:
        own = np.array([q == p for q in prototypes])
        averaged = (np.array(weights) * factors * moves * own).sum() / sum(weights)
        share = own.sum() / owners[p]
        assert averaged == pytest.approx(moves[own].mean() * max(share, 1 / server_round))


def test_coverage_tells_known_questions_from_unknown_ones() -> None:
    table = tiny_table()
    result = PluralisticNetwork(embedding_dim=DIMENSION, prototypes=1, coverage_features=4096)
    remember(result, table.batch(range(50)), prototype=0, ridge=0.1)
    coverage = result.recall(table.batch(range(60))).coverage[:, 0]
    assert coverage[:50].min() > 0.8
    assert coverage[50:].max() < 0.2


def test_random_features_approximate_the_gaussian_kernel() -> None:
    result = PluralisticNetwork(embedding_dim=DIMENSION, prototypes=1, coverage_features=8192)
    q, _ = result.represent(tiny_table().batch(range(30)))
    features = result.cover(q)
    expected = torch.exp(-torch.cdist(q, q).square() * pluralistic.COVERAGE_SCALE**2 / 2)
    torch.testing.assert_close(features @ features.T, expected, atol=0.05, rtol=0)


def test_posterior_satisfies_the_condition_of_its_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the mode the coefficients are evidence x (answers - predicted)."""
    monkeypatch.setattr(gaussian_process, "NEWTON_STEPS", 30)
    result = network().double()
    batch = tiny_table(seed=7).batch(range(20))
    assert batch.distribution is not None
    context = QuestionBatch(
        batch.embedding.double(), batch.question, batch.position, batch.size,
        batch.distribution.double(),
    )  # fmt: skip
    with torch.no_grad():
        encoded = result.encode_context(context)
        logits, _ = result.score(encoded, context)
    coefficient, evidence = encoded[-1].numpy(), float(result.mixing[2].detach().exp())
    for i in range(len(context)):
        member = context.question.numpy() == i
        p = np.exp(logits.numpy()[member] - np.logaddexp.reduce(logits.numpy()[member]))
        answers = context.distribution.numpy()[member]  # type: ignore[union-attr]
        np.testing.assert_allclose(coefficient[member], evidence * (answers - p), atol=1e-6)


def test_few_newton_steps_come_close_to_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    result, context = network(), tiny_table(seed=7).batch(range(50))
    with torch.no_grad():
        few = result.score(result.encode_context(context), context)[0]
        monkeypatch.setattr(gaussian_process, "NEWTON_STEPS", 30)
        many = result.score(result.encode_context(context), context)[0]
    assert (few - many).norm() < 1e-3 * many.norm()


def test_a_hidden_prototype_has_no_influence() -> None:
    table = tiny_table(seed=7)
    context, targets = table.batch(range(20)), table.batch(range(20, 60))
    result = network()
    with torch.no_grad(), result.without(1):
        before = result.score(result.encode_context(context), targets)[0]
        result.memory[1].fill_(3.0)
        after = result.score(result.encode_context(context), targets)[0]
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)


def test_the_prototype_that_agrees_with_the_context_wins() -> None:
    result = network()
    for own in range(2):
        with torch.no_grad():
            weight = result.encode_context(tiny_table(seed=own).batch(range(40)))[0]
        assert int(weight.argmax()) == own
        assert float(weight[2]) == 0  # nobody's prototype
        assert float(weight.sum()) == pytest.approx(1)


@given(
    parts=st.lists(st.floats(1e-6, 1), min_size=2, max_size=2).map(sorted),
    familiarity=st.floats(-1, 1),
)
def test_the_less_a_question_is_covered_the_nearer_is_the_prior_to_uniform(
    parts: list[float], familiarity: float
) -> None:
    """By the divergence from uniform; at the least coverage the logits are a known fraction."""
    result, targets = network(filled=1), tiny_table().batch(range(40, 60))
    place = list(pluralistic.MIXING).index("familiarity")
    full = result.coverage.detach().clone()

    @torch.no_grad()
    def prior(part: float) -> tuple[torch.Tensor, torch.Tensor]:
        result.mixing[place] = familiarity
        result.coverage.copy_(full * part)
        logits, _ = result.score(result.encode_context(None), targets)
        padded = targets.pad(logits).masked_fill(~targets.mask, -torch.inf)
        p = targets.flatten(padded.softmax(dim=1))
        excess = p * (p * targets.size[targets.question]).log()
        return logits, targets.pad(excess).sum(1)

    (_, low), (_, high) = map(prior, parts)
    assert bool((low <= high + 1e-5).all())
    recalled = result.recall(targets).logits[:, 0]
    least = pluralistic.LEAST_COVERAGE ** np.exp(familiarity)
    torch.testing.assert_close(prior(1e-6)[0], recalled * least, atol=1e-5, rtol=1e-4)


SHARES = st.integers(2, 12).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(0.05, 1), min_size=n, max_size=n),
        st.lists(st.floats(0, 1), min_size=n, max_size=n),
    )
)


@given(shares=SHARES, ignorance=st.floats(0.01, 100))
def test_weights_of_experts_are_those_of_generalised_least_squares(
    shares: tuple[list[float], list[float]], ignorance: float
) -> None:
    """By inverting the covariance; where that makes weights negative, they are cut."""
    agreement, coverage = map(np.array, shares)
    agreement = agreement / agreement.sum()
    lack = np.sqrt(1 - coverage)
    covariance = np.diag(1 / (agreement * len(agreement))) + ignorance * np.outer(lack, lack)
    best = np.linalg.solve(covariance, np.ones(len(agreement)))
    best = best.clip(min=0) / best.clip(min=0).sum()
    found = least_variance(
        torch.tensor(agreement), torch.tensor(coverage)[None], torch.tensor(ignorance)
    )
    np.testing.assert_allclose(found[0].numpy(), best, atol=1e-4)


@given(
    weights=st.lists(st.just(0.0) | st.floats(0.001, 1), min_size=1, max_size=12).filter(any),
    same=st.floats(0, 1),
)
def test_coverage_that_all_share_plays_no_part(weights: list[float], same: float) -> None:
    weight = torch.tensor(weights, dtype=torch.float64)
    weight = weight / weight.sum()
    found = least_variance(
        weight, torch.full((1, len(weight)), same, dtype=torch.float64), torch.tensor(3.0)
    )
    torch.testing.assert_close(found[0], weight)


@pytest.mark.parametrize("ignorant", [1, 10, 100, 1000])
def test_many_who_do_not_know_do_not_drown_two_who_do(ignorant: int) -> None:
    coverage = torch.tensor([[0.95, 0.9] + [0.1] * ignorant])
    weight = torch.full((ignorant + 2,), 1 / (ignorant + 2))
    assert float(least_variance(weight, coverage, torch.tensor(1.0))[0, :2].sum()) > 0.6


@pytest.mark.parametrize("hidden", [None, 0])
def test_without_any_memory_the_prior_is_uniform(hidden: int | None) -> None:
    """Before the first aggregate, and where the only prototype is the group's own."""
    result, table = network(filled=0 if hidden is None else 1), tiny_table()
    targets = table.batch(range(10))
    with torch.no_grad(), result.without(hidden):
        recall = result.recall(targets)
        logits, _ = result.score(result.encode_context(None), targets)
        told, _ = result.score(result.encode_context(table.batch(range(20))), targets)
    assert float(logits.abs().max()) == 0
    assert float(recall.logits.abs().max()) == 0
    assert bool((recall.coverage == pluralistic.LEAST_COVERAGE).all())
    assert float(told.abs().max()) > 0.1  # the context counts all the same


def test_a_long_context_is_cut_to_the_same_questions_in_any_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pluralistic, "MOST_CONTEXT_OPTIONS", 60)
    result, table = network(), tiny_table(seed=7)
    targets = table.batch(range(40, 60))
    with torch.no_grad():
        forward = result.encode_context(table.batch(range(40)))
        backward = result.encode_context(table.batch(range(39, -1, -1)))
        assert 50 < len(forward[-1]) <= 60
        torch.testing.assert_close(
            result.score(forward, targets)[0], result.score(backward, targets)[0],
            atol=1e-4, rtol=1e-4,
        )  # fmt: skip
