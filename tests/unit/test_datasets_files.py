"""File formats and named sources: what is read from them, and what is refused."""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pluralllm_fl.datasets import load_dataset
from pluralllm_fl.datasets.files import open_rows
from pluralllm_fl.datasets.globalopinionqa import SEEN, UNSEEN
from pluralllm_fl.errors import DatasetError
from tests.unit.data_files import GOOD, load, only_answer, write_csv, write_jsonl


def test_malformed_json_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"group": \n\xff\xfe\n' + json.dumps(GOOD).encode())
    with pytest.raises(DatasetError, match=r"rows\.jsonl:1: malformed JSON"):
        load_dataset(str(path))
    skipped = load_dataset(str(path), on_bad_row="skip").skipped
    assert skipped == {"malformed JSON": 1, "not UTF-8 text": 1}


def test_long_unicode_and_right_to_left_content_is_fine(tmp_path: Path) -> None:
    rows = [
        {**GOOD, "question": "ü" * 5000},
        {**GOOD, "group": "שלום", "question": "هل توافق؟", "options": ["نعم", "لا"]},
        {**GOOD, "options": [f"Option {i}" for i in range(18)], "distribution": [1 / 18] * 18},
        {**GOOD, "question": "line\u2028separator\r\nand 🌍"},
    ]
    from_jsonl = load(tmp_path, rows)
    assert sum(map(len, from_jsonl.groups.values())) == 4
    from_csv = load_dataset(str(write_csv(tmp_path / "rows.csv", rows)))
    assert from_csv.fingerprint == from_jsonl.fingerprint


def test_all_formats_load_the_same(tmp_path: Path) -> None:
    rows = [
        {**GOOD, "ordinal": True, "topic": "drinks"},
        {**GOOD, "group": "South", "distribution": [0.5, 0.5], "ordinal": False},
    ]
    expected = load(tmp_path, rows).fingerprint
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for path in (write_csv(tmp_path / "rows.csv", rows), tmp_path / "rows.parquet"):
        dataset = load_dataset(str(path))
        assert dataset.fingerprint == expected
        assert dataset.questions[0].ordinal == (0.0, 1.0)


def test_csv_choices_python_lists_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        "\ufeffgroup,question,options,choice,weight\n"
        'N,"Two\nlines?","[\'Yes\', ""It\'s no""]",0,\n'
        'N,"Two\nlines?","[\'Yes\', ""It\'s no""]",It\'s no,3\n',
        "utf-8",
    )
    np.testing.assert_allclose(only_answer(load_dataset(str(path))), [0.25, 0.75])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("group,question,options,distribution\n", "holds no rows"),
        ("group,group\na,b\n", "'group' appears twice"),
        ("group,question\na\n", ":2: wrong number of cells"),
        ('group,question,options,choice\n"a"b,q,o,c\n', ":2: malformed CSV"),
        ('group,question,options,choice\na,"q\n\n', ":2: malformed CSV"),
        ("region,text\na,b\n", ":2: no question column"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(DatasetError, match=message):
        load_dataset(str(path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "rows.txt").write_text("x")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 this is none")
    (tmp_path / "array.json").write_text('[\n {"group": "g", "question": "Q"}\n]\n')
    as_lines = r"is one JSON array; write one .*: jq -c '\.\[\]' \S*array\.json"
    for source, message in {
        str(tmp_path / "empty.jsonl"): "holds no rows",
        str(tmp_path / "absent.jsonl"): "does not exist",
        str(tmp_path / "rows.txt"): "no known ending",
        str(tmp_path / "array.json"): as_lines,
        str(tmp_path / "broken.parquet"): "not a readable Parquet",
        str(tmp_path): "is a folder",
        "sinthetic": "Did you mean 'synthetic'",
        "x" * 5000: "no usable path",
    }.items():
        with pytest.raises(DatasetError, match=message):
            load_dataset(source)
    write_jsonl(tmp_path / "bad.jsonl", [{}, {**GOOD, "options": []}])
    with pytest.raises(DatasetError, match="no usable row"):
        load_dataset(str(tmp_path / "bad.jsonl"), on_bad_row="skip")


def test_opinionqa_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DatasetError, match=r"pewresearch\.org"):
        load_dataset("opinionqa")
    home = tmp_path / ".cache" / "pluralllm-fl"
    home.mkdir(parents=True)
    write_jsonl(home / "opinionqa.jsonl", [GOOD, {}])
    assert sum(load_dataset("opinionqa").skipped.values()) == 1


def official_csv(rows: list[tuple[str, dict[Any, Any], list[str]]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["question", "selections", "options", "source"])
    for question, selections, options in rows:
        text = f"defaultdict(<class 'list'>, {selections!r})"
        writer.writerow([question, text, repr(options), "made up"])
    return out.getvalue()


def test_official_global_opinions_format(tmp_path: Path) -> None:
    path = tmp_path / "any_name.csv"
    groups = {name: [0.5, 0.501] for name in (*SEEN, "China", "Côte d'Ivoire")}
    rows = [("Rain?", groups, ["Yes", "It's no"]), ("Sun?", {"China": [0.0, 0.0]}, ["a", "b"])]
    path.write_text(official_csv(rows), "utf-8")
    dataset = load_dataset(str(path))
    assert dataset.default_seen == SEEN
    assert dataset.default_unseen == ("China",)
    assert dataset.skipped == {"all probabilities are zero": 1}
    assert len(dataset.groups) == 10
    with pytest.raises(DatasetError, match=r":3: all probabilities are zero.*China"):
        load_dataset(str(path), on_bad_row="raise")
    path.write_text(official_csv([("Rain?", {"China": [1, 0]}, ["Yes", "No"])]), "utf-8")
    assert load_dataset(str(path)).default_seen == ()


def test_selections_are_never_executed(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.csv", tmp_path / "trace"
    evil = f"{{'China': __import__('pathlib').Path({str(trace)!r}).touch()}}"
    table = [["question", "selections", "options", "source"], ["q", evil, "['a', 'b']", ""]]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(table)
    with pytest.raises(DatasetError, match="selections cannot be read"):
        load_dataset(str(path))
    assert not trace.exists()


def test_hub_data_set_through_the_library(tmp_path: Path) -> None:
    """A folder takes the same way through `datasets` as a hub id."""
    from pluralllm_fl.datasets.collect import Collector
    from pluralllm_fl.datasets.hub import open_hub

    folder = tmp_path / "repo"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", [GOOD])
    write_jsonl(folder / "test.jsonl", [{**GOOD, "group": "South"}])
    rows = open_hub(str(folder), cache_dir=tmp_path / "cache")
    collector = Collector("repo", rows.unit, raise_on_bad=True)
    collector.add_all(rows.rows)
    assert list(collector.dataset("repo").groups) == ["North", "South"]


def test_hub_out_of_reach_names_remedies(tmp_path: Path) -> None:
    from pluralllm_fl.datasets.hub import open_hub

    with pytest.raises(DatasetError, match=r"download its CSV.*path"):
        open_hub(str(tmp_path / "no-such-repo"), cache_dir=tmp_path / "cache")


def test_real_global_opinions(shared_data: Path) -> None:
    dataset = load_dataset(str(shared_data / "global_opinions" / "global_opinions.csv"))
    # One of the 2,324 rows (one answer of 25,443) has no question text.
    assert len(dataset.questions) == 2323
    assert sum(map(len, dataset.groups.values())) == 25442
    assert dataset.skipped == {"no 'question'": 1}
    assert len(dataset.groups) == 72
    assert (dataset.default_seen, dataset.default_unseen) == (SEEN, UNSEEN)
    assert (len(SEEN), len(UNSEEN)) == (8, 6)
    assert len(dataset.groups["United States"]) == 1027
    assert len(dataset.groups["New Zealand"]) == 250


def test_real_opinion_qa(shared_data: Path) -> None:
    dataset = load_dataset(str(shared_data / "opinion_qa" / "atp_w41.jsonl"))
    assert (len(dataset.groups), len(dataset.questions)) == (55, 90)
    assert sum(map(len, dataset.groups.values())) == 4920


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet", "txt"])
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"answers.{ending}"
    os.mkfifo(path)
    with pytest.raises(DatasetError, match="is a pipe or a device, not a file"):
        open_rows(path)
