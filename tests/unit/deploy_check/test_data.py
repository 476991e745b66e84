"""``deploy check``: the node's data, and that nothing of it is ever quoted."""

from pathlib import Path

import pytest

from pluralllm_fl.deploy.check_data import check_data, check_embedding
from pluralllm_fl.preferences import GroupPreferences, PreferenceDataset, Question
from tests.unit.deploy_check.node_folder import SECRET, row, statuses, the, write


def test_a_good_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row(i) for i in range(21)])
    dataset, findings = check_data(path, "Northland")
    assert dataset is not None
    assert statuses(findings) == ["ok", "ok"]
    assert "holds 21 question(s) of 'Northland'" in findings[1].message


def test_too_few_questions_and_other_groups(tmp_path: Path) -> None:
    rows = [row(i) for i in range(20)] + [row(1, "Southland"), row(1, "Eastland")]
    _, findings = check_data(write(tmp_path / "a.jsonl", rows), "Northland")
    assert statuses(findings) == ["ok", "wrong", "warning"]
    assert "context-questions = 20 needs 21 or more" in findings[1].message
    assert "also holds 2 other group(s)" in findings[2].message


def test_the_group_is_not_in_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row(i, f"NORTHLAND{SECRET}") for i in range(30)])
    _, findings = check_data(path, "Northland")
    assert "None of the file's 1 group(s) is 'Northland'." in findings[1].message
    assert SECRET not in str(findings)
    _, findings = check_data(path, f"northland{SECRET}")
    assert "only in capital letters" in findings[1].message


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(1), row(2, distribution=[0.5, 0.9])], "do not sum to 1 (line 2)"),
        ([row(1), row(2, distribution=[0.5, SECRET])], "other than numbers (line 2)"),
        ([row(1, options=[SECRET, SECRET])], "duplicate options (line 1)"),
        ([row(1, distribution=None, choice=SECRET)], "choice is none of the options (line 1)"),
        ([row(1), row(1, distribution=[0.2, 0.8])], "conflicting answers of one group"),
        ([row(1, f"a;{SECRET}")], "';' in a group name (line 1)"),
        ([row(1, options=SECRET)], "'options' is not a list (line 1)"),
        ([{f"questoin {SECRET}": 1, "group": "x"}], "no question column (line 1)"),
        (
            [row(i, distribution=[0, 0]) for i in range(9)],
            "all probabilities are zero (lines 1, 2, 3, 4, 5 and 4 more)",
        ),
    ],
)
def test_bad_rows_are_named_by_line_and_never_quoted(
    tmp_path: Path, rows: list[dict[str, object]], message: str
) -> None:
    dataset, findings = check_data(write(tmp_path / "a.jsonl", rows), "Northland")
    assert dataset is None
    finding = the(findings)
    assert finding.status == "wrong"
    assert message in finding.message
    assert "pluralllm data check" in finding.remedy
    assert SECRET not in str(finding)
    assert "0.9" not in str(finding)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b""),
        ("a.jsonl", f'{{"group": {SECRET}'.encode()),
        ("a.jsonl", f'["{SECRET}"]'.encode()),
        ("a.csv", f"{SECRET},{SECRET}\n1,2\n".encode()),
        ("a.csv", b"group,question\n" + f'{SECRET},"x" {SECRET}\n'.encode()),
        ("a.csv", b"\xff\xfe\x00"),
        ("a.parquet", f"PAR1{SECRET}PAR1".encode()),
        ("a.txt", SECRET.encode()),
    ],
)
def test_damaged_files_are_wrong_and_never_quoted(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    dataset, findings = check_data(tmp_path / name, "Northland")
    assert dataset is None
    assert the(findings).status == "wrong"
    assert SECRET not in str(findings)


def test_absent_files_and_folders(tmp_path: Path) -> None:
    assert "does not exist" in the(check_data(tmp_path / "a.jsonl", None)[1]).message
    assert "is not a file" in the(check_data(tmp_path, None)[1]).message


def test_a_cache_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "embeddings").touch()
    answers = {Question(f"{SECRET}?", ("yes", "no")): [0.5, 0.5]}
    dataset = PreferenceDataset("a", {"x": GroupPreferences("x", answers)})  # type: ignore[arg-type]
    finding = the(check_embedding(tmp_path, dataset))
    assert finding.status == "wrong"
    assert "embedding cache" in finding.message
    assert SECRET not in str(finding)
