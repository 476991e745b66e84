"""JSON lines, CSV and Parquet files -> numbered rows, malformed ones included."""

import csv
import io
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pluralllm_fl.datasets.collect import RowStream
from pluralllm_fl.datasets.fields import COLUMNS, BadRow, Row, from_json
from pluralllm_fl.errors import DatasetError

FORMATS = {
    ".jsonl": "JSON lines",
    ".json-lines": "JSON lines",
    ".ndjson": "JSON lines",
    ".json": "JSON lines",
    ".csv": "CSV",
    ".parquet": "Parquet",
}
_AS_CSV = "Save it as .csv, with commas between the cells and the list columns as JSON"
_OTHERS = {
    (".gz", ".bz2", ".xz", ".zst", ".zip"): "It is compressed. Unpack it first",
    (".tsv", ".tab", ".psv"): f"Its cells are not separated by commas. {_AS_CSV}",
    (".sav", ".zsav", ".por", ".dta", ".sas7bdat", ".xpt", ".rds", ".rda", ".rdata"): (
        f"It is a file of a statistics program. {_AS_CSV}, or with pandas as .parquet"
    ),
    (".xlsx", ".xls", ".ods"): f"It is a spreadsheet. {_AS_CSV}",
    (".arrow", ".feather", ".orc", ".avro", ".pkl", ".pickle", ".npz", ".h5", ".db", ".sqlite"): (
        "Write its table as .parquet, .jsonl or .csv"
    ),
}
_GZIP = b"\x1f\x8b"
_LARGEST_CELL = 2**24  # characters; one cell may hold the answers of hundreds of groups


@dataclass(frozen=True, slots=True)
class RowFile:
    """An opened file: its format, its columns where the format names them, its rows.

    Line numbers count from 1 as editors show them; `unit` is ``"row "`` where there are no
    lines.
    """

    format: str
    columns: frozenset[str]
    rows: RowStream
    unit: str = ""

    @property
    def is_global_opinions(self) -> bool:
        """Whether the columns are those of the official GlobalOpinionQA file."""
        return {"question", "selections", "options"} <= self.columns


def open_rows(path: Path) -> RowFile:
    """Open a data file by its ending.

    Raises
    ------
    DatasetError
        For a missing or unreadable file, an unknown ending, or a header that cannot work.
    """
    kind = FORMATS.get(path.suffix.lower())
    if not path.exists():
        raise DatasetError(f"{path} does not exist. Check the path (now in {Path.cwd()}).")
    if path.is_dir():
        raise DatasetError(
            f"{path} is a folder. Name one file in it ({', '.join(FORMATS)}); if they are parts of "
            f"one data set, join them to one file first."
        )
    if not path.is_file():
        raise DatasetError(f"{path} is a pipe or a device, not a file. Write its rows to a file.")
    if kind is None:
        raise DatasetError(f"{path} has no known ending. {_remedy(path)}.")
    try:
        if kind == "Parquet":
            return _parquet(path)
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}.") from error
    if content.startswith(_GZIP):
        raise DatasetError(f"{path} is compressed, though its name does not say so. Unpack it.")
    if kind == "JSON lines":
        if _is_array(content):
            raise DatasetError(
                f"{path} is one JSON array; write one object per line instead: "
                f"jq -c '.[]' {shlex.quote(str(path))} > {shlex.quote(f'{path.stem}.jsonl')}"
            )
        return RowFile(kind, frozenset(), json_lines(content))
    return csv_rows(content, str(path))


def _is_array(content: bytes) -> bool:
    if not content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        return False
    try:
        return isinstance(json.loads(content), list)
    except (ValueError, RecursionError):
        return False


def _remedy(path: Path) -> str:
    ending = path.suffix.lower()
    for endings, remedy in _OTHERS.items():
        if ending in endings:
            return remedy
    return f"If it holds JSON lines, CSV or Parquet, let its name say so: {', '.join(FORMATS)}"


def json_lines(content: bytes) -> Iterator[tuple[int, Row | BadRow]]:
    """Rows of JSON lines; blank lines are passed over."""
    for line, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if raw.strip():
            yield line, _json_row(raw)


def _json_row(raw: bytes) -> Row | BadRow:
    try:
        value = from_json(raw.decode())
    except BadRow as bad:
        return bad
    except UnicodeDecodeError:
        return BadRow("not UTF-8 text", "save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        return BadRow("malformed JSON", f"{str(error)[:120]}; write one JSON object per line")
    if not isinstance(value, dict):
        return BadRow("not a JSON object", 'write one {"group": …, "question": …} object per line')
    return value


def csv_rows(content: bytes, place: str) -> RowFile:
    """Rows of a CSV file with a header line.

    Raises
    ------
    DatasetError
        When the header is missing or names a column twice.
    """
    csv.field_size_limit(_LARGEST_CELL)
    # Undecodable bytes become lone surrogates, which the row check rejects where they matter.
    text = content.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise DatasetError(f"{place}:1: malformed CSV header: {error}.") from error
    if not any(header):
        raise DatasetError(
            f"{place} is empty. Begin with a header line: group,question,options,distribution."
        )
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise DatasetError(f"{place}:1: column '{twice[0]}' appears twice. Name each column once.")
    return RowFile("CSV", frozenset(header), _csv_body(reader, header))


def _csv_body(reader: Any, header: list[str]) -> Iterator[tuple[int, Row | BadRow]]:
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, BadRow("malformed CSV", f"{error}; quote cells and double inner quotes")
            continue
        if not cells:
            continue
        if len(cells) != len(header):
            yield (
                line,
                BadRow(
                    "wrong number of cells",
                    f"{len(cells)} cells under {len(header)} columns; quote cells with commas",
                ),
            )
            continue
        try:
            yield line, {name: _cell(cell) for name, cell in zip(header, cells, strict=True)}
        except BadRow as bad:
            yield line, bad


def _cell(cell: str) -> object:
    """Empty cells are absent; a conversation comes as JSON text."""
    if not cell:
        return None
    if cell.startswith("[{"):
        try:
            return from_json(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def _parquet(path: Path) -> RowFile:
    try:
        table = pq.ParquetFile(path)
        columns = frozenset(table.schema_arrow.names)
        features = _declared(table.schema_arrow.metadata or {})
    except pa.ArrowException as error:
        raise DatasetError(f"{path} is not a readable Parquet file: {error}.") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{path}: its metadata 'huggingface' cannot be read, and may hold the names of class "
            f"labels. Write the file again, or without that metadata and with texts for labels."
        ) from error
    return RowFile(
        "Parquet", columns, with_class_names(_parquet_body(table, path), features), "row "
    )


def table_rows(table: pa.Table) -> RowStream:
    """Rows of an Arrow table, with the names of class labels where `datasets` declared them."""
    rows = enumerate(table.to_pylist(), start=1)
    return with_class_names(rows, _declared(table.schema.metadata or {}))


def _declared(metadata: Mapping[bytes, bytes]) -> object:
    """Return the features that the `datasets` library keeps in a Parquet file."""
    info = json.loads(metadata.get(b"huggingface", b"{}"))
    return (info.get("info") or {}).get("features") if isinstance(info, dict) else None


def with_class_names(stream: RowStream, features: object) -> RowStream:
    """Put the names of class labels in the place of their numbers.

    Parameters
    ----------
    stream : iterable of (int, row)
    features : object
        Column -> feature as `datasets.Features.to_dict` gives it; None if nothing is declared.
    """
    declared = features if isinstance(features, dict) else {}
    labels = {name: declared[name] for name in COLUMNS if "ClassLabel" in str(declared.get(name))}
    if not labels:
        yield from stream
        return
    for line, row in stream:
        if isinstance(row, BadRow):
            yield line, row
            continue
        try:
            named = {key: _named(row.get(key), labels[key], key) for key in labels}
            yield line, {**row, **named}
        except BadRow as bad:
            yield line, bad


def _named(value: Any, feature: Any, column: str) -> Any:
    """Return the name of a class label, also in lists of them."""
    if isinstance(feature, list):  # the short form of a list feature
        feature = {"feature": feature[0]} if feature else {}
    if not isinstance(feature, dict):
        return value
    if isinstance(value, list):
        return [_named(item, feature.get("feature"), column) for item in value]
    if isinstance(value, dict):
        return {key: _named(item, feature.get(key), column) for key, item in value.items()}
    if feature.get("_type") != "ClassLabel" or type(value) is not int:
        return value
    names = feature.get("names")
    name = names[value] if isinstance(names, list) and 0 <= value < len(names) else None
    if not isinstance(name, str):
        raise BadRow(
            "a class label without a name",
            f"'{column}' is {value}, and the file's features name no such label; leave such rows "
            f"out, or write labels as text",
        )
    return name


def _parquet_body(table: Any, path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    row = 0
    try:
        for batch in table.iter_batches(batch_size=4096):
            for values in batch.to_pylist():
                row += 1
                yield row, values
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DatasetError(f"{path}: damaged after row {row}: {error}.") from error
