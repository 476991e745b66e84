"""Best of n: the pick's distribution against enumeration, and candidates that cannot work."""

from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from pluralllm_fl.alignment.best_of_n import (
    best_of_n,
    best_option,
    pick_distribution,
    read_prompts,
)
from pluralllm_fl.alignment.picks import agreement_by_size, survey_picks
from pluralllm_fl.alignment.sheets import Sheet
from pluralllm_fl.errors import ConfigError, DatasetError
from pluralllm_fl.inference import ConditionedGroup
from pluralllm_fl.metrics import alignment
from pluralllm_fl.preferences import Question

POLICY = np.array([0.5, 0.0, 0.2, 0.3])
PREDICTED = np.array([0.1, 0.4, 0.25, 0.25])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_pick_is_distributed_as_enumeration_says(n: int) -> None:
    """Options 2 and 3 are predicted equal: the first of them wins."""
    expected = np.zeros(4)
    for drawn in product(range(4), repeat=n):
        expected[best_option(PREDICTED, drawn)] += POLICY[list(drawn)].prod()
    np.testing.assert_allclose(pick_distribution(POLICY, PREDICTED, n), expected, atol=1e-12)


def test_one_answer_is_the_policy_and_many_are_the_best_it_can_say() -> None:
    np.testing.assert_allclose(pick_distribution(2 * POLICY, PREDICTED, 1), POLICY, atol=1e-15)
    np.testing.assert_allclose(pick_distribution(POLICY, PREDICTED, 1000), [0, 0, 1, 0], atol=1e-12)
    with pytest.raises(ConfigError, match="n = 0"):
        pick_distribution(POLICY, PREDICTED, 0)


def sheet() -> Sheet:
    questions = (Question("Tea?", ("Yes", "No")), Question("Rain?", ("Much", "Some", "None")))
    return Sheet(
        "A", "seen", "new", questions,
        true=np.array([0.3, 0.7, 0.6, 0.3, 0.1]), marginal=np.full(5, 0.5),
        predicted=np.array([0.4, 0.6, 0.2, 0.5, 0.3]),
    )  # fmt: skip


def test_the_share_that_agrees_by_hand() -> None:
    """Of two answers the predicted better one has 1 − (share of the others)²."""
    paper = sheet()
    answers = dict(zip(paper.questions, [np.array([0.5, 0.5]), np.full(3, 1 / 3)], strict=True))
    found = agreement_by_size([paper], answers, (1, 2))["A"]
    assert found[1]["agreement"] == pytest.approx((0.5 + 1 / 3) / 2)
    picks = np.array([0.25, 0.75, 1 / 9, 5 / 9, 3 / 9])  # worst first: Much, None, Some
    assert found[2]["agreement"] == pytest.approx(picks @ paper.true / 2)
    expected = alignment(picks, paper.true, np.array([0, 0, 1, 1, 1])).mean()
    assert found[2]["alignment"] == pytest.approx(expected)


def test_drawn_candidates_are_the_policys_and_the_pick_is_the_best_of_them() -> None:
    paper = sheet()
    answers = dict(
        zip(paper.questions, [np.array([1.0, 0.0]), np.array([0.5, 0.0, 0.5])], strict=True)
    )
    tea, rain = survey_picks([paper], answers, 12, seed=0)
    assert tea["candidates"] == ["Yes"] * 12
    assert (tea["pick"], tea["agree"]) == ("Yes", pytest.approx(0.3))
    assert set(rain["candidates"]) == {"Much", "None"}
    assert rain["pick"] == "None"  # "Some" is predicted better, but the policy never says it
    assert survey_picks([paper], answers, 12, seed=0)[1] == rain
    with pytest.raises(ConfigError, match="n = 0"):
        survey_picks([paper], answers, 0, seed=0)


class Prefers:
    """A group that likes long texts."""

    def predict(self, question: str, options: list[str]) -> Any:  # noqa: ARG002
        assert len(options) == len(set(options)) > 1
        return np.array([len(option) for option in options], dtype=float)


def test_candidates_are_cleaned_before_the_pick() -> None:
    group = cast(ConditionedGroup, Prefers())
    assert best_of_n(group, "Tea?", ["no", " of course ", "of course", "", "yes"]) == "of course"
    assert best_of_n(group, "Tea?", [" no", "no", " "]) == "no"  # one text: nothing to compare
    for nothing in ([], ["", " \n"]):
        with pytest.raises(ConfigError, match=r"no candidate to pick from for 'Tea\?'"):
            best_of_n(group, "Tea?", nothing)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.jsonl", '{"prompt": "Tea?"}\n{"text": "Rain?"}\n', "line 2: no 'prompt'"),
    ("a.jsonl", '{"prompt": "Tea?", "options": ["Yes"]}\n', "line 1: .*two"),
    ("a.jsonl", '{"prompt": "Tea?"\n', "line 1: "),
    ("a.jsonl", "", "holds no prompt|empty"),
    ("a.txt", "Tea?", "no known ending"),
])  # fmt: skip
def test_prompts_that_cannot_be_read_are_named(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_prompts(tmp_path / name)


def test_prompts_with_and_without_options(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,options\nTea?,"[""Yes"", ""No""]"\n Write a poem. ,\n')
    first, second = read_prompts(path)
    assert (first.text, first.options) == ("Tea?", ("Yes", "No"))
    assert (second.text, second.options) == ("Write a poem.", ())
