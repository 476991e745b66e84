"""What policies are trained towards: pooled distributions, pairs, one reward for everyone."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from pluralllm_fl.alignment.aggregate import mean
from pluralllm_fl.alignment.everyone import as_shares, for_everyone
from pluralllm_fl.alignment.pairs import draw_pairs, lettered_rows, write_pairs
from pluralllm_fl.alignment.prompts import Prompts
from pluralllm_fl.alignment.targets import Target, pooled, require_pooled
from pluralllm_fl.datasets import load_dataset
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.preferences import Question
from tests.policies import byte_tokenizer

PRESS = Question("Trust the press?", ("A lot", "Some", "None"))
SHARES = np.array([0.6, 0.3, 0.1])


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        ("mean", [0.5, 0.4, 0.1]),
        ("minimum", [2 / 5, 2 / 5, 1 / 5]),  # 0.2, 0.2, 0.1
        ("maximum", [8 / 15, 6 / 15, 1 / 15]),  # 0.8, 0.6, 0.1
        ("log-mean", np.array([0.4, 12**0.5 / 10, 0.1]) / (0.5 + 12**0.5 / 10)),
    ],
)
def test_pooled_distributions(aggregate: str, expected: Any) -> None:
    """The log-mean is the geometric mean: of 0.8 and 0.2 it is 0.4."""
    groups = {"A": np.array([0.8, 0.2, 0.1]), "B": np.array([0.2, 0.6, 0.1])}
    if aggregate == "mean":
        groups = {"A": np.array([0.8, 0.1, 0.1]), "B": np.array([0.2, 0.7, 0.1])}
    np.testing.assert_allclose(pooled(groups, aggregate), expected)


def test_an_unknown_aggregate_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'means': distributions are pooled by mean.*'mean'"):
        require_pooled("means")


def test_pairs_say_the_shares_and_load_as_questions_of_two_options(tmp_path: Path) -> None:
    targets = [Target(PRESS, "Spain", SHARES), Target(PRESS, None, SHARES[::-1])]
    pairs = draw_pairs(targets, 3000, seed=4)
    path = tmp_path / "pairs.jsonl"
    write_pairs(pairs, path)
    dataset = load_dataset(str(path))
    assert list(dataset.groups) == ["Spain", "everyone"]
    share = dict(zip(PRESS.options, SHARES, strict=True))
    for group, shares in (("Spain", SHARES), ("everyone", SHARES[::-1])):
        share = dict(zip(PRESS.options, shares, strict=True))
        held = dataset.groups[group]
        assert {q.options for q in held.answers} == {
            tuple(sorted(two)) for two in itertools.combinations(PRESS.options, 2)
        }
        for question, found in held.answers.items():
            first, second = question.options
            wins, draws = round(found[0] * held.respondents[question]), held.respondents[question]
            assert question.text == PRESS.text
            assert draws > 400
            odds = share[first] / (share[first] + share[second])
            assert scipy.stats.binomtest(wins, int(draws), odds).pvalue > 1e-3


def test_letters_of_pairs_stand_for_their_texts() -> None:
    pairs = draw_pairs([Target(PRESS, "Spain", SHARES)], 60)
    rows = lettered_rows(pairs, Prompts(byte_tokenizer(), chat=False))
    for pair, row in zip(pairs, rows, strict=True):
        listed = dict(line.split(". ") for line in row["prompt"].splitlines()[1:4])
        assert listed[row["chosen"].strip()] == pair.text(pair.chosen)
        assert listed[row["rejected"].strip()] == pair.text(pair.rejected)
        assert pair.chosen != pair.rejected
    assert {row["chosen"] for row in rows} == {" A", " B", " C"}


def test_an_option_without_a_share_never_wins() -> None:
    pairs = draw_pairs([Target(PRESS, None, np.array([0.5, 0.5, 0.0]))], 100)
    assert Counter(pair.text(pair.chosen) for pair in pairs)["None"] == 0


def test_one_reward_for_everyone_asks_once_for_all_groups() -> None:
    calls = []

    def reward(prompts: Any, completions: Any, *, group: Any, options: Any, state: Any) -> Any:
        calls.append((prompts, completions, group, options, state))
        table = {("A", "x"): 0.9, ("A", "y"): None, ("B", "x"): 0.1, ("B", "y"): 0.4}
        return [table[key] for key in zip(group, completions, strict=True)]

    everyone = for_everyone(reward, ["A", "B"], mean)
    found = everyone(["p", "q"], ["x", "y"], group=[None] * 2, options=[["x"], ["y"]], state="s")
    assert found == [0.5, 0.4]
    assert calls == [
        (["p", "q"] * 2, ["x", "y"] * 2, ["A", "A", "B", "B"], [["x"], ["y"]] * 2, "s")
    ]


def test_log_p_as_shares() -> None:
    found = as_shares(lambda *_: [np.log(0.25), None])(["p"] * 2, ["x", "y"])
    assert found == [pytest.approx(0.25), None]
