"""Options that were not offered, as data files state them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pluralllm_fl.config import RunConfig
from pluralllm_fl.datasets import load_dataset
from pluralllm_fl.datasets.check import check, render
from pluralllm_fl.errors import DatasetError
from pluralllm_fl.preferences import PreferenceDataset
from pluralllm_fl.workspace import read_dataset

GOOD: dict[str, Any] = {
    "group": "North",
    "question": "Tea, coffee or milk?",
    "options": ["Tea", "Coffee", "Milk"],
    "distribution": [0.25, 0.75, 0.0],
}


def row(answer: str = "", value: Any = None, **changes: Any) -> dict[str, Any]:
    """Return the good row with changes, and another kind of answer if one is named."""
    kept = {k: v for k, v in GOOD.items() if not answer or k != "distribution"}
    return kept | ({answer: value} if answer else {}) | changes


def write(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    return path


def load(tmp_path: Path, *rows: dict[str, Any], **kwargs: Any) -> PreferenceDataset:
    return load_dataset(str(write(tmp_path, *rows)), **kwargs)


def stated(dataset: PreferenceDataset) -> list[bool] | None:
    """Return the mask of the only answer; None: nothing is stated."""
    (group,) = dataset.groups.values()
    (question,) = group.answers
    return group.offered[question].tolist() if question in group.offered else None


def test_offered_lists_texts_of_the_options_in_any_order(tmp_path: Path) -> None:
    assert stated(load(tmp_path, row(offered=["Coffee", " Tea "]))) == [True, True, False]
    assert stated(load(tmp_path, row(offered=["Milk", "Coffee", "Tea"]))) == [True] * 3
    assert stated(load(tmp_path, row(offered=None))) is None
    assert stated(load(tmp_path, row())) is None


def test_offered_of_a_csv_file_is_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        "group,question,options,counts,offered\n"
        'A,q?,"[""x"", ""y"", ""z""]","[1, 0, 2]","[""x"", ""z""]"\n'
        'A,r?,"[""x"", ""y""]","[1, 0]",\n'
    )
    offered = load_dataset(str(path)).groups["A"].offered
    assert {q.text: mask.tolist() for q, mask in offered.items()} == {"q?": [True, False, True]}


def test_a_number_is_an_option_of_that_text_never_an_index(tmp_path: Path) -> None:
    scale = row(options=[1, 2, 3], offered=[1, 2])
    assert stated(load(tmp_path, scale)) == [True, True, False]
    with pytest.raises(DatasetError, match=r"'0'.*an index is not one"):
        load(tmp_path, row(offered=[0, 1]))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row(offered=["Tea", "Cocoa"]), "none of the options"),
        (row(offered=[True, True, False]), "not text"),
        (row(offered="Tea"), "not a list"),
        (row(offered=["Coffee", "Coffee "]), "fewer than two options offered"),
        (row(offered=[]), "fewer than two options offered"),
        (row(offered=["Tea", "Milk"]), "'Coffee' was chosen but is missing"),
        (row("counts", [3, 1, 0], offered=["Tea", "Milk"]), "'Coffee' was chosen"),
        (row("choice", "Milk", offered=["Tea", "Coffee"]), "'Milk' was chosen"),
        (row("choice", 0, offered=["Milk", "Coffee"]), "'Tea' was chosen"),
        (
            {"group": "A", "prompt": "p", "chosen": "x", "rejected": "y", "offered": ["x", "y"]},
            "row that cannot have it",
        ),
        (
            {
                "question": "q?",
                "options": ["x", "y"],
                "selections": "{'A': [1, 0]}",
                "offered": ["x", "y"],
            },
            "row that cannot have it",
        ),
    ],
)
def test_impossible_statements_are_bad_rows(
    tmp_path: Path, bad: dict[str, Any], reason: str
) -> None:
    other = row(question="Other?")
    with pytest.raises(DatasetError, match=rf"rows.jsonl:2: .*{reason}"):
        load(tmp_path, other, bad)
    dataset = load(tmp_path, other, bad, on_bad_row="skip")
    assert sum(dataset.skipped.values()) == 1
    assert [q.text for q in dataset.questions] == ["Other?"]


def test_rows_that_add_up_agree_on_what_was_offered(tmp_path: Path) -> None:
    rows = [row("choice", c, offered=["Tea", "Coffee"]) for c in ("Tea", "Coffee", "Coffee")]
    dataset = load(tmp_path, *rows)
    assert stated(dataset) == [True, True, False]
    (answer,) = dataset.groups["North"].answers.values()
    np.testing.assert_allclose(answer, [1 / 3, 2 / 3, 0])


@pytest.mark.parametrize("second", [None, ["Tea", "Coffee", "Milk"]])
def test_conflicting_statements_lose_the_answer_in_any_order(
    tmp_path: Path, second: list[str] | None
) -> None:
    rows = [row("choice", "Tea", offered=["Tea", "Coffee"]), row("choice", "Tea", offered=second)]
    other = row(question="Other?")
    with pytest.raises(DatasetError, match="same 'offered'"):
        load(tmp_path, *rows)
    found = [load(tmp_path, other, *r, on_bad_row="skip") for r in (rows, rows[::-1])]
    assert found[0].fingerprint == found[1].fingerprint
    assert [q.text for q in found[0].questions] == ["Other?"]
    assert found[0].skipped == found[1].skipped == {"conflicting options offered to one group": 2}


def test_zeros_are_answers_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    rows = row(), row(question="Stated?", offered=["Tea", "Coffee", "Milk"])
    unanimous = row(question="All?", distribution=[1, 0, 0])
    plain, read = (load(tmp_path, *rows, unanimous, zeros=z) for z in ("answers", "not-offered"))
    masks = {q.text: mask.tolist() for q, mask in read.groups["North"].offered.items()}
    # What the file states is not touched, nor an answer with fewer than two other options.
    assert masks == {GOOD["question"]: [True, True, False], "Stated?": [True, True, True]}
    assert list(plain.groups["North"].offered) == [q for q in plain.questions if q.text[0] == "S"]
    assert plain.fingerprint != read.fingerprint


def test_zeros_of_the_official_globalopinionqa_columns(tmp_path: Path) -> None:
    path = tmp_path / "opinions.csv"
    path.write_text(
        "question,selections,options,source\n"
        "q?,\"defaultdict(<class 'list'>, {'A': [0.5, 0.0, 0.5], 'B': [0.2, 0.3, 0.5]})\","
        "\"['x', 'y', 'z']\",GAS\n"
    )
    config = RunConfig.default({"dataset": str(path)})
    assert not any(g.offered for g in read_dataset(config).groups.values())
    groups = read_dataset(dataclasses.replace(config, zeros="not-offered")).groups
    assert [m.tolist() for m in groups["A"].offered.values()] == [[True, False, True]]
    assert not groups["B"].offered


def test_check_says_how_many_answers_state_it(tmp_path: Path) -> None:
    report = check(write(tmp_path, row(offered=["Tea", "Coffee"]), row(question="Other?")))
    assert (report.answers, report.offered, report.ok) == (2, 1, True)
    assert "(1 state the options offered)" in render(report)
    assert "offered" not in render(check(write(tmp_path, row())))
