"""Lines of metrics.jsonl, checked on reading: the file may have been changed by others."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pluralllm_fl.errors import ArtefactError
from pluralllm_fl.runs.record import number

Event = dict[str, Any]


def parse(line: bytes, place: str) -> Event:
    """Return the event of one line.

    Raises
    ------
    ArtefactError
        Unless it is an object with the name of an event, a possible round and a possible time.
    """
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        event = None
    if (
        not isinstance(event, dict)
        or not isinstance(event.get("event"), str)
        or type(event.get("round", 0)) is not int
        or number(event.get("time", 0.0)) is None
    ):
        raise ArtefactError(f"{place} is damaged: it holds no event. Restore it from a copy.")
    return event


def read(path: Path) -> Iterator[tuple[bytes, Event]]:
    """Yield the lines of an event log with their events, without a torn last line.

    Raises
    ------
    ArtefactError
        For any other line without an event.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for count, line in enumerate(lines, start=1):
        if line.endswith(b"\n"):
            yield line, parse(line, f"{path}:{count}")
