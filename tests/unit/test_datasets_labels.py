"""Class labels and categories, whose numbers stand for the names that the file declares."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pluralllm_fl.datasets import load_dataset
from pluralllm_fl.datasets.check import check
from pluralllm_fl.errors import DatasetError
from tests.unit.doubtful_files import answers


def labelled(path: Path, table: dict[str, Any], labels: dict[str, Any]) -> Path:
    """A Parquet file whose metadata declares class labels, as the `datasets` library writes it."""
    kinds = {
        name: {"names": names, "_type": "ClassLabel"} if type(names) is list else names
        for name, names in labels.items()
    }
    metadata = {"huggingface": json.dumps({"info": {"features": kinds}})}
    pq.write_table(pa.table(table).replace_schema_metadata(metadata), path)
    return path


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
