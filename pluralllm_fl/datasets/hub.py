"""Data sets of the Hugging Face hub, through the `datasets` library."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pluralllm_fl.datasets.fields import BadRow, Row
from pluralllm_fl.datasets.files import RowFile, with_class_names
from pluralllm_fl.errors import DatasetError


def open_hub(hub_id: str, *, cache_dir: Path | None = None) -> RowFile:
    """Load all splits of a hub data set as one table (we split by question ourselves).

    Raises
    ------
    DatasetError
        When the hub cannot be reached or the data set cannot be loaded.
    """
    import datasets  # slow to import; files and synthetic data do without

    try:
        loaded = datasets.load_dataset(hub_id, cache_dir=str(cache_dir) if cache_dir else None)
    except Exception as error:  # the library raises many unrelated classes here
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DatasetError(
            f"The hub data set '{hub_id}' cannot be loaded: {cause[:300]}. Check the name and the "
            f"connection; or download its CSV, JSONL or Parquet file in a browser or on another "
            f"machine and pass that file's path as the data set."
        ) from error
    tables = [loaded[split] for split in sorted(loaded)]
    columns = frozenset(name for table in tables for name in table.column_names)
    features = tables[0].features.to_dict() if tables else None
    return RowFile("hub", columns, with_class_names(_rows(tables), features), unit="row ")


def _rows(tables: list[Any]) -> Iterator[tuple[int, Row | BadRow]]:
    row = 0
    for table in tables:
        for batch in table.with_format("arrow").iter(batch_size=4096):
            for values in batch.to_pylist():
                row += 1
                yield row, values
