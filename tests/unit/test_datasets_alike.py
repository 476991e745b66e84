"""Texts that look alike, keys given twice, cells of GlobalOpinionQA, and advice that fits."""

from pathlib import Path

import pytest

from pluralllm_fl.datasets import load_dataset
from pluralllm_fl.errors import DatasetError
from tests.unit.doubtful_files import FORMATS, Write, answers, as_csv, as_jsonl, rated


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("[nan, 0.6]", "'distribution' holds NaN, Inf or a huge number"),
        ("[inf, 0.6]", "'distribution' holds NaN, Inf or a huge number"),
        ("[-inf, np.nan]", "'distribution' holds NaN, Inf or a huge number"),
        ("None", "'selections' is not a list"),
        ("[0.5, 0.5], 'Vale': [0.1, 0.9]", "a group appears twice"),
        ("[0.5, \"x\"], 'Vale': [nan, 0.9]", "a group appears twice"),
    ],
)
def test_a_bad_group_costs_only_itself(tmp_path: Path, bad: str, reason: str) -> None:
    text = f"defaultdict(<class 'list'>, {{'Vale': {bad}, 'nan': [0.5, 0.5], 'Hill': [1.0, 0.0]}})"
    row = {"question": "Tea?", "selections": text, "options": "['Yes', 'No']", "source": "made up"}
    dataset = load_dataset(str(as_csv(tmp_path / "rows", [row])))
    assert set(dataset.groups) == {"Hill", "nan"}
    assert dataset.skipped == {reason: 1}


def test_numpy_numbers_in_cells_are_numbers(tmp_path: Path) -> None:
    text = "{'Hill': [np.float64(0.25), numpy.float32(0.75)], \"It's\": [0.5, 0.5]}"
    row = {"question": "Tea?", "selections": text, "options": "['Yes', np.str_('No')]"}
    dataset = load_dataset(str(as_csv(tmp_path / "rows", [row])))
    assert answers(dataset)["Hill", "Tea?"] == {"Yes": 0.25, "No": 0.75}
    assert dataset.skipped == {}


LOOK_ALIKE = [
    ("Café", "Cafe\u0301"),
    ("New Zealand", "New\u00a0Zealand"),
    ("10 000", "10\u202f000"),
    ("Yes", "Y\u200bes"),
    ("Yes", "\ufeffYes"),
    ("Yes", "Yes\u200e"),
    ("می\u200cروم", "میروم"),
]


@FORMATS
@pytest.mark.parametrize(("one", "other"), LOOK_ALIKE)
def test_options_that_look_alike_are_repeated(
    tmp_path: Path, write: Write, one: str, other: str
) -> None:
    row = {"group": "g", "question": "q", "options": [one, other], "distribution": [0.5, 0.5]}
    with pytest.raises(DatasetError, match="duplicate options"):
        load_dataset(str(write(tmp_path / "rows", [row])))


@pytest.mark.parametrize(("one", "other"), LOOK_ALIKE[:5])
def test_texts_that_look_alike_are_one(tmp_path: Path, one: str, other: str) -> None:
    """Also of different groups, and in choices: else no two of them share a question."""
    rows = [
        {"group": text, "question": f"{text}?", "options": [text, "No"], "choice": choice}
        for text in (one, other)
        for choice in (one, other, "No", "No")
    ]
    dataset = load_dataset(str(as_jsonl(tmp_path / "rows", rows)))
    assert answers(dataset) == {(one, f"{one}?"): {one: 0.5, "No": 0.5}}


def test_joiners_stay_where_they_carry_meaning(tmp_path: Path) -> None:
    family = "\N{MAN}\u200d\N{WOMAN}\u200d\N{GIRL}"
    path = as_jsonl(tmp_path / "rows", rated(family, options=[family, "می\u200cروم"]))
    assert answers(load_dataset(str(path))) == {("g", "Rate!"): {family: 1.0}}


@pytest.mark.parametrize(
    "line",
    [
        '{"group": "g", "group": "h", "question": "q", "options": ["x", "y"], "choice": 0}',
        '{"group": "g", "question": "q", "options": ["x", "y"], "counts": [1, 0], "counts": [1]}',
        '{"group": "g", "prompt": [{"content": "p", "content": "q"}], "chosen": "x"}',
    ],
)
def test_a_key_given_twice_is_a_bad_row(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line)
    with pytest.raises(DatasetError, match=r":1: a key appears twice; '(group|counts|content)'"):
        load_dataset(str(path))


def test_a_key_given_twice_in_a_cell_is_a_bad_row(tmp_path: Path) -> None:
    row = {"group": "g", "prompt": '[{"role": "user", "content": "p", "content": "q"}]',
           "chosen": "x", "rejected": "y"}  # fmt: skip
    with pytest.raises(DatasetError, match=r":2: a key appears twice; 'content'"):
        load_dataset(str(as_csv(tmp_path / "rows", [row])))


@pytest.mark.parametrize(
    ("shares", "said", "unsaid"),
    [
        ([0.8, 0.6, 0.1], "write each option as a question of its own", "counts"),
        ([40, 35, 25], "divide each by 100", "counts"),
        ([80, 60, 10], "one option each, name the column 'counts'; if people could", "100"),
        ([2, 1, 0], "one option each, name the column 'counts'; if people could", "100"),
        ([80.5, 60.2, 10.1], "write each option as a question of its own", "counts"),
        ([0.3, 0.3, 0.3], "give the missing share", "counts"),
    ],
)
def test_advice_for_shares_fits_what_they_can_be(
    tmp_path: Path, shares: list[float], said: str, unsaid: str
) -> None:
    row = {"group": "g", "question": "q", "options": ["a", "b", "c"], "distribution": shares}
    with pytest.raises(DatasetError, match="do not sum to 1") as caught:
        load_dataset(str(as_jsonl(tmp_path / "rows", [row])))
    told = str(caught.value).partition(f"they sum to {sum(shares):.6g}; ")[2]
    assert said in told
    assert unsaid not in told


@pytest.mark.parametrize("write", [as_jsonl, as_csv])
def test_a_list_of_choices_gets_the_advice_for_select_all(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path / "rows", rated(["Bike", "Car"], options=["Bike", "Car", "Boat"]))
    with pytest.raises(DatasetError, match=r"'choice' is a list; .* a question of its own"):
        load_dataset(str(path))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("rows.jsonl.gz", "compressed. Unpack"),
        ("rows.csv.ZIP", "compressed. Unpack"),
        ("rows.tsv", "Save it as .csv"),
        ("rows.sav", "statistics program"),
        ("rows.dta", "statistics program"),
        ("rows.xlsx", "spreadsheet"),
        ("rows.feather", "as .parquet"),
        ("rows.txt", "If it holds JSON lines"),
        ("rows", "If it holds JSON lines"),
    ],
)
def test_remedy_for_other_kinds_of_files(tmp_path: Path, name: str, remedy: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DatasetError, match=remedy) as caught:
        load_dataset(str(tmp_path / name))
    assert "Rename it" not in str(caught.value)


def test_a_compressed_file_under_another_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\x1f\x8b\x08\x00 and so on")
    with pytest.raises(DatasetError, match="compressed, though its name does not say so"):
        load_dataset(str(path))
