"""Values that can be read in two ways: the file declares the reading, or the loader refuses."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pluralllm_fl.datasets import load_dataset
from pluralllm_fl.datasets.check import check, render
from pluralllm_fl.errors import DatasetError
from tests.unit.doubtful_files import FORMATS, SCALE, Rows, Write, answers, as_jsonl, rated


@FORMATS
def test_a_number_that_is_an_option_is_that_option(tmp_path: Path, write: Write) -> None:
    dataset = load_dataset(str(write(tmp_path / "rows", rated(1, 1, 2, 4))))
    assert answers(dataset) == {("g", "Rate!"): {"1": 0.5, "2": 0.25, "4": 0.25}}


@FORMATS
@pytest.mark.parametrize(
    ("options", "choice", "chosen"),
    [
        (SCALE, 5, "5"),
        (["5", "4", "3"], 4, "4"),
        ([-1, 0, 1], -1, "-1"),
        ([0, 1, 2], 2, "2"),
        ([0.5, 1.0, 1.5], 1.5, "1.5"),
        ([0.5, 1.0, 1.5], 1.0, "1.0"),
        (["Yes", "No"], 1, "No"),
        (["Yes", "No"], 1.0, "No"),
        (["1 (bad)", "2 (good)"], 1, "2 (good)"),
    ],
)
def test_numbers_as_options_or_as_indices(
    tmp_path: Path, write: Write, options: Any, choice: object, chosen: str
) -> None:
    dataset = load_dataset(str(write(tmp_path / "rows", rated(choice, options=options))))
    assert answers(dataset) == {("g", "Rate!"): {chosen: 1.0}}


@FORMATS
@pytest.mark.parametrize(
    "rows",
    [
        rated(1, 0),  # 0 can only be an index, 1 is the option "1" or the index of "2"
        rated(5, 1, 0),
        rated(1, 3) + rated(0, 1, question="Tea?", options=["Yes", "No"]),
    ],
)
def test_numbers_that_can_be_both_are_refused(tmp_path: Path, write: Write, rows: Rows) -> None:
    path = write(tmp_path / "rows", rows)
    with pytest.raises(
        DatasetError, match=r"read in two ways; .*options .*index from 0.*as the text"
    ):
        load_dataset(str(path))
    report = check(path)
    assert not report.ok
    assert "can be read in two ways" in render(report)
    told = sum(row["question"] == "Rate!" for row in rows)
    rows = [*rows, {"group": "g", "question": "Sun?", "options": ["a", "b"], "choice": "a"}]
    dataset = load_dataset(str(write(tmp_path / "rows", rows)), on_bad_row="skip")
    assert dataset.skipped == {"a number in 'choice' can be read in two ways": told}
    assert ("g", "Sun?") in answers(dataset)


@FORMATS
def test_the_remedy_for_numbers_of_two_readings_works(tmp_path: Path, write: Write) -> None:
    rows = rated(1, 3) + rated("Yes", "No", question="Tea?", options=["Yes", "No"])
    dataset = load_dataset(str(write(tmp_path / "rows", rows)))
    assert answers(dataset)["g", "Rate!"] == {"1": 0.5, "3": 0.5}


@FORMATS
def test_an_option_beyond_the_indices_decides_its_question(tmp_path: Path, write: Write) -> None:
    rows = rated(1, 5) + rated(0, question="Tea?", options=["Yes", "No"])
    dataset = load_dataset(str(write(tmp_path / "rows", rows)))
    assert answers(dataset) == {
        ("g", "Rate!"): {"1": 0.5, "5": 0.5}, ("g", "Tea?"): {"Yes": 1.0},
    }  # fmt: skip


def test_answers_without_numbers_stay_where_others_are_refused(tmp_path: Path) -> None:
    counted = {"group": "h", "question": "Rate!", "options": SCALE, "counts": [1, 0, 0, 0, 1]}
    path = as_jsonl(tmp_path / "rows", [*rated(0, 1), counted])
    dataset = load_dataset(str(path), on_bad_row="skip")
    assert answers(dataset) == {("h", "Rate!"): {"1": 0.5, "5": 0.5}}


def scored(scores: Any, **more: Any) -> dict[str, Any]:
    return {"group": "g", "prompt": "Tides?", "responses": ["a", "b"], "scores": scores, **more}


@pytest.mark.parametrize("scores", [[88, 71], [4, 0], [0.3, -1.2], ["4", "0"]])
def test_scores_of_an_unknown_scale_are_refused(tmp_path: Path, scores: Any) -> None:
    with pytest.raises(DatasetError, match=r"rows\.jsonl:1: 'scores'"):
        load_dataset(str(as_jsonl(tmp_path / "rows", [scored(scores)])))
    if type(scores[0]) is not str:
        with pytest.raises(DatasetError, match=r"unknown scale; .*'score_temperature'.*'ranking'"):
            load_dataset(str(as_jsonl(tmp_path / "rows", [scored(scores)])))


@FORMATS
def test_scores_with_their_temperature_are_a_softmax(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path / "rows", [scored([88, 71], score_temperature=20)])
    share = 1 / (1 + math.exp(-17 / 20))
    assert answers(load_dataset(str(path))) == {("g", "Tides?"): {"a": share, "b": 1 - share}}


@pytest.mark.parametrize("value", [0, -1, "warm", math.nan, [1]])
def test_a_temperature_that_cannot_be_is_refused(tmp_path: Path, value: object) -> None:
    path = as_jsonl(tmp_path / "rows", [scored([1, 0], score_temperature=value)])
    with pytest.raises(DatasetError, match=r":1: '?score_temperature"):
        load_dataset(str(path))


def test_the_sampling_temperature_of_responses_declares_no_scale(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path / "rows", [scored([88, 71], temperature=0.7)])
    with pytest.raises(DatasetError, match="unknown scale"):
        load_dataset(str(path))


def test_aggregation_by_numbers_equals_a_naive_count(tmp_path: Path) -> None:
    choices = np.random.default_rng(0).integers(1, 6, size=200)
    dataset = load_dataset(str(as_jsonl(tmp_path / "rows", rated(*map(int, choices)))))
    (told,) = answers(dataset).values()
    assert told == {str(n): float(np.mean(choices == n)) for n in SCALE}
