"""What stays with a group, against loops and scipy's minimiser of the penalised likelihood."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from pluralllm_fl.predictor.episodes import QuestionBatch
from pluralllm_fl.predictor.gaussian_process import condition, covariance, latent
from tests.tiny import tiny_table

Array = NDArray[np.float64]
NUMBERS = {"spread": -0.75, "novelty": 0.5, "question_scale": 0.25, "option_scale": 0.5}


def answers(questions: int, seed: int) -> QuestionBatch:
    batch = tiny_table(questions, seed).batch(range(questions))
    assert batch.distribution is not None
    return QuestionBatch(
        batch.embedding.double(), batch.question, batch.position, batch.size,
        batch.distribution.double(),
    )  # fmt: skip


def rows(options: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Return unit vectors of questions and deviations, and factors."""
    generator = torch.Generator().manual_seed(seed)
    q, d = torch.randn(2, options, 5, generator=generator, dtype=torch.float64)
    q, d = (torch.nn.functional.normalize(x, dim=1) for x in (q, d))
    return q, d, torch.randn(options, 3, generator=generator, dtype=torch.float64)


def kernel(first: tuple[torch.Tensor, ...], second: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return covariance(first, second, {k: torch.tensor(v).double() for k, v in NUMBERS.items()})


def most_likely(
    batch: QuestionBatch, logits: Callable[[Array], Array], size: int, evidence: float
) -> Array:
    """Minimise ``|u|²/2 − evidence Σ answers log softmax(logits(u))`` by BFGS; return logits."""
    assert batch.distribution is not None
    index, share = batch.question.numpy(), batch.distribution.numpy()

    def loss(u: Array) -> float:
        x = logits(u)
        likelihood = sum(share[index == i] @ log_softmax(x[index == i]) for i in range(len(batch)))
        return float(u @ u / 2 - evidence * likelihood)

    found = minimize(loss, np.zeros(size), method="BFGS", options={"gtol": 1e-6})
    return logits(found.x)


def test_covariance_is_its_formula_option_by_option() -> None:
    first, second = rows(7, 0), rows(4, 1)
    n = {name: np.exp(value) for name, value in NUMBERS.items()}
    found = kernel(first, second).numpy()
    for i, (q, d, f) in enumerate(zip(*(x.numpy() for x in first), strict=True)):
        for j, (r, e, g) in enumerate(zip(*(x.numpy() for x in second), strict=True)):
            apart = n["question_scale"] * (q @ r - 1) + n["option_scale"] * (d @ e - 1)
            expected = n["spread"] * (f @ g) + n["novelty"] * np.exp(apart)
            assert found[i, j] == pytest.approx(expected)


@given(seed=st.integers(0, 1000), questions=st.integers(1, 6), evidence=st.floats(0.5, 60))
@settings(max_examples=15)
def test_conditioning_finds_the_mode_of_the_penalised_likelihood(
    seed: int, questions: int, evidence: float
) -> None:
    batch = answers(questions, seed)
    options = rows(len(batch.question), seed)
    prior = torch.randn(len(batch.question), dtype=torch.float64)
    prior_covariance = kernel(options, options)
    coefficient = condition(
        batch, prior, prior_covariance, torch.tensor(evidence, dtype=torch.float64)
    )
    found = prior + prior_covariance @ coefficient
    root = np.linalg.cholesky(prior_covariance.numpy() + 1e-9 * np.eye(len(prior)))
    expected = most_likely(batch, lambda u: prior.numpy() + root @ u, len(prior), evidence)
    found_p = batch.log_softmax(found).exp()
    expected_p = batch.log_softmax(torch.from_numpy(expected)).exp()
    torch.testing.assert_close(found_p, expected_p, atol=2e-3, rtol=0)


def test_at_the_mode_coefficients_are_what_is_left_of_the_answers() -> None:
    """``K⁻¹ deviation = evidence (answers − predicted)``, the condition of the optimum."""
    batch = answers(8, 3)
    assert batch.distribution is not None
    options = rows(len(batch.question), 3)
    prior, prior_covariance = torch.zeros(len(batch.question)).double(), kernel(options, options)
    coefficient = condition(batch, prior, prior_covariance, torch.tensor(20.0).double())
    p = batch.log_softmax(prior_covariance @ coefficient).exp()
    torch.testing.assert_close(coefficient, 20 * (batch.distribution - p), atol=1e-3, rtol=0)


@given(
    seed=st.integers(0, 1000), questions=st.integers(1, 12), evidence=st.floats(0.5, 6),
    strength=st.floats(0.05, 0.5),
)  # fmt: skip
@settings(max_examples=15)
def test_a_groups_place_is_the_mode_of_its_likelihood_under_a_normal_prior(
    seed: int, questions: int, evidence: float, strength: float
) -> None:
    locate_and_compare(seed, questions, evidence, strength)


def test_strong_factors_do_not_throw_a_group_out() -> None:
    locate_and_compare(765, 4, 5.0, 1.0)


def locate_and_compare(seed: int, questions: int, evidence: float, strength: float) -> None:
    batch = answers(questions, seed)
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(len(batch.question), generator=generator, dtype=torch.float64)
    factors = strength * torch.randn(len(mean), 3, generator=generator, dtype=torch.float64)
    found = mean + factors @ latent(batch, mean, factors, evidence)
    expected = most_likely(
        batch, lambda z: mean.numpy() + factors.numpy() @ z, factors.shape[1], evidence
    )
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=5e-3, rtol=0)


def test_a_group_without_factors_has_no_place() -> None:
    batch = answers(5, 0)
    mean = torch.zeros(len(batch.question)).double()
    assert not latent(batch, mean, torch.zeros(len(mean), 3).double(), 3.0).any()


def test_an_empty_context_has_no_coefficients() -> None:
    none = answers(3, 0).select(torch.zeros(0, dtype=torch.long))
    empty = torch.zeros(0).double()
    assert not len(condition(none, empty, torch.zeros(0, 0).double(), torch.tensor(3.0)))
