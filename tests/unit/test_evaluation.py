"""The split grid: which questions serve as context and targets, and the scores over them."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from pluralllm_fl.evaluation.blocks import group_block, split_blocks
from pluralllm_fl.evaluation.scores import (
    EVALUATION_SPLITS,
    NO_SCORE,
    ManyContexts,
    SplitScore,
    context_and_targets,
    evaluate_group,
    evaluation_order,
    predict_targets,
    uniform_alignment,
)
from pluralllm_fl.metrics import bootstrap_interval
from pluralllm_fl.predictor.episodes import GroupTable
from pluralllm_fl.predictor.model import PredictorConfig, PreferencePredictor
from pluralllm_fl.preferences import GroupPreferences, Question
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


def test_a_prompt_of_the_context_is_no_target_with_other_candidates() -> None:
    pairs = [Question(f"Prompt {i}", pair) for i in range(30) for pair in (("a", "b"), ("b", "c"))]
    answers = dict.fromkeys(pairs, np.array([1.0, 0.0]))
    table = GroupTable.build(
        GroupPreferences("G", answers), torch.zeros(2, DIMENSION), {q.id: 0 for q in pairs},
        seed=0, validation_fraction=0.2, test_fraction=0.2,
    )  # fmt: skip
    for split in EVALUATION_SPLITS:
        context, targets = context_and_targets(table, split, 8, seed=0)
        shown, scored = ({table.questions[i].text for i in part} for part in (context, targets))
        assert len(context) == 8
        assert scored
        assert not shown & scored
    shown, scored = context_and_targets(table, "all", 8, seed=0)
    missing = set(range(60)) - set(shown) - set(scored)
    assert missing
    assert {table.questions[i].text for i in missing} <= {table.questions[i].text for i in shown}


def test_uniform_alignment_is_the_mean_over_questions_of_any_length() -> None:
    answers = [np.array(p) for p in ([0.5, 0.5], [1.0, 0.0], [0.2, 0.3, 0.5])]
    each = [1 - jensenshannon(np.full(len(p), 1 / len(p)), p) for p in answers]
    assert uniform_alignment(answers) == pytest.approx(np.mean(each))


def test_measures_of_pairs_are_means_over_groups_that_have_any() -> None:
    def scored(accuracy: float, error: float, pairs: int) -> dict[str, SplitScore]:
        score = SplitScore(0.8, 0.8, 0.7, 0.9, 0.6, 10, accuracy, error, pairs)
        return dict.fromkeys(EVALUATION_SPLITS, score) | {"test": NO_SCORE}

    groups = {"A": scored(0.9, 0.1, 40), "B": scored(0.6, 0.3, 4), "Ties": scored(0.0, 0.0, 0)}
    block = split_blocks(groups)  # type: ignore[arg-type]
    assert block is not None
    assert block["pairwise_accuracy"] == pytest.approx(0.75)
    assert block["calibration_error"] == pytest.approx(0.2)
    assert block["pairwise_accuracy_by_group"] == {"A": 0.9, "B": 0.6}
    assert block["calibration_error_by_group"] == {"A": 0.1, "B": 0.3}
    alone = split_blocks({"Ties": groups["Ties"]})  # type: ignore[dict-item]
    assert alone is not None
    assert alone["pairwise_accuracy"] is None


@pytest.mark.parametrize("groups", [1, 2, 4, 5, 8])
def test_few_groups_and_few_questions_have_no_interval(groups: int) -> None:
    names = [f"g{i}" for i in range(groups)]
    scores = {name: 0.8 + 0.001 * i for i, name in enumerate(names)}
    asked = {name: 5 - (i == 0) for i, name in enumerate(names)}
    bounds = dict.fromkeys(names, (0.7, 0.9))
    block = group_block(scores, asked, scores, bounds)
    expected = list(bootstrap_interval(list(scores.values()), seed=0))
    assert block["interval"] == (expected if groups >= 5 else None)
    assert list(block["intervals"]) == names[1:]


def test_group_block_macro_and_micro() -> None:
    block = group_block(
        {"b": 0.9, "a": 0.7}, {"a": 30, "b": 10}, {"a": 0.6, "b": 0.5},
        {"a": (0.6, 0.8), "b": (0.8, 1.0)},
    )  # fmt: skip
    assert block["alignment"] == pytest.approx(0.8)
    assert block["alignment_micro"] == pytest.approx(0.75)
    assert block["uniform"] == pytest.approx(0.55)
    assert list(block["by_group"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ((1.2, 0.1, 5), "pairwise-accuracy = 1.2"),
        ((0.6, float("nan"), 5), "calibration-error = nan"),
        ((0.6, 0.1, -1), "pairs = -1"),
    ],
)
def test_impossible_measures_of_pairs_are_named(
    values: tuple[float, float, int], told: str
) -> None:
    assert told in SplitScore(0.8, 0.8, 0.7, 0.9, 0.6, 10, *values).problem()


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


@pytest.mark.parametrize("architecture", ["transformer", "published"])
def test_many_contexts_share_what_is_known_of_the_questions(architecture: str) -> None:
    torch.manual_seed(0)
    config = PredictorConfig(architecture=architecture, embedding_dim=DIMENSION, width=16)
    predictor = PreferencePredictor(config).eval()
    table, other = tiny_table(), tiny_table(seed=1)
    predict, targets = ManyContexts(predictor), np.array([31, 7, 40])
    asked = table.batch(targets).without_answers()
    for source, context in ((table, [3, 1, 2]), (other, [5, 0]), (table, []), (table, [20])):
        found = predict.shown(source, np.array(context, dtype=np.int64), table, targets)
        alone = predictor.predict(source.batch(context), asked)
        np.testing.assert_allclose(found.predicted, alone, atol=1e-6)
        np.testing.assert_array_equal(found.true, table.answers(targets))


def test_an_empty_split_has_no_score(predictor: PreferencePredictor) -> None:
    table = tiny_table()
    train_only = type(table)(
        table.group, table.questions, table.first_row, table.size,
        np.full(len(table), "train"), table.distribution, table.offered, table.vectors,
    )  # fmt: skip
    scores = evaluate_group(predictor, train_only, context_questions=10, seed=0)
    assert scores["test"].questions == 0
    assert scores["train"].questions == scores["all"].questions == 50
