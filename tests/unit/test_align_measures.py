"""What an examined policy is measured by: hand-computed cases, and the page that shows it."""

from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from pluralllm_fl.alignment.measures import measure, summary
from pluralllm_fl.alignment.sheets import Sheet, draw_questions, shares_for_everyone
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.preferences import Question, question_split
from pluralllm_fl.report.aligned import render, verdict
from tests.survey import CONFIG, survey

TEA, RAIN = Question("Tea?", ("Yes", "No")), Question("Rain?", ("Much", "Some", "None"))
GIVEN = np.array([0.9, 0.1, 0.4, 0.4, 0.2])


def sheet(group: str = "A", questions: tuple[Question, ...] = (TEA, RAIN)) -> Sheet:
    true = {TEA: [0.3, 0.7], RAIN: [0.2, 0.5, 0.3]}
    predicted = {TEA: [0.5, 0.5], RAIN: [0.1, 0.6, 0.3]}
    return Sheet(
        group, "seen", "new", questions,
        true=np.concatenate([true[q] for q in questions]),
        marginal=np.concatenate([true[q] for q in questions]),
        predicted=np.concatenate([predicted[q] for q in questions]),
    )  # fmt: skip


def test_measures_by_hand() -> None:
    found = measure(sheet(), GIVEN)
    expected = [1 - jensenshannon([0.9, 0.1], [0.3, 0.7]),
                1 - jensenshannon([0.4, 0.4, 0.2], [0.2, 0.5, 0.3])]  # fmt: skip
    np.testing.assert_allclose(found["alignment"], expected)
    expected = [1 - jensenshannon([0.9, 0.1], [0.5, 0.5]),
                1 - jensenshannon([0.4, 0.4, 0.2], [0.1, 0.6, 0.3])]  # fmt: skip
    np.testing.assert_allclose(found["reward"], expected)
    np.testing.assert_allclose(found["top"], [0, 0.5])  # of two most likely answers one is popular
    np.testing.assert_allclose(found["agreement"], [0.3, 0.35])


def test_groups_count_alike_however_many_questions_they_answered() -> None:
    papers = [sheet(), sheet("B", (RAIN,))]
    values = [measure(papers[0], GIVEN), measure(papers[1], GIVEN[2:])]
    tea, rain = values[0]["alignment"]
    uniform = [measure(s, np.full(len(s.true), 0.5)) for s in papers]
    found = summary(papers, values, {"uniform": uniform})
    assert found["by_group"] == {"A": pytest.approx((tea + rain) / 2), "B": pytest.approx(rain)}
    assert found["alignment"] == pytest.approx(((tea + rain) / 2 + rain) / 2)
    assert found["min"] == pytest.approx(min(found["by_group"].values()))
    other = np.mean([np.mean(u["alignment"]) for u in uniform])
    assert found["above"]["uniform"]["mean"] == pytest.approx(found["alignment"] - other)
    assert found["interval"] is None  # of two questions


def test_the_interval_is_over_questions() -> None:
    """Two groups that are the same: their mean is as uncertain as one, not less."""
    rng = np.random.default_rng(0)
    asked = tuple(Question(f"{i}?", ("Yes", "No")) for i in range(80))
    share = rng.uniform(size=80)
    true = np.stack([share, 1 - share], axis=1).ravel()
    given = np.full(160, 0.5)
    one = Sheet("A", "seen", "new", asked, true, true, true)
    values = measure(one, given)
    low, high = summary([one, one], [values, values], {})["interval"]
    half = 1.96 * values["alignment"].std() / np.sqrt(80)
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)
    above = summary([one], [values], {"itself": [values]})["above"]["itself"]
    assert above["mean"] == 0
    assert above["interval"] == [0, 0]


def test_one_answer_for_all_is_the_mean_over_those_who_answered() -> None:
    first, second = sheet(), sheet("B", (RAIN,))
    object.__setattr__(second, "predicted", np.array([0.5, 0.2, 0.3]))
    found = shares_for_everyone([first, second])
    np.testing.assert_allclose(found[TEA], [0.5, 0.5])
    np.testing.assert_allclose(found[RAIN], [0.3, 0.4, 0.3])
    np.testing.assert_allclose(first.flat(found), [0.5, 0.5, 0.3, 0.4, 0.3])


def test_new_questions_are_test_questions_and_draws_are_seeded() -> None:
    workspace = survey()
    drawn = {kind: draw_questions(workspace, kind, 5, 1) for kind in ("new", "trained")}
    for kind, split in (("new", "test"), ("trained", "train")):
        assert {question_split(q, CONFIG.seed, 0.2, 0.2) for q in drawn[kind]} == {split}
        assert len(set(drawn[kind])) == 5
    assert draw_questions(workspace, "new", 5, 1) == drawn["new"]
    assert draw_questions(workspace, "trained", 5, 2) != drawn["trained"]
    with pytest.raises(ConfigError, match="questions = 0"):
        draw_questions(workspace, "new", 0, 0)


def row(alignment: float, **more: Any) -> dict[str, Any]:
    above = {"mean": alignment - 0.7, "interval": [alignment - 0.72, alignment - 0.68]}
    return {
        "alignment": alignment, "reward": 0.8, "top": 0.5, "agreement": 0.4, "min": 0.6,
        "interval": [alignment - 0.02, alignment + 0.02], "by_group": {"<i>A": alignment},
        "above": {"uniform": above, "base, debiased": above}, **more,
    }  # fmt: skip


def test_the_page_shows_rows_and_escapes_names() -> None:
    rows = {"uniform": row(0.7), "base": row(0.61, divergence=0.0), "base, debiased": row(0.7),
            "predictor": row(0.82), "policy": row(0.6789, divergence=1.234)}  # fmt: skip
    cells = [{"side": "unseen", "questions": "new", "groups": ["<i>A"], "rows": rows}]
    page = render({
        "policy": "/x/my-policy", "base": "base.gguf", "method": "sft", "dataset": "survey",
        "questions": {"new": 9, "trained": 8}, "exam": {"named": False, "orders": 4},
        "cells": cells,
    })  # fmt: skip
    assert "0.679" in page
    assert "1.234" in page
    assert "&lt;i&gt;A" in page
    assert "<i>A" not in page
    (said,) = verdict(cells)
    assert "−0.021 (95% interval −0.041 to −0.001) against uniform" in said
