"""The audit against attackers who know exactly what they read, and against naive loops."""

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon

from pluralllm_fl.arrays import IntArray
from pluralllm_fl.evaluation.audit.counterfactual import (
    leave_one_out,
    mean_of_answers,
    without_group,
)
from pluralllm_fl.evaluation.audit.reading import (
    FEWEST,
    FIGURES,
    Examiner,
    area_under_curve,
    from_model,
    interval,
    membership,
)
from pluralllm_fl.evaluation.audit.updates import AMPLIFICATIONS, from_updates
from pluralllm_fl.evaluation.baselines import federated
from pluralllm_fl.evaluation.scores import Targets, beside_answers, predict_targets
from pluralllm_fl.predictor.episodes import GroupTable
from pluralllm_fl.predictor.model import NETWORKS, PreferencePredictor, initial_predictor
from pluralllm_fl.predictor.training import learning_rate_at, round_seed, train_group
from pluralllm_fl.preferences import GroupPreferences, PreferenceDataset, Question
from pluralllm_fl.workspace import Workspace
from tests.networks import Ledger
from tests.survey import CONFIG, SEEN, UNSEEN, survey

Array = NDArray[np.float64]


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The small survey, whose options are told apart by one coordinate each."""
    monkeypatch.setitem(NETWORKS, "transformer", Ledger)
    return numbered(survey(dataclasses.replace(CONFIG, learning_rate=0.1, local_steps=3)))


def numbered(workspace: Workspace) -> Workspace:
    return dataclasses.replace(workspace, vectors=torch.eye(len(workspace.vectors)), _tables={})


def exact(table: GroupTable, context: IntArray, targets: IntArray) -> Targets:  # noqa: ARG001
    return beside_answers(table.answers(targets).astype(float), table, targets)


def ignorant(table: GroupTable, context: IntArray, targets: IntArray) -> Targets:  # noqa: ARG001
    size = table.size[targets]
    return beside_answers(np.repeat(1 / size, size), table, targets)


def by_heart(table: GroupTable, context: IntArray, targets: IntArray) -> Targets:
    """Know what seen groups answered to their training questions, and nothing else."""
    known = table.group in SEEN and bool((table.split[targets] == "train").all())
    return (exact if known else ignorant)(table, context, targets)


def naive(
    workspace: Workspace, group: str, split: str, predict: Callable[[Question], Array]
) -> Array:
    """Read a group without arrays; of other groups only what some seen group trained on."""
    tables = [workspace.table(g) for g in workspace.seen]
    trained = {q for t in tables for q, s in zip(t.questions, t.split, strict=True) if s == "train"}
    table, scores, errors = workspace.table(group), [], []
    for question, where in zip(table.questions, table.split, strict=True):
        if where != split or (split == "train" and question not in trained):
            continue
        true = workspace.dataset.groups[group].answers[question]
        predicted = predict(question)
        scores.append(1 - jensenshannon(predicted, true))
        errors += list(abs(predicted - true))
    near = [np.mean([e <= t for e in errors]) for t in (0.02, 0.05)]
    return np.array([np.mean(scores), *near])


def even(question: Question) -> Array:
    return np.full(len(question.options), 1 / len(question.options))


def values(figures: dict[str, float]) -> list[float]:
    return [figures[name] for name in FIGURES]


def test_an_attacker_who_knows_everything_reads_everything() -> None:
    row = from_model(Examiner(survey()), exact, 0)
    for part in ("trained", "new"):
        for side in ("seen", "unseen"):
            assert values(row[part][side]) == pytest.approx([1, 1, 1], abs=1e-6)
    assert values(row["excess"]["difference"]) == pytest.approx([0, 0, 0], abs=1e-6)


def test_an_attacker_who_knows_nothing_reads_what_a_naive_loop_says() -> None:
    workspace = survey(questions=90)
    row = from_model(Examiner(workspace), ignorant, 0)
    for part, split in (("trained", "train"), ("new", "test")):
        for side, groups in (("seen", SEEN), ("unseen", UNSEEN)):
            expected = np.mean([naive(workspace, g, split, even) for g in groups], axis=0)
            assert values(row[part][side]) == pytest.approx(expected, abs=1e-6)


def test_what_a_model_remembers_of_its_groups_is_told_from_easy_groups() -> None:
    workspace = survey(questions=90)
    row = from_model(Examiner(workspace), by_heart, 0)
    assert values(row["trained"]["seen"]) == pytest.approx([1, 1, 1], abs=1e-6)
    gain = {
        g: (1 if g in SEEN else naive(workspace, g, "train", even)[0])
        - naive(workspace, g, "test", even)[0]
        for g in workspace.groups
    }
    expected = np.mean([gain[g] for g in SEEN]) - np.mean([gain[g] for g in UNSEEN])
    assert row["excess"]["difference"]["alignment"] == pytest.approx(expected, abs=1e-6)
    low, high = row["excess"]["interval"]
    assert low < expected < high


def test_known_answers_are_no_targets() -> None:
    asked = []

    def predict(table: GroupTable, context: IntArray, targets: IntArray) -> Targets:
        asked.append((table.group, len(context), set(context) & set(targets)))
        assert set(table.split[context]) <= {"train"}
        return ignorant(table, context, targets)

    from_model(Examiner(survey()), predict, 5)
    assert asked
    assert {(known, *both) for _, known, both in asked} == {(5,)}


def test_more_known_answers_than_a_group_has_leave_nothing_to_read() -> None:
    row = from_model(Examiner(survey()), exact, 1000)
    assert row["trained"] == dict.fromkeys(("seen", "unseen", "difference", "interval"))


def test_a_handful_of_targets_is_too_few_to_read() -> None:
    workspace = survey()
    number = {g: len(workspace.table(g).members("train")) for g in SEEN}
    most = max(number.values())
    row = from_model(Examiner(workspace), exact, most - FEWEST)
    read = {g for g in SEEN if row["by_group"][g]}
    assert read == {g for g in SEEN if number[g] == most}


def test_without_unseen_groups_or_new_questions_there_is_no_comparison() -> None:
    config = dataclasses.replace(CONFIG, test_fraction=0.0, validation_fraction=0.0)
    workspace = dataclasses.replace(survey(config), unseen=())
    row = from_model(Examiner(workspace), exact, 0)
    assert row["trained"]["seen"]["alignment"] == pytest.approx(1)
    assert row["trained"]["unseen"] is row["new"]["seen"] is row["excess"]["difference"] is None
    assert membership(Examiner(workspace), exact) == dict.fromkeys(("seen", "unseen", "difference"))


def test_membership_of_answers_known_by_heart_is_certain() -> None:
    found = membership(Examiner(survey()), by_heart)
    assert found["seen"] == 1
    assert found["unseen"] is not None
    assert found["difference"] == pytest.approx(1 - found["unseen"])
    assert 0.2 < found["unseen"] < 0.8


def test_area_under_the_curve_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 9, 30).astype(float), rng.integers(2, 11, 20).astype(float)
    wins = [(a > b) + (a == b) / 2 for a in inside for b in outside]
    assert area_under_curve(inside, outside) == pytest.approx(np.mean(wins))
    assert np.isnan(area_under_curve(inside, np.zeros(0)))


def test_the_interval_of_a_mean_by_the_textbook() -> None:
    """Fisher's sleep data: 10 paired differences, mean 1.58, 95% interval 0.70 to 2.46."""
    extra = np.array([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4, np.nan])
    assert interval(extra) == pytest.approx([0.7001142, 2.4598858], abs=1e-6)
    assert interval(extra[:1]) is None


def test_one_update_is_attacked_at_its_best_amplification(ledger: Workspace) -> None:
    start = initial_predictor(ledger.config, len(ledger.vectors), "")
    received = {k: v.clone() for k, v in start.state_dict().items()}
    row = from_updates(Examiner(ledger), start, received, 2, lambda: None)
    best = {}
    for group in SEEN:
        trained = PreferencePredictor(start.config)
        train_group(
            trained, ledger.table(group), ledger.config, server_round=2,
            learning_rate=learning_rate_at(ledger.config, 2), local_steps=3,
            seed=round_seed(0, 2, group),
        )  # fmt: skip
        update = trained.state_dict()["network.logits"].double().numpy()

        def predict(question: Question, scale: float, update: Array = update) -> Array:
            first = ledger.first_row[question.id]
            odds = np.exp(scale * update[first : first + len(question.options)])
            return np.asarray(odds / odds.sum())

        readings = {
            a: naive(ledger, group, "train", partial(predict, scale=a)) for a in AMPLIFICATIONS
        }
        best[group] = max(AMPLIFICATIONS, key=lambda a: readings[a][0])
        assert values(row["by_group"][group]) == pytest.approx(readings[best[group]], abs=1e-5)
    assert row["amplification"] == best
    assert max(best.values()) > 1
    guess = np.mean([naive(ledger, group, "train", even) for group in SEEN], axis=0)
    assert values(row["received"]) == pytest.approx(guess, abs=1e-6)
    assert row["own"]["alignment"] > row["other"]["alignment"] > row["received"]["alignment"]
    # The audited predictor stays as it was.
    assert all(torch.equal(v, received[k]) for k, v in start.state_dict().items())


def test_an_amplification_that_breaks_the_model_is_no_use(ledger: Workspace) -> None:
    config = dataclasses.replace(ledger.config, learning_rate=2.5e37, local_steps=1)
    workspace = dataclasses.replace(ledger, config=config, _tables={})
    start = initial_predictor(config, len(ledger.vectors), "")
    received = {k: v.clone() for k, v in start.state_dict().items()}
    row = from_updates(Examiner(workspace), start, received, 2, lambda: None)
    assert max(row["amplification"].values()) < max(AMPLIFICATIONS)
    assert 0 <= row["own"]["alignment"] <= 1


def test_mean_of_answers_with_and_without_the_group_itself() -> None:
    workspace = survey()
    found = mean_of_answers(Examiner(workspace), SEEN)

    def mean(question: Question, asker: str) -> Array:
        held = [workspace.dataset.groups[g].answers for g in SEEN if g != asker]
        answers = [answer[question] for answer in held if question in answer]
        return np.mean(answers, axis=0) if answers else even(question)

    for key, left_out in (("with", False), ("without", True)):
        expected = np.mean(
            [
                naive(workspace, g, "train", partial(mean, asker=g if left_out else ""))
                for g in SEEN
            ],
            axis=0,
        )
        assert values(found[key]) == pytest.approx(expected, abs=1e-6)
    assert found["difference"]["alignment"] > 0.02


def test_without_a_group_its_own_questions_are_as_good_as_new(ledger: Workspace) -> None:
    """A group that alone was asked its questions: a model without it can only guess."""
    lonely = {
        Question(f"Lonely {i}?", ("a", "b", "c")): np.array([0.7, 0.2, 0.1]) for i in range(30)
    }
    groups = dict(ledger.dataset.groups) | {SEEN[0]: GroupPreferences(SEEN[0], lonely)}
    dataset = PreferenceDataset("lonely", groups)
    sizes = [len(q.options) for q in dataset.questions]
    first = np.cumsum(sizes) - sizes
    rows = {q.id: int(row) for q, row in zip(dataset.questions, first, strict=True)}
    workspace = Workspace(
        ledger.config, dataset, SEEN, UNSEEN, torch.eye(sum(sizes)), rows, "random"
    )
    whole = federated(workspace, workspace.config, lambda *_: None)
    ticks = []
    found = leave_one_out(Examiner(workspace), whole, SEEN[:1], (0, 5), lambda: ticks.append(None))
    assert len(ticks) == workspace.config.num_server_rounds
    guess = naive(workspace, SEEN[0], "train", even)
    for row in found["model"]:
        assert row["without"]["alignment"] == pytest.approx(guess[0], abs=1e-6)
        assert row["difference"]["alignment"] > 0.02
        assert row["interval"] is None  # of one group
    assert values(found["mean_of_answers"]["with"]) == pytest.approx([1, 1, 1], abs=1e-3)


def test_pairs_are_read_from_models_trained_alike(ledger: Workspace) -> None:
    whole = federated(ledger, ledger.config, lambda *_: None)
    examiner = Examiner(ledger)
    found = leave_one_out(examiner, whole, SEEN[:2], (0,), lambda: None)
    readings = []
    for group in SEEN[:2]:
        left = without_group(ledger, group)
        assert left.seen == tuple(g for g in SEEN if g != group)
        assert left.unseen == tuple(sorted((*UNSEEN, group)))
        model = federated(left, ledger.config, lambda *_: None)
        readings.append(examiner.read(partial(predict_targets, model), group))
    (row,) = found["model"]
    assert values(row["without"]) == pytest.approx(np.mean(readings, axis=0))
    assert row["difference"]["alignment"] > 0
