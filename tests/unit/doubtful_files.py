"""Rows in each file format, and the answers that a data set holds."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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


def rated(*choices: object, question: str = "Rate!", options: Any = SCALE) -> Rows:
    row = {"group": "g", "question": question, "options": options}
    return [{**row, "choice": choice} for choice in choices]
