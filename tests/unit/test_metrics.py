"""Metrics against scipy and hand-computed cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from pluralllm_fl import metrics
from pluralllm_fl.errors import PluralLLMError

ragged = st.lists(st.integers(2, 18), min_size=1, max_size=12)


def draw_distributions(sizes: list[int], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    question = np.repeat(np.arange(len(sizes)), sizes)
    p, q = (np.concatenate([rng.dirichlet(np.full(n, 0.3)) for n in sizes]) for _ in range(2))
    q[question == 0] = np.eye(sizes[0])[0]  # zeros must be handled
    return p, q, question


@given(ragged, st.integers(0, 2**31), st.sampled_from([np.e, 2.0]))
@settings(max_examples=200)
def test_alignment_equals_scipy_per_question(sizes: list[int], seed: int, base: float) -> None:
    p, q, question = draw_distributions(sizes, seed)
    expected = [
        1 - jensenshannon(p[question == i], q[question == i], base=base) for i in range(len(sizes))
    ]
    np.testing.assert_allclose(metrics.alignment(p, q, question, base=base), expected, atol=1e-7)


def naive_pairs(
    p: np.ndarray, q: np.ndarray, question: np.ndarray, offered: np.ndarray
) -> tuple[list[float], list[tuple[float, float]]]:
    """Return what every decided pair scores, and both sides' preference in every pair."""
    scores, preferences = [], []
    for i in range(len(p)):
        for j in range(i + 1, len(p)):
            if question[i] != question[j] or not (offered[i] and offered[j]) or q[i] + q[j] == 0:
                continue
            if q[i] != q[j]:
                right = p[i] == p[j], (p[i] > p[j]) == (q[i] > q[j])
                scores.append(0.5 if right[0] else float(right[1]))
            ours = 0.5 if p[i] + p[j] == 0 else p[i] / (p[i] + p[j])
            preferences.append((ours, q[i] / (q[i] + q[j])))
    return scores, preferences


@given(ragged, st.integers(0, 2**31), st.booleans())
@settings(max_examples=60)
def test_pairs_equal_a_naive_loop(sizes: list[int], seed: int, everything: bool) -> None:
    rng = np.random.default_rng(seed)
    question = np.repeat(np.arange(len(sizes)), sizes)
    # Coarse values, so that there are ties and zeros.
    p, q = (rng.integers(0, 5, len(question)) / 7 for _ in range(2))
    offered = np.ones(len(question), bool) if everything else rng.random(len(question)) < 0.7
    scores, preferences = naive_pairs(p, q, question, offered)
    given_mask = None if everything else offered
    accuracy, pairs = metrics.pairwise_accuracy(p, q, question, given_mask)
    assert pairs == len(scores)
    assert accuracy == pytest.approx(np.mean(scores) if scores else 0.0)
    both = np.array(preferences + [(1 - a, 1 - b) for a, b in preferences]).reshape(-1, 2)
    bins = sum(both[:, 0] >= edge / 10 for edge in range(1, 10)) + np.zeros(len(both))
    error = sum(
        np.mean(bins == b) * abs(both[bins == b].mean(axis=0) @ [1, -1]) for b in np.unique(bins)
    )
    assert metrics.calibration_error(p, q, question, given_mask) == pytest.approx(error)


def test_pairs_of_reversed_uniform_and_overconfident_predictions() -> None:
    question, true = np.array([0, 0, 0, 1, 1]), np.array([0.6, 0.3, 0.1, 0.5, 0.5])
    assert metrics.pairwise_accuracy(true, true, question) == (1.0, 3)  # a tie is not decided
    assert metrics.pairwise_accuracy(1 - true, true, question) == (0.0, 3)
    uniform = metrics.uniform_like(question)
    assert metrics.pairwise_accuracy(uniform, true, question) == (0.5, 3)
    assert metrics.calibration_error(true, true, question) == 0
    coin, sure = np.array([0.7, 0.3] * 10), np.array([0.95, 0.05] * 10)
    asked = np.repeat(np.arange(10), 2)
    assert metrics.calibration_error(sure, coin, asked) == pytest.approx(0.25)
    # Single precision does not turn a tie into a decision.
    nearly = np.array([0.1, 0.1], np.float32).astype(float) * [1, 1 + 1e-7]
    assert metrics.pairwise_accuracy(nearly, nearly, np.zeros(2, int)) == (0.0, 0)


def test_alignment_of_opposites_and_equals() -> None:
    question = np.array([0, 0, 1, 1])
    scores = metrics.alignment([1, 0, 0.3, 0.7], [0, 1, 0.3, 0.7], question, base=2)
    np.testing.assert_allclose(scores, [0.0, 1.0], atol=1e-12)


@pytest.mark.parametrize("bad", [[np.nan, 0.5], [np.inf, 0.5], [-0.1, 1.1], [0.0, 0.0]])
def test_alignment_never_scores_broken_input(bad: list[float]) -> None:
    with pytest.raises(PluralLLMError, match="Cannot score"):
        metrics.alignment(bad, [0.5, 0.5], np.array([0, 0]))


@given(st.integers(2, 18), st.integers(0, 2**31))
@settings(max_examples=100)
def test_ordinal_alignment_equals_scipy_wasserstein(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, q, positions = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(n)), rng.normal(size=n)
    expected = 1 - wasserstein_distance(positions, positions, p, q) / np.ptp(positions)
    assert metrics.ordinal_alignment(p, q, positions) == pytest.approx(expected, abs=1e-9)


def test_fairness_of_a_hand_computed_case() -> None:
    result = metrics.fairness([0.6, 0.8, 1.0])
    cov = np.sqrt(0.08 / 3) / 0.8
    assert result["cov"] == pytest.approx(cov)
    assert result["fairness_index_cov2"] == pytest.approx(1 / (1 + cov**2))
    assert result["fairness_index_cov"] == pytest.approx(1 / (1 + cov))
    assert (result["min"], result["worst_decile"]) == (0.6, 0.6)
    assert result["gap"] == pytest.approx(0.4)


def test_worst_decile_takes_a_tenth_of_the_groups() -> None:
    assert metrics.fairness(np.arange(1, 31) / 30)["worst_decile"] == pytest.approx(2 / 30)


def test_bootstrap_interval_covers_the_mean_at_its_level() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(300, 60))
    intervals = [metrics.bootstrap_interval(s, seed=i) for i, s in enumerate(samples)]
    covered = np.mean([low <= 0 <= high for low, high in intervals])
    assert 0.90 <= covered <= 0.98
    assert metrics.bootstrap_interval([0.7], seed=0) == (0.7, 0.7)


def test_closed_form_interval_agrees_with_resampling() -> None:
    sample = np.random.default_rng(1).beta(8, 2, size=2001)
    resampled = metrics.bootstrap_interval(sample[:-1], seed=0, draws=4000)
    np.testing.assert_allclose(
        metrics.bootstrap_interval(sample, seed=0), resampled, atol=0.05 * np.ptp(resampled) + 1e-4
    )
