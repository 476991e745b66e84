"""WMT's MQM ratings of translations (google/wmt-mqm-human-evaluation): a line for each error.

A penalty is the sum of Google's weights (Freitag et al. 2021, arXiv 2104.14478, table 4): 5 for a
major error, 25 for a translation that is none, 1 for a minor error, 0.1 for minor punctuation.
"""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from pluralllm_fl.datasets.fields import BadRow
from pluralllm_fl.errors import DatasetError

_MARKS = re.compile("</?v>")  # around an error
_COLUMNS = ("system", "doc", "rater", "source", "target", "category", "severity")
_SEGMENTS = ("globalSegId", "seg_id")  # newer and older files
_Judged = tuple[str, str, str, str]  # rater, document, segment, system
# Rater, segment, source, translation, minus its penalty: one of a system for a rater.
Rated = tuple[str, tuple[str, ...], str, str, float]


def judged_translations(path: Path) -> Iterator[tuple[int, Rated | BadRow]]:
    """Yield every rater's score of every translation, with the line of its first error.

    Raises
    ------
    DatasetError
        If the file cannot be read or lacks a column.
    """
    lines = enumerate(_lines(path), start=1)
    header = next(lines, (1, ""))[1].split("\t")
    segment = next((name for name in _SEGMENTS if name in header), _SEGMENTS[0])
    if missing := [name for name in (*_COLUMNS, segment) if name not in header]:
        raise DatasetError(f"{path}:1: no column '{missing[0]}', as files of MQM ratings have.")
    place = [header.index(name) for name in (*_COLUMNS, segment)]
    penalties: dict[_Judged, float] = {}
    first: dict[_Judged, tuple[int, str, str]] = {}
    for line, text in lines:
        cells = text.split("\t")
        if len(cells) <= max(place):
            yield line, BadRow("wrong number of cells", f"{len(cells)} under {len(header)} columns")
            continue
        system, doc, rater, source, target, category, severity, number = (cells[i] for i in place)
        penalty = _penalty(category, severity)
        if isinstance(penalty, BadRow):
            yield line, penalty
            continue
        key = (rater, doc, number, system)
        first.setdefault(key, (line, _MARKS.sub("", source), _MARKS.sub("", target)))
        penalties[key] = penalties.get(key, 0.0) + penalty
    for key, (line, source, target) in first.items():
        yield line, (key[0], key[1:3], source, target, -penalties[key])


def _penalty(category: str, severity: str) -> float | BadRow:
    category = category.lower()
    match severity.lower():
        case "major":
            return 25.0 if category.startswith("non-translation") else 5.0
        case "minor":
            return 0.1 if category == "fluency/punctuation" else 1.0
        case "no-error" | "neutral":
            return 0.0
        case "hotw-test":
            return BadRow("an error planted to test the rater", "it says nothing of a translation")
    return BadRow("unknown severity", f"got '{severity[:40]}'; Major, Minor, Neutral or No-error")


def _lines(path: Path) -> Iterator[str]:
    """Lines of a .tsv, or of the first one in a .tar.gz."""
    try:
        if path.suffix.lower() in (".gz", ".tgz"):
            with tarfile.open(path) as archive:
                tables = [member for member in archive if member.name.endswith(".tsv")]
                table = archive.extractfile(tables[0]) if tables else None
                if table is None:
                    raise DatasetError(f"{path} holds no .tsv.")
                content = table.read()
        else:
            content = path.read_bytes()
        yield from content.decode("utf-8-sig").rstrip("\n").replace("\r\n", "\n").split("\n")
    except (OSError, tarfile.TarError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {str(error)[:120]}.") from error
