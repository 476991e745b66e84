"""What the benchmarks measure where groups are few or small, and megabytes of older runs."""

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from convergence import megabytes_down, megabytes_up, to_reach  # noqa: E402
from trained import configured, context_curve  # noqa: E402
from transfer import by_group, summary  # noqa: E402

from pluralllm_fl.predictor import PreferencePredictor, initial_predictor  # noqa: E402
from pluralllm_fl.workspace import Workspace, open_workspace  # noqa: E402

pytestmark = pytest.mark.fast

SURVEY = ("synthetic-groups = 4", "synthetic-questions = 30")


def untrained(*changes: str) -> tuple[PreferencePredictor, Workspace]:
    """Return a predictor without memory and a survey of 4 groups with 30 answers each."""
    workspace = open_workspace(configured("ours", "synthetic", 0, (*SURVEY, *changes)))
    return initial_predictor(workspace.config, workspace.vectors.shape[1], ""), workspace


def test_one_unseen_group_has_no_stranger() -> None:
    curve = context_curve(*untrained("unseen-fraction = 0.25"), sizes=(0, 5))
    assert [set(point) for point in curve] == [{"size", "own"}] * 2


def test_contexts_larger_than_the_answers_are_left_out() -> None:
    curve = context_curve(*untrained("unseen-fraction = 0.5"), sizes=(5, 16))
    assert [set(point) for point in curve] == [{"size", "own", "wrong"}, {"size"}]


def test_groups_without_targets_are_left_out_of_a_transfer() -> None:
    predictor, survey = untrained()
    groups = {size: by_group(predictor, survey, int(size)) for size in ("5", "30")}
    assert set(groups["5"]) == set(survey.groups)
    found = summary(5)["5 shown: alignment"]({"groups": groups})
    assert found == pytest.approx(np.mean([g["alignment"] for g in groups["5"].values()]))
    assert all(measure({"groups": groups}) is None for measure in summary(30).values())


def test_bytes_to_a_target_count_both_directions() -> None:
    predictor = initial_predictor(configured("ours", "", 0, ()), 768, "")
    up, down = megabytes_up(predictor), megabytes_down(predictor)
    # Of 8 prototypes a node sends one; the mixing numbers go both ways.
    assert down == pytest.approx(8 * up, rel=1e-4)
    run = {
        "megabytes_a_round": 8 * up,
        "megabytes_down_a_round": 8 * down,
        "curve": [{"round": 2, "unseen": 0.7}, {"round": 3, "unseen": 0.8}],
    }
    reached = to_reach(run, 0.8)
    assert reached is not None
    assert reached["megabytes up"] == pytest.approx(24 * up)
    assert reached["megabytes up and down"] == pytest.approx(24 * (up + down))
