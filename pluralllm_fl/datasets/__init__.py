"""Loaders: every source comes out as a PreferenceDataset."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from pluralllm_fl.datasets import globalopinionqa, opinionqa, synthetic_summaries
from pluralllm_fl.datasets.collect import Collector
from pluralllm_fl.datasets.files import FORMATS, RowFile, open_rows
from pluralllm_fl.datasets.hub import open_hub
from pluralllm_fl.datasets.rated import RATED, open_rated
from pluralllm_fl.datasets.synthetic import SyntheticSpec, generate
from pluralllm_fl.errors import DatasetError, nearest
from pluralllm_fl.preferences import PreferenceDataset, zeros_not_offered

OnBadRow = Literal["auto", "raise", "skip"]
Zeros = Literal["answers", "not-offered"]


class Generated(NamedTuple):
    """A source that is made up, and how many groups and respondents it has if nobody says."""

    generate: Callable[[SyntheticSpec], PreferenceDataset]
    groups: int
    respondents: int


GENERATED = {
    # Of seven groups four train: two cores work off a round in two turns.
    "synthetic": Generated(generate, 7, 400),
    synthetic_summaries.NAME: Generated(synthetic_summaries.generate, 8, 20),
}
SOURCES = (*GENERATED, "globalopinionqa", "opinionqa", *RATED)

__all__ = [
    "GENERATED",
    "SOURCES",
    "OnBadRow",
    "SyntheticSpec",
    "Zeros",
    "generate",
    "load_dataset",
    "local_path",
    "rated_source",
]


def load_dataset(
    source: str,
    *,
    on_bad_row: OnBadRow = "auto",
    zeros: Zeros = "answers",
    synthetic: SyntheticSpec | None = None,
) -> PreferenceDataset:
    """Load a named source, a hub data set or a local file.

    Parameters
    ----------
    source : str
        ``synthetic``, ``synthetic-summaries``, ``globalopinionqa``, ``opinionqa``; ``mqm:``,
        ``squality:``, ``prism:`` or ``helpsteer:`` with the path of a file in that form; a hub id
        (``owner/name``) or the path of a .jsonl, .csv or .parquet file. A file in the official
        GlobalOpinionQA columns loads like the named source.
    on_bad_row : {"auto", "raise", "skip"}
        What a bad row does: raise an error, or be left out and counted in `skipped`. ``auto``
        skips for the named public sources, whose originals hold some, and raises for others.
    zeros : {"answers", "not-offered"}
        What a share of exactly 0 is where the source does not state the options offered.
    synthetic : SyntheticSpec, optional
        Size and seed of generated data.

    Raises
    ------
    DatasetError
        When the source is unknown, cannot be had, or holds a bad row or no usable one.
    """
    if source in GENERATED:
        dataset = GENERATED[source].generate(synthetic or SyntheticSpec())
    else:
        dataset = _read(source, on_bad_row)
    return zeros_not_offered(dataset) if zeros == "not-offered" else dataset


def _read(source: str, on_bad_row: OnBadRow) -> PreferenceDataset:
    form, file = rated_source(source)
    if form:
        path = local_path(file)
        return _collect(open_rated(form, path), source, str(path), on_bad_row, public=True)
    public = source in ("globalopinionqa", "opinionqa")
    path = opinionqa.find_file() if source == "opinionqa" else local_path(source)
    if source == "globalopinionqa":
        place, rows = globalopinionqa.HUB_ID, open_hub(globalopinionqa.HUB_ID)
    elif path.is_file() or path.suffix.lower() in FORMATS:
        place, rows = str(path), open_rows(path)
    elif not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        place, rows = source, open_hub(source)
    elif path.exists():
        place, rows = str(path), open_rows(path)
    else:
        raise DatasetError(
            f"Unknown data set '{source}'.{nearest(source, SOURCES)} Give {', '.join(SOURCES)}, "
            f"a hub id (owner/name) or the path of an existing .jsonl, .csv or .parquet file."
        )
    return _collect(rows, source, place, on_bad_row, public)


def rated_source(source: str) -> tuple[str, str]:
    """Split ``mqm:PATH`` into the name of the form and the path; the name is "" for others."""
    name, _, path = source.partition(":")
    return (name, path) if name in RATED else ("", source)


def local_path(source: str) -> Path:
    """Return the path that a source would be, whether or not a file is there.

    Raises
    ------
    DatasetError
        If it cannot be one (too long, an unknown ``~user``, …).
    """
    try:
        path = Path(source).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # name too long, unknown ~user, …
        raise DatasetError(f"'{source[:80]}' is no usable path: {error}.") from error
    return path


def _collect(
    rows: RowFile, name: str, place: str, on_bad_row: OnBadRow, public: bool
) -> PreferenceDataset:
    skip = on_bad_row == "skip" or (on_bad_row == "auto" and (public or rows.is_global_opinions))
    collector = Collector(place, rows.unit, raise_on_bad=not skip)
    collector.add_all(rows.rows)
    dataset = collector.dataset(name)
    return globalopinionqa.with_paper_split(dataset) if rows.is_global_opinions else dataset
