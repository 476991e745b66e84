"""The split grid: which questions serve as context and targets, and the scores over them."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from pluralllm_fl.evaluation.scores import (
    EVALUATION_SPLITS,
    context_and_targets,
    evaluate_group,
    evaluation_order,
    predict_targets,
)
from pluralllm_fl.predictor.episodes import GroupTable
from pluralllm_fl.predictor.model import PredictorConfig, PreferencePredictor
from tests.tiny import DIMENSION, tiny_table


@pytest.fixture
def table() -> GroupTable:
    return tiny_table()


@pytest.fixture
def predictor() -> PreferencePredictor:
    torch.manual_seed(0)
    return PreferencePredictor(
        PredictorConfig(embedding_dim=DIMENSION, width=16, question_features=32)
    ).eval()


def test_context_and_targets_never_overlap(table: GroupTable) -> None:
    for split in EVALUATION_SPLITS:
        context, targets = context_and_targets(table, split, 10, seed=0)
        assert len(context) == 10
        assert not set(context) & set(targets)
    _, everything = context_and_targets(table, "all", 10, seed=0)
    assert len(everything) == len(table) - 10


def test_held_out_splits_score_only_their_questions(table: GroupTable) -> None:
    for split in ("validation", "test"):
        context, targets = context_and_targets(table, split, 10, seed=0)
        assert set(targets) == set(table.members(split))
        assert set(context) <= set(table.members("train"))


def test_larger_contexts_hold_the_smaller(table: GroupTable) -> None:
    order = evaluation_order(table, seed=3)
    assert sorted(order) == list(range(len(table)))
    small, large = (context_and_targets(table, "all", n, 3)[0].tolist() for n in (5, 20))
    assert large[:5] == small
    assert evaluation_order(table, seed=4).tolist() != order.tolist()


def test_scores_equal_scipy_in_a_loop(table: GroupTable, predictor: PreferencePredictor) -> None:
    scores = evaluate_group(predictor, table, context_questions=10, seed=0)
    context, targets = context_and_targets(table, "test", 10, seed=0)
    predicted = predict_targets(predictor, table, context, targets)
    starts = table.size.cumsum() - table.size
    expected, uniform = [], []
    for place, i in enumerate(targets):
        true = table.distribution[starts[i] : starts[i] + table.size[i]]
        guess = predicted.predicted[predicted.question == place]
        expected.append(1 - jensenshannon(guess, true))
        uniform.append(1 - jensenshannon(np.full(len(true), 1 / len(true)), true))
    score = scores["test"]
    assert score.alignment == pytest.approx(np.mean(expected), abs=1e-6)
    assert score.uniform == pytest.approx(np.mean(uniform), abs=1e-6)
    assert score.low <= score.alignment <= score.high
    assert score.questions == len(targets)


def test_an_empty_split_has_no_score(predictor: PreferencePredictor) -> None:
    table = tiny_table()
    train_only = type(table)(
        table.group, table.questions, table.first_row, table.size,
        np.full(len(table), "train"), table.distribution, table.offered, table.vectors,
    )  # fmt: skip
    scores = evaluate_group(predictor, train_only, context_questions=10, seed=0)
    assert scores["test"].questions == 0
    assert scores["train"].questions == scores["all"].questions == 50
