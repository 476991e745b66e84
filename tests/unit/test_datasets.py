"""Row contract, aggregation and errors of the loaders."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pluralllm_fl.datasets import load_dataset
from pluralllm_fl.errors import DatasetError
from tests.unit.data_files import GOOD, load, only_answer, without


def test_distribution_row_is_normalised(tmp_path: Path) -> None:
    dataset = load(tmp_path, [{**GOOD, "distribution": [0.249, 0.747]}])
    np.testing.assert_allclose(only_answer(dataset), [0.25, 0.75])
    assert dataset.name.endswith("rows.jsonl")
    assert dataset.skipped == {}


def test_counts_add_up_over_rows_with_weights(tmp_path: Path) -> None:
    rows = [
        without("distribution", counts=[1, 2]),
        without("distribution", counts=[3, 0], weight=2),
    ]
    np.testing.assert_allclose(only_answer(load(tmp_path, rows)), [7 / 9, 2 / 9])


@pytest.mark.parametrize(
    ("rows", "people"),
    [
        ([{"counts": [1, 2]}, {"counts": [3, 0]}], 6),
        ([{"counts": [1, 2], "weight": 5}], 3),
        ([{"counts": [1, 2]}, {"counts": [3, 0], "weight": 2}], 9**2 / (3 + 3 * 2**2)),
        ([{"choice": 0}, {"choice": 1}, {"choice": 1}], 3),
        ([{"choice": 0}, {"choice": 1, "weight": 3}], 4**2 / (1 + 3**2)),
        ([{"distribution": [0.5, 0.5]}], None),
    ],
)
def test_number_of_respondents_is_kishs_effective_one(
    tmp_path: Path, rows: list[dict[str, Any]], people: float | None
) -> None:
    (group,) = load(tmp_path, [without("distribution", **row) for row in rows]).groups.values()
    expected = [] if people is None else [pytest.approx(people)]
    assert list(group.respondents.values()) == expected


def test_a_ranking_does_not_say_how_many_people_ranked(tmp_path: Path) -> None:
    row = {"group": "N", "prompt": "Q?", "responses": ["a", "b"], "ranking": [1, 0]}
    (group,) = load(tmp_path, [row]).groups.values()
    assert group.respondents == {}


def test_choices_by_index_and_by_text_agree(tmp_path: Path) -> None:
    rows = [without("distribution", choice=c) for c in (0, "Coffee", 1, "Coffee")]
    np.testing.assert_allclose(only_answer(load(tmp_path, rows)), [0.25, 0.75])


def test_choice_text_that_is_an_option_wins_over_its_reading_as_index(tmp_path: Path) -> None:
    row = without("distribution", options=["1", "0"], choice="1")
    np.testing.assert_array_equal(only_answer(load(tmp_path, [row])), [1.0, 0.0])


def test_aggregation_equals_a_naive_counter(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    votes = [
        (f"g{g}", f"q{q}?", int(c))
        for g, q, c in zip(
            rng.integers(4, size=3000),
            rng.integers(9, size=3000),
            rng.integers(3, size=3000),
            strict=True,
        )
    ]
    rows = [{"group": g, "question": q, "options": list("abc"), "choice": c} for g, q, c in votes]
    expected = Counter(votes)
    dataset = load(tmp_path, rows)
    for name, group in dataset.groups.items():
        for question, answer in group.answers.items():
            counts = np.array([expected[name, question.text, c] for c in range(3)])
            np.testing.assert_array_equal(answer, counts / counts.sum())


def test_preference_pairs_are_sorted_and_aggregated(tmp_path: Path) -> None:
    base = {"group": "North", "prompt": "Sum up the story."}
    rows = [
        {**base, "chosen": "Zebra", "rejected": "Ant"},
        {**base, "chosen": "Ant", "rejected": "Zebra"},
        {**base, "chosen": "Zebra", "rejected": "Ant"},
    ]
    dataset = load(tmp_path, rows)
    assert dataset.questions[0].options == ("Ant", "Zebra")
    np.testing.assert_allclose(only_answer(dataset), [1 / 3, 2 / 3])


def test_chat_format_equals_plain_text(tmp_path: Path) -> None:
    def turn(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    plain = {"group": "N", "prompt": "Hello?", "chosen": "Hi.", "rejected": "No."}
    split = {
        "group": "N",
        "prompt": [turn("user", "Hello?")],
        "chosen": [turn("assistant", "Hi.")],
        "rejected": [turn("assistant", "No.")],
    }
    whole = {
        "group": "N",
        "prompt": "Hello?",
        "chosen": [turn("user", "Hello?"), turn("assistant", "Hi.")],
        "rejected": [turn("user", "Hello?"), turn("assistant", "No.")],
    }
    prints = {load(tmp_path, [row]).fingerprint for row in (plain, split, whole)}
    assert len(prints) == 1


def test_scores_are_log_utilities_and_ranks_are_odds_of_two(tmp_path: Path) -> None:
    base = {"group": "N", "prompt": "Name one.", "responses": ["c", "a", "b"]}
    scores = {"scores": [math.log(5), 0, math.log(4)], "score_temperature": 1}
    scored = load(tmp_path, [{**base, **scores}])
    assert scored.questions[0].options == ("a", "b", "c")
    np.testing.assert_allclose(only_answer(scored), [0.1, 0.4, 0.5])
    ranked = load(tmp_path, [{**base, "ranking": [2, 0, 1]}])  # b, then c, then a
    np.testing.assert_allclose(only_answer(ranked), [1 / 7, 4 / 7, 2 / 7])


def test_repeated_ranked_lists_average(tmp_path: Path) -> None:
    base = {"group": "N", "prompt": "Name one."}
    rows = [
        {**base, "responses": ["a", "b"], "ranking": [0, 1]},
        {**base, "responses": ["b", "a"], "ranking": [0, 1]},
    ]
    np.testing.assert_allclose(only_answer(load(tmp_path, rows)), [0.5, 0.5])


def test_identical_distributions_count_once_and_conflicts_are_bad(tmp_path: Path) -> None:
    assert load(tmp_path, [GOOD, GOOD]).skipped == {}
    other = {**GOOD, "distribution": [0.5, 0.5]}
    with pytest.raises(DatasetError, match=r"rows.jsonl:2: conflicting .* line 1"):
        load(tmp_path, [GOOD, other])
    third = {**GOOD, "group": "South"}
    dataset = load(tmp_path, [GOOD, other, third], on_bad_row="skip")
    assert list(dataset.groups) == ["South"]
    assert sum(dataset.skipped.values()) == 2


def test_distribution_and_counts_of_one_cell_conflict(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="conflicting"):
        load(tmp_path, [without("distribution", counts=[1, 3]), GOOD])


def test_rows_may_disagree_about_labels(tmp_path: Path) -> None:
    rows: list[Any] = [
        {**GOOD, "topic": "drinks", "ordinal": True},
        {**GOOD, "group": "South", "topic": "breakfast", "ordinal": [2, 1]},
        {**GOOD, "group": "East", "ordinal": False},
    ]
    forward, backward = (load(tmp_path, r).questions[0] for r in (rows, rows[::-1]))
    assert (forward.topic, forward.ordinal) == (backward.topic, backward.ordinal)
    assert forward.topic == "breakfast"
    assert forward.ordinal == (0.0, 1.0)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (without("group"), "no 'group'"),
        (without("question"), "no question column"),
        ({"group": "N", "prompt": "Q", "completion": "A", "label": True}, "one completion alone"),
        (without("options"), "no 'options'"),
        (without("distribution"), "no answer column"),
        (without(counts=[1, 2]), "more than one answer column"),
        (without("distribution", distributions=[0.5, 0.5]), r"Did you mean 'distribution'\?"),
        (without("group", groups="North"), r"Did you mean 'groups'\?"),
        (without(group=3.5), "'group' is not text"),
        (without(group="  "), "'group' is empty"),
        (without(question=["a"]), "'question' is not text"),
        (without(options="Tea"), "'options' is not a list"),
        (without(options=["Tea"], distribution=[1]), "fewer than two options"),
        (without(options=["Tea", "Tea "]), "duplicate options"),
        (without(group="North; South"), "';' in a group name"),
        (without(options=["Tea", ""]), "an option' is empty"),
        (without(options=["Tea", None]), "no 'options'"),
        (without(distribution=[0.5, 0.2, 0.3]), "differ in length"),
        (without(distribution=[0.5, 0.4]), "do not sum to 1"),
        (without(distribution=[0, 0]), "all probabilities are zero"),
        (without(distribution=[-0.5, 1.5]), "negative"),
        (without(distribution=[math.nan, 1]), "NaN, Inf"),
        (without(distribution=[math.inf, 1]), "NaN, Inf"),
        (without(distribution=["0.5", 0.5]), "other than numbers"),
        (without(distribution=[True, False]), "other than numbers"),
        (without(distribution={"Tea": 1}), "'distribution' is not a list"),
        (without("distribution", counts=[0, 0]), "all counts are zero"),
        (without("distribution", choice=2), "none of the options"),
        (without("distribution", choice=-1), "none of the options"),
        (without("distribution", choice="Milk"), "none of the options"),
        (without("distribution", choice=True), "none of the options"),
        (without("distribution", choice=0, weight=0), "weight is not positive"),
        (without("distribution", choice=0, weight="heavy"), "'weight' is not a number"),
        (without(ordinal=[1, 1]), "positions are all equal"),
        (without(ordinal=[1]), "differ in length"),
        (without(topic=["a"]), "'topic' is not text"),
        (without(question="\ud800"), "not valid Unicode"),
        ({"group": "N", "prompt": "p", "chosen": "x"}, "no 'rejected'"),
        ({"group": "N", "prompt": "p", "chosen": "x", "rejected": "x"}, "duplicate options"),
        ({"group": "N", "prompt": "p", "chosen": [{}], "rejected": "x"}, "not a conversation"),
        ({"group": "N", "prompt": "p", "responses": ["a", "b"]}, "no ranking"),
        (
            {"group": "N", "prompt": "p", "responses": ["a", "b"], "ranking": [1, 1]},
            "not a permutation",
        ),
        (["not", "an", "object"], "not a JSON object"),
    ],
)
def test_bad_row_names_file_line_and_reason(tmp_path: Path, row: Any, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(GOOD) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DatasetError, match=rf"rows\.jsonl:3: .*{reason}"):
        load_dataset(str(path))
    dataset = load_dataset(str(path), on_bad_row="skip")
    assert sum(dataset.skipped.values()) == 1
    assert list(dataset.groups) == ["North"]


def test_deep_nesting_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for depth in (100, 900, 10_000):
        deep = "[" * depth + "]" * depth
        rows = [json.dumps({**GOOD, key: "DEEP"}) for key in GOOD]
        rows.append(json.dumps({**GOOD, "topic": "DEEP"}))
        path.write_text("\n".join(rows).replace('"DEEP"', deep) + "\n" + json.dumps(GOOD))
        assert sum(load_dataset(str(path), on_bad_row="skip").skipped.values()) == 5
