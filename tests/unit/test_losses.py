"""Losses against scipy and torch.distributions, one question at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from pluralllm_fl.predictor.losses import js_distance, prediction_loss
from tests.tiny import tiny_table


def test_losses_equal_direct_computations() -> None:
    batch = tiny_table().batch(range(12))
    generator = torch.Generator().manual_seed(0)
    logits, log_std = torch.randn(2, len(batch.question), generator=generator)
    log_p, q = batch.log_softmax(logits), batch.distribution
    assert q is not None
    cross, distance = 0.0, 0.0
    for i in range(12):
        p_i, q_i = log_p[batch.question == i].exp(), q[batch.question == i]
        assert float(p_i.sum()) == pytest.approx(1)
        cross += float(-(q_i * p_i.log()).sum())
        distance += jensenshannon(p_i.numpy(), q_i.numpy())
    normal = torch.distributions.Normal(log_p.exp(), log_std.exp())
    certain = torch.distributions.Normal(log_p.exp(), 1.0)
    expected = {
        ("cross-entropy", log_std): cross / 12,
        ("alignment", log_std): distance / 12,
        ("normal-nll", log_std): float(-normal.log_prob(q).mean()),
        ("normal-nll", None): float(-certain.log_prob(q).mean()),
    }
    for (name, spread), value in expected.items():
        found = prediction_loss(log_p, spread, batch, name)
        assert found.item() == pytest.approx(value, abs=2e-5)


SHARES = st.integers(2, 9).flatmap(
    lambda n: st.lists(
        st.lists(st.just(0.0) | st.floats(0.01, 1), min_size=n, max_size=n).filter(any),
        min_size=2,
        max_size=2,
    )
)


@given(shares=SHARES)
def test_the_distance_is_scipys_with_zeros_too(shares: list[list[float]]) -> None:
    p, q = (np.array(share) / sum(share) for share in shares)
    found = js_distance(torch.tensor(p)[None], torch.tensor(q)[None])
    # It ends at 0.001, so that it has a slope where nothing is wrong.
    assert float(found) == pytest.approx(np.hypot(jensenshannon(p, q), 1e-3), abs=2e-4)


@pytest.mark.parametrize("share", [(0.5, 0.5), (1.0, 0.0)])
def test_the_distance_is_smooth_where_nothing_is_wrong(share: tuple[float, float]) -> None:
    p = torch.tensor([share], requires_grad=True)
    js_distance(p, p.detach()).sum().backward()
    assert p.grad is not None
    assert bool(p.grad.isfinite().all())
