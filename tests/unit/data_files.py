"""Rows of the data contract, and files of them."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from pluralllm_fl.datasets import load_dataset
from pluralllm_fl.preferences import PreferenceDataset

GOOD: dict[str, Any] = {
    "group": "North",
    "question": "Tea or coffee?",
    "options": ["Tea", "Coffee"],
    "distribution": [0.25, 0.75],
}


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {k: json.dumps(v) if isinstance(v, list | bool) else v for k, v in row.items()}
            )
    return path


def load(tmp_path: Path, rows: list[Any], **kwargs: Any) -> PreferenceDataset:
    return load_dataset(str(write_jsonl(tmp_path / "rows.jsonl", rows)), **kwargs)


def only_answer(dataset: PreferenceDataset) -> np.ndarray:
    (group,) = dataset.groups.values()
    (answer,) = group.answers.values()
    return answer


def without(*keys: str, **changes: Any) -> dict[str, Any]:
    return {**{k: v for k, v in GOOD.items() if k not in keys}, **changes}
