"""References against naive loops over answers by question, and against numpy's least squares."""

import dataclasses
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon

from pluralllm_fl.config import RunConfig
from pluralllm_fl.evaluation.baselines import with_random_vectors
from pluralllm_fl.evaluation.probes import RIDGE, mlp_probe, ridge_probe
from pluralllm_fl.evaluation.references import (
    SHARPNESS,
    Reference,
    agreement,
    agreement_memory,
    nearest_question,
    reference_alignment,
    references_by_side,
    seen_answers,
    seen_mean,
    uniform,
)
from pluralllm_fl.evaluation.scores import context_and_targets
from pluralllm_fl.preferences import GroupPreferences, PreferenceDataset, Question
from pluralllm_fl.workspace import Workspace
from tests.survey import CONFIG, DIMENSION, SEEN, UNSEEN, spoiled, survey

Array = NDArray[np.float64]
SHOWN = CONFIG.context_questions
JOINT = dataclasses.replace(CONFIG, embedding_template="{question} {option}")
both_templates = pytest.mark.parametrize(
    ("config", "dim"), [(CONFIG, DIMENSION // 2), (JOINT, DIMENSION)], ids=["two parts", "one"]
)


def ask(workspace: Workspace, reference: Reference, group: str) -> dict[Question, Array]:
    table = workspace.table(group)
    context, targets = context_and_targets(table, "all", SHOWN, CONFIG.seed)
    flat = reference(table, context, targets)
    parts = np.split(flat, np.cumsum(table.size[targets])[:-1])
    return {table.questions[i]: part for i, part in zip(targets, parts, strict=True)}


def held(workspace: Workspace, question: Question, *, without: str, split: str = "") -> list[Array]:
    found = []
    for group in workspace.seen:
        table = workspace.table(group)
        answers = workspace.dataset.groups[group].answers
        if group != without and question in answers:
            place = table.questions.index(question)
            if not split or table.split[place] == split:
                found.append(answers[question])
    return found


def halves(workspace: Workspace, question: Question, dim: int) -> tuple[Array, Array]:
    """Return what stands for a question and what for its options, one row an option."""
    first = workspace.first_row[question.id]
    rows = workspace.vectors.double().numpy()[first : first + len(question.options)]
    return rows[:, :dim], rows[:, DIMENSION - dim :]


def even(question: Question) -> Array:
    return np.full(len(question.options), 1 / len(question.options))


@pytest.mark.parametrize("group", [UNSEEN[0], SEEN[1]])
def test_uniform_and_seen_mean(group: str) -> None:
    workspace = survey()
    guess, mean = ask(workspace, uniform, group), ask(workspace, seen_mean(workspace), group)
    nobody = 0
    for question, predicted in mean.items():
        answers = held(workspace, question, without=group)
        nobody += not answers
        expected = np.mean(answers, axis=0) if answers else even(question)
        np.testing.assert_allclose(predicted, expected, atol=1e-6)
        np.testing.assert_allclose(guess[question], even(question))
    assert nobody or group in SEEN


def test_alignment_of_a_reference() -> None:
    workspace = survey()
    answers = workspace.dataset.groups["Southland"].answers
    expected = np.mean(
        [1 - jensenshannon(p, answers[q]) for q, p in ask(workspace, uniform, "Southland").items()]
    )
    assert reference_alignment(workspace, uniform, "Southland") == pytest.approx(expected, abs=1e-6)


def test_references_by_side_ask_what_the_predictor_is_asked() -> None:
    """Every group's test questions, whose answers by the other seen groups are averaged."""
    workspace = survey()
    sides = {"seen": SEEN, "unseen": UNSEEN}
    found = references_by_side(workspace, sides)
    for side, groups in sides.items():
        by_group = []
        for group in groups:
            table, answers = workspace.table(group), workspace.dataset.groups[group].answers
            scores = []
            for question, split in zip(table.questions, table.split, strict=True):
                if split == "test":
                    known = held(workspace, question, without=group)
                    mean = np.mean(known, axis=0) if known else even(question)
                    scores.append(1 - jensenshannon(mean, answers[question]))
            by_group.append(np.mean(scores))
        assert found["marginal"][side]["new"] == pytest.approx(np.mean(by_group), abs=1e-6)


def test_noise_floor_is_known_only_where_every_groups_respondents_are() -> None:
    workspace = survey()
    known = workspace.dataset.groups
    silent = {SEEN[0]: GroupPreferences(SEEN[0], known[SEEN[0]].answers)}
    asked = {
        name: GroupPreferences(name, g.answers, dict.fromkeys(g.answers, 1e12))
        for name, g in known.items()
    }
    sides = {"seen": SEEN, "unseen": UNSEEN}
    for groups, seen in ((asked, 1.0), (asked | silent, None)):
        dataset = dataclasses.replace(workspace.dataset, groups=groups)
        floor = references_by_side(dataclasses.replace(workspace, dataset=dataset), sides)
        assert floor["noise_floor"]["seen"]["all"] == (seen and pytest.approx(seen, abs=1e-4))
        assert floor["noise_floor"]["unseen"]["all"] == pytest.approx(1, abs=1e-4)


def test_agreement_of_two_groups_by_hand() -> None:
    """One shares one question with the context and answers alike; the other shares none."""
    press, court, army = (Question(f"Trust the {w}?", ("Yes", "No")) for w in ("p", "c", "a"))
    yes, half = np.array([1.0, 0.0]), np.array([0.5, 0.5])
    groups = {
        "A": GroupPreferences("A", {press: yes, army: yes}),
        "B": GroupPreferences("B", {army: half}),
        "C": GroupPreferences("C", {press: yes, court: yes, army: yes}),
    }
    dataset = PreferenceDataset("by hand", groups)
    rows = {q.id: 2 * i for i, q in enumerate(dataset.questions)}
    config = dataclasses.replace(CONFIG, context_questions=0)
    workspace = Workspace(config, dataset, ("A", "B"), ("C",), torch.eye(6), rows, "")
    table = workspace.table("C")
    answers = seen_answers(workspace, "train", "validation", "test")
    place = {question: i for i, question in enumerate(table.questions)}

    def score(*questions: Question) -> list[float]:
        return agreement(answers, table, np.array([place[q] for q in questions], int)).tolist()

    assert score(press, court) == pytest.approx([1, 1])  # B counts as the average of the others
    distance = jensenshannon(half, yes)
    assert score(press, army) == pytest.approx([1, 1 - distance])
    assert score(court) == score() == [0, 0]
    memory = agreement_memory(workspace)
    shown, asked = np.array([place[court]]), np.array([place[army]])
    np.testing.assert_allclose(memory(table, shown, asked), [0.75, 0.25])


def naive_memory(workspace: Workspace, group: str, sharpness: float) -> dict[Question, Array]:
    table = workspace.table(group)
    context, targets = context_and_targets(table, "all", SHOWN, CONFIG.seed)
    own = workspace.dataset.groups[group].answers
    memories = {g: workspace.dataset.groups[g].answers for g in workspace.seen if g != group}
    weight = {}
    for name, answers in memories.items():
        shared = [q for i in context if (q := table.questions[i]) in answers]
        close = [1 - jensenshannon(answers[q], own[q]) for q in shared]
        weight[name] = np.exp(sharpness * np.mean(close))
    predicted = {}
    for question in (table.questions[i] for i in targets):
        found = [g for g in memories if question in memories[g]]
        total = sum(weight[g] * memories[g][question] for g in found)
        predicted[question] = total / sum(weight[g] for g in found) if found else even(question)
    return predicted


def test_agreement_memory_equals_a_naive_loop() -> None:
    workspace = survey()

    def leave_one_out(sharpness: float) -> float:
        scores = []
        for group in SEEN:
            own = workspace.dataset.groups[group].answers
            predicted = naive_memory(workspace, group, sharpness).items()
            scores.append(np.mean([1 - jensenshannon(p, own[q]) for q, p in predicted]))
        return float(np.mean(scores))

    best = max(SHARPNESS, key=leave_one_out)
    assert best > 0
    memory = agreement_memory(workspace)
    for group in (UNSEEN[0], SEEN[0]):
        expected = naive_memory(workspace, group, best)
        for question, predicted in ask(workspace, memory, group).items():
            np.testing.assert_allclose(predicted, expected[question], atol=1e-6)
    mean = seen_mean(workspace)
    for group in UNSEEN:
        better = reference_alignment(workspace, memory, group)
        assert better > reference_alignment(workspace, mean, group) + 0.02


@both_templates
def test_nearest_question_equals_brute_force(config: RunConfig, dim: int) -> None:
    workspace, group = survey(config), UNSEEN[0]

    def close(a: Question, b: Question) -> float:
        return cosine(*(halves(workspace, question, dim)[0].mean(0) for question in (a, b)))

    trained = {
        q: np.mean(answers, axis=0)
        for q in workspace.dataset.questions
        if (answers := held(workspace, q, without=group, split="train"))
    }
    itself = 0
    for question, predicted in ask(workspace, nearest_question(workspace), group).items():
        if question in trained:
            itself += 1
            expected = trained[question]
        else:
            alike = [q for q in trained if len(q.options) == len(question.options)]
            nearest = max(alike, key=lambda q: close(q, question))
            similar = halves(workspace, question, dim)[1] @ halves(workspace, nearest, dim)[1].T
            orders = permutations(range(len(question.options)))
            best = max(orders, key=lambda o: sum(similar[i, j] for i, j in enumerate(o)))
            expected = trained[nearest][list(best)]
        np.testing.assert_allclose(predicted, expected, atol=1e-6)
    assert 0 < itself < len(workspace.table(group)) - SHOWN


def test_nearest_question_guesses_where_no_training_question_is_alike() -> None:
    workspace = survey(dataclasses.replace(CONFIG, validation_fraction=0.0, test_fraction=0.99))
    table = workspace.table(UNSEEN[0])
    none, every = np.array([], int), np.arange(len(table))
    reference = nearest_question(workspace)
    trained = {
        len(workspace.table(g).questions[i].options)
        for g in SEEN
        for i in workspace.table(g).members("train")
    }
    assert len(trained) < 4
    parts = np.split(reference(table, none, every), np.cumsum(table.size)[:-1])
    for question, predicted in zip(table.questions, parts, strict=True):
        if len(question.options) not in trained:
            np.testing.assert_allclose(predicted, even(question))
    assert reference(table, none, none).shape == (0,)


@both_templates
def test_ridge_probe_equals_least_squares_with_ridge_rows(config: RunConfig, dim: int) -> None:
    workspace, group = survey(config), UNSEEN[0]

    def explicit(question: Question) -> Array:
        about, options = halves(workspace, question, dim)
        mean, deviation = about.mean(0), options - options.mean(0)
        d = deviation / np.linalg.norm(deviation, axis=1, keepdims=True)
        q = np.append(np.sqrt(0.5), mean / np.linalg.norm(mean))
        return np.array([np.outer(q, row).ravel() for row in d])

    left, right = [], []
    for seen in SEEN:
        table = workspace.table(seen)
        for i in table.members("train"):
            share = np.log(workspace.dataset.groups[seen].answers[table.questions[i]] + 1e-3)
            left.append(explicit(table.questions[i]))
            right.append(share - share.mean())
    width = left[0].shape[1]
    left.append(np.sqrt(RIDGE) * np.eye(width))
    right.append(np.zeros(width))
    solution = np.linalg.lstsq(np.concatenate(left), np.concatenate(right), rcond=None)[0]
    for question, predicted in ask(workspace, ridge_probe(workspace), group).items():
        share = np.exp(explicit(question) @ solution)
        np.testing.assert_allclose(predicted, share / share.sum(), atol=2e-4)


@both_templates
def test_mlp_probe_learns_what_the_seen_groups_share(config: RunConfig, dim: int) -> None:
    workspace = survey(config)
    assert workspace.dimension == dim
    first, again = mlp_probe(workspace), mlp_probe(workspace)
    table = workspace.table(SEEN[0])
    trained, none = table.members("train"), np.array([], int)
    truth = table.batch(trained).distribution
    assert truth is not None

    def cross_entropy(reference: Reference) -> float:
        return -float(truth.numpy() @ np.log(reference(table, none, trained)))

    assert cross_entropy(first) < cross_entropy(uniform) - 0.1 * len(trained)
    np.testing.assert_array_equal(first(table, none, trained), again(table, none, trained))


@pytest.mark.parametrize("build", [nearest_question, ridge_probe, mlp_probe])
def test_held_out_answers_are_not_read(build: Callable[[Workspace], Reference]) -> None:
    workspace = survey()
    asked = workspace.table(UNSEEN[0])
    none, every = np.array([], int), np.arange(len(asked))
    results = [build(w)(asked, none, every) for w in (workspace, spoiled(workspace))]
    np.testing.assert_array_equal(*results)


def at_random(template: str, dimension: int) -> tuple[Array, Array, Array]:
    """Return the random vectors of three questions with two options each."""
    words = [("press", "Yes", "No"), ("press", "No", "Maybe"), ("court", "Yes", "No")]
    asked = [Question(f"Trust the {text}?", tuple(options)) for text, *options in words]
    answers = {q: np.array([0.5, 0.5]) for q in asked}
    dataset = PreferenceDataset("texts", {"A": GroupPreferences("A", answers)})
    first = {q.id: 2 * i for i, q in enumerate(dataset.questions)}
    config = dataclasses.replace(CONFIG, embedding_template=template)
    table = torch.zeros(6, dimension)
    workspace = Workspace(config, dataset, ("A",), (), table, first, "model")
    random = with_random_vectors(workspace)
    assert random.embedding_fingerprint != workspace.embedding_fingerprint
    vectors = random.vectors.numpy()
    np.testing.assert_array_equal(vectors, with_random_vectors(workspace).vectors)
    press, again, court = (vectors[first[q.id] : first[q.id] + 2] for q in asked)
    return press, again, court


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_random_vectors_of_texts_apart_are_one_for_each_text() -> None:
    """With many dimensions, vectors drawn apart are nearly orthogonal."""
    press, again, court = at_random("{question}||{option}", 4000)
    (question, yes), (same, no) = np.split(press[0], 2), np.split(press[1], 2)
    (third, maybe) = np.split(again[1], 2)
    other = court[0, :2000]
    np.testing.assert_array_equal([same, third], [question, question])
    np.testing.assert_array_equal(again[0], press[1])
    np.testing.assert_array_equal(court[:, 2000:], [yes, no])
    np.testing.assert_array_equal(court[1, :2000], other)
    texts = [question, other, yes, no, maybe]
    similar = np.array([[cosine(a, b) for b in texts] for a in texts])
    np.testing.assert_allclose(similar, np.eye(5), atol=0.1)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)


def test_random_vectors_know_equal_texts_and_nothing_else() -> None:
    press, again, court = at_random("{question} {option}", 2000)
    for vectors in (press, again, court):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert cosine(press.mean(0), again.mean(0)) > 0.95
    assert abs(cosine(press.mean(0), court.mean(0))) < 0.1
    assert cosine(press[0] - press[1], court[0] - court[1]) > 0.95
    assert cosine(press[0] - press[1], again[1] - again[0]) < 0.6  # they share one of two options


def test_random_vectors_reach_the_tables() -> None:
    workspace = survey()
    before = workspace.table(SEEN[0]).vectors
    assert not torch.equal(with_random_vectors(workspace).table(SEEN[0]).vectors, before)


def test_seen_mean_shares_candidates_that_groups_saw_in_other_lists() -> None:
    lists = {pair: Question("Prompt", pair) for pair in (("a", "b"), ("b", "c"), ("a", "b", "c"))}
    other = Question("Another prompt", ("a", "b"))
    told = {
        "One": {lists["a", "b"]: [0.8, 0.2], other: [0.0, 1.0]},
        "Two": {lists["b", "c"]: [0.5, 0.5]},
        "Asked": {lists["a", "b", "c"]: [0.6, 0.3, 0.1], Question("Unknown", ("a", "b")): [1, 0]},
    }
    groups = {
        name: GroupPreferences(name, {q: np.array(p, float) for q, p in answers.items()})
        for name, answers in told.items()
    }
    dataset = PreferenceDataset("lists", groups)
    sizes = [len(q.options) for q in dataset.questions]
    first = dict(
        zip((q.id for q in dataset.questions), np.cumsum([0, *sizes[:-1]]).tolist(), strict=True)
    )
    config = dataclasses.replace(CONFIG, context_questions=0)
    vectors = torch.zeros(sum(sizes), DIMENSION)
    workspace = Workspace(config, dataset, ("One", "Two"), ("Asked",), vectors, first, "none")
    table = workspace.table("Asked")
    flat = seen_mean(workspace)(table, np.zeros(0, int), np.arange(2))
    place = [q.text for q in table.questions].index("Prompt")
    parts = np.split(flat, np.cumsum(table.size)[:-1])
    # Times its list's length, a is worth 1.6, b 0.4 to one group and 1 to the other, c 1.
    np.testing.assert_allclose(parts[place], [1.6 / 3, 0.7 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(parts[1 - place], [0.5, 0.5])
