"""Values that can be read in two ways: the file declares the reading, or the loader refuses."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pluralllm_fl.datasets import load_dataset
from pluralllm_fl.datasets.check import check, render
from pluralllm_fl.errors import DatasetError
from pluralllm_fl.preferences import PreferenceDataset

Rows = list[dict[str, Any]]
SCALE = [1, 2, 3, 4, 5]


def answers(dataset: PreferenceDataset) -> dict[tuple[str, str], dict[str, float]]:
    """(group, question) -> option -> share, options without a share left out."""
    return {
        (name, question.text): {
            o: pytest.approx(float(x)) for o, x in zip(question.options, shares, strict=True) if x
        }
        for name, group in dataset.groups.items()
        for question, shares in group.answers.items()
    }


def as_jsonl(path: Path, rows: Rows) -> Path:
    path = path.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def as_csv(path: Path, rows: Rows) -> Path:
    path = path.with_suffix(".csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v) if type(v) is list else v for k, v in row.items()})
    return path


def as_parquet(path: Path, rows: Rows) -> Path:
    """A column of mixed types becomes one of texts, as Parquet has one type a column."""
    columns: dict[str, list[Any]] = {key: [row.get(key) for row in rows] for key in rows[0]}
    for key, cells in columns.items():
        if len({type(x) for cell in cells for x in (cell if type(cell) is list else [cell])}) > 1:
            texts = [list(map(str, c)) if type(c) is list else str(c) for c in cells]
            columns[key] = texts
    path = path.with_suffix(".parquet")
    pq.write_table(pa.table(columns), path)
    return path


FORMATS = pytest.mark.parametrize("write", [as_jsonl, as_csv, as_parquet])
Write = Callable[[Path, Rows], Path]


def labelled(path: Path, table: dict[str, Any], labels: dict[str, Any]) -> Path:
    """A Parquet file whose metadata declares class labels, as the `datasets` library writes it."""
    kinds = {
        name: {"names": names, "_type": "ClassLabel"} if type(names) is list else names
        for name, names in labels.items()
    }
    metadata = {"huggingface": json.dumps({"info": {"features": kinds}})}
    pq.write_table(pa.table(table).replace_schema_metadata(metadata), path)
    return path


# Class labels.

TABLE = {"group": [0, 1], "question": ["Tea?"] * 2, "options": [["Yes", "No"]] * 2,
         "choice": [1, 0]}  # fmt: skip
TOLD = {("Hill", "Tea?"): {"Yes": 1.0}, ("Vale", "Tea?"): {"No": 1.0}}


def test_class_labels_of_parquet_are_read_by_their_names(tmp_path: Path) -> None:
    labels = {"group": ["Hill", "Vale"], "choice": ["No", "Yes"]}
    path = labelled(tmp_path / "rows.parquet", TABLE, labels)
    assert answers(load_dataset(str(path))) == TOLD
    assert check(path).ok


@pytest.mark.parametrize("kind", ["Sequence", "List"])
def test_lists_of_class_labels_are_read_by_their_names(tmp_path: Path, kind: str) -> None:
    table = {**TABLE, "group": ["Hill", "Vale"], "options": [[1, 0]] * 2, "choice": ["Yes", "No"]}
    inner = {"names": ["No", "Yes"], "_type": "ClassLabel"}
    labels = {"options": {"feature": inner, "_type": kind}}
    path = labelled(tmp_path / "rows.parquet", table, labels)
    assert answers(load_dataset(str(path))) == TOLD


def test_class_labels_of_the_hub_are_read_by_their_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from pluralllm_fl.datasets.collect import Collector
    from pluralllm_fl.datasets.hub import open_hub

    label = datasets.ClassLabel
    features = datasets.Features(
        {
            "group": label(names=["Hill", "Vale"]),
            "question": datasets.Value("string"),
            "options": datasets.Sequence(datasets.Value("string")),
            "choice": label(names=["No", "Yes"]),
        }
    )
    (tmp_path / "repo").mkdir()
    made = datasets.Dataset.from_dict(TABLE, features=features)
    made.to_parquet(str(tmp_path / "repo" / "train.parquet"))
    rows = open_hub(str(tmp_path / "repo"), cache_dir=tmp_path / "cache")
    collector = Collector("repo", rows.unit, raise_on_bad=True)
    collector.add_all(rows.rows)
    assert answers(collector.dataset("repo")) == TOLD


@pytest.mark.parametrize("number", [-1, 2])
def test_a_class_label_without_a_name_is_a_bad_row(tmp_path: Path, number: int) -> None:
    table = {**TABLE, "choice": [1, number]}
    labels = {"group": ["Hill", "Vale"], "choice": ["No", "Yes"]}
    path = labelled(tmp_path / "rows.parquet", table, labels)
    with pytest.raises(
        DatasetError, match=rf"row 2: a class label without a name; 'choice' is {number}"
    ):
        load_dataset(str(path))


def test_class_labels_that_cannot_be_known_are_refused(tmp_path: Path) -> None:
    path = labelled(tmp_path / "rows.parquet", TABLE, {"group": {"_type": "ClassLabel"}})
    with pytest.raises(DatasetError, match="row 1: a class label without a name"):
        load_dataset(str(path))
    table = pa.table(TABLE).replace_schema_metadata({"huggingface": "{damaged"})
    pq.write_table(table, path)
    with pytest.raises(DatasetError, match="'huggingface' cannot be read"):
        load_dataset(str(path))
    for harmless in ("{}", '{"info": null}', '{"info": {"features": null}}', "[]"):
        table = pa.table({**TABLE, "group": ["Hill", "Vale"], "choice": ["Yes", "No"]})
        pq.write_table(table.replace_schema_metadata({"huggingface": harmless}), path)
        assert answers(load_dataset(str(path))) == TOLD


def test_categoricals_and_dictionaries_are_read_by_their_texts(tmp_path: Path) -> None:
    columns: dict[str, Any] = {**TABLE, "group": pd.Categorical(["Hill", "Vale"])}
    columns["choice"] = pd.Categorical(["Yes", "No"], categories=["No", "Yes"], ordered=True)
    pd.DataFrame(columns).to_parquet(tmp_path / "pandas.parquet")
    table = {**TABLE, "group": pa.array(["Hill", "Vale"]).dictionary_encode()}
    table["choice"] = pa.DictionaryArray.from_arrays(pa.array([1, 0]), pa.array(["No", "Yes"]))
    pq.write_table(pa.table(table), tmp_path / "arrow.parquet")
    for name in ("pandas", "arrow"):
        assert answers(load_dataset(str(tmp_path / f"{name}.parquet"))) == TOLD


# Options that are numbers.


def rated(*choices: object, question: str = "Rate!", options: Any = SCALE) -> Rows:
    row = {"group": "g", "question": question, "options": options}
    return [{**row, "choice": choice} for choice in choices]


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


# Scores.


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


# Cells of GlobalOpinionQA.


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


# Texts that look alike, and keys that appear twice.

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


# Hints.


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


def test_aggregation_by_numbers_equals_a_naive_count(tmp_path: Path) -> None:
    choices = np.random.default_rng(0).integers(1, 6, size=200)
    dataset = load_dataset(str(as_jsonl(tmp_path / "rows", rated(*map(int, choices)))))
    (told,) = answers(dataset).values()
    assert told == {str(n): float(np.mean(choices == n)) for n in SCALE}
