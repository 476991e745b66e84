"""`check` finds every problem of a file, with its line."""

import json
from pathlib import Path

import pytest

from pluralllm_fl.datasets import load_dataset
from pluralllm_fl.datasets.check import check, render
from pluralllm_fl.errors import DatasetError


def line(**changes: object) -> str:
    row = {"group": "A", "question": "q?", "options": ["x", "y"], "distribution": [0.5, 0.5]}
    return json.dumps({**row, **changes})


def test_every_problem_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(
            [
                line(),
                "{",
                line(group="B"),
                line(distribution=[1, 1]),
                line(distribution=[0.1, 0.9]),
                line(group="B", question="r?", options=["x", "y", "z"], distribution=[1, 0, 0]),
            ]
        )
    )
    report = check(path)
    assert [number for number, _ in report.problems] == [2, 4, 5]
    assert "malformed JSON" in report.problems[0][1]
    assert "do not sum to 1" in report.problems[1][1]
    assert "line 1" in report.problems[2][1]
    assert not report.ok
    assert report.format == "JSON lines"
    assert report.kinds == {"distribution": 4}
    assert report.groups == {"B": 2}
    assert (report.questions, report.answers) == (2, 2)
    assert report.options == {2: 1, 3: 1}
    text = render(report)
    assert all(f"line {number}: {reason}" in text for number, reason in report.problems)


def test_problems_are_told_in_the_order_of_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"group": "A", "question": "q?", "options": [1, 2, 3]}
    path.write_text("\n".join([json.dumps({**row, "choice": c}) for c in (1, 0, 7)]))
    assert [number for number, _ in check(path).problems] == [1, 3]


def test_known_columns_get_no_hint(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("respondent,country,own_bike\n1,North,1\n")
    assert "Did you mean" not in render(check(path))


def test_one_mistake_in_many_rows_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    bad = line(options=["x"])
    path.write_text("\n".join([line(), bad, bad, bad, line(group="B"), bad]))
    text = render(check(path))
    assert "lines 2-4, 6: fewer than two options" in text
    assert text.count("fewer than two options") == 1
    assert "2 group(s) have no more than 20 questions" in text


def test_clean_file_shows_the_fingerprint_of_the_loaded_data(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line())
    report = check(path)
    assert report.ok
    assert report.fingerprint == load_dataset(str(path)).fingerprint
    assert "No problems." in render(report)


def test_unusable_files(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        check(tmp_path / "absent.csv")
    path = tmp_path / "rows.jsonl"
    path.touch()
    report = check(path)
    assert report.fingerprint is None
    assert report.problems[0][0] == 0
    assert "holds no rows" in render(report)
    path.write_text("{}\n{}\n")
    assert [number for number, _ in check(path).problems] == [1, 2]


def test_real_file_has_one_problem(shared_data: Path) -> None:
    report = check(shared_data / "global_opinions" / "global_opinions.csv")
    assert len(report.problems) == 1
    assert report.kinds == {"selections": 25442}
