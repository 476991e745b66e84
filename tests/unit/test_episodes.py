"""Ragged batches and episode sampling against naive loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralllm_fl.errors import ConfigError
from pluralllm_fl.predictor.episodes import EpisodeSampler
from tests.tiny import tiny_table


@given(st.lists(st.integers(0, 59), min_size=1, max_size=40))
@settings(max_examples=100)
def test_batch_gathers_what_a_loop_gathers(index: list[int]) -> None:
    table = tiny_table()
    batch = table.batch(index)
    starts = np.concatenate([[0], np.cumsum(table.size)])
    assert batch.distribution is not None
    flat = 0
    for place, i in enumerate(index):
        size = int(table.size[i])
        piece = slice(flat, flat + size)
        np.testing.assert_array_equal(
            batch.distribution[piece], table.distribution[starts[i] : starts[i + 1]]
        )
        rows = range(int(table.first_row[i]), int(table.first_row[i]) + size)
        assert torch.equal(batch.embedding[piece], table.vectors[list(rows)])
        assert batch.question[piece].tolist() == [place] * size
        assert batch.position[piece].tolist() == list(range(size))
        flat += size
    assert flat == len(batch.question)


def test_pad_and_flatten_are_inverse() -> None:
    batch = tiny_table().batch([3, 7, 1])
    flat = torch.randn(len(batch.question), 5)
    padded = batch.pad(flat)
    assert padded.shape == (3, batch.longest, 5)
    assert torch.equal(batch.flatten(padded), flat)
    assert (padded[~batch.mask] == 0).all()


def test_empty_batch() -> None:
    batch = tiny_table().batch([])
    assert (len(batch), batch.longest, batch.embedding.shape[0]) == (0, 0, 0)


@given(
    st.integers(1, 80), st.integers(0, 60), st.integers(0, 60), st.integers(1, 60),
    st.integers(0, 60), st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=300)
def test_episodes_are_disjoint_and_within_bounds(
    pool: int, c_low: int, c_more: int, t_low: int, t_more: int, seed: int
) -> None:
    sampler = EpisodeSampler((c_low, c_low + c_more), (t_low, t_low + t_more))
    members = np.arange(pool) * 3
    context, targets = sampler.sample(members, np.random.default_rng(seed))
    drawn = np.concatenate([context, targets])
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(members)
    assert 1 <= len(targets) <= t_low + t_more
    assert len(context) <= c_low + c_more
    if pool >= c_low + c_more + t_low + t_more:
        assert c_low <= len(context)
        assert t_low <= len(targets)


def test_sizes_are_uniform() -> None:
    sampler, rng = EpisodeSampler((0, 3), (5, 8)), np.random.default_rng(0)
    draws = [sampler.sample(np.arange(100), rng) for _ in range(4000)]
    for counts in (
        np.bincount([len(c) for c, _ in draws]),
        np.bincount([len(t) for _, t in draws])[5:],
    ):
        assert len(counts) == 4
        np.testing.assert_allclose(counts / 4000, 0.25, atol=0.03)


def test_a_group_without_training_questions_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no training questions"):
        EpisodeSampler((0, 1), (1, 2)).sample(np.arange(0), np.random.default_rng(0))


def test_a_fold_is_a_part_of_the_questions_that_differs_between_groups() -> None:
    table = tiny_table(2000)
    every = np.arange(2000)
    chosen = table.fold(every, 0.25)
    assert len(chosen) == pytest.approx(500, abs=60)
    assert chosen.tolist() == table.fold(every, 0.25).tolist()
    other = replace(table, group="Southland").fold(every, 0.25)
    assert len(set(chosen) & set(other)) == pytest.approx(125, abs=40)  # as by chance
    assert set(table.fold(every, 0.1)) < set(chosen)
    assert len(table.fold(every, 0.0)) == 0
    assert table.fold(every, 1.0).tolist() == every.tolist()


def test_a_questions_fold_does_not_depend_on_what_else_is_asked() -> None:
    table = tiny_table()
    some = np.arange(10, 40)
    assert set(table.fold(some, 0.5)) == set(table.fold(np.arange(60), 0.5)) & set(some)


@given(chosen=st.sets(st.integers(0, 19), min_size=1).map(sorted))
def test_picked_questions_are_those_of_the_batch(chosen: list[int]) -> None:
    table = tiny_table()
    batch = table.batch(range(20, 40))
    picked, options = batch.pick(np.array(chosen))
    expected = table.batch([20 + i for i in chosen])
    for name in ("embedding", "question", "position", "size", "distribution"):
        assert torch.equal(getattr(picked, name), getattr(expected, name))
    assert torch.equal(batch.embedding[options], expected.embedding)
